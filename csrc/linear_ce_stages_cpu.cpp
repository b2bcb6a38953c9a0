// How the threads share the work of the fused linear kernel.
//
// Stages stand in a list; a stage needs earlier ones to have ended. The items of all stages are
// handed out in order, one at a time, to whichever thread is free, in one parallel region: there is
// no barrier between stages, and a thread that was held up delays only who needs its item. Whoever
// has an item holds nothing else, and needs only items that were handed out before, so somebody can
// always go on. Within a stage the order may be another: see Choice.
#if defined(__x86_64__)
#include <atomic>
#include <memory>
#include <thread>

#include "linear_ce_run.h"

namespace ds_train {
namespace {

// False if another thread has failed, and will never get there.
bool wait_for(const std::atomic<int64_t> &done, int64_t items, const std::atomic<bool> &failed) {
  for (int64_t i = 0; done.load(std::memory_order_acquire) < items; ++i) {
    if (failed.load(std::memory_order_relaxed)) return false;
    if (i < 1000)
      __builtin_ia32_pause();
    else
      std::this_thread::yield();
  }
  return true;
}

// Which item of a stage a thread gets. Where it adds to sums that stay from stage to stage, one of
// its own share if any is left, so that these stay in its caches; else the next one.
class Choice {
 public:
  Choice(size_t stages, int64_t threads)
      : threads_(threads), taken_(std::make_unique<std::atomic<int64_t>[]>(stages * threads)) {}

  // Called at most `items` times for a stage.
  int64_t own(size_t stage, int64_t items, int64_t thread) {
    for (;; ++thread) {
      const int64_t whose = thread % threads_, end = items * (whose + 1) / threads_;
      const int64_t item = items * whose / threads_ +
                           taken_[stage * threads_ + whose].fetch_add(1, std::memory_order_relaxed);
      if (item < end) return item;
    }
  }

 private:
  const int64_t threads_;
  const std::unique_ptr<std::atomic<int64_t>[]> taken_;
};

// The state that products on tiles need in a thread, and its end.
struct Tiles {
  explicit Tiles(bool amx) : amx(amx) {
    if (amx) amx_begin();
  }
  ~Tiles() {
    if (amx) amx_end();
  }
  const bool amx;
};

}  // namespace

void LinearRun::run_stages(const std::vector<Stage> &stages) {
  std::vector<int64_t> first(1, 0);
  for (const Stage &stage : stages) first.push_back(first.back() + stage.items);
  const int64_t total = first.back();
  const auto done = std::make_unique<std::atomic<int64_t>[]>(stages.size());
  Choice choice(stages.size(), threads_);
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  const auto work = [&](Scratch &scratch) {
    size_t at = 0;
    for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < total;) {
      while (item >= first[at + 1]) ++at;
      for (int64_t needed : stages[at].after)
        if (needed >= 0 && !wait_for(done[needed], stages[needed].items, failed)) return;
      const Stage &stage = stages[at];
      const int64_t thread = &scratch - scratch_.data();
      stage.work(stage.own ? choice.own(at, stage.items, thread) : item - first[at], scratch);
      done[at].fetch_add(1, std::memory_order_release);
    }
  };
  at::parallel_for(0, std::min<int64_t>(total, threads_), 1, [&](int64_t begin, int64_t end) {
    const Tiles tiles(amx_);
    try {
      for (int64_t task = begin; task < end; ++task) work(scratch_[task]);
    } catch (...) {
      failed = true;
      throw;
    }
  });
}

}  // namespace ds_train
#endif
