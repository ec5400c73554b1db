#include "parallel.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <new>

namespace growtas {

AlignedMemory::AlignedMemory(size_t bytes)
    : block_(::operator new(bytes + 64)),
      aligned_(reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(block_) + 63) / 64 * 64)) {}

AlignedMemory::~AlignedMemory() { ::operator delete(block_); }

void run_tasks(int64_t tasks, size_t scratch_bytes,
               const std::function<void(int64_t task, void* scratch)>& body) {
  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t, int64_t) {
    const AlignedMemory scratch(scratch_bytes);
    for (int64_t task = next++; task < tasks; task = next++) body(task, scratch.get());
  };
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t workers = std::min(tasks, threads);
  if (workers <= 1)
    work(0, 1);
  else
    torch::stable::parallel_for(0, workers, 1, work);
}

}  // namespace growtas
