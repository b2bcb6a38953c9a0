// What the fused linear kernel does to a tile of logits between the matrix products, and its
// packing, with AVX-512.
// flags(x86_64): -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512bf16 -mfma
#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the deliberately undefined operand inside its own intrinsics for a mistake of ours.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#include <math.h>

#include "linear_ce.h"
#include "row_stats.h"
#include "vec.h"

namespace ds_train {
namespace {

using vec::F;
constexpr float kFarAbove = 32;      // how far logits may lie above the reference: exp(32) is harmless
constexpr float kFarBelow = -1e30f;  // for z - reference where z is -inf, so that its product is 0

// Two columns of 16 tokens as bf16: the first in the lower half.
inline __m512i to_bf16(F first, F second) {
  return (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
}

inline void store_columns(const TileOutput &out, int64_t column, int64_t token, __m512i pair) {
  Bf16 *p = out.by_column + column * out.column_stride + token;
  _mm256_storeu_si256((__m256i *)p, _mm512_castsi512_si256(pair));
  _mm256_storeu_si256((__m256i *)(p + out.column_stride), _mm512_extracti64x4_epi64(pair, 1));
}

// a's and b's 16 tokens side by side: lane t = (a_t, b_t).
inline __m512i interleave(__m512i pair) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                         23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, pair);
}

// 16 x 16 transpose of 32-bit lanes.
inline __attribute__((always_inline)) void transpose(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// Turns 32 columns x 16 tokens of f(column) into bf16 and writes them both ways.
template <class Value>
inline __attribute__((always_inline)) void write_block(const TileOutput &out, int64_t column,
                                                       int64_t token, Value value) {
  __m512i pairs[16];
  for (int i = 0; i < 16; ++i) {
    const F first = value(column + 2 * i), second = value(column + 2 * i + 1);
    const __m512i pair = to_bf16(first, second);
    if (out.by_column) store_columns(out, column + 2 * i, token, pair);
    if (out.by_token) pairs[i] = interleave(pair);
  }
  if (!out.by_token) return;
  transpose(pairs);
  for (int i = 0; i < 16; ++i)
    _mm512_storeu_si512(out.by_token + (token + i) * out.token_stride + column, pairs[i]);
}

inline F cap_slope(F z, float softcap) {
  const float inverse = 1.0f / softcap;
  const F bounded = z < -softcap ? vec::set(-softcap) : z;
  return 1.0f - (bounded * inverse) * (bounded * inverse);
}

template <bool kCap>
void exponentiate_half(const Tile &tile, int64_t token, F reference, float *sum, float *shifted,
                       const TileOutput &out) {
  F total{}, total2{}, weighted{};
  for (int64_t column = 0; column < tile.padded; column += 32) {
    if (shifted) {
      for (int64_t j = column; j < column + 32; ++j) {
        const F t = vec::load(tile.z + j * kPanel + token) - reference;
        weighted += vec::exp(t) * (t < kFarBelow ? vec::set(kFarBelow) : t);
      }
    }
    write_block(out, column, token, [&](int64_t j) __attribute__((always_inline)) {
      const F z = vec::load(tile.z + j * kPanel + token);
      const F e = vec::exp(z - reference);
      if (j & 1) total += e; else total2 += e;
      return kCap ? e * cap_slope(z, tile.softcap) : e;
    });
  }
  vec::store(sum, total + total2);
  if (shifted) vec::store(shifted, weighted);
}

}  // namespace

void transform_tile(const Tile &tile, float *max, float *logit_sum) {
  const bool plain = !tile.bias && tile.scale == 1.0f && tile.softcap == 0;
  const float inverse_cap = tile.softcap > 0 ? 1.0f / tile.softcap : 0;
  for (int64_t token = 0; token < kPanel; token += 16) {
    float *z = tile.z + token;
    if (!plain)
      for (int64_t j = 0; j < tile.columns; ++j) {
        F v = (vec::load(z + j * kPanel) + (tile.bias ? tile.bias[j] : 0)) * tile.scale;
        if (tile.softcap > 0) v = tile.softcap * vec::tanh(v * inverse_cap);
        vec::store(z + j * kPanel, v);
      }
    for (int64_t j = tile.columns; j < tile.padded; ++j)
      vec::store(z + j * kPanel, vec::set(-INFINITY));
    F top[4] = {vec::set(kLowest), vec::set(kLowest), vec::set(kLowest), vec::set(kLowest)};
    for (int64_t j = 0; j < tile.padded; j += 4)
      for (int i = 0; i < 4; ++i) top[i] = vec::max_keep(vec::load(z + (j + i) * kPanel), top[i]);
    vec::store(max + token, vec::max_keep(vec::max_keep(top[0], top[1]),
                                          vec::max_keep(top[2], top[3])));
    if (!logit_sum) continue;
    F total{};
    for (int64_t j = 0; j < tile.columns; ++j) {
      const F v = vec::load(z + j * kPanel);
      total += v == -INFINITY ? F{} : v * (tile.class_weight ? tile.class_weight[j] : 1.0f);
    }
    vec::store(logit_sum + token, total);
  }
}

void exponentiate_tile(const Tile &tile, const float *max, float *reference, float *sum,
                       float *shifted, const TileOutput &out) {
  for (int64_t token = 0; token < kPanel; token += 16) {
    F r = vec::load(reference + token), top = vec::load(max + token);
    r = top > r + kFarAbove ? top : r;
    vec::store(reference + token, r);
    float *weighted = shifted ? shifted + token : nullptr;
    if (tile.softcap > 0)
      exponentiate_half<true>(tile, token, r, sum + token, weighted, out);
    else
      exponentiate_half<false>(tile, token, r, sum + token, weighted, out);
  }
}

void gradient_tile(const Tile &tile, const TokenGradients &g, int64_t first_token,
                   const TileOutput &out) {
  for (int64_t token = 0; token < kPanel; token += 16) {
    const auto of = [&](const float *p) { return vec::load(p + first_token + token); };
    const F max = of(g.max), log_sum = of(g.log_sum), h = of(g.entropy_value);
    const F probability = of(g.probability), logit_sum = of(g.logit_sum), entropy = of(g.entropy);
    for (int64_t column = 0; column < tile.padded; column += 32)
      write_block(out, column, token, [&](int64_t j) __attribute__((always_inline)) {
        const F z = vec::load(tile.z + j * kPanel + token);
        const F logp = (z - max) - log_sum;
        const F p = vec::exp(logp);
        F d = p * (probability - entropy * ((logp < kFarBelow ? vec::set(kFarBelow) : logp) + h));
        const float c = tile.class_weight && j < tile.columns ? tile.class_weight[j] : 1.0f;
        d += z == -INFINITY ? F{} : logit_sum * c;
        if (tile.softcap > 0) d *= cap_slope(z, tile.softcap);
        return d * tile.scale;
      });
  }
}

void scale_columns(Bf16 *x, int64_t columns, int64_t stride, int64_t tokens, const float *factor) {
  for (int64_t j = 0; j < columns; ++j)
    for (int64_t t = 0; t < tokens; t += 16)
      vec::to_bf16(x + j * stride + t, vec::from_bf16(x + j * stride + t) * vec::load(factor + t));
}

void sum_columns(const Bf16 *x, int64_t columns, int64_t stride, int64_t tokens,
                 const float *coefficient, float *out) {
  for (int64_t j = 0; j < columns; ++j) {
    F total{};
    for (int64_t t = 0; t < tokens; t += 16)
      total += vec::from_bf16(x + j * stride + t) *
               (coefficient ? vec::load(coefficient + t) : vec::set(1.0f));
    out[j] = vec::sum(total);
  }
}

void pack_tokens(const Bf16 *x, int64_t stride, int64_t tokens, int64_t dims, Bf16 *out) {
  const int64_t padded = (dims + 31) / 32 * 32;
  for (int64_t t = 0; t < kPanel; ++t)
    for (int64_t k = 0; k < padded; ++k) {
      const bool inside = t < tokens && k < dims;
      out[(k / 2 * kPanel + t) * 2 + k % 2] = inside ? x[t * stride + k] : 0;
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

void store_panels_bf16(Bf16 *out, int64_t stride, const float *c, int64_t columns, int64_t dims) {
  const bool lines = dims % kPanel == 0 && stride % kPanel == 0 && (uintptr_t)out % 64 == 0;
  for (int64_t j = 0; j < columns; ++j, out += stride, c += kPanel)
    for (int64_t d = 0; d < dims; d += kPanel) {
      const float *line = c + d * kSlab;
      if (lines)
        _mm512_stream_si512((__m512i *)(out + d), to_bf16(vec::load(line), vec::load(line + 16)));
      else
        store_bf16(out + d, line, dims - d < kPanel ? dims - d : kPanel);
    }
  _mm_sfence();
}

void scale_bf16(Bf16 *x, float factor, int64_t count) {
  for (int64_t i = 0; i < count; i += 16)
    vec::to_bf16(x + i, vec::from_bf16(x + i) * factor);
}

}  // namespace ds_train
#endif
