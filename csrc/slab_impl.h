// One slab of columns of the logits at a time, in fp32, for one set of instructions: statistics so
// far, and exp(z - max) in the logits' place, as attention does it (Dao et al., FlashAttention, 2022,
// algorithm 1). The product of that with the slab of the weight, added up over the slabs and scaled
// by `factor` at each, is the sum over columns of exp(z - max) w_j; what turns it into the gradient
// is known after the last slab. Defines DS_TRAIN_SLAB and DS_TRAIN_SLABS_END.
#pragma once
#include "rows_impl.h"

static_assert(sizeof(RowStats) <= DS_TRAIN_ROW_STATE * sizeof(float), "rows.h has too little room");

namespace {

static RowStats &state_of(const SlabRows &a, int64_t i) {
  return *reinterpret_cast<RowStats *>(a.state + i * DS_TRAIN_ROW_STATE);
}

// Logits after bias, scale and cap in their place, without the label's; the largest is returned.
static float transform(const LogitRows &a, float *logits, const Row<Fp32> &row, int64_t at,
                       RowStats &s) {
  alignas(64) float block[kBlock];
  float highest = s.max;
  for (int64_t first = 0; first < a.vocab; first += kBlock) {
    const int64_t count = a.vocab - first < kBlock ? a.vocab - first : kBlock;
    const float top = take_block<Fp32>(a, row, first, count, at - first, highest, s, block);
    if (top > highest) highest = top;
    std::memcpy(logits + first, block, count * sizeof(float));
  }
  return highest;
}

// Each logit becomes its exponential times the derivative of what `transform` did; sums are kept.
static void exponentials(const LogitRows &a, float *logits, RowStats &s) {
  const float inverse_cap = a.softcap > 0 ? 1.0f / a.softcap : 0;
  F others, shifted;
  const auto step = [&](float *p) {
    const F z = vec::load(p), t = z - s.max, e = vec::exp(t);
    others += e;
    if (a.entropy) shifted += e * (t < kFarBelow ? vec::set(kFarBelow) : t);
    F d = e * a.logit_scale;
    if (a.softcap > 0) d = e > 0.0f ? d * (1.0f - (z * inverse_cap) * (z * inverse_cap)) : e;
    vec::store(p, d);
  };
  for (int64_t first = 0; first < a.vocab; first += kBlock) {  // short sums round less
    const int64_t end = a.vocab - first < kBlock ? a.vocab : first + kBlock;
    others = shifted = F{};
    int64_t j = first;
    for (; j + vec::kLanes <= end; j += vec::kLanes) step(logits + j);
    if (j < end) {
      float padded[vec::kLanes];
      vec::store(padded, vec::set(-INFINITY));
      std::memcpy(padded, logits + j, (end - j) * sizeof(float));
      step(padded);
      std::memcpy(logits + j, padded, (end - j) * sizeof(float));
    }
    s.others += vec::sum(others);
    s.others_shifted += vec::sum(shifted);
  }
}

}  // namespace

void DS_TRAIN_SLAB(const SlabRows &a, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    RowStats &s = state_of(a, i);
    if (a.first == 0) s = empty_row();
    const Row<Fp32> row{a.rows, i};
    const int64_t at = a.rows.labels[i] - a.first;
    float *logits = row.at(0);
    const float before = s.max;
    raise_max(s, transform(a.rows, logits, row, at, s));
    a.factor[i] = s.max > before ? expf(before - s.max) : 1.0f;
    exponentials(a.rows, logits, s);
    if (at >= 0 && at < a.rows.vocab) logits[at] = 0;
  }
}

void DS_TRAIN_SLABS_END(const SlabRows &a, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    RowStats &s = state_of(a, i);
    finish_row(s);
    report_row(a.rows, i, s);
    if (!a.rows.write_gradient) continue;
    const RowGradient g = row_gradient(a.rows, i, s);
    a.factor[i] = g.probability / s.sum;
    a.target[i] = target_gradient(s, g, 1.0f, a.rows.softcap) * a.rows.logit_scale;
  }
}
