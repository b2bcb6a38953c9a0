// The passes of the fused linear kernel over the vocabulary. What they are for is told in
// linear_ce_cpu.cpp.
#if defined(__x86_64__)
#include <cstring>

#include "linear_ce_run.h"

namespace ds_train {

LinearRun::Slab LinearRun::slab(int64_t index) const {
  const int64_t first = index * kSlab, columns = std::min(kSlab, vocab_ - first);
  return {index, first, columns, (columns + 31) / 32 * 32};
}

Tile LinearRun::tile(const Slab &s, const Scratch &scratch) const {
  return {scratch.z,
          s.columns,
          s.padded,
          rows_.bias ? rows_.bias + s.first : nullptr,
          rows_.class_weight ? rows_.class_weight + s.first : nullptr,
          rows_.logit_scale,
          rows_.softcap};
}

// Whether a slab's weights are read from a copy: filled up with zeros to multiples of 32, or moved
// from a stride at which the rows of a tile all fall on the same lines of the first cache.
bool LinearRun::copies(const Slab &s) const {
  return s.padded > s.columns || padded_dim_ > dim_ || call_.weight_stride % 512 == 0;
}

const Bf16 *LinearRun::slab_weight(const Slab &s, Scratch &scratch) const {
  const Bf16 *w = weight_ + s.first * call_.weight_stride;
  if (!copies(s)) return w;
  Bf16 *copy = scratch.weight;
  if (s.padded > s.columns || padded_dim_ > dim_)
    std::memset(copy, 0, s.padded * weight_copy_stride_ * sizeof(Bf16));
  for (int64_t j = 0; j < s.columns; ++j)
    std::memcpy(copy + j * weight_copy_stride_, w + j * call_.weight_stride, dim_ * sizeof(Bf16));
  return copy;
}

// x . w of a slab, one panel of tokens after the other, each handed to use(panel) in scratch.z.
template <class Use>
void LinearRun::logits(const Slab &s, int64_t first_panel, int64_t last_panel, Scratch &scratch,
                       const Use &use) {
  const Bf16 *w = slab_weight(s, scratch);
  const int64_t stride = w == scratch.weight ? weight_copy_stride_ : call_.weight_stride;
  const int64_t panel_size = kPanel * padded_dim_, panels = last_panel - first_panel;
  const Slab next = slab(std::min(s.index + threads_, slabs_ - 1));  // likely this thread's next
  const int64_t part = next.columns * call_.weight_stride / panels;
  for (int64_t i = 0; i < panels; ++i) {
    const Bf16 *x = hidden_logits_ + first_panel * panel_size;
    const Bf16 *next_w = weight_ + next.first * call_.weight_stride + i * part;
    gemm_(s.padded, padded_dim_, w, stride, x + i * panel_size, scratch.z, false,
          {x + (i + 1) % panels * panel_size, hidden_is_near_ ? 0 : panel_size * 2, next_w,
           part * 2});
    use(first_panel + i);
  }
}

// visit(token, position in z) for the labels in this slab of this panel's tokens.
template <class Visit>
void LinearRun::targets(const Slab &s, int64_t panel, const Visit &visit) const {
  const auto begin = entries_.begin() + slab_entries_[s.index];
  const auto end = entries_.begin() + slab_entries_[s.index + 1];
  auto at = std::lower_bound(begin, end, panel * kPanel,
                             [](const Entry &e, int64_t token) { return e.token < token; });
  for (; at != end && at->token < (panel + 1) * kPanel; ++at)
    visit(at->token, at->column * kPanel + at->token % kPanel);
}

// The label's logit leaves the tile: it is kept, and its place adds nothing from here on.
void LinearRun::take_targets(const Slab &s, int64_t panel, float *z) {
  targets(s, panel, [&](int64_t token, int64_t at) {
    target_[token] = z[at];
    bool first = true;
    for (int64_t i = at - kPanel; i >= 0 && first; i -= kPanel) first = z[i] < z[at];
    target_is_first_[token] = first;
    z[at] = -INFINITY;
  });
}

void LinearRun::hide_targets(const Slab &s, int64_t panel, float *z) const {
  targets(s, panel, [&](int64_t, int64_t at) { z[at] = -INFINITY; });
}

LinearRun::Group LinearRun::group(int64_t index) const {
  const int64_t n = padded_tokens_, turn = index % kGroupsAtOnce, slabs = slabs_in_group_;
  const auto after = [&](int64_t i) {
    return references_ + (i < 0 ? kGroupsAtOnce : i % kGroupsAtOnce) * n;
  };
  const auto of_slabs = [&](float *all) { return all + turn * slabs * n; };
  const int64_t begin = index * slabs;
  return {index,
          begin,
          std::min(slabs_, begin + slabs),
          of_slabs(slab_max_),
          of_slabs(slab_sum_),
          of_slabs(slab_shifted_),
          of_slabs(slab_logit_sum_),
          grad_weight_ && !exact_ ? slab_reference_ + begin * n : of_slabs(slab_reference_),
          after(index - 2),
          after(index - 1),
          after(index),
          group_exponentials_ + turn * n * by_token_stride_,
          group_weight_ + turn * slabs * kSlab * padded_dim_};
}

// Per group: logits and exponentials (slabs), their statistics (merge), their part of grad_hidden
// (accumulate). The slabs of a group come before the accumulation of the group before, so that
// there is work while the last items of a stage run.
void LinearRun::first_pass() {
  const bool accumulates = grad_hidden_ && !exact_;
  std::vector<Stage> stages;
  std::vector<int64_t> merged(groups_), ended(groups_);
  const auto add_slabs = [&](int64_t index) {
    if (index >= groups_) return;
    const Group g = group(index);
    // With few slabs for many threads, a slab's tokens are shared out as well.
    const int64_t slabs = g.end - g.begin;
    const int64_t chunks = std::min(token_panels_, (2 * threads_ + slabs - 1) / slabs);
    const Work work = [=, this](int64_t item, Scratch &scratch) {
      const Slab s = slab(g.begin + item / chunks);
      const int64_t chunk = item % chunks;
      first_slab(g, s, chunk * token_panels_ / chunks, (chunk + 1) * token_panels_ / chunks,
                 scratch);
      if (chunk == 0 && accumulates) pack_slab_weight(g, s, scratch);
    };
    stages.push_back({slabs * chunks, work, {index < 2 ? -1 : merged[index - 2], -1}});
  };
  add_slabs(0);
  int64_t next_slabs = 0;
  for (int64_t index = 0; index < groups_; ++index) {
    const Group g = group(index);
    const int64_t slabs_of_this = next_slabs;
    next_slabs = stages.size();
    add_slabs(index + 1);
    merged[index] = stages.size();
    const Work merge = [=, this](int64_t panel, Scratch &) { merge_group(g, panel); };
    stages.push_back({token_panels_, merge, {slabs_of_this, index ? ended[index - 1] : -1}});
    ended[index] = merged[index];
    if (!accumulates) continue;
    ended[index] = stages.size();
    const Work add = [=, this](int64_t item, Scratch &) { accumulate(g, item); };
    stages.push_back({accumulation_items(), add, {merged[index], -1}});
  }
  run_stages(stages);
  reference_ = group(groups_ - 1).reference_out;
  if (weight_sum_)
    for (int64_t s = 1; s < slabs_; ++s)
      for (int64_t d = 0; d < dim_; ++d) weight_sum_[d] += weight_sum_[s * dim_ + d];
}

void LinearRun::first_slab(const Group &g, const Slab &s, int64_t first_panel, int64_t last_panel,
                           Scratch &scratch) {
  const Tile t = tile(s, scratch);
  const int64_t in_group = s.index - g.begin;
  logits(s, first_panel, last_panel, scratch, [&](int64_t panel) {
    const int64_t token = panel * kPanel, at = in_group * padded_tokens_ + token;
    std::memcpy(g.slab_reference + at, g.reference_in + token, kPanel * sizeof(float));
    transform_tile(t, g.max + at, rows_.logit_sum ? g.logit_sum + at : nullptr);
    take_targets(s, panel, t.z);
    TileOutput out{};
    if (s.index < kept_slabs_) {
      out.by_column = kept_ + s.index * kSlab * by_column_stride_ + token;
      out.column_stride = by_column_stride_;
    }
    if (grad_hidden_ && !exact_) {
      out.by_token = g.exponentials + token * by_token_stride_ + in_group * kSlab;
      out.token_stride = by_token_stride_;
    }
    exponentiate_tile(t, g.max + at, g.slab_reference + at, g.sum + at,
                      with_shifted_ ? g.shifted + at : nullptr, out);
  });
}

// While the slab's weights are in the cache: packed for grad_hidden, and their weighted sum.
void LinearRun::pack_slab_weight(const Group &g, const Slab &s, const Scratch &scratch) {
  const Bf16 *w = weight_ + s.first * call_.weight_stride;
  int64_t stride = call_.weight_stride;
  if (copies(s)) w = scratch.weight, stride = weight_copy_stride_;
  const int64_t columns = slabs_in_group_ * kSlab, before = (s.index - g.begin) * kSlab;
  for (int64_t q = 0; q < dim_panels_; ++q)
    pack_rows(w + q * kPanel, stride, s.columns, s.padded, dim_ - q * kPanel, nullptr,
              g.weight + (q * columns + before) * kPanel);
  if (weight_sum_)
    for (int64_t j = 0; j < s.columns; ++j)
      add_scaled(weight_sum_ + s.index * dim_, w + j * stride, class_weight_of(s.first + j), dim_);
}

void LinearRun::merge_group(const Group &g, int64_t panel) {
  for (int64_t token = panel * kPanel; token < (panel + 1) * kPanel; ++token) {
    const int64_t label = token < tokens_ ? rows_.labels[token] : -1;
    RowStats &row = stats_[token];
    float reference = g.reference_before[token];
    for (int64_t s = g.begin; s < g.end; ++s) {
      const int64_t at = (s - g.begin) * padded_tokens_ + token;
      if (label >= 0 && label < vocab_ && label / kSlab == s) {
        row.target = target_[token];
        row.target_is_first = target_is_first_[token] && row.target > top_[token];
      }
      top_[token] = std::max(top_[token], g.max[at]);
      reference = std::max(reference, g.slab_reference[at]);
    }
    g.reference_out[token] = reference;
    raise_row(g, token, reference);
    for (int64_t s = g.begin; s < g.end; ++s) {
      const int64_t at = (s - g.begin) * padded_tokens_ + token;
      const float shift = g.slab_reference[at] - reference, shrink = shift == 0 ? 1 : expf(shift);
      row.others += shrink * g.sum[at];
      if (with_shifted_ && shrink > 0)
        row.others_shifted += shrink * (g.shifted[at] + shift * g.sum[at]);
      if (rows_.logit_sum) row.logit_sum += g.logit_sum[at];
    }
  }
}

// If a row's reference has risen, what it had so far shrinks. The group's exponentials, too, must
// have one reference, as they are summed in one product.
void LinearRun::raise_row(const Group &g, int64_t token, float reference) {
  RowStats &row = stats_[token];
  const float shrink = row.max == reference ? 1.0f : expf(row.max - reference);
  raise_max(row, reference);
  if (!grad_hidden_ || exact_) return;
  if (shrink != 1.0f && g.index > 0)
    for (int64_t q = 0; q < dim_panels_; ++q)
      for (int64_t d = 0; d < kPanel; ++d)
        accumulated_[(q * padded_tokens_ + token) * kPanel + d] *= shrink;
  for (int64_t s = g.begin; s < g.end; ++s) {
    const float r = g.slab_reference[(s - g.begin) * padded_tokens_ + token];
    if (r != reference)
      scale_bf16(g.exponentials + token * by_token_stride_ + (s - g.begin) * kSlab,
                 expf(r - reference), slab(s).padded);
  }
}

constexpr int64_t kRowsTogether = 256, kPanelsTogether = 4;  // in an item of accumulate

int64_t LinearRun::accumulation_items() const {
  return (padded_tokens_ + kRowsTogether - 1) / kRowsTogether *
         ((dim_panels_ + kPanelsTogether - 1) / kPanelsTogether);
}

void LinearRun::accumulate(const Group &g, int64_t item) {
  const int64_t columns = (g.end - 1 - g.begin) * kSlab + slab(g.end - 1).padded;
  const int64_t parts = (dim_panels_ + kPanelsTogether - 1) / kPanelsTogether;
  const int64_t token = item / parts * kRowsTogether;
  const int64_t rows = std::min(kRowsTogether, padded_tokens_ - token);
  const int64_t first = item % parts * kPanelsTogether;
  for (int64_t q = first; q < std::min(dim_panels_, first + kPanelsTogether); ++q) {
    const Bf16 *w = g.weight + q * slabs_in_group_ * kSlab * kPanel;
    float *sums = accumulated_ + (q * padded_tokens_ + token) * kPanel;
    const int64_t more = q + 1 < dim_panels_;
    gemm_(rows, columns, g.exponentials + token * by_token_stride_, by_token_stride_, w, sums, true,
          {w + more * slabs_in_group_ * kSlab * kPanel, more * columns * kPanel * 2,
           sums + more * padded_tokens_ * kPanel, more * rows * kPanel * 4});
  }
}

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
      add_scaled(hidden_sum_ + q * kPanel, x + t * call_.hidden_stride, logit_sum_gradient_[t], dims);
  });
  for (int64_t t = 0; rank_one_ && t < tokens_; ++t)
    logit_sum_gradient_total_ += logit_sum_gradient_[t];
}

void LinearRun::weight_pass() {
  if (tokens_ == 0) {
    const int64_t size = call_.grad_weight_dtype == DS_TRAIN_FP32 ? 4 : 2;
    if (call_.grad_weight) std::memset(call_.grad_weight, 0, vocab_ * dim_ * size);
    if (call_.grad_bias) std::memset(call_.grad_bias, 0, vocab_ * sizeof(float));
    return;
  }
  if (call_.grad_weight)
    prefer_huge_pages(call_.grad_weight, vocab_ * dim_ * (call_.grad_weight_dtype == DS_TRAIN_FP32 ? 4 : 2));
  pack_gradient_hidden();
  each(slabs_, [&](int64_t index, Scratch &scratch) {
    const Slab s = slab(index);
    if (index >= kept_slabs_) {
      const Tile t = tile(s, scratch);
      logits(s, 0, token_panels_, scratch, [&](int64_t panel) {
        float max[kPanel], reference[kPanel], sum[kPanel];
        transform_tile(t, max, nullptr);
        hide_targets(s, panel, t.z);
        std::memcpy(reference, reference_ + panel * kPanel, sizeof reference);
        exponentiate_tile(t, max, reference, sum, nullptr,
                          {scratch.by_column + panel * kPanel, by_column_stride_, nullptr, 0});
      });
      write_grad_weight(s, scratch.by_column, scratch);
      return;
    }
    Bf16 *kept = kept_ + index * kSlab * by_column_stride_;
    float *factor = slab_reference_ + index * padded_tokens_;
    if (std::memcmp(factor, reference_, padded_tokens_ * sizeof(float)) != 0) {
      for (int64_t t = 0; t < padded_tokens_; ++t)
        factor[t] = factor[t] == reference_[t] ? 1.0f : expf(factor[t] - reference_[t]);
      scale_columns(kept, s.padded, by_column_stride_, padded_tokens_, factor);
    }
    write_grad_weight(s, kept, scratch);
  });
}

void LinearRun::write_grad_weight(const Slab &s, const Bf16 *by_column, Scratch &scratch) {
  const auto begin = entries_.begin() + slab_entries_[s.index];
  const auto end = entries_.begin() + slab_entries_[s.index + 1];
  const int64_t panel_size = padded_tokens_ * kPanel, slab_size = kSlab * by_column_stride_;
  const Bf16 *x = hidden_gradient_;
  const Bf16 *next = s.index + threads_ < kept_slabs_ ? by_column + threads_ * slab_size : nullptr;
  const int64_t part = next ? slab_size / dim_panels_ : 0;
  for (int64_t q = 0; call_.grad_weight && q < dim_panels_; ++q) {
    float *c = scratch.z + q % kPanelsStored * kSlab * kPanel;
    const int64_t dims = std::min(kPanel, dim_ - q * kPanel);
    gemm_(s.padded, padded_tokens_, by_column, by_column_stride_, x + q * panel_size, c, false,
          {x + (q + 1) % dim_panels_ * panel_size, hidden_is_near_ ? 0 : panel_size * 2,
           next ? next + q * part : nullptr, part * 2});
    for (auto e = begin; e != end; ++e)
      add_scaled(c + e->column * kPanel, hidden_ + e->token * call_.hidden_stride + q * kPanel,
                 target_gradient_[e->token], dims);
    for (int64_t j = 0; rank_one_ && j < s.columns; ++j)
      for (int64_t d = 0; d < dims; ++d)
        c[j * kPanel + d] += class_weight_of(s.first + j) * hidden_sum_[q * kPanel + d];
    if (q % kPanelsStored == kPanelsStored - 1 || q + 1 == dim_panels_)
      store_grad_weight(s, q / kPanelsStored * kPanelsStored, scratch.z);
  }
  if (!call_.grad_bias) return;
  float *bias = call_.grad_bias + s.first;
  sum_columns(by_column, s.columns, by_column_stride_, padded_tokens_,
              exact_ ? nullptr : static_cast<const float *>(coefficient_), bias);
  for (auto e = begin; e != end; ++e) bias[e->column] += target_gradient_[e->token];
  for (int64_t j = 0; rank_one_ && j < s.columns; ++j)
    bias[j] += class_weight_of(s.first + j) * logit_sum_gradient_total_;
}

// The panels from q on that stand in c, at most kPanelsStored of them.
void LinearRun::store_grad_weight(const Slab &s, int64_t q, const float *c) {
  const int64_t dims = std::min(kPanelsStored * kPanel, dim_ - q * kPanel);
  const int64_t at = s.first * dim_ + q * kPanel;
  if (call_.grad_weight_dtype == DS_TRAIN_BF16) {
    store_panels_bf16(static_cast<Bf16 *>(call_.grad_weight) + at, dim_, c, s.columns, dims);
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
    const Work work = [=, this](int64_t item, Scratch &) { accumulate(g, item); };
    stages.push_back({accumulation_items(),
                      work,
                      {slab_stage[index], index ? accumulated[index - 1] : -1}});
  }
  run_stages(stages);
}

void LinearRun::exact_slab(const Group &g, const Slab &s, Scratch &scratch) {
  const Tile t = tile(s, scratch);
  logits(s, 0, token_panels_, scratch, [&](int64_t panel) {
    const int64_t token = panel * kPanel;
    float max[kPanel];
    transform_tile(t, max, nullptr);
    hide_targets(s, panel, t.z);
    TileOutput out{};
    if (grad_weight_) out = {scratch.by_column + token, by_column_stride_, nullptr, 0};
    if (grad_hidden_) {
      out.by_token = g.exponentials + token * by_token_stride_ + (s.index - g.begin) * kSlab;
      out.token_stride = by_token_stride_;
    }
    gradient_tile(t, gradients_, token, out);
  });
  if (grad_hidden_) pack_slab_weight(g, s, scratch);
  if (grad_weight_) write_grad_weight(s, scratch.by_column, scratch);
}

}  // namespace ds_train
#endif
