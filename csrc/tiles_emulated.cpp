// The matrix product on AMX tiles on any x86-64 processor, for tests only: linear_ce_cpu_amx.cpp as it
// stands, with its tile instructions replaced by functions that do what Intel's manual says.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

struct Config {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
} config;
unsigned char tiles[8][16][64];
bool configured = false;

void load_config(const void *from) {
  std::memcpy(&config, from, sizeof config);
  configured = config.palette == 1;
}

void load(int tile, const void *from, int64_t stride) {
  for (int row = 0; row < config.rows[tile]; ++row)
    std::memcpy(tiles[tile][row], static_cast<const char *>(from) + row * stride,
                config.row_bytes[tile]);
}

void store(int tile, void *to, int64_t stride) {
  for (int row = 0; row < config.rows[tile]; ++row)
    std::memcpy(static_cast<char *>(to) + row * stride, tiles[tile][row], config.row_bytes[tile]);
}

float element(const unsigned char *row, int index) {  // of bf16
  uint16_t high;
  std::memcpy(&high, row + 2 * index, 2);
  const uint32_t bits = static_cast<uint32_t>(high) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// c [rows, columns] += a [rows, pairs] x b [pairs, columns], of pairs of bf16.
void multiply(int c, int a, int b) {
  for (int row = 0; row < config.rows[c]; ++row)
    for (int pair = 0; pair < config.row_bytes[a] / 4; ++pair)
      for (int column = 0; column < config.row_bytes[c] / 4; ++column) {
        float sum;
        std::memcpy(&sum, tiles[c][row] + 4 * column, 4);
        for (int i = 0; i < 2; ++i)
          sum += element(tiles[a][row], 2 * pair + i) * element(tiles[b][pair], 2 * column + i);
        std::memcpy(tiles[c][row] + 4 * column, &sum, 4);
      }
}

}  // namespace

#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig load_config
#define _tile_release() configured = false
#define _tile_loadd load
#define _tile_stream_loadd load
#define _tile_stored store
#define _tile_zero(tile) std::memset(tiles[tile], 0, sizeof tiles[tile])
#define _tile_dpbf16ps multiply
#include "linear_ce_cpu_amx.cpp"

namespace {

struct Counted : ds_train::Beside {
  int64_t calls = 0;
};

void count(ds_train::Beside &beside, int64_t units) {
  auto &counted = static_cast<Counted &>(beside);
  counted.left -= units < counted.left ? units : counted.left;
  ++counted.calls;
}

}  // namespace

// amx_gemm with `units` of work beside it, spread over `products`; how much of it was left undone,
// -1 if the tiles were not configured.
extern "C" int64_t ds_train_tiles_emulated(int64_t m, int64_t k, const uint16_t *a, int64_t a_panel,
                                           const uint16_t *b, float *c, int accumulate,
                                           int64_t units, int64_t products) {
  ds_train::amx_begin();
  if (!configured) return -1;
  Counted beside;
  beside.left = units;
  beside.products = products;
  beside.some = count;
  ds_train::amx_gemm(m, k, a, {a_panel}, b, c, accumulate, {}, units ? &beside : nullptr);
  ds_train::amx_end();
  return beside.left;
}
#endif
