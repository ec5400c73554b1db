#include <algorithm>
#include <vector>

#include "ops.h"
#include "parallel.h"

namespace growtas {
namespace {

// A box as rows of weights that lie next to each other: trailing dimensions that the box covers
// whole are one with the dimension before them.
struct Rows {
  int64_t run = 1;      // weights per row
  int64_t count = 1;    // rows
  int outer = 0;        // dimensions that count rows

  explicit Rows(const AdamWBox& box) {
    int dim = kBoxDims - 1;
    bool whole = true;
    for (; dim >= 0 && whole; --dim) {
      run *= box.extent[dim];
      whole = box.extent[dim] == box.shape[dim];
    }
    outer = dim + 1;
    for (int d = 0; d < outer; ++d) count *= box.extent[d];
  }
};

int64_t row_start(const AdamWBox& box, int outer, int64_t row) {
  int64_t offset = 0, stride = 1;
  for (int dim = kBoxDims - 1; dim >= 0; --dim) {
    int64_t index = box.start[dim];
    if (dim < outer) {
      index += row % box.extent[dim];
      row /= box.extent[dim];
    }
    offset += index * stride;
    stride *= box.shape[dim];
  }
  return offset;
}

}  // namespace

void adamw_step(const AdamWBox* boxes, int64_t count) {
  const KernelSet& k = kernels();
  // Tasks of some 16 thousand weights; those of box b start at task first[b].
  constexpr int64_t kTask = 16384;
  std::vector<int64_t> first(1, 0);
  std::vector<Rows> rows;
  for (int64_t b = 0; b < count; ++b) {
    rows.emplace_back(boxes[b]);
    first.push_back(first.back() + (rows[b].run * rows[b].count + kTask - 1) / kTask);
  }
  run_tasks(first.back(), 0, [&](int64_t task, void*) {
    const int64_t b = std::upper_bound(first.begin(), first.end(), task) - first.begin() - 1;
    const AdamWBox& box = boxes[b];
    int64_t at = (task - first[b]) * kTask;
    const int64_t end = std::min(at + kTask, rows[b].run * rows[b].count);
    while (at < end) {
      const int64_t in_row = at % rows[b].run;
      const int64_t n = std::min(rows[b].run - in_row, end - at);
      k.adamw(box.step, row_start(box, rows[b].outer, at / rows[b].run) + in_row, n);
      at += n;
    }
  });
}

}  // namespace growtas
