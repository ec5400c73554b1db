#include "parallel.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <new>
#include <utility>

namespace growtas {

#if defined(__SANITIZE_ADDRESS__)
// No block is kept or larger than asked for, so that the sanitizer sees an access beyond it.
AlignedMemory::AlignedMemory(size_t bytes)
    : block_(::operator new(bytes, std::align_val_t(64))), bytes_(bytes),
      aligned_(static_cast<char*>(block_)) {}

AlignedMemory::~AlignedMemory() { ::operator delete(block_, std::align_val_t(64)); }
#else
namespace {

struct Block {
  void* memory = nullptr;
  size_t bytes = 0;
};

struct FreeBlocks {
  Block blocks[4];

  ~FreeBlocks() {
    for (const Block& block : blocks) ::operator delete(block.memory);
  }
};

thread_local FreeBlocks free_blocks;

}  // namespace

AlignedMemory::AlignedMemory(size_t bytes) {
  Block* best = nullptr;
  for (Block& block : free_blocks.blocks)
    if (block.bytes >= bytes + 64 && (best == nullptr || block.bytes < best->bytes)) best = &block;
  if (best != nullptr) {
    block_ = std::exchange(best->memory, nullptr);
    bytes_ = std::exchange(best->bytes, 0);
  } else {
    block_ = ::operator new(bytes + 64);
    bytes_ = bytes + 64;
  }
  aligned_ = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(block_) + 63) / 64 * 64);
}

AlignedMemory::~AlignedMemory() {
  Block* smallest = free_blocks.blocks;
  for (Block& block : free_blocks.blocks)
    if (block.bytes < smallest->bytes) smallest = &block;
  if (bytes_ > smallest->bytes) {
    std::swap(smallest->memory, block_);
    smallest->bytes = bytes_;
  }
  ::operator delete(block_);
}
#endif

int64_t thread_count() { return torch::stable::get_num_threads(); }

void run_tasks(int64_t tasks, size_t scratch_bytes,
               const std::function<void(int64_t task, void* scratch)>& body) {
  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t, int64_t) {
    const AlignedMemory scratch(scratch_bytes);
    for (int64_t task = next++; task < tasks; task = next++) body(task, scratch.get());
  };
  const int64_t workers = std::min(tasks, thread_count());
  if (workers <= 1)
    work(0, 1);
  else
    torch::stable::parallel_for(0, workers, 1, work);
}

}  // namespace growtas
