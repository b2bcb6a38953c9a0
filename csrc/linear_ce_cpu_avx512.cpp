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

inline Bf16 *column_of(const TileOutput &out, int64_t column) {
  return out.by_column + column / 32 * out.columns.panel + column % 32 * out.columns.row;
}

inline void store_columns(const TileOutput &out, int64_t column, int64_t token, __m512i pair) {
  Bf16 *p = column_of(out, column) + token;
  _mm256_storeu_si256((__m256i *)p, _mm512_castsi512_si256(pair));
  _mm256_storeu_si256((__m256i *)(p + out.columns.row), _mm512_extracti64x4_epi64(pair, 1));
}

inline void store_tokens(const TileOutput &out, int64_t column, int64_t token,
                         __m512i (&pairs)[16]) {
  transpose(pairs);
  Bf16 *p = out.by_token + column / 32 * out.tokens.step + token * out.tokens.row;
  for (int i = 0; i < 16; ++i) _mm512_storeu_si512(p + i * out.tokens.row, pairs[i]);
}

inline void add_to_columns(const TileOutput &out, int64_t column, int64_t token, F first,
                           F second) {
  const F coefficient = out.coefficient ? vec::load(out.coefficient + token) : vec::set(1.0f);
  float *sums = out.column_sums + column * kSumLanes;
  vec::store(sums, vec::load(sums) + first * coefficient);
  vec::store(sums + kSumLanes, vec::load(sums + kSumLanes) + second * coefficient);
}

// Turns 32 columns x 16 tokens of f(column) into bf16 and writes them both ways.
template <class Value>
inline __attribute__((always_inline)) void write_block(const TileOutput &out, int64_t column,
                                                       int64_t token, Value value) {
  __m512i pairs[16];
  for (int i = 0; i < 16; ++i) {
    const F first = value(column + 2 * i), second = value(column + 2 * i + 1);
    if (out.column_sums) add_to_columns(out, column + 2 * i, token, first, second);
    const __m512i pair = to_bf16(first, second);
    if (out.by_column) store_columns(out, column + 2 * i, token, pair);
    pairs[i] = interleave(pair);
  }
  if (out.by_token) store_tokens(out, column, token, pairs);
}

inline F cap_slope(F z, float softcap) {
  const float inverse = 1.0f / softcap;
  const F bounded = z < -softcap ? vec::set(-softcap) : z;
  return 1.0f - (bounded * inverse) * (bounded * inverse);
}

// exp(x) for x up to kFarAbove or so, relative error below 3e-7; 0 below -138 and for -inf; NaN stays.
// x / ln 2 = k + r with |r| <= 1/2; a polynomial of degree 6 for 2^r, the Taylor series.
inline F exp_below(F x) {
  const __m512 lowest = _mm512_set1_ps(-200.0f);
  const F y = (F)_mm512_max_ps(lowest, (__m512)x) * 1.44269504088896341f;
  const F k = (F)_mm512_roundscale_ps((__m512)y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const F r = y - k;
  F p = vec::set(1.5403530e-4f);
  p = p * r + 1.3333558e-3f;
  p = p * r + 9.6181291e-3f;
  p = p * r + 5.5504109e-2f;
  p = p * r + 2.4022651e-1f;
  p = p * r + 6.9314718e-1f;
  p = p * r + 1.0f;
  return (F)_mm512_scalef_ps((__m512)p, (__m512)k);
}

// Two columns of 16 tokens; what is added up first is what comes out here.
template <bool kPlain>
inline __attribute__((always_inline)) __m512i exponentiate_pair(Exponentials &work, int64_t token) {
  const Tile &tile = work.tile;
  const F reference = vec::load(work.reference + token);
  F e[2];
  for (int i = 0; i < 2; ++i) {
    const F z = vec::load(tile.z + (work.column + i) * kPanel + token), t = z - reference;
    e[i] = exp_below(t);
    float *total = (i ? work.odd : work.even) + token;
    vec::store(total, vec::load(total) + e[i]);
    if (kPlain) continue;
    if (work.shifted) {
      float *weighted = work.weighted + token;
      const F bounded = t < kFarBelow ? vec::set(kFarBelow) : t;
      vec::store(weighted, vec::load(weighted) + e[i] * bounded);
    }
    if (tile.softcap > 0) e[i] *= cap_slope(z, tile.softcap);
  }
  if (!kPlain && work.out.column_sums)
    add_to_columns(work.out, work.column, token, e[0], e[1]);
  return to_bf16(e[0], e[1]);
}

template <bool kPlain>
void exponentiate_columns(Exponentials &work, int64_t end) {
  const TileOutput &out = work.out;
  for (; work.column < end; work.column += 2) {
    const __m512i low = exponentiate_pair<kPlain>(work, 0);
    const __m512i high = exponentiate_pair<kPlain>(work, 16);
    if (out.by_column) {
      Bf16 *p = column_of(out, work.column);
      _mm512_storeu_si512(p, _mm512_shuffle_i64x2(low, high, 0x44));
      _mm512_storeu_si512(p + out.columns.row, _mm512_shuffle_i64x2(low, high, 0xee));
    }
    if (!out.by_token) continue;
    const int64_t i = work.column % 32 / 2;
    _mm512_store_si512(work.pairs[i][0], interleave(low));
    _mm512_store_si512(work.pairs[i][1], interleave(high));
    for (int half = 0; half < 2 && i == 15; ++half) {
      __m512i pairs[16];
      for (int k = 0; k < 16; ++k) pairs[k] = _mm512_load_si512(work.pairs[k][half]);
      store_tokens(out, work.column, half * 16, pairs);
    }
  }
}

void exponentiate(Beside &beside, int64_t pairs) {
  auto &work = static_cast<Exponentials &>(beside);
  if (work.left == 0) return;
  pairs = pairs < work.left ? pairs : work.left;
  work.left -= pairs;
  const int64_t end = work.column + 2 * pairs;
  if (work.shifted || work.tile.softcap > 0 || work.out.column_sums)
    exponentiate_columns<false>(work, end);
  else
    exponentiate_columns<true>(work, end);
  if (work.left > 0) return;
  for (int64_t t = 0; t < kPanel; ++t) {
    if (work.sum) work.sum[t] = work.odd[t] + work.even[t];
    if (work.shifted) work.shifted[t] = work.weighted[t];
  }
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

void begin_exponentials(Exponentials &work, const Tile &tile, const float *max, float *reference,
                        float *sum, float *shifted, const TileOutput &out) {
  work.tile = tile;
  work.out = out;
  work.sum = sum;
  work.shifted = shifted;
  work.column = 0;
  work.left = tile.padded / 2;
  work.some = exponentiate;
  for (int64_t token = 0; token < kPanel; token += 16) {
    F r = vec::load(reference + token), top = vec::load(max + token);
    r = top > r + kFarAbove ? top : r;
    vec::store(reference + token, r);
    vec::store(work.reference + token, r);
    vec::store(work.even + token, F{});
    vec::store(work.odd + token, F{});
    vec::store(work.weighted + token, F{});
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
