#include "workspace.h"

#include <atomic>
#include <cstdlib>

namespace cpr {

namespace {

constexpr int64_t HEADER = 64;  // the block's size lies before what the caller sees
constexpr int64_t PAGE = 4096;

std::atomic<char*> kept{nullptr};  // a block that no call is using, or null

int64_t size_of(const char* block) { return *reinterpret_cast<const int64_t*>(block); }

}  // namespace

char* take_workspace(int64_t bytes) {
  char* block = kept.exchange(nullptr);
  if (block && size_of(block) >= bytes) return block + HEADER;
  std::free(block);
  const int64_t size = (bytes + HEADER + PAGE - 1) / PAGE * PAGE;
  block = static_cast<char*>(std::aligned_alloc(64, static_cast<size_t>(size)));
  if (!block) return nullptr;
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
