// How the fused linear kernel packs, scales and stores in bf16, with AVX-512.
// flags(x86_64): -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512bf16 -mfma
#if defined(__x86_64__)
#include "linear_ce_avx512.h"

namespace ds_train {

void scale_columns(Bf16 *x, const Blocks &blocks, int64_t columns, int64_t tokens,
                   const float *factor) {
  for (int64_t j = 0; j < columns; ++j)
    for (int64_t t = 0; t < tokens; t += 16) {
      Bf16 *p = x + j / 32 * blocks.panel + j % 32 * blocks.row + t / 32 * blocks.step + t % 32;
      vec::to_bf16(p, vec::from_bf16(p) * vec::load(factor + t));
    }
}

void pack_blocks(const Bf16 *x, int64_t stride, int64_t rows, int64_t dims, const Blocks &blocks,
                 Bf16 *out) {
  for (int64_t i = 0; i < (rows + 31) / 32 * 32; ++i) {
    Bf16 *line = out + i / 32 * blocks.panel + i % 32 * blocks.row;
    for (int64_t d = 0; d < dims; d += 32, line += blocks.step) {
      const int64_t left = i < rows ? dims - d : 0;
      const __mmask32 mask = left >= 32 ? 0xffffffff : (1u << left) - 1;
      _mm512_storeu_si512(line, _mm512_maskz_loadu_epi16(mask, left ? x + i * stride + d : x));
    }
  }
}

namespace {

constexpr int64_t kPage = 4096;  // bytes; beyond it a processor doesn't foresee what is read

// Two rows of at most 32 dims: side by side to `out`, pairs of their elements to `pair`.
inline __attribute__((always_inline)) void pack_two_rows(const Bf16 *x, int64_t stride,
                                                         int64_t rows, __mmask32 dims,
                                                         int64_t out_stride, Bf16 *out,
                                                         Bf16 *pair) {
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,
                                       39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16)), zero = _mm512_setzero_si512();
  const __m512i first = rows > 0 ? _mm512_maskz_loadu_epi16(dims, x) : zero;
  const __m512i second = rows > 1 ? _mm512_maskz_loadu_epi16(dims, x + stride) : zero;
  _mm_prefetch((const char *)x + kPage, _MM_HINT_T1);
  _mm_prefetch((const char *)(x + stride) + kPage, _MM_HINT_T1);
  _mm512_storeu_si512(out, first);
  _mm512_storeu_si512(out + out_stride, second);
  _mm512_storeu_si512(pair, _mm512_permutex2var_epi16(first, low, second));
  _mm512_storeu_si512(pair + kPanel, _mm512_permutex2var_epi16(first, high, second));
}

constexpr int64_t kDimsTogether = 1024;  // what is written then stays in the first cache

}  // namespace

void pack_weight(const Bf16 *x, int64_t stride, int64_t rows, int64_t dims, const Blocks &blocks,
                 Bf16 *out, Bf16 *pairs, int64_t panels) {
  for (int64_t block = 0; block < rows; block += kPanel)
    for (int64_t begin = 0; begin < dims; begin += kDimsTogether) {
      const int64_t end = dims - begin < kDimsTogether ? dims : begin + kDimsTogether;
      for (int64_t i = block; i < block + kPanel; i += 2)
        for (int64_t d = begin; d < end; d += kPanel)
          pack_two_rows(x + (i < rows ? i * stride + d : 0), stride, rows - i,
                        end - d >= 32 ? 0xffffffff : (1u << (end - d)) - 1, blocks.row,
                        out + i / 32 * blocks.panel + i % 32 * blocks.row + d / 32 * blocks.step,
                        pairs + d / kPanel * panels + i * kPanel);
    }
}

void add_up_lanes(const float *column_sums, int64_t columns, float *out) {
  for (int64_t j = 0; j < columns; ++j) out[j] = vec::sum(vec::load(column_sums + j * kSumLanes));
}

void pack_tokens(const Bf16 *x, int64_t stride, int64_t tokens, int64_t dims, Bf16 *out) {
  for (int64_t d = 0; d < dims; d += 32, out += 32 * kPanel) {
    const __mmask32 mask = dims - d >= 32 ? 0xffffffff : (1u << (dims - d)) - 1;
    for (int64_t t = 0; t < kPanel; t += 16) {
      __m512i pairs[16];  // of a token, then of two dims
      for (int64_t i = 0; i < 16; ++i) {
        const bool inside = t + i < tokens;
        pairs[i] = _mm512_maskz_loadu_epi16(inside ? mask : 0, inside ? x + (t + i) * stride + d : x);
      }
      transpose(pairs);
      for (int64_t k = 0; k < 16; ++k) _mm512_storeu_si512(out + (k * kPanel + t) * 2, pairs[k]);
    }
  }
}

void pack_rows(const Bf16 *x, int64_t stride, int64_t rows, int64_t padded_rows, int64_t dims,
               const float *coefficient, Bf16 *out) {
  const __mmask16 low = dims >= 16 ? 0xffff : (1u << dims) - 1;
  const __mmask16 high = dims >= 32 ? 0xffff : dims > 16 ? (1u << (dims - 16)) - 1 : 0;
  for (int64_t i = 0; i < padded_rows; i += 2, out += 2 * kPanel) {
    for (int half = 0; half < 2; ++half) {
      __m512i row[2];
      for (int r = 0; r < 2; ++r) {
        const __mmask16 mask = i + r >= rows ? 0 : half ? high : low;
        const Bf16 *p = mask ? x + (i + r) * stride + 16 * half : x;
        const __m512i bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p));
        row[r] = _mm512_slli_epi32(bits, 16);
        if (coefficient && mask)
          row[r] = (__m512i)((F)row[r] * coefficient[i + r]);
      }
      __m512i pair = coefficient
                         ? interleave(to_bf16((F)row[0], (F)row[1]))
                         : _mm512_or_si512(_mm512_srli_epi32(row[0], 16), row[1]);
      _mm512_storeu_si512(out + half * kPanel, pair);
    }
  }
}

void add_scaled(float *out, const Bf16 *x, float factor, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 mask = count - i >= 16 ? 0xffff : (1u << (count - i)) - 1;
    const __m512i bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, x + i));
    const F v = (F)_mm512_slli_epi32(bits, 16) * factor + (F)_mm512_maskz_loadu_ps(mask, out + i);
    _mm512_mask_storeu_ps(out + i, mask, (__m512)v);
  }
}

void store_bf16(Bf16 *out, const float *x, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 mask = count - i >= 16 ? 0xffff : (1u << (count - i)) - 1;
    const __m512 v = _mm512_maskz_loadu_ps(mask, x + i);
    _mm256_mask_storeu_epi16(out + i, mask, (__m256i)_mm512_cvtneps_pbh(v));
  }
}

namespace {

void store_columns(Beside &beside, int64_t columns) {
  auto &work = static_cast<PanelStores &>(beside);
  const int64_t stride = work.stride, dims = work.dims;
  const bool lines =
      dims % kPanel == 0 && stride % kPanel == 0 && (uintptr_t)work.out % 64 == 0;
  columns = columns < work.left ? columns : work.left;
  work.left -= columns;
  for (int64_t j = 0; j < columns; ++j, work.out += stride, work.c += kPanel)
    for (int64_t d = 0; d < dims; d += kPanel) {
      const float *line = work.c + d * kSlab;
      Bf16 *out = work.out + d;
      if (lines)
        _mm512_stream_si512((__m512i *)out, to_bf16(vec::load(line), vec::load(line + 16)));
      else
        store_bf16(out, line, dims - d < kPanel ? dims - d : kPanel);
    }
}

}  // namespace

void begin_stores(PanelStores &work, Bf16 *out, int64_t stride, const float *c, int64_t columns,
                  int64_t dims) {
  work.left = columns;
  work.some = store_columns;
  work.out = out;
  work.stride = stride;
  work.c = c;
  work.dims = dims;
}

void fence_stores() { _mm_sfence(); }

void scale_bf16(Bf16 *x, float factor, int64_t count) {
  for (int64_t i = 0; i < count; i += 16)
    vec::to_bf16(x + i, vec::from_bf16(x + i) * factor);
}

}  // namespace ds_train
#endif
