// The arithmetic of a row of logits: its statistics, and its gradient in its place. Every function is
// one thread's part of the work, or how parts are put together; the GPU kernel and its CPU test are
// two drivers of the same functions.
//
// In what follows z_j = unit * u_j, with u_j the logit itself where nothing is done to it, and
// exp(z_j - max z) = 2^(w_j) with w_j = k u_j - r, r = round(k max u). What r was rounded by is the
// same factor in every term, and cancels in p_j = 2^(w_j) / sum and in log p_j alike.
#pragma once

#include <type_traits>

#include "row_access.h"

namespace ds_train {

constexpr float kLn2 = 0.69314718055994530942f;
constexpr float kLeastExponent = -1000.0f;  // 2^w is 0 there, and w times 0 is not NaN

inline int features(const LogitRows &a) {
  const bool scaled = a.logit_scale > 0.0f && a.logit_scale < 3.0e38f;
  const bool moments = a.entropy || a.logit_sum || a.grad_entropy || a.grad_logit_sum;
  return (a.bias || a.softcap != 0.0f || !scaled ? kTransform : 0) | (moments ? kMoments : 0);
}

// Runs run(element, features) with the types that these arguments need; -1 for an unknown dtype.
template <class Run> int dispatch(const LogitRows &a, const Run &run) {
  const auto with = [&](auto element) {
    switch (features(a)) {
      case 0: return run(element, std::integral_constant<int, 0>{});
      case kTransform: return run(element, std::integral_constant<int, kTransform>{});
      case kMoments: return run(element, std::integral_constant<int, kMoments>{});
      default: return run(element, std::integral_constant<int, kTransform | kMoments>{});
    }
  };
  switch (a.dtype) {
    case DS_TRAIN_FP32: return with(Fp32{});
    case DS_TRAIN_BF16: return with(Bf16{});
    case DS_TRAIN_FP16: return with(Fp16{});
    default: return -1;
  }
}

// What a part of a row amounts to, the label's column left out: 1 - p of the label is then a sum,
// not a difference. Parts are merged in a fixed order, so results are the same bits every time.
struct State {
  float max = -INFINITY;   // of u
  float sum = 0.0f;        // of 2^w
  float moment = 0.0f;     // of w 2^w
  float logit_sum = 0.0f;  // of c u
  int32_t tied = 0;        // whether an element before the label's equals it
};

HD float reference(float max, float k) { return max == -INFINITY ? 0.0f : max * k; }

// The same bits for (a, b) and (b, a), so that all lanes of a warp agree.
template <int F> HD State merge(const State &a, const State &b, float k) {
  State both;
  both.max = fmaxf(a.max, b.max);
  const float r = reference(both.max, k);
  const float shift_a = a.max * k - r, shift_b = b.max * k - r;
  const float factor_a = exp2_fast(shift_a), factor_b = exp2_fast(shift_b);
  both.sum = symmetric_sum(a.sum, factor_a, b.sum, factor_b);
  if constexpr ((F & kMoments) != 0) {
    const float moment_a = fmaf(fmaxf(shift_a, kLeastExponent), a.sum, a.moment);
    const float moment_b = fmaf(fmaxf(shift_b, kLeastExponent), b.sum, b.moment);
    both.moment = symmetric_sum(moment_a, factor_a, moment_b, factor_b);
    both.logit_sum = a.logit_sum + b.logit_sum;
  }
  both.tied = a.tied | b.tied;
  return both;
}

// First pass: a part's elements, one vector at a time.
template <class E, int F> HD State scan(const Row<E, F> &row, int part, int parts) {
  State s;
  visit(row, part, parts, [&](auto &u, int column) {
    constexpr int W = sizeof(u) / sizeof(float);
    if (static_cast<unsigned>(row.label - column) < W) {
      UNROLL
      for (int i = 0; i < W; ++i) u[i] = column + i == row.label ? -INFINITY : u[i];
    }
    float max = u[0];
    UNROLL
    for (int i = 1; i < W; ++i) max = fmaxf(max, u[i]);
    if (max == row.target && column < row.label) {  // rare: the label's logit is the largest here
      UNROLL
      for (int i = 0; i < W; ++i) s.tied |= u[i] == row.target && column + i < row.label;
    }
    max = fmaxf(s.max, max);
    const float r = reference(max, row.k), shift = s.max * row.k - r;
    const float factor = exp2_fast(shift);
    if constexpr ((F & kMoments) != 0) {
      s.moment = fmaf(fmaxf(shift, kLeastExponent), s.sum, s.moment) * factor;
    }
    s.max = max;
    s.sum *= factor;
    UNROLL
    for (int i = 0; i < W; ++i) {
      const float w = fmaf(u[i], row.k, -r), e = exp2_fast(w);
      s.sum += e;
      if constexpr ((F & kMoments) != 0) {
        s.moment = fmaf(e, fmaxf(w, kLeastExponent), s.moment);
        s.logit_sum += u[i] == -INFINITY ? 0.0f : u[i] * row.weight_of(column + i);
      }
    }
  });
  return s;
}

// What is known of a row after the first pass.
struct Statistics {
  float r, sum, others;              // r: the exponents' offset; others: sum without the label
  float p_target, w_target, mean_w;  // mean_w: sum of p w
  float logprob, logsumexp, logit_sum, entropy;
  bool correct;
};

template <class E, int F> HD Statistics finish(const Row<E, F> &row, const State &s) {
  Statistics t;
  const float max = fmaxf(s.max, row.target);  // a NaN in the label's column comes in through w
  t.r = reference(max, row.k);
  const float shift = s.max * row.k - t.r, factor = exp2_fast(shift);
  t.w_target = fmaf(row.target, row.k, -t.r);
  const float e = exp2_fast(t.w_target);
  t.others = s.sum * factor;
  t.sum = t.others + e;
  if (!(t.sum > 0.0f)) t.sum = NAN;  // nothing but -inf
  t.p_target = e / t.sum;
  const float log2_sum = log2f(t.sum);
  // never z of the label - logsumexp, which cancels where all logits are large
  t.logprob = e > t.others ? -log1pf(t.others / e) : kLn2 * (t.w_target - log2_sum);
  t.logsumexp = fmaf(row.unit, max, kLn2 * log2_sum);
  t.correct = row.target >= s.max && !s.tied && t.sum == t.sum;
  t.mean_w = t.logit_sum = t.entropy = 0.0f;
  if constexpr ((F & kMoments) != 0) {
    float moment = fmaf(fmaxf(shift, kLeastExponent), s.sum, s.moment) * factor;
    moment = fmaf(e, fmaxf(t.w_target, kLeastExponent), moment);
    t.mean_w = moment / t.sum;
    const float entropy = kLn2 * (log2_sum - t.mean_w);
    t.entropy = entropy < 0.0f ? 0.0f : entropy;
    const float of_label =
        row.target == -INFINITY ? 0.0f : row.target * row.weight_of(row.label);
    t.logit_sum = row.unit * (s.logit_sum + of_label) + (t.sum == t.sum ? 0.0f : NAN);
  }
  return t;
}

HD void report(const LogitRows &a, int64_t row, const Statistics &t) {
  if (a.logprob) a.logprob[row] = t.logprob;
  if (a.logsumexp) a.logsumexp[row] = t.logsumexp;
  if (a.logit_sum) a.logit_sum[row] = t.logit_sum;
  if (a.entropy) a.entropy[row] = t.entropy;
  if (a.correct) a.correct[row] = t.correct;
}

// d loss / d logit_j = 2^(w_j) (at_p - at_w w_j) + at_sum c_j, times the derivative of the soft cap;
// `target` is the whole gradient in the label's column.
struct Gradient {
  float at_p, at_w, at_sum, target;
};

template <class E, int F>
HD Gradient gradient(const LogitRows &a, int64_t i, const Row<E, F> &row, const Statistics &t) {
  const float g_logprob = a.grad_logprob ? a.grad_logprob[i] : 0.0f;
  float g_logsumexp = a.grad_logsumexp ? a.grad_logsumexp[i] : 0.0f;
  if (a.grad_logsumexp_slope) {
    g_logsumexp = fmaf(a.grad_logsumexp_slope[i], t.logsumexp, g_logsumexp);
  }
  const float per_e = row.scale / t.sum;
  Gradient g;
  g.at_p = (g_logsumexp - g_logprob) * per_e;
  g.at_w = g.at_sum = 0.0f;
  g.target = g_logprob * (t.others / t.sum) + g_logsumexp * t.p_target;
  if constexpr ((F & kMoments) != 0) {
    const float g_entropy = a.grad_entropy ? a.grad_entropy[i] * kLn2 : 0.0f;
    const float g_sum = a.grad_logit_sum ? a.grad_logit_sum[i] : 0.0f;
    g.at_w = g_entropy * per_e;
    g.at_p = fmaf(g.at_w, t.mean_w, g.at_p);
    g.at_sum = g_sum * row.scale;
    const float w = fmaxf(t.w_target, kLeastExponent);
    g.target -= g_entropy * t.p_target * (w - t.mean_w);
    if (row.target != -INFINITY) g.target += g_sum * row.weight_of(row.label);
  }
  g.target *= row.scale * row.slope(row.target);
  return g;
}

// Second pass: a part's elements become their gradient, at offset r of the exponents.
template <class E, int F>
HD void replace(const Row<E, F> &row, const Gradient &g, float r, int part, int parts) {
  visit(row, part, parts, [&](auto &u, int column) {
    constexpr int W = sizeof(u) / sizeof(float);
    UNROLL
    for (int i = 0; i < W; ++i) {
      const float w = fmaf(u[i], row.k, -r), e = exp2_fast(w);
      float d = e * g.at_p;
      if constexpr ((F & kMoments) != 0) {
        d = e * fmaf(-g.at_w, fmaxf(w, kLeastExponent), g.at_p);
        d += u[i] == -INFINITY ? 0.0f : g.at_sum * row.weight_of(column + i);
      }
      u[i] = d * row.slope(u[i]);
    }
    row.store(u, column);
  });
  if (row.owner(row.label, parts) == part) {
    const float target[1] = {g.target};
    row.store(target, row.label);
  }
}

}  // namespace ds_train
