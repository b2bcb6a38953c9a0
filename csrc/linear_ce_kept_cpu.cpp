// Where the exponentials of the fused linear kernel wait for grad_weight.
//
// Those of the first tokens lie in the gradient's own memory, which holds nothing else before the
// slab's gradient is written, and that is after they were read. It has room for about as many
// tokens as there are hidden dimensions. The next ones lie in a buffer of logits_bytes; the others
// are computed again.
#if defined(__x86_64__)
#include <cstring>

#include "linear_ce_run.h"

namespace ds_train {
namespace {

constexpr int64_t kLargeGradient = 4 << 20;  // bytes; less is likely to have its pages
constexpr int64_t kThreadsPerRun = 4;        // one of these makes pages, the others go on

int64_t round_down(int64_t x, int64_t step) { return x / step * step; }

}  // namespace

// Pages for the gradient, in a few long runs. Threads that make pages at the same time get in each
// other's way: two took up to one and a half times as long together as one alone.
LinearRun::Stage LinearRun::pages_for_grad_weight() {
  if (!grad_weight_ || !call_.grad_weight) return {0, nullptr};
  char *data = static_cast<char *>(call_.grad_weight);
  const int64_t bytes = vocab_ * dim_ * grad_weight_size();
  if (bytes < kLargeGradient) return {0, nullptr};
  prefer_huge_pages(data, bytes);
  const int64_t runs = (threads_ + kThreadsPerRun - 1) / kThreadsPerRun;
  return {runs, [=](int64_t i, Scratch &) {
            const int64_t begin = bytes * i / runs, end = bytes * (i + 1) / runs;
            make_present(data + begin, end - begin);
          }};
}

// How many tokens are kept where. None for grad_bias: it is the sum of what isn't rounded yet, and
// would be a thousand times less exact from what was kept. Strides whose multiples fall on the same
// lines of the cache are left out, as in spread().
void LinearRun::share_out_tokens() {
  if (call_.grad_bias) return;
  if (call_.grad_weight) {
    const int64_t room = round_down(
        call_.grad_weight_dtype == DS_TRAIN_FP32 ? 2 * dim_ : dim_, kPanel);
    gradient_stride_ = std::min(room, by_column_stride_);
    if (gradient_stride_ % 256 == 0) gradient_stride_ = std::max<int64_t>(0, gradient_stride_ - 32);
    tokens_in_gradient_ = std::min(padded_tokens_, gradient_stride_);
  }
  const int64_t left = padded_tokens_ - tokens_in_gradient_;
  const int64_t room = call_.logits_bytes / (slabs_ * kSlab * 2);
  buffer_stride_ = std::min(round_down(room, kPanel), left);
  tokens_in_buffer_ = buffer_stride_;
}

// A slab that is filled up with columns that aren't there has no room for them in the gradient.
LinearRun::Kept LinearRun::kept_in_gradient(const Slab &s) const {
  if (tokens_in_gradient_ == 0 || s.padded > s.columns) return {};
  char *data = static_cast<char *>(call_.grad_weight) + s.first * dim_ * grad_weight_size();
  return {reinterpret_cast<Bf16 *>(data), gradient_stride_, 0, tokens_in_gradient_};
}

LinearRun::Kept LinearRun::kept_in_buffer(const Slab &s) const {
  if (tokens_in_buffer_ == 0) return {};
  return {kept_ + s.first * buffer_stride_, buffer_stride_, tokens_in_gradient_, tokens_in_buffer_};
}

// Where the first pass writes the exponentials of one panel of tokens; nowhere if they aren't kept.
TileOutput LinearRun::kept_output(const Slab &s, int64_t token) const {
  for (const Kept &kept : {kept_in_gradient(s), kept_in_buffer(s)})
    if (token >= kept.first && token < kept.first + kept.tokens) {
      const Blocks b = blocks_of(kept.width);
      return {kept.data + (token - kept.first) / kPanel * b.step, b, nullptr, {}};
    }
  return {};
}

// The exponentials of the slab that this thread will have after this one, if the threads take turns.
// They were written long ago, and are on their way from memory while this slab's product runs.
LinearRun::Coming LinearRun::coming(const Slab &s) const {
  if (exact_ || s.index + threads_ >= slabs_) return {};
  const Slab next = slab(s.index + threads_);
  const Kept kept = kept_in_gradient(next);
  return {reinterpret_cast<const char *>(kept.data), next.padded * kept.width * 2};
}

// All exponentials of a slab, relative to the final references, in scratch.by_column.
void LinearRun::gather(const Slab &s, Scratch &scratch) {
  if (scratch.column_sums)
    std::fill_n(static_cast<float *>(scratch.column_sums), kSlab * kSumLanes, 0.0f);
  int64_t done = 0;
  for (const Kept &kept : {kept_in_gradient(s), kept_in_buffer(s)}) {
    if (kept.tokens == 0) continue;
    const Blocks to = blocks_of(by_column_stride_), from = blocks_of(kept.width);
    Bf16 *e = scratch.by_column + kept.first / kPanel * to.step;
    for (int64_t i = 0; i < s.padded / kPanel; ++i)
      std::memcpy(e + i * to.panel, kept.data + i * from.panel,
                  kept.tokens * kPanel * sizeof(Bf16));
    float *factor = slab_reference_ + s.index * padded_tokens_ + kept.first;
    const float *reference = reference_ + kept.first;
    if (std::memcmp(factor, reference, kept.tokens * sizeof(float)) != 0) {
      for (int64_t t = 0; t < kept.tokens; ++t)
        factor[t] = factor[t] == reference[t] ? 1.0f : expf(factor[t] - reference[t]);
      scale_columns(e, to, s.padded, kept.tokens, factor);
    }
    compute_again(s, done / kPanel, kept.first / kPanel, scratch);
    done = kept.first + kept.tokens;
  }
  compute_again(s, done / kPanel, token_panels_, scratch);
}

// Where a tile's part of the gradient of a slab goes.
TileOutput LinearRun::gradient_output(int64_t panel, Scratch &scratch) const {
  const Blocks b = blocks_of(by_column_stride_);
  TileOutput out{scratch.by_column + panel * b.step, b, nullptr, {}};
  if (!call_.grad_bias) return out;
  out.column_sums = scratch.column_sums;
  if (!exact_) out.coefficient = coefficient_ + panel * kPanel;
  return out;
}

void LinearRun::compute_again(const Slab &s, int64_t first_panel, int64_t last_panel,
                              Scratch &scratch) {
  if (first_panel == last_panel) return;
  logits(s, slab_weight(s, scratch), first_panel, last_panel, scratch, [&](int64_t panel, const Tile &t) {
    float max[kPanel], reference[kPanel];
    transform_tile(t, max, nullptr);
    hide_targets(s, panel, t.z);
    std::memcpy(reference, reference_ + panel * kPanel, sizeof reference);
    begin_exponentials(scratch.exponentials, t, max, reference, nullptr, nullptr,
                       gradient_output(panel, scratch));
  });
}

}  // namespace ds_train
#endif
