// Working memory of the fused linear kernel: see Arena in linear_ce_run.h.
#if defined(__x86_64__)
#include <cstdlib>
#include <mutex>
#include <new>

#include "linear_ce_run.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ds_train {
namespace {

constexpr size_t kPage = 4096, kHugePage = 2 << 20;
constexpr size_t kKeptBytes = 64 << 20;

// The block that stays. Only one call at a time has it; others make do without.
std::mutex kept_owner;
char *kept_block = nullptr;

size_t round_up(size_t bytes, size_t step) { return (bytes + step - 1) / step * step; }

}  // namespace

// A hint; no matter if it's refused.
void prefer_huge_pages(void *data, size_t bytes) {
#if defined(__linux__)
  const uintptr_t address = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = round_up(address, kHugePage);
  const uintptr_t end = (address + bytes) / kHugePage * kHugePage;
  if (end > begin) madvise(reinterpret_cast<void *>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

void make_present(void *data, size_t bytes) {
#if defined(__linux__) && defined(MADV_POPULATE_WRITE)
  const uintptr_t address = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = round_up(address, kPage), end = (address + bytes) / kPage * kPage;
  if (end > begin) madvise(reinterpret_cast<void *>(begin), end - begin, MADV_POPULATE_WRITE);
#else
  (void)data;
  (void)bytes;
#endif
}

Arena::Block Arena::new_block(size_t bytes) {
  const size_t size = round_up(bytes, kHugePage);
  char *data = static_cast<char *>(std::aligned_alloc(kHugePage, size));
  if (!data) throw std::bad_alloc();
  return {data, size, 0};
}

Arena::Arena() {
  has_kept_ = kept_owner.try_lock();
  if (!has_kept_) return;
  try {
    if (!kept_block) {
      kept_block = new_block(kKeptBytes).data;
      prefer_huge_pages(kept_block, kKeptBytes);
    }
    blocks_.push_back({kept_block, kKeptBytes, 0});
  } catch (...) {
    kept_owner.unlock();
    throw;
  }
}

Arena::~Arena() {
  for (size_t i = has_kept_ ? 1 : 0; i < blocks_.size(); ++i) std::free(blocks_[i].data);
  if (has_kept_) kept_owner.unlock();
}

void *Arena::take(size_t bytes) {
  const size_t size = round_up(bytes, 64);
  for (Block &block : blocks_)
    if (block.size - block.used >= size) {
      block.used += size;
      return block.data + block.used - size;
    }
  blocks_.push_back(new_block(size));
  blocks_.back().used = size;
  return blocks_.back().data;
}

}  // namespace ds_train
#endif
