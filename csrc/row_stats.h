// The statistics of one row on the CPU, from running maximum and sums to what is reported, and the
// coefficients of its gradient. Scalar; shared by the row kernel and the fused linear kernel.
// Functions are static: this is compiled for several instruction sets.
#pragma once
#include <math.h>
#include <cstdint>

#include "rows.h"

// Where maxima start. Finite, so that exp(z - max) of a logit of -inf is 0 and never NaN.
static constexpr float kLowest = -3.0e38f;

// Sums run over all columns but the label's, relative to exp(max).
struct RowStats {
  float max, others, others_shifted;  // others_shifted: sum of exp(z - max) (z - max)
  float target;                       // logit of the label; NaN until seen, so also where invalid
  float logit_sum;
  bool target_is_first;  // no column before the label's has a logit as large
  // Made by finish_row:
  float sum, log_sum, logprob, logsumexp, entropy;
};

[[maybe_unused]] static inline RowStats empty_row() {
  RowStats s{};
  s.max = kLowest;
  s.target = NAN;
  return s;
}

// Sums relative to a larger maximum.
[[maybe_unused]] static inline void raise_max(RowStats &s, float max) {
  if (!(max > s.max)) return;
  const float shrink = expf(s.max - max);
  s.others_shifted = shrink > 0 ? shrink * (s.others_shifted + (s.max - max) * s.others) : 0;
  s.others *= shrink;
  s.max = max;
}

[[maybe_unused]] static inline void finish_row(RowStats &s) {
  const float t = s.target - s.max, e = expf(t);
  s.sum = s.others + e;
  if (!(s.sum > 0)) s.sum = NAN;  // nothing but -inf
  s.log_sum = logf(s.sum);
  s.logsumexp = s.max + s.log_sum;
  // Never target - logsumexp, which cancels where all logits are large.
  s.logprob = e > s.others ? -log1pf(s.others / e) : t - s.log_sum;
  s.entropy = s.log_sum - (s.others_shifted + (e > 0 ? e * t : 0)) / s.sum;
  if (s.sum != s.sum) s.logprob = s.logit_sum = s.entropy = NAN;
}

[[maybe_unused]] static inline void report_row(const LogitRows &a, int64_t i, const RowStats &s) {
  if (a.logprob) a.logprob[i] = s.logprob;
  if (a.logsumexp) a.logsumexp[i] = s.logsumexp;
  if (a.logit_sum) a.logit_sum[i] = s.logit_sum;
  if (a.entropy) a.entropy[i] = s.entropy;
  if (a.correct) a.correct[i] = s.target_is_first && s.target >= s.max && s.sum == s.sum;
}

// dz_j = probability p_j + logit_sum c_j - entropy p_j (log p_j + H), for columns but the label's.
struct RowGradient {
  float target, probability, logit_sum, entropy;
};

[[maybe_unused]] static inline RowGradient row_gradient(const LogitRows &a, int64_t i,
                                                        const RowStats &s) {
  const auto at = [i](const float *p) { return p ? p[i] : 0.0f; };
  RowGradient g;
  g.target = at(a.grad_logprob);
  g.probability =
      at(a.grad_logsumexp) + at(a.grad_logsumexp_slope) * s.logsumexp - g.target;
  g.logit_sum = at(a.grad_logit_sum);
  g.entropy = at(a.grad_entropy);
  return g;
}

// Gradient in the label's column, before the scale; class_weight is c_y. 1 - p_y is the sum of
// the other columns' probabilities.
[[maybe_unused]] static inline float target_gradient(const RowStats &s, const RowGradient &g,
                                                     float class_weight, float softcap) {
  const float p = expf(s.logprob);
  float d = g.target * (s.others / s.sum) + (g.probability + g.target) * p;
  if (p > 0) d -= g.entropy * p * (s.logprob + s.entropy);
  if (g.logit_sum != 0 && s.target != -INFINITY) d += g.logit_sum * class_weight;
  if (softcap > 0) d *= 1.0f - (s.target / softcap) * (s.target / softcap);
  return s.sum == s.sum ? d : NAN;
}
