// Tasks over torch's own thread pool.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace growtas {

// Calls body(task, scratch) for every task in [0, tasks). Each worker takes the next free task and
// owns one 64-byte aligned scratch block, so the assignment of tasks to threads is not fixed: a
// body may only write what belongs to its task.
void run_tasks(int64_t tasks, size_t scratch_bytes,
               const std::function<void(int64_t task, void* scratch)>& body);

int64_t thread_count();

// 64-byte aligned, uninitialised memory for the duration of a scope. Each thread keeps its last few
// blocks for the next scopes: fresh memory would cost a page fault per 4 KiB in every call.
class AlignedMemory {
 public:
  explicit AlignedMemory(size_t bytes);
  ~AlignedMemory();
  AlignedMemory(const AlignedMemory&) = delete;
  AlignedMemory& operator=(const AlignedMemory&) = delete;
  char* get() const { return aligned_; }

 private:
  void* block_ = nullptr;
  size_t bytes_ = 0;
  char* aligned_;
};

}  // namespace growtas
