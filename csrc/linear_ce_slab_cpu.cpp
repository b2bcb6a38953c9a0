// One slab in the fused linear kernel: its weights, its logits for a panel of tokens, and the labels
// that lie in it.
#if defined(__x86_64__)
#include "linear_ce_run.h"

namespace ds_train {

LinearRun::Slab LinearRun::slab(int64_t index) const {
  const int64_t first = index * kSlab, columns = std::min(kSlab, vocab_ - first);
  return {index, first, columns, (columns + 31) / 32 * 32};
}

Tile LinearRun::tile(const Slab &s, float *z) const {
  return {z,
          s.columns,
          s.padded,
          rows_.bias ? rows_.bias + s.first : nullptr,
          rows_.class_weight ? rows_.class_weight + s.first : nullptr,
          rows_.logit_scale,
          rows_.softcap};
}

// A slab's weights are read from a copy, as blocks, filled up with zeros to multiples of 32. Reading
// the rows one after the other is also what brings them near soonest: a processor foresees it, and
// prefetches of a product's own would keep its loads waiting.
LinearRun::SlabWeight LinearRun::slab_weight(const Slab &s, Scratch &scratch, const Group *group) {
  const int64_t stride = call_.weight_stride;
  const Bf16 *w = weight_ + s.first * stride;
  const Blocks copy = blocks_of(weight_copy_stride_);
  if (group && weight_sum_) add_weight_sum(s);
  if (group)
    pack_weight(w, stride, s.columns, dim_, copy, scratch.weight,
                group->weight + (s.index - group->begin) * kSlab * kPanel, group_panel_);
  else
    pack_blocks(w, stride, s.columns, dim_, copy, scratch.weight);
  return {scratch.weight, copy};
}

// x . w of a slab, one panel of tokens after the other, each handed to use(panel, tile). What that
// leaves to do in scratch.exponentials is done beside the next panel's product.
void LinearRun::logits(const Slab &s, const SlabWeight &w, int64_t first_panel, int64_t last_panel,
                       Scratch &scratch,
                       const std::function<void(int64_t panel, const Tile &)> &use) {
  const int64_t panel_size = kPanel * padded_dim_, panels = last_panel - first_panel;
  const Bf16 *x = hidden_logits_ + first_panel * panel_size;
  Beside &rest = scratch.exponentials;
  for (int64_t i = 0; i < panels; ++i) {
    const Tile t = tile(s, scratch.z + i % kTiles * kSlab * kPanel);
    gemm_(s.padded, padded_dim_, w.data, w.blocks, x + i * panel_size, t.z, false,
          {x + (i + 1) % panels * panel_size, panel_size * 2, nullptr, 0}, &rest);
    rest.finish();
    use(first_panel + i, t);
  }
  rest.finish();
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

void LinearRun::add_weight_sum(const Slab &s) {
  for (int64_t j = 0; j < s.columns; ++j)
    add_scaled(weight_sum_ + s.index * dim_, weight_ + (s.first + j) * call_.weight_stride,
               class_weight_of(s.first + j), dim_);
}

}  // namespace ds_train
#endif
