// The pass of the fused linear kernel that makes statistics and grad_hidden. What it is for is told
// in linear_ce_cpu.cpp.
#if defined(__x86_64__)
#include <cstring>

#include "linear_ce_run.h"

namespace ds_train {

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
          group_weight_ + turn * dim_panels_ * group_panel_};
}

// Per group: logits and exponentials (slabs), their statistics (merge), their part of grad_hidden
// (accumulate). The slabs of a group come before the accumulation of the group before, so that
// there is work while the last items of a stage run.
void LinearRun::first_pass() {
  const bool accumulates = grad_hidden_ && !exact_;
  std::vector<Stage> stages{pages_for_grad_weight()};
  std::vector<int64_t> merged(groups_), ended(groups_);
  const auto add_slabs = [&](int64_t index) {
    if (index >= groups_) return;
    const Group g = group(index);
    // With few slabs for many threads, a slab's tokens are shared out as well; each has its weights
    // to pack, though.
    const int64_t slabs = g.end - g.begin;
    const int64_t chunks = std::min(token_panels_, (threads_ + slabs - 1) / slabs);
    const Work work = [=, this](int64_t item, Scratch &scratch) {
      const Slab s = slab(g.begin + item / chunks);
      const int64_t chunk = item % chunks;
      const SlabWeight w = slab_weight(s, scratch, chunk == 0 && accumulates ? &g : nullptr);
      first_slab(g, s, w, chunk * token_panels_ / chunks, (chunk + 1) * token_panels_ / chunks,
                 scratch);
    };
    stages.push_back({slabs * chunks, work, {index < 2 ? -1 : merged[index - 2], -1}});
  };
  int64_t next_slabs = stages.size();
  add_slabs(0);
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
    stages.push_back(accumulation(g, merged[index], -1));
  }
  run_stages(stages);
  reference_ = group(groups_ - 1).reference_out;
  if (weight_sum_)
    for (int64_t s = 1; s < slabs_; ++s)
      for (int64_t d = 0; d < dim_; ++d) weight_sum_[d] += weight_sum_[s * dim_ + d];
}

void LinearRun::first_slab(const Group &g, const Slab &s, const SlabWeight &w,
                           int64_t first_panel, int64_t last_panel, Scratch &scratch) {
  const int64_t in_group = s.index - g.begin;
  logits(s, w, first_panel, last_panel, scratch, [&](int64_t panel, const Tile &t) {
    const int64_t token = panel * kPanel, at = in_group * padded_tokens_ + token;
    std::memcpy(g.slab_reference + at, g.reference_in + token, kPanel * sizeof(float));
    transform_tile(t, g.max + at, rows_.logit_sum ? g.logit_sum + at : nullptr);
    take_targets(s, panel, t.z);
    TileOutput out = kept_output(s, token);
    if (grad_hidden_ && !exact_) {
      out.tokens = blocks_of(by_token_stride_);
      out.by_token = group_block(g, s, panel);
    }
    begin_exponentials(scratch.exponentials, t, g.max + at, g.slab_reference + at, g.sum + at,
                       with_shifted_ ? g.shifted + at : nullptr, out);
  });
}

// Where the exponentials of a slab and a panel of tokens begin among those of the group.
Bf16 *LinearRun::group_block(const Group &g, const Slab &s, int64_t panel) const {
  const Blocks b = blocks_of(by_token_stride_);
  return g.exponentials + panel * b.panel + (s.index - g.begin) * kSlab / kPanel * b.step;
}

void LinearRun::merge_group(const Group &g, int64_t panel) {
  const int64_t first = panel * kPanel;
  bool risen = false;
  float *top = top_ + first;
  std::memcpy(g.reference_out + first, g.reference_before + first, kPanel * sizeof(float));
  for (int64_t s = g.begin; s < g.end; ++s) {
    const int64_t at = (s - g.begin) * padded_tokens_ + first;
    take_target(s, panel);
    for (int64_t i = 0; i < kPanel; ++i) {
      const float reference = g.slab_reference[at + i];
      float &out = g.reference_out[first + i];
      top[i] = std::max(top[i], g.max[at + i]);
      risen |= reference != g.reference_before[first + i];
      out = std::max(out, reference);
    }
  }
  for (int64_t token = first; risen && token < first + kPanel; ++token)
    raise_row(g, token, g.reference_out[token]);
  for (int64_t s = g.begin; s < g.end; ++s)
    for (int64_t token = first; token < first + kPanel; ++token)
      add_sums(g, (s - g.begin) * padded_tokens_ + token, token);
}

// The labels of a slab's panel; top_ is that of the slabs before.
void LinearRun::take_target(int64_t s, int64_t panel) {
  targets(slab(s), panel, [&](int64_t token, int64_t) {
    RowStats &row = stats_[token];
    row.target = target_[token];
    row.target_is_first = target_is_first_[token] && row.target > top_[token];
  });
}

// A slab's sums of a row, which stand at `at`, to those so far.
void LinearRun::add_sums(const Group &g, int64_t at, int64_t token) {
  RowStats &row = stats_[token];
  const float shift = g.slab_reference[at] - g.reference_out[token];
  const float shrink = shift == 0 ? 1 : expf(shift);
  row.others += shrink * g.sum[at];
  if (with_shifted_ && shrink > 0)
    row.others_shifted += shrink * (g.shifted[at] + shift * g.sum[at]);
  if (rows_.logit_sum) row.logit_sum += g.logit_sum[at];
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
  const Blocks b = blocks_of(by_token_stride_);
  for (int64_t s = g.begin; s < g.end; ++s) {
    const float r = g.slab_reference[(s - g.begin) * padded_tokens_ + token];
    if (r == reference) continue;
    Bf16 *e = group_block(g, slab(s), token / kPanel) + token % kPanel * b.row;
    for (int64_t i = 0; i < slab(s).padded / kPanel; ++i)
      scale_bf16(e + i * b.step, expf(r - reference), kPanel);
  }
}

constexpr int64_t kRowsTogether = 512, kPanelsTogether = 4;  // in an item of accumulate

// A group's part of grad_hidden, after these stages.
LinearRun::Stage LinearRun::accumulation(const Group &g, int64_t after, int64_t and_after) {
  const int64_t items = (padded_tokens_ + kRowsTogether - 1) / kRowsTogether *
                        ((dim_panels_ + kPanelsTogether - 1) / kPanelsTogether);
  return {items,
          [=, this](int64_t item, Scratch &) { accumulate(g, item); },
          {after, and_after},
          true};
}

void LinearRun::accumulate(const Group &g, int64_t item) {
  const int64_t columns = (g.end - 1 - g.begin) * kSlab + slab(g.end - 1).padded;
  const int64_t parts = (dim_panels_ + kPanelsTogether - 1) / kPanelsTogether;
  const int64_t token = item / parts * kRowsTogether;
  const int64_t rows = std::min(kRowsTogether, padded_tokens_ - token);
  const int64_t first = item % parts * kPanelsTogether;
  for (int64_t q = first; q < std::min(dim_panels_, first + kPanelsTogether); ++q) {
    const Bf16 *w = g.weight + q * group_panel_;
    float *sums = accumulated_ + (q * padded_tokens_ + token) * kPanel;
    const int64_t more = q + 1 < dim_panels_;
    gemm_(rows, columns, g.exponentials + token * by_token_stride_, blocks_of(by_token_stride_), w,
          sums, true,
          {w + more * group_panel_, more * columns * kPanel * 2,
           sums + more * padded_tokens_ * kPanel, more * rows * kPanel * 4},
          nullptr);
  }
}

}  // namespace ds_train
#endif
