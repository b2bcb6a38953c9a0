// The matrix products of the fused linear kernel on vectors of 512 bits, where there are no tiles.
// flags(x86_64): -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512bf16 -mfma
//
// Eight rows of A by the 32 columns of B at a time, in 16 sums. Intel's processors multiply pairs of
// bf16 at less than half the rate at which they multiply floats (measured on Emerald Rapids: 63 and
// 147 GFLOP/s a core), so fma_gemm turns both into floats, B once for all rows. AMD's multiply pairs
// at twice the rate (dot_gemm).
#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "linear_ce.h"
#include "vec.h"

namespace ds_train {
namespace {

using vec::F;

constexpr int64_t kRows = 8;
constexpr int64_t kDepth = 192;     // floats of B that stay in the first cache: 24 KiB
constexpr int64_t kDotDepth = 384;  // pairs: likewise

// Of 32 neighbouring elements along k the even ones come first, then the odd ones: no matter, as A
// and B have the same order.
inline F even(__m512i pairs) { return (F)_mm512_slli_epi32(pairs, 16); }
inline F odd(__m512i pairs) {
  return (F)_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000)));
}

void widen_columns(const Bf16 *b, int64_t depth, float (*out)[kPanel]) {
  for (int64_t k = 0; k < depth; k += 2, b += 2 * kPanel)
    for (int half = 0; half < 2; ++half) {
      const __m512i pairs = _mm512_loadu_si512(b + half * kPanel);
      const int64_t at = k / 32 * 32 + k % 32 / 2;
      vec::store(out[at] + 16 * half, even(pairs));
      vec::store(out[at + 16] + 16 * half, odd(pairs));
    }
}

void widen_rows(const Bf16 *a, const Blocks &blocks, int64_t depth, float (*out)[kDepth]) {
  for (int64_t k = 0; k < depth; k += 32, a += blocks.step)
    for (int64_t i = 0; i < kRows; ++i) {
      const __m512i pairs = _mm512_loadu_si512(a + i * blocks.row);
      vec::store(out[i] + k, even(pairs));
      vec::store(out[i] + k + 16, odd(pairs));
    }
}

struct Sums {
  F of[kRows][2];

  void begin(const float *c, bool add) {
    for (int64_t i = 0; i < kRows; ++i)
      for (int64_t half = 0; half < 2; ++half)
        of[i][half] = add ? vec::load(c + i * kPanel + 16 * half) : F{};
  }
  void end(float *c) const {
    for (int64_t i = 0; i < kRows; ++i)
      for (int64_t half = 0; half < 2; ++half) vec::store(c + i * kPanel + 16 * half, of[i][half]);
  }
};

// Rows [m, k] by k-steps of at most `deepest`: prepare(b, depth) once a step, then
// add(a, depth, sums) for each eight rows.
template <class Prepare, class Add>
inline void product(int64_t m, int64_t k, const Bf16 *a, const Blocks &blocks, const Bf16 *b,
                    float *c, bool accumulate, int64_t deepest, Prepare prepare, Add add) {
  for (int64_t k0 = 0; k0 < k; k0 += deepest) {
    const int64_t depth = std::min(deepest, k - k0);
    prepare(b + k0 * kPanel, depth);
    for (int64_t row = 0; row < m; row += kRows) {
      Sums sums;
      sums.begin(c + row * kPanel, accumulate || k0 > 0);
      add(a + row / 32 * blocks.panel + row % 32 * blocks.row + k0 / 32 * blocks.step, depth, sums);
      sums.end(c + row * kPanel);
    }
  }
}

}  // namespace

void fma_gemm(int64_t m, int64_t k, const Bf16 *a, const Blocks &blocks, const Bf16 *b, float *c,
              bool accumulate, const Ahead &, Beside *) {
  alignas(64) float columns[kDepth][kPanel], rows[kRows][kDepth];
  const auto prepare = [&](const Bf16 *b0, int64_t depth) { widen_columns(b0, depth, columns); };
  product(m, k, a, blocks, b, c, accumulate, kDepth, prepare,
          [&](const Bf16 *a0, int64_t depth, Sums &sums) __attribute__((always_inline)) {
            widen_rows(a0, blocks, depth, rows);
            for (int64_t i = 0; i < depth; ++i) {
              const F low = vec::load(columns[i]), high = vec::load(columns[i] + 16);
#pragma GCC unroll 8
              for (int64_t r = 0; r < kRows; ++r) {
                sums.of[r][0] += rows[r][i] * low;
                sums.of[r][1] += rows[r][i] * high;
              }
            }
          });
}

void dot_gemm(int64_t m, int64_t k, const Bf16 *a, const Blocks &blocks, const Bf16 *b, float *c,
              bool accumulate, const Ahead &, Beside *) {
  const Bf16 *b0 = nullptr;
  product(m, k, a, blocks, b, c, accumulate, kDotDepth,
          [&](const Bf16 *columns, int64_t) { b0 = columns; },
          [&](const Bf16 *a0, int64_t depth, Sums &sums) __attribute__((always_inline)) {
            for (int64_t i = 0; i < depth; i += 2) {
              const Bf16 *pairs = a0 + i / 32 * blocks.step + i % 32;
              const __m512bh low = (__m512bh)_mm512_loadu_si512(b0 + i * kPanel);
              const __m512bh high = (__m512bh)_mm512_loadu_si512(b0 + (i + 1) * kPanel);
#pragma GCC unroll 8
              for (int64_t r = 0; r < kRows; ++r) {
                int pair;
                std::memcpy(&pair, pairs + r * blocks.row, sizeof pair);
                const __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
                sums.of[r][0] = (F)_mm512_dpbf16_ps((__m512)sums.of[r][0], both, low);
                sums.of[r][1] = (F)_mm512_dpbf16_ps((__m512)sums.of[r][1], both, high);
              }
            }
          });
}

}  // namespace ds_train
#endif
