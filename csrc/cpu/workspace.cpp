#include "workspace.h"

#include <atomic>
#include <cstdlib>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace cpr {

namespace {

constexpr int64_t HEADER = 64;  // the block's size lies before what the caller sees
constexpr int64_t PAGE = 4096;

std::atomic<char*> kept{nullptr};  // a block that no call is using, or null

constexpr int64_t HUGE_PAGE = 2 << 20;  // lists of many queries lie in as many pages: few of them spare the TLB

int64_t size_of(const char* block) { return *reinterpret_cast<const int64_t*>(block); }

}  // namespace

char* take_workspace(int64_t bytes) {
  char* block = kept.exchange(nullptr);
  if (block && size_of(block) >= bytes) return block + HEADER;
  std::free(block);
  const int64_t size = (bytes + HEADER + PAGE - 1) / PAGE * PAGE;
  const int64_t alignment = size >= HUGE_PAGE ? HUGE_PAGE : 64;
  block = static_cast<char*>(std::aligned_alloc(alignment, static_cast<size_t>(size)));
  if (!block) return nullptr;
#ifdef MADV_HUGEPAGE
  if (size >= HUGE_PAGE) madvise(block, static_cast<size_t>(size / HUGE_PAGE * HUGE_PAGE), MADV_HUGEPAGE);
#endif
  *reinterpret_cast<int64_t*>(block) = size - HEADER;
  return block + HEADER;
}

void give_back_workspace(char* workspace) {
  if (!workspace) return;
  char* block = workspace - HEADER;
  if (size_of(block) > KEPT_BYTES) return std::free(block);
  char* other = kept.exchange(block);
  std::free(other);
}

void release_workspace() { std::free(kept.exchange(nullptr)); }

}  // namespace cpr
