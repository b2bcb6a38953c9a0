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

}  // namespace

void amx_begin() { _tile_loadconfig(&kConfig); }

void amx_end() { _tile_release(); }

void amx_gemm(int64_t m, int64_t k, const Bf16 *a, const Blocks &blocks, const Bf16 *b, float *c,
              bool accumulate, const Ahead &ahead, Beside *beside) {
  const int64_t steps = m / 32 * (k / 32);
  const int64_t b_lines = (ahead.b_bytes / kFetched + steps - 1) / steps;
  const int64_t c_lines = (ahead.c_bytes / kFetched + steps - 1) / steps;
  const int64_t spread = beside ? steps * beside->products : 1;
  const int64_t units = beside ? (beside->left + spread - 1) / spread : 0;
  const char *next_b = static_cast<const char *>(ahead.b);
  const char *next_c = static_cast<const char *>(ahead.c);
  const int64_t parts = (k + kDepth - 1) / kDepth;
  const int64_t depth = ((k / 32 + parts - 1) / parts) * 32;
  for (int64_t k0 = 0; k0 < k; k0 += depth) {
    const int64_t end = k - k0 < depth ? k - k0 : depth;
    for (int64_t row = 0; row < m; row += 32) {
      const Bf16 *a0 = a + row / 32 * blocks.panel + k0 / 32 * blocks.step;
      const Bf16 *a1 = a0 + 16 * blocks.row, *b0 = b + k0 * kPanel;
      float *c0 = c + row * kPanel, *c1 = c0 + 16 * kPanel;
      if (k0 == 0 && !accumulate) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
      } else {
        _tile_loadd(0, c0, 128);
        _tile_loadd(1, c0 + 16, 128);
        _tile_loadd(2, c1, 128);
        _tile_loadd(3, c1 + 16, 128);
      }
      for (int64_t i = 0; i < end; i += 32, a0 += blocks.step, a1 += blocks.step) {
        _tile_stream_loadd(4, a0, blocks.row * 2);
        _tile_loadd(6, b0 + i * kPanel, 128);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b0 + i * kPanel + 32, 128);
        _tile_dpbf16ps(1, 4, 7);
        _tile_stream_loadd(5, a1, blocks.row * 2);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        if (units) beside->some(*beside, units);
        for (int64_t line = 0; line < b_lines; ++line, next_b += kFetched)
          _mm_prefetch(next_b, _MM_HINT_T1);
        for (int64_t line = 0; line < c_lines; ++line, next_c += kFetched)
          _mm_prefetch(next_c, _MM_HINT_T1);
      }
      _tile_stored(0, c0, 128);
      _tile_stored(1, c0 + 16, 128);
      _tile_stored(2, c1, 128);
      _tile_stored(3, c1 + 16, 128);
    }
  }
}

}  // namespace ds_train
#endif
