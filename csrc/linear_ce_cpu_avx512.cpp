// What the fused linear kernel does to a tile of logits between the matrix products, with AVX-512.
// flags(x86_64): -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512bf16 -mfma
#if defined(__x86_64__)
#include <math.h>

#include "linear_ce_avx512.h"
#include "row_stats.h"

namespace ds_train {
namespace {

constexpr float kFarAbove = 32;      // how far logits may lie above the reference
constexpr float kFarBelow = -1e30f;  // for z - reference where z is -inf, so that its product is 0

inline void store_columns(const TileOutput &out, int64_t column, int64_t token, __m512i pair) {
  Bf16 *p = out.by_column + column * out.column_stride + token;
  _mm256_storeu_si256((__m256i *)p, _mm512_castsi512_si256(pair));
  _mm256_storeu_si256((__m256i *)(p + out.column_stride), _mm512_extracti64x4_epi64(pair, 1));
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
  const F coefficient = out.coefficient ? vec::load(out.coefficient + token) : vec::set(1.0f);
  for (int i = 0; i < 16; ++i) {
    const F first = value(column + 2 * i), second = value(column + 2 * i + 1);
    if (out.column_sums) {
      float *sums = out.column_sums + (column + 2 * i) * kSumLanes;
      vec::store(sums, vec::load(sums) + first * coefficient);
      vec::store(sums + kSumLanes, vec::load(sums + kSumLanes) + second * coefficient);
    }
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
}  // namespace ds_train
#endif
