// LM head and cross-entropy on the CPU in bf16, without the logits ever standing whole in memory.
//
// One pass over the vocabulary in slabs of columns. The logits of a slab are a matrix product that
// stays in the cache; each is turned into e = exp(z - r), with r the row's reference: a maximum seen
// so far. This is done for one panel of tokens beside the product of the next. Like attention,
// grad_hidden accumulates sum_j e_ij w_j at once, and is divided by the sum of e when that is known
// at the end; r is raised, and what was accumulated shrunk, in the rare case that a logit lies far
// above it. So a frozen head takes two matrix products and keeps no logits. The label's column is
// left out of all this and added exactly, in fp32.
//
// grad_weight = e^T (c X), with c the row's coefficient, needs the final sums: a second pass, over
// the e that were kept in bf16, in the gradient's own memory first (linear_ce_kept_cpu.cpp); what
// has no room is computed again. A slab's gradient is final when it is written, and rounded once.
//
// Gradients that are not a row's constant times p_j (entropy; the sum of logits under a cap) take
// another way: statistics first, then the logits again, with the exact gradient of each.
//
// The order of every sum is fixed: the result doesn't depend on the number of threads.
#include "linear_ce_run.h"

namespace ds_train {

#if defined(__x86_64__)
namespace {

PanelGemm gemm_of(Isa isa) {
  if (isa >= Isa::kAmx) return amx_gemm;
  return isa >= Isa::kAvx512Bf16 ? dot_gemm : fma_gemm;
}

int64_t round_up(int64_t x, int64_t step) { return (x + step - 1) / step * step; }

// A row stride whose multiples don't all fall on the same lines of the cache.
int64_t spread(int64_t stride) { return stride % 256 == 0 ? stride + 32 : stride; }

constexpr int64_t kGroup = 512;  // columns whose exponentials wait for the product with W

}  // namespace

LinearRun::LinearRun(const LinearCE &call, Isa isa)
    : call_(call),
      rows_(call.rows),
      hidden_(static_cast<const Bf16 *>(call.hidden)),
      weight_(static_cast<const Bf16 *>(call.weight)),
      gemm_(gemm_of(isa)),
      amx_(isa >= Isa::kAmx),
      threads_(at::get_num_threads()),
      tokens_(call.rows.rows),
      vocab_(call.rows.vocab),
      dim_(call.dim),
      padded_tokens_(round_up(tokens_, kPanel)),
      padded_dim_(round_up(std::max<int64_t>(dim_, 1), kPanel)),
      token_panels_(padded_tokens_ / kPanel),
      dim_panels_(padded_dim_ / kPanel),
      slabs_((vocab_ + kSlab - 1) / kSlab),
      slabs_in_group_(std::min(slabs_, kGroup / kSlab)),
      groups_(slabs_ ? (slabs_ + slabs_in_group_ - 1) / slabs_in_group_ : 0),
      grad_hidden_(rows_.write_gradient && call.grad_hidden),
      grad_weight_(rows_.write_gradient && (call.grad_weight || call.grad_bias)),
      exact_((grad_hidden_ || grad_weight_) &&
             (rows_.grad_entropy || (rows_.grad_logit_sum && rows_.softcap > 0))),
      rank_one_((grad_hidden_ || grad_weight_) && !exact_ && rows_.grad_logit_sum),
      with_shifted_(rows_.entropy || rows_.grad_entropy),
      scratch_(threads_) {}

void LinearRun::run() {
  if (tokens_ > 0) {
    sort_labels();
    allocate();
    pack_hidden();
    first_pass();
    finish_rows();
  }
  if (exact_ && tokens_ > 0) exact_pass();
  if (grad_weight_ && !(exact_ && tokens_ > 0)) weight_pass();
  if (grad_hidden_) write_grad_hidden();
}

// Labels inside the vocabulary by slab, within a slab by token.
void LinearRun::sort_labels() {
  slab_entries_.assign(slabs_ + 1, 0);
  const auto inside = [this](int64_t y) { return y >= 0 && y < vocab_; };
  for (int64_t t = 0; t < tokens_; ++t)
    if (inside(rows_.labels[t])) ++slab_entries_[rows_.labels[t] / kSlab + 1];
  for (int64_t s = 0; s < slabs_; ++s) slab_entries_[s + 1] += slab_entries_[s];
  entries_.resize(slab_entries_[slabs_]);
  std::vector<int64_t> next(slab_entries_.begin(), slab_entries_.end());
  for (int64_t t = 0; t < tokens_; ++t)
    if (inside(rows_.labels[t]))
      entries_[next[rows_.labels[t] / kSlab]++] = {t, rows_.labels[t] % kSlab};
}

void LinearRun::allocate() {
  const int64_t n = padded_tokens_, in_groups = kGroupsAtOnce * slabs_in_group_ * n;
  by_column_stride_ = spread(n);
  by_token_stride_ = spread(slabs_in_group_ * kSlab);
  weight_copy_stride_ = spread(padded_dim_);
  group_panel_ = slabs_in_group_ * kSlab * kPanel + 2 * kPanel;  // spread, as in spread()
  const bool second_pass = grad_weight_ && !exact_;
  if (second_pass) share_out_tokens();
  for (Scratch &s : scratch_) {
    s.z.make(arena_, (grad_weight_ ? 2 * kPanelsStored : kTiles) * kSlab * kPanel);
    s.weight.make(arena_, kSlab * weight_copy_stride_);
    if (grad_weight_ && call_.grad_bias) s.column_sums.make(arena_, kSlab * kSumLanes);
    if (grad_weight_) s.by_column.make(arena_, kSlab * by_column_stride_);
  }
  hidden_logits_.make(arena_, n * padded_dim_);
  if (tokens_in_buffer_) kept_.make(arena_, slabs_ * kSlab * buffer_stride_);
  if (grad_hidden_) {
    group_weight_.make(arena_, kGroupsAtOnce * dim_panels_ * group_panel_);
    group_exponentials_.make(arena_, kGroupsAtOnce * n * by_token_stride_);
    accumulated_.make(arena_, n * padded_dim_, true);
  }
  references_.make(arena_, (kGroupsAtOnce + 1) * n);
  slab_reference_.make(arena_, second_pass ? slabs_ * n : in_groups);
  for (auto *buffer : {&slab_max_, &slab_sum_, &slab_shifted_, &slab_logit_sum_})
    buffer->make(arena_, in_groups);
  target_.make(arena_, n);
  target_is_first_.make(arena_, n);
  top_.make(arena_, n);
  std::fill_n(references_ + kGroupsAtOnce * n, n, kLowest);
  std::fill_n(static_cast<float *>(top_), n, kLowest);
  stats_.assign(n, empty_row());
  for (auto *buffer : {&coefficient_, &target_gradient_, &logit_sum_gradient_})
    buffer->make(arena_, n, true);
  if (exact_) token_gradients_.make(arena_, 6 * n, true);
  if (rank_one_ && grad_hidden_) weight_sum_.make(arena_, slabs_ * dim_, true);
}

void LinearRun::pack_hidden() {
  each(token_panels_, [&](int64_t panel, Scratch &) {
    const int64_t token = panel * kPanel;
    pack_tokens(hidden_ + token * call_.hidden_stride, call_.hidden_stride, tokens_ - token, dim_,
                hidden_logits_ + token * padded_dim_);
  });
}

// Statistics out, and every row's coefficients for the gradients.
void LinearRun::finish_rows() {
  const int64_t blocks = (tokens_ + 63) / 64;
  each(blocks, [&](int64_t block, Scratch &) {
    const int64_t end = std::min(tokens_, (block + 1) * 64);
    for (int64_t t = block * 64; t < end; ++t) finish_row_of(t);
  });
}

void LinearRun::finish_row_of(int64_t t) {
  RowStats &s = stats_[t];
  raise_max(s, top_[t]);
  finish_row(s);
  report_row(rows_, t, s);
  if (!grad_hidden_ && !grad_weight_) return;
  RowGradient g = row_gradient(rows_, t, s);
  const int64_t y = rows_.labels[t];
  const float scale = rows_.logit_scale;
  if (rank_one_) logit_sum_gradient_[t] = g.logit_sum * scale;
  coefficient_[t] = g.probability * scale * expf(reference_[t] - s.max) / s.sum;
  if (exact_) {
    const float values[] = {s.max,         s.log_sum,   s.entropy,
                            g.probability, g.logit_sum, g.entropy};
    for (int i = 0; i < 6; ++i) token_gradients_[i * padded_tokens_ + t] = values[i];
  } else {
    g.logit_sum = 0;  // added for all columns at once
  }
  const float weight = y >= 0 && y < vocab_ ? class_weight_of(y) : 0;
  target_gradient_[t] = target_gradient(s, g, weight, rows_.softcap) * scale;
}

float LinearRun::class_weight_of(int64_t column) const {
  if (rows_.bias && rows_.bias[column] == -INFINITY) return 0;  // its logits add nothing
  return rows_.class_weight ? rows_.class_weight[column] : 1.0f;
}

void LinearRun::write_grad_hidden() {
  const int64_t blocks = (tokens_ + 31) / 32;
  std::vector<float> lines(threads_ * padded_dim_);
  each(blocks, [&](int64_t block, Scratch &s) {
    float *line = lines.data() + (&s - scratch_.data()) * padded_dim_;
    const int64_t end = std::min(tokens_, (block + 1) * 32);
    for (int64_t t = block * 32; t < end; ++t) {
      const float coefficient = exact_ ? 1.0f : coefficient_[t];
      for (int64_t q = 0; q < dim_panels_; ++q) {
        const float *sums = accumulated_ + (q * padded_tokens_ + t) * kPanel;
        for (int64_t d = 0; d < kPanel; ++d) line[q * kPanel + d] = sums[d] * coefficient;
      }
      const int64_t y = rows_.labels[t];
      const Bf16 *row = y >= 0 && y < vocab_ ? weight_ + y * call_.weight_stride : weight_;
      add_scaled(line, row, target_gradient_[t], dim_);
      if (rank_one_)
        for (int64_t d = 0; d < dim_; ++d) line[d] += weight_sum_[d] * logit_sum_gradient_[t];
      store_bf16(static_cast<Bf16 *>(call_.grad_hidden) + t * dim_, line, dim_);
    }
  });
}
#endif  // x86-64

}  // namespace ds_train

extern "C" int ds_train_linear_ce_cpu_supported(int dtype) {
#if defined(__x86_64__)
  return dtype == DS_TRAIN_BF16 && ds_train::cpu_isa() >= ds_train::Isa::kAvx512 &&
         ds_train::cpu_has_avx512_bf16();
#else
  (void)dtype;
  return 0;
#endif
}

extern "C" int ds_train_linear_ce_cpu(const LinearCE *call) {
  if (!ds_train_linear_ce_cpu_supported(call->rows.dtype)) return 1;
#if defined(__x86_64__)
  try {
    ds_train::LinearRun(*call, ds_train::cpu_isa()).run();
  } catch (const std::bad_alloc &) {
    return 2;
  } catch (...) {
    return 3;
  }
#endif
  return 0;
}
