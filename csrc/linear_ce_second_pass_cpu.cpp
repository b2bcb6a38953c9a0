// The passes of the fused linear kernel that need the final statistics: grad_weight, grad_bias, and
// gradients that need each logit itself.
#if defined(__x86_64__)
#include <cstring>

#include "linear_ce_run.h"

namespace ds_train {

// X with its coefficients as B of grad_weight; the sum of x for the gradient of the sum of logits.
void LinearRun::pack_gradient_hidden() {
  hidden_gradient_.make(arena_, padded_tokens_ * padded_dim_);
  if (rank_one_) hidden_sum_.make(arena_, padded_dim_, true);
  each(dim_panels_, [&](int64_t q, Scratch &) {
    const Bf16 *x = hidden_ + q * kPanel;
    const int64_t dims = std::min(kPanel, dim_ - q * kPanel);
    pack_rows(x, call_.hidden_stride, tokens_, padded_tokens_, dims,
              exact_ ? nullptr : static_cast<const float *>(coefficient_),
              hidden_gradient_ + q * padded_tokens_ * kPanel);
    for (int64_t t = 0; rank_one_ && t < tokens_; ++t)
      add_scaled(hidden_sum_ + q * kPanel, x + t * call_.hidden_stride, logit_sum_gradient_[t],
                 dims);
  });
  for (int64_t t = 0; rank_one_ && t < tokens_; ++t)
    logit_sum_gradient_total_ += logit_sum_gradient_[t];
}

void LinearRun::weight_pass() {
  if (tokens_ == 0) {
    if (call_.grad_weight) std::memset(call_.grad_weight, 0, vocab_ * dim_ * grad_weight_size());
    if (call_.grad_bias) std::memset(call_.grad_bias, 0, vocab_ * sizeof(float));
    return;
  }
  pack_gradient_hidden();
  each(slabs_, [&](int64_t index, Scratch &scratch) {
    const Slab s = slab(index);
    gather(s, scratch);
    write_grad_weight(s, scratch.by_column, scratch);
  });
}

void LinearRun::write_grad_weight(const Slab &s, const Bf16 *by_column, Scratch &scratch) {
  const auto begin = entries_.begin() + slab_entries_[s.index];
  const auto end = entries_.begin() + slab_entries_[s.index + 1];
  const int64_t panel_size = padded_tokens_ * kPanel;
  const Bf16 *x = hidden_gradient_;
  const Coming next = coming(s);
  for (int64_t q = 0; call_.grad_weight && q < dim_panels_; ++q) {
    const int64_t first = q / kPanelsStored * kPanelsStored;
    float *run = scratch.z + first / kPanelsStored % 2 * kPanelsStored * kSlab * kPanel;
    float *c = run + (q - first) * kSlab * kPanel;
    const int64_t dims = std::min(kPanel, dim_ - q * kPanel);
    scratch.stores.products = first + kPanelsStored - q;
    gemm_(s.padded, padded_tokens_, by_column, blocks_of(by_column_stride_), x + q * panel_size, c,
          false,
          {x + (q + 1) % dim_panels_ * panel_size, panel_size * 2,
           next.data + q * (next.bytes / dim_panels_), next.bytes / dim_panels_},
          &scratch.stores);
    for (auto e = begin; e != end; ++e)
      add_scaled(c + e->column * kPanel, hidden_ + e->token * call_.hidden_stride + q * kPanel,
                 target_gradient_[e->token], dims);
    for (int64_t j = 0; rank_one_ && j < s.columns; ++j)
      for (int64_t d = 0; d < dims; ++d)
        c[j * kPanel + d] += class_weight_of(s.first + j) * hidden_sum_[q * kPanel + d];
    if (q == first + kPanelsStored - 1 || q + 1 == dim_panels_)
      store_grad_weight(s, first, run, scratch.stores);
  }
  scratch.stores.finish();
  fence_stores();
  if (!call_.grad_bias) return;
  float *bias = call_.grad_bias + s.first;
  add_up_lanes(scratch.column_sums, s.columns, bias);
  for (auto e = begin; e != end; ++e) bias[e->column] += target_gradient_[e->token];
  for (int64_t j = 0; rank_one_ && j < s.columns; ++j)
    bias[j] += class_weight_of(s.first + j) * logit_sum_gradient_total_;
}

// The panels from q on that stand in c, at most kPanelsStored of them: written out beside the next
// products.
void LinearRun::store_grad_weight(const Slab &s, int64_t q, const float *c, PanelStores &stores) {
  stores.finish();
  const int64_t dims = std::min(kPanelsStored * kPanel, dim_ - q * kPanel);
  const int64_t at = s.first * dim_ + q * kPanel;
  if (call_.grad_weight_dtype == DS_TRAIN_BF16) {
    begin_stores(stores, static_cast<Bf16 *>(call_.grad_weight) + at, dim_, c, s.columns, dims);
    return;
  }
  float *out = static_cast<float *>(call_.grad_weight) + at;
  for (int64_t j = 0; j < s.columns; ++j)
    for (int64_t d = 0; d < dims; d += kPanel)
      std::memcpy(out + j * dim_ + d, c + (d * kSlab + j * kPanel),
                  std::min(kPanel, dims - d) * sizeof(float));
}

// Gradients that need each logit itself: once more over the vocabulary with the final statistics.
void LinearRun::exact_pass() {
  const float *of = token_gradients_;
  const int64_t n = padded_tokens_;
  gradients_ = {of, of + n, of + 2 * n, of + 3 * n, of + 4 * n, of + 5 * n};
  if (grad_weight_) pack_gradient_hidden();
  std::vector<Stage> stages;
  std::vector<int64_t> slab_stage(groups_), accumulated(groups_);
  const auto add_slabs = [&](int64_t index) {
    if (index >= groups_) return;
    const Group g = group(index);
    const int64_t free = index < kGroupsAtOnce ? -1 : accumulated[index - kGroupsAtOnce];
    const Work work = [=, this](int64_t item, Scratch &scratch) {
      exact_slab(g, slab(g.begin + item), scratch);
    };
    slab_stage[index] = stages.size();
    stages.push_back({g.end - g.begin, work, {grad_hidden_ ? free : -1, -1}});
  };
  add_slabs(0);
  for (int64_t index = 0; index < groups_; ++index) {
    add_slabs(index + 1);
    if (!grad_hidden_) continue;
    const Group g = group(index);
    accumulated[index] = stages.size();
    stages.push_back(accumulation(g, slab_stage[index], index ? accumulated[index - 1] : -1));
  }
  run_stages(stages);
}

void LinearRun::exact_slab(const Group &g, const Slab &s, Scratch &scratch) {
  if (scratch.column_sums)
    std::fill_n(static_cast<float *>(scratch.column_sums), kSlab * kSumLanes, 0.0f);
  const SlabWeight w = slab_weight(s, scratch, grad_hidden_ ? &g : nullptr);
  logits(s, w, 0, token_panels_, scratch, [&](int64_t panel, const Tile &t) {
    const int64_t token = panel * kPanel;
    float max[kPanel];
    transform_tile(t, max, nullptr);
    hide_targets(s, panel, t.z);
    TileOutput out{};
    if (grad_weight_) out = gradient_output(panel, scratch);
    if (grad_hidden_) {
      out.tokens = blocks_of(by_token_stride_);
      out.by_token = group_block(g, s, panel);
    }
    gradient_tile(t, gradients_, token, out);
  });
  if (grad_weight_) write_grad_weight(s, scratch.by_column, scratch);
}

}  // namespace ds_train
#endif
