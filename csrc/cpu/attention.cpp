#include <algorithm>
#include <cstring>

#include "ops.h"
#include "parallel.h"

namespace growtas {
namespace {

// Table gradients are summed per chunk of (image, head) tasks, then over chunks in order. The
// number of chunks depends on the shape alone, never on the threads.
constexpr int64_t kMaxChunks = 128;

// run_tasks hands out tasks in order, so a thread's next one is about this many further on.
int64_t stride_of_a_thread(int64_t tasks) { return std::min(tasks, thread_count()); }

}  // namespace

void attention_forward(AttentionForward args, ConstBuffer tables) {
  const KernelSet& k = kernels();
  const int64_t tasks = args.shape.batch * args.shape.heads;
  if (tasks == 0) return;
  const bool relative = tables.data != nullptr;
  const AlignedMemory prepared(relative ? k.attention_tables_bytes(args.shape) : 0);
  if (relative) {
    k.attention_prepare_tables(args.shape, tables, prepared.get());
    args.tables = prepared.get();
  }
  const int64_t stride = stride_of_a_thread(tasks);
  run_tasks(tasks, k.attention_forward_scratch_bytes(args.shape),
            [&](int64_t task, void* scratch) {
              k.attention_forward(args, task, task + stride, scratch);
            });
}

void attention_backward(AttentionBackward args, ConstBuffer tables, Buffer dtables) {
  const KernelSet& k = kernels();
  const AttentionShape& shape = args.shape;
  const int64_t tasks = shape.batch * shape.heads;
  if (tasks == 0) return;
  const bool relative = tables.data != nullptr;
  const AlignedMemory prepared(relative ? k.attention_tables_bytes(shape) : 0);
  if (relative) {
    k.attention_prepare_tables(shape, tables, prepared.get());
    args.tables = prepared.get();
  }
  if (dtables.data == nullptr) {
    const int64_t stride = stride_of_a_thread(tasks);
    run_tasks(tasks, k.attention_backward_scratch_bytes(shape, false),
              [&](int64_t task, void* scratch) {
                k.attention_backward(args, task, task + stride, nullptr, scratch);
              });
    return;
  }

  const size_t element = shape.is_double() ? 8 : 4;
  const int64_t chunks = std::min(tasks, kMaxChunks);
  const int64_t stride = stride_of_a_thread(chunks);
  const size_t partial_bytes = k.attention_partial_elements(shape) * element;
  const AlignedMemory partials(size_t(chunks) * partial_bytes);
  run_tasks(chunks, k.attention_backward_scratch_bytes(shape, true),
            [&](int64_t chunk, void* scratch) {
              char* const partial = partials.get() + size_t(chunk) * partial_bytes;
              std::memset(partial, 0, partial_bytes);
              const int64_t end = (chunk + 1) * tasks / chunks;
              for (int64_t task = chunk * tasks / chunks; task < end; ++task) {
                const int64_t next =
                    task + 1 < end ? task + 1 : (chunk + stride) * tasks / chunks;
                k.attention_backward(args, task, next, partial, scratch);
              }
            });
  const AlignedMemory sum(4 * size_t(shape.table_rows) * (size_t(shape.head_dim) + 64) * element);
  k.attention_fold_partials(shape, partials.get(), chunks, dtables, sum.get());
}

}  // namespace growtas
