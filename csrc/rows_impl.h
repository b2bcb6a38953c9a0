// The row kernel of the CPU for one set of instructions: rows of logits in memory, their
// statistics, and the gradient in their place. Compiled three times, by rows_cpu_baseline.cpp,
// rows_cpu_avx2.cpp and rows_cpu_avx512.cpp, each of which defines DS_TRAIN_ROWS as the function's
// name and, for slab_impl.h, two more.
//
// A row is read twice, in blocks that fit in the first cache: once for the running maximum and
// sum, once for the gradient. The label's column is left out of the sum and treated by itself, so
// that 1 - p_y = (the sum of the others) / (the whole sum) keeps its precision when p_y is nearly 1.
#pragma once
#include <math.h>

#include "row_stats.h"
#include "rows.h"
#include "vec.h"

namespace {

using vec::F;
constexpr int64_t kBlock = DS_TRAIN_ROW_BLOCK;  // columns; a multiple of any vector
constexpr float kFarBelow = -1e30f;  // for log p of a logit of -inf, so that p log p is 0

struct Fp32 {
  using Type = float;
  static inline F load(const float *p) { return vec::load(p); }
  static inline void store(float *p, F v) { vec::store(p, v); }
};
struct Bf16 {
  using Type = uint16_t;
  static inline F load(const uint16_t *p) { return vec::from_bf16(p); }
  static inline void store(uint16_t *p, F v) { vec::to_bf16(p, v); }
};
struct Fp16 {
  using Type = uint16_t;
  static inline F load(const uint16_t *p) { return vec::from_fp16(p); }
  static inline void store(uint16_t *p, F v) { vec::to_fp16(p, v); }
};

// Where the logits of a row are. A block never lies in two slabs.
template <class T> struct Row {
  const LogitRows &a;
  int64_t index;

  typename T::Type *at(int64_t first) const {
    void *rows = a.logits;
    if (a.slabs) {
      rows = a.slabs[first / a.slab_columns];
      first %= a.slab_columns;
    }
    return static_cast<typename T::Type *>(rows) + index * a.stride + first;
  }
};

// The logits [first, first + count) of a row after bias, scale and cap, as floats. The block is
// filled up to a whole vector with -inf, which adds nothing anywhere.
template <class T>
static void read_block(const LogitRows &a, const Row<T> &row, int64_t first, int64_t count,
                       float *block) {
  const typename T::Type *source = row.at(first);
  typename T::Type padded[vec::kLanes] = {};
  const float inverse_cap = a.softcap > 0 ? 1.0f / a.softcap : 0;
  float padded_bias[vec::kLanes] = {};
  for (int64_t j = 0; j < count; j += vec::kLanes) {
    const typename T::Type *p = source + j;
    const float *bias = a.bias ? a.bias + first + j : nullptr;
    if (j + vec::kLanes > count) {
      for (int64_t i = j; i < count; ++i) {
        padded[i - j] = source[i];
        if (bias) padded_bias[i - j] = bias[i - j];
      }
      p = padded;
      bias = bias ? padded_bias : nullptr;
    }
    F z = T::load(p);
    if (bias) z += vec::load(bias);
    z *= a.logit_scale;
    if (a.softcap > 0) z = a.softcap * vec::tanh(z * inverse_cap);
    vec::store(block + j, z);
  }
  for (int64_t j = count; j % vec::kLanes; ++j) block[j] = -INFINITY;
}

static inline int64_t whole_vectors(int64_t count) {
  return (count + vec::kLanes - 1) / vec::kLanes * vec::kLanes;
}

static float block_max(const float *block, int64_t count) {
  F top0 = vec::set(kLowest), top1 = top0;
  int64_t j = 0;
  for (; j + 2 * vec::kLanes <= count; j += 2 * vec::kLanes) {
    top0 = vec::max_keep(vec::load(block + j), top0);
    top1 = vec::max_keep(vec::load(block + j + vec::kLanes), top1);
  }
  for (; j < count; j += vec::kLanes) top0 = vec::max_keep(vec::load(block + j), top0);
  return vec::max(vec::max_keep(top0, top1));
}

// sum of exp(z - m), and of exp(z - m) (z - m) if with_shifted.
static void block_sums(const float *block, int64_t count, float top, bool with_shifted, float *sum,
                       float *shifted) {
  F sum0{}, sum1{}, weighted{};
  int64_t j = 0;
  if (with_shifted) {
    for (; j < count; j += vec::kLanes) {
      F t = vec::load(block + j) - top;
      F e = vec::exp(t);
      sum0 += e;
      weighted += e * (t < kFarBelow ? vec::set(kFarBelow) : t);
    }
  }
  for (; j + 2 * vec::kLanes <= count; j += 2 * vec::kLanes) {
    sum0 += vec::exp(vec::load(block + j) - top);
    sum1 += vec::exp(vec::load(block + j + vec::kLanes) - top);
  }
  for (; j < count; j += vec::kLanes) sum0 += vec::exp(vec::load(block + j) - top);
  *sum += vec::sum(sum0 + sum1);
  *shifted += vec::sum(weighted);
}

static float block_logit_sum(const float *block, const float *class_weight, int64_t count) {
  float total = 0;
  for (int64_t j = 0; j < count; ++j)
    if (block[j] != -INFINITY) total += class_weight ? class_weight[j] * block[j] : block[j];
  return total;
}

// The next columns of a row: their logits in `block`, but -inf in the place of the label's, which
// goes to the statistics. The largest, the label's included, is returned; `highest`: of the
// columns before, `at`: where the label is from here.
template <class T>
static float take_block(const LogitRows &a, const Row<T> &row, int64_t first, int64_t count,
                        int64_t at, float highest, RowStats &s, float *block) {
  read_block<T>(a, row, first, count, block);
  if (a.logit_sum) {
    const float *weight = a.class_weight ? a.class_weight + first : nullptr;
    s.logit_sum += block_logit_sum(block, weight, count);
  }
  const float top = block_max(block, whole_vectors(count));
  if (at >= 0 && at < count) {
    s.target = block[at];
    s.target_is_first = s.target > highest;
    for (int64_t j = 0; j < at && s.target_is_first; ++j) s.target_is_first = block[j] < s.target;
    block[at] = -INFINITY;
  }
  return top;
}

template <class T>
static RowStats row_stats(const LogitRows &a, const Row<T> &row, int64_t label, float *block) {
  RowStats s = empty_row();
  for (int64_t first = 0; first < a.vocab; first += kBlock) {
    const int64_t count = a.vocab - first < kBlock ? a.vocab - first : kBlock;
    raise_max(s, take_block<T>(a, row, first, count, label - first, s.max, s, block));
    block_sums(block, whole_vectors(count), s.max, a.entropy || a.grad_entropy, &s.others,
               &s.others_shifted);
  }
  finish_row(s);
  return s;
}

template <class T>
static void write_gradient(const LogitRows &a, const Row<T> &row, int64_t label,
                           const RowStats &s, const RowGradient &g, float *block) {
  const float inverse_sum = 1.0f / s.sum, inverse_cap = a.softcap > 0 ? 1.0f / a.softcap : 0;
  for (int64_t first = 0; first < a.vocab; first += kBlock) {
    const int64_t count = a.vocab - first < kBlock ? a.vocab - first : kBlock;
    read_block<T>(a, row, first, count, block);
    const float *weight = a.class_weight ? a.class_weight + first : nullptr;
    float target = 0;
    const int64_t at = label - first;
    for (int64_t j = 0; j < whole_vectors(count); j += vec::kLanes) {
      F z = vec::load(block + j);
      F t = z - s.max;
      F p = vec::exp(t) * inverse_sum;
      F d = p * g.probability;
      if (g.entropy != 0) {
        F logp = t - s.log_sum;
        d -= p * g.entropy * ((logp < kFarBelow ? vec::set(kFarBelow) : logp) + s.entropy);
      }
      if (g.logit_sum != 0) {
        F c = vec::set(1.0f);
        if (weight)
          for (int i = 0; i < vec::kLanes; ++i) c[i] = j + i < count ? weight[j + i] : 0;
        d += z == -INFINITY ? F{} : c * g.logit_sum;
      }
      if (a.softcap > 0) d *= 1.0f - (z * inverse_cap) * (z * inverse_cap);
      vec::store(block + j, d * a.logit_scale);
    }
    if (at >= 0 && at < count) {
      target = target_gradient(s, g, weight ? weight[at] : 1.0f, a.softcap) * a.logit_scale;
      block[at] = target;
    }
    typename T::Type *out = row.at(first);
    int64_t j = 0;
    for (; j + vec::kLanes <= count; j += vec::kLanes) T::store(out + j, vec::load(block + j));
    if (j < count) {
      typename T::Type padded[vec::kLanes];
      T::store(padded, vec::load(block + j));
      for (int64_t i = j; i < count; ++i) out[i] = padded[i - j];
    }
  }
}

template <class T>
static void all_rows(const LogitRows &a, int64_t begin, int64_t end) {
  alignas(64) float block[kBlock];
  for (int64_t i = begin; i < end; ++i) {
    const Row<T> row{a, i};
    RowStats s = row_stats<T>(a, row, a.labels[i], block);
    report_row(a, i, s);
    if (a.write_gradient) write_gradient<T>(a, row, a.labels[i], s, row_gradient(a, i, s), block);
  }
}

}  // namespace

void DS_TRAIN_ROWS(const LogitRows &a, int64_t begin, int64_t end) {
  if (a.dtype == DS_TRAIN_FP32) all_rows<Fp32>(a, begin, end);
  if (a.dtype == DS_TRAIN_BF16) all_rows<Bf16>(a, begin, end);
  if (a.dtype == DS_TRAIN_FP16) all_rows<Fp16>(a, begin, end);
}
