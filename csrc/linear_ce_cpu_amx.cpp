// The matrix product of the fused linear kernel on AMX tiles.
// flags(x86_64): -mamx-tile -mamx-bf16
//
// Four 16x16 accumulators at a time. B's part of one panel (at most kDepth x 32) stays in the first
// cache while A streams by, marked as not to be kept; measured on Sapphire Rapids this runs 1.4
// times as fast as oneDNN's brgemm at these shapes. A tile that lies in one piece is loaded a tenth
// faster than one of rows far apart. Most of the time goes into waiting for the second cache
// (csrc/README.md), so other work is done in between.
#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>

#include "linear_ce.h"

namespace ds_train {
namespace {

constexpr int64_t kDepth = 576;
constexpr int64_t kFetched = 128;  // bytes; the second cache fetches lines in pairs

// Palette 1, eight tiles of 16 rows of 64 bytes. A constant in memory, as the compiler doesn't know
// that the instruction reads all of it.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
const TileConfig kConfig;

// Memory that is brought near while a product computes, some of it at each step.
struct Fetched {
  Fetched(const void *data, int64_t bytes, int64_t steps)
      : next(static_cast<const char *>(data)), lines((bytes / kFetched + steps - 1) / steps) {}
  void fetch() {
    for (int64_t line = 0; line < lines; ++line, next += kFetched) _mm_prefetch(next, _MM_HINT_T1);
  }
  const char *next;
  const int64_t lines;
};

// Sums of a block of 32 x 32 are in tiles 0 to 3; A's 32 rows go through 4 and 5, B's 32 columns
// through 6 and 7.
inline void products(const Bf16 *a0, const Bf16 *a1, int64_t row_bytes, const Bf16 *b) {
  _tile_stream_loadd(4, a0, row_bytes);
  _tile_loadd(6, b, 128);
  _tile_dpbf16ps(0, 4, 6);
  _tile_loadd(7, b + 32, 128);
  _tile_dpbf16ps(1, 4, 7);
  _tile_stream_loadd(5, a1, row_bytes);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

// A macro, as the instructions take the tile's number as a literal.
#define DS_TRAIN_CHANGE_SUMS(tile, at)                 \
  if (before) _tile_stored(tile, before + (at), 128);  \
  if (add)                                             \
    _tile_loadd(tile, block + (at), 128);              \
  else                                                 \
    _tile_zero(tile)

// The same for the first step of a block. The sums of the one before leave the tiles here, one by one
// between the products: stored all together after the last step they cost 90 cycles a block.
inline void first_products(const Bf16 *a0, const Bf16 *a1, int64_t row_bytes, const Bf16 *b,
                           float *before, const float *block, bool add) {
  _tile_stream_loadd(4, a0, row_bytes);
  _tile_loadd(6, b, 128);
  DS_TRAIN_CHANGE_SUMS(0, 0);
  _tile_dpbf16ps(0, 4, 6);
  _tile_loadd(7, b + 32, 128);
  DS_TRAIN_CHANGE_SUMS(1, 16);
  _tile_dpbf16ps(1, 4, 7);
  _tile_stream_loadd(5, a1, row_bytes);
  DS_TRAIN_CHANGE_SUMS(2, 16 * kPanel);
  _tile_dpbf16ps(2, 5, 6);
  DS_TRAIN_CHANGE_SUMS(3, 16 * kPanel + 16);
  _tile_dpbf16ps(3, 5, 7);
}
#undef DS_TRAIN_CHANGE_SUMS

inline void store_sums(float *c) {
  _tile_stored(0, c, 128);
  _tile_stored(1, c + 16, 128);
  _tile_stored(2, c + 16 * kPanel, 128);
  _tile_stored(3, c + 16 * kPanel + 16, 128);
}

}  // namespace

void amx_begin() { _tile_loadconfig(&kConfig); }

void amx_end() { _tile_release(); }

void amx_gemm(int64_t m, int64_t k, const Bf16 *a, const Blocks &blocks, const Bf16 *b, float *c,
              bool accumulate, const Ahead &ahead, Beside *beside) {
  const int64_t steps = m / 32 * (k / 32);
  Fetched next_b(ahead.b, ahead.b_bytes, steps), next_c(ahead.c, ahead.c_bytes, steps);
  const int64_t spread = beside ? steps * beside->products : 1;
  const int64_t units = beside ? (beside->left + spread - 1) / spread : 0;
  const int64_t parts = (k + kDepth - 1) / kDepth;
  const int64_t depth = ((k / 32 + parts - 1) / parts) * 32;
  float *before = nullptr;  // the block whose sums are still in the tiles
  for (int64_t k0 = 0; k0 < k; k0 += depth) {
    const int64_t end = std::min(depth, k - k0);
    const bool add = accumulate || k0 > 0;
    for (int64_t row = 0; row < m; row += 32) {
      const Bf16 *a0 = a + row / 32 * blocks.panel + k0 / 32 * blocks.step, *b0 = b + k0 * kPanel;
      float *block = c + row * kPanel;
      first_products(a0, a0 + 16 * blocks.row, blocks.row * 2, b0, before, block, add);
      before = block;
      for (int64_t i = 32; i <= end; i += 32) {  // beside a step's products, then the next step
        if (units) beside->some(*beside, units);
        next_b.fetch();
        next_c.fetch();
        a0 += blocks.step;
        if (i < end) products(a0, a0 + 16 * blocks.row, blocks.row * 2, b0 + i * kPanel);
      }
    }
  }
  if (before) store_sums(before);
}

}  // namespace ds_train
#endif
