// The GPU's row kernel on the CPU, for tests only: the same functions, driven by the same clusters,
// blocks, warps and lanes, whose parts are merged in the same order.
// flags: -ffp-contract=off
#include <cstdint>
#include <vector>

#include "row_math.h"

namespace {

using ds_train::Row;
using ds_train::State;

constexpr int kLanes = 32;
bool all_lanes_agree = true;

// Every lane goes on with its own result, so all must have the same; in a row of NaN, any.
bool same(const State &a, const State &b) {
  const bool sums = a.sum == b.sum && a.moment == b.moment && a.logit_sum == b.logit_sum;
  return a.sum != a.sum || a.logit_sum != a.logit_sum ||
         (sums && a.max == b.max && a.tied == b.tied);
}

// What __shfl_xor_sync does: in each step all lanes merge with their partner at once.
template <int F> void warp_merge(State *lanes, float k) {
  for (int mask = kLanes / 2; mask > 0; mask /= 2) {
    State merged[kLanes];
    for (int i = 0; i < kLanes; ++i) merged[i] = ds_train::merge<F>(lanes[i], lanes[i ^ mask], k);
    for (int i = 0; i < kLanes; ++i) lanes[i] = merged[i];
  }
  for (int i = 1; i < kLanes; ++i) all_lanes_agree = all_lanes_agree && same(lanes[0], lanes[i]);
}

template <int F> State block_merge(State *threads, int num_threads, float k) {
  State warps[kLanes];
  for (int warp = 0; warp < num_threads / kLanes; ++warp) {
    warp_merge<F>(threads + warp * kLanes, k);
    warps[warp] = threads[warp * kLanes];
  }
  warp_merge<F>(warps, k);
  return warps[0];
}

template <class E, int F> void run_row(const LogitRows &a, int64_t index, int threads, int cluster) {
  const Row<E, F> row(a, index);
  const int parts = threads * cluster;
  std::vector<State> states(parts);
  for (int part = 0; part < parts; ++part) states[part] = scan(row, part, parts);
  State all = block_merge<F>(states.data(), threads, row.k);
  for (int rank = 1; rank < cluster; ++rank) {
    const State block = block_merge<F>(states.data() + rank * threads, threads, row.k);
    all = ds_train::merge<F>(all, block, row.k);
  }
  const ds_train::Statistics t = finish(row, all);
  report(a, index, t);
  if (!a.write_gradient) return;
  const ds_train::Gradient g = gradient(a, index, row, t);
  for (int i = 0; i < parts; ++i) {  // threads end in any order
    replace(row, g, t.r, index % 2 == 0 ? i : parts - 1 - i, parts);
  }
}

}  // namespace

// `threads` of a block: a multiple of 32, at most 1024; `cluster`: blocks for each row. Returns 0; 2
// if lanes of a warp have come to different results.
extern "C" int ds_train_rows_emulated(const LogitRows *rows, int threads, int cluster) {
  const LogitRows &a = *rows;
  if (threads < kLanes || threads > 1024 || threads % kLanes != 0 || cluster < 1) return 1;
  if (a.rows < 0 || a.vocab < 1 || a.vocab > 1 << 30 || a.slabs) return 1;
  all_lanes_agree = true;
  return ds_train::dispatch(a, [&](auto element, auto features) {
    using E = decltype(element);
    for (int64_t i = a.rows - 1; i >= 0; --i) {
      run_row<E, decltype(features)::value>(a, i, threads, cluster);
    }
    return all_lanes_agree ? 0 : 2;
  });
}
