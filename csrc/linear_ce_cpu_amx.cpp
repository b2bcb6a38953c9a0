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

constexpr int64_t kSumsAt[] = {0, 16, 16 * kPanel, 16 * kPanel + 16};  // of tiles 0 to 3 in a block

// The block of 32 x 32 that a step begins; the one before, null at the first, is still in the tiles.
struct Change {
  float *before;
  const float *now;
  bool add;  // to what stands in it
};

// A macro, as the instructions take the tile's number as a literal.
#define DS_TRAIN_CHANGE_SUMS(tile)                                                  \
  if (kFirst) {                                                                     \
    if (change.before) _tile_stored(tile, change.before + kSumsAt[tile], 128);      \
    if (change.add)                                                                 \
      _tile_loadd(tile, change.now + kSumsAt[tile], 128);                           \
    else                                                                            \
      _tile_zero(tile);                                                             \
  }

// One step along k. A block's sums are in tiles 0 to 3; A's 32 rows go through 4 and 5, B's 32 columns
// through 6 and 7. At a block's first step the sums of the one before leave the tiles, one by one
// between the products: stored all together after its last step they cost 90 cycles a block.
template <bool kFirst>
inline void products(const Bf16 *a, int64_t row, const Bf16 *b, const Change &change) {
  _tile_stream_loadd(4, a, row * 2);
  _tile_loadd(6, b, 128);
  DS_TRAIN_CHANGE_SUMS(0)
  _tile_dpbf16ps(0, 4, 6);
  _tile_loadd(7, b + 32, 128);
  DS_TRAIN_CHANGE_SUMS(1)
  _tile_dpbf16ps(1, 4, 7);
  _tile_stream_loadd(5, a + 16 * row, row * 2);
  DS_TRAIN_CHANGE_SUMS(2)
  _tile_dpbf16ps(2, 5, 6);
  DS_TRAIN_CHANGE_SUMS(3)
  _tile_dpbf16ps(3, 5, 7);
}
#undef DS_TRAIN_CHANGE_SUMS

inline void store_sums(float *block) {
  _tile_stored(0, block + kSumsAt[0], 128);
  _tile_stored(1, block + kSumsAt[1], 128);
  _tile_stored(2, block + kSumsAt[2], 128);
  _tile_stored(3, block + kSumsAt[3], 128);
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
  float *before = nullptr;
  for (int64_t k0 = 0; k0 < k; k0 += depth) {
    const int64_t end = std::min(depth, k - k0);
    for (int64_t row = 0; row < m; row += 32) {
      const Bf16 *a0 = a + row / 32 * blocks.panel + k0 / 32 * blocks.step, *b0 = b + k0 * kPanel;
      const Change change{before, c + row * kPanel, accumulate || k0 > 0};
      before = c + row * kPanel;
      products<true>(a0, blocks.row, b0, change);
      for (int64_t i = 32; i <= end; i += 32) {  // beside a step's products, then the next step
        if (units) beside->some(*beside, units);
        next_b.fetch();
        next_c.fetch();
        a0 += blocks.step;
        if (i < end) products<false>(a0, blocks.row, b0 + i * kPanel, change);
      }
    }
  }
  store_sums(before);
}

}  // namespace ds_train
#endif
