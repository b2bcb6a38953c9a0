// One call of the fused linear kernel: its sizes, its buffers, and its steps. Internal to the files
// linear_ce_*_cpu.cpp; the way through is in linear_ce_cpu.cpp.
#pragma once
#include <ATen/Parallel.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "cpu_isa.h"
#include "linear_ce.h"
#include "row_stats.h"

namespace ds_train {

void prefer_huge_pages(void *data, size_t bytes);
// Pages for fresh memory, at once. One after the other, each at its first write, they cost three
// times as much, and their zeros stand in the way of stores past the caches.
void make_present(void *data, size_t bytes);

// Working memory of one call, handed out piece by piece and given back as a whole. Up to
// kKeptBytes stay with the process for the next call, as new pages cost more than they hold.
class Arena {
 public:
  Arena();
  ~Arena();
  Arena(const Arena &) = delete;
  Arena &operator=(const Arena &) = delete;

  // At the start of a cache line; not initialised. Throws std::bad_alloc.
  void *take(size_t bytes);

 private:
  struct Block {
    char *data;
    size_t size, used;
  };
  Block new_block(size_t bytes);
  std::vector<Block> blocks_;
  bool has_kept_ = false;
};

template <class T>
class Buffer {
 public:
  void make(Arena &arena, int64_t count, bool zero = false) {
    data_ = static_cast<T *>(arena.take(static_cast<size_t>(count) * sizeof(T)));
    if (zero) std::fill_n(data_, count, T{});
  }
  operator T *() const { return data_; }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  T *data_ = nullptr;
};

constexpr int64_t kGroupsAtOnce = 3;
constexpr int64_t kTiles = 2;  // of logits: one is computed while the other is exponentiated

class LinearRun {
 public:
  LinearRun(const LinearCE &call, Isa isa);
  void run();

 private:
  struct Scratch {  // of one thread
    Buffer<float> z, column_sums;
    Buffer<Bf16> weight, by_column;
    Exponentials exponentials;
    PanelStores stores;
  };
  struct Slab {
    int64_t index, first, columns, padded;
  };
  // Neighbouring slabs whose exponentials wait together for the product with W. Three groups are
  // under way at a time, so that no thread waits for another's last item.
  struct Group {
    int64_t index, begin, end;    // slabs
    float *max, *sum, *shifted, *logit_sum;  // per slab of the group and token
    float *slab_reference;        // likewise
    const float *reference_in;    // per token: after the group before the last
    const float *reference_before;  // after the last group
    float *reference_out;
    Bf16 *exponentials;           // [tokens, columns]
    Bf16 *weight;                 // as B of grad_hidden: [dim panels][columns/2][32][2]
  };
  // Exponentials of a slab that wait for grad_weight: [columns, width], of some of the tokens.
  struct Kept {
    Bf16 *data;
    int64_t width, first, tokens;
  };
  struct Coming {  // what the next item of this thread reads first
    const char *data;
    int64_t bytes;
  };
  struct Entry {  // a label that lies in the vocabulary
    int64_t token;
    int64_t column;
  };

  Slab slab(int64_t index) const;
  Group group(int64_t index) const;
  Tile tile(const Slab &, float *z) const;
  using Work = std::function<void(int64_t item, Scratch &)>;
  struct Stage {
    int64_t items;
    Work work;
    int64_t after[2] = {-1, -1};  // stages that must have ended, earlier in the list
    bool own = false;             // a thread has the same items in all such stages, if it's there
  };
  void run_stages(const std::vector<Stage> &);
  void each(int64_t items, const Work &work) { run_stages({{items, work}}); }

  void sort_labels();
  void pack_hidden();
  void allocate();
  int64_t grad_weight_size() const { return call_.grad_weight_dtype == DS_TRAIN_FP32 ? 4 : 2; }
  Stage pages_for_grad_weight();
  void share_out_tokens();
  void first_pass();
  Bf16 *group_block(const Group &, const Slab &, int64_t panel) const;
  void merge_group(const Group &, int64_t panel);
  void take_target(int64_t slab, int64_t panel);
  void add_sums(const Group &, int64_t at, int64_t token);
  void raise_row(const Group &, int64_t token, float reference);
  void finish_rows();
  void finish_row_of(int64_t token);
  void pack_gradient_hidden();
  void weight_pass();
  void exact_pass();
  void write_grad_hidden();

  // A slab's weights as A of the logits, and in `group` also as B of grad_hidden.
  struct SlabWeight {
    const Bf16 *data;
    Blocks blocks;
  };
  SlabWeight slab_weight(const Slab &, Scratch &, const Group *group = nullptr);
  void logits(const Slab &, const SlabWeight &, int64_t first_panel, int64_t last_panel,
              Scratch &, const std::function<void(int64_t panel, const Tile &)> &use);
  template <class Visit>
  void targets(const Slab &, int64_t panel, const Visit &visit) const;
  void take_targets(const Slab &, int64_t panel, float *z);
  void hide_targets(const Slab &, int64_t panel, float *z) const;
  void first_slab(const Group &, const Slab &, const SlabWeight &, int64_t first_panel,
                  int64_t last_panel, Scratch &);
  void exact_slab(const Group &, const Slab &, Scratch &);
  bool copies(const Slab &) const;
  void add_weight_sum(const Slab &);
  Stage accumulation(const Group &, int64_t after, int64_t and_after);
  void accumulate(const Group &, int64_t item);
  Kept kept_in_gradient(const Slab &) const;
  Kept kept_in_buffer(const Slab &) const;
  TileOutput kept_output(const Slab &, int64_t token) const;
  Coming coming(const Slab &) const;
  void gather(const Slab &, Scratch &);
  TileOutput gradient_output(int64_t panel, Scratch &) const;
  void compute_again(const Slab &, int64_t first_panel, int64_t last_panel, Scratch &);
  void write_grad_weight(const Slab &, const Bf16 *by_column, Scratch &);
  void store_grad_weight(const Slab &, int64_t first_panel, const float *c, PanelStores &);
  float class_weight_of(int64_t column) const;

  const LinearCE &call_;
  const LogitRows &rows_;
  const Bf16 *hidden_, *weight_;
  const PanelGemm gemm_;
  const bool amx_;
  const int threads_;
  const int64_t tokens_, vocab_, dim_;
  const int64_t padded_tokens_, padded_dim_, token_panels_, dim_panels_;
  const int64_t slabs_, slabs_in_group_, groups_;
  const bool grad_hidden_, grad_weight_, exact_, rank_one_, with_shifted_;
  int64_t tokens_in_gradient_ = 0, gradient_stride_ = 0, tokens_in_buffer_ = 0, buffer_stride_ = 0;
  int64_t by_column_stride_ = 0, by_token_stride_ = 0, weight_copy_stride_ = 0;
  int64_t group_panel_ = 0;  // from a panel of dims to the next in Group::weight

  Arena arena_;
  std::vector<Scratch> scratch_;
  std::vector<Entry> entries_;          // sorted by slab, then token
  std::vector<int64_t> slab_entries_;   // where each slab's begin
  Buffer<Bf16> hidden_logits_;          // X as B of the logits: [token panels][dim/2][32][2]
  Buffer<Bf16> hidden_gradient_;        // X as B of grad_weight: [dim panels][tokens/2][32][2]
  Buffer<Bf16> group_weight_, group_exponentials_;  // of kGroupsAtOnce groups, see Group
  Buffer<Bf16> kept_;                   // exponentials of tokens that the gradient has no room for
  Buffer<float> accumulated_;           // grad_hidden: [dim panels][tokens][32]
  Buffer<float> references_;            // those of kGroupsAtOnce groups, and the first ones
  const float *reference_ = nullptr;    // per token: what exponentials are relative to in the end
  Buffer<float> slab_reference_;        // per slab and token, if a second pass needs them
  Buffer<float> slab_max_, slab_sum_, slab_shifted_, slab_logit_sum_;  // of kGroupsAtOnce groups
  Buffer<float> target_, top_;          // logit of the label; largest logit so far
  Buffer<uint8_t> target_is_first_;     // within its slab
  std::vector<RowStats> stats_;         // max = reference until finish_rows
  Buffer<float> coefficient_;           // of a row's exponentials in its gradient
  Buffer<float> target_gradient_, logit_sum_gradient_;
  Buffer<float> token_gradients_;       // the arrays of TokenGradients
  TokenGradients gradients_{};
  Buffer<float> weight_sum_;            // per slab, then whole: sum of c_j w_j
  Buffer<float> hidden_sum_;            // sum over tokens of their logit_sum_gradient times x
  float logit_sum_gradient_total_ = 0;
};

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

}  // namespace ds_train
