#include <algorithm>
#include <cmath>
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
      run *= box.length[dim];
      whole = box.length[dim] == box.shape[dim];
    }
    outer = dim + 1;
    for (int d = 0; d < outer; ++d) count *= box.length[d];
  }
};

int64_t row_start(const AdamWBox& box, int outer, int64_t row) {
  int64_t offset = 0, stride = 1;
  for (int dim = kBoxDims - 1; dim >= 0; --dim) {
    int64_t index = box.start[dim];
    if (dim < outer) {
      index += row % box.length[dim];
      row /= box.length[dim];
    }
    offset += index * stride;
    stride *= box.shape[dim];
  }
  return offset;
}

// The boxes as tasks of some 16 thousand weights; those of box b start at task first[b].
struct Tasks {
  static constexpr int64_t kWeights = 16384;
  const AdamWBox* boxes;
  std::vector<int64_t> first;
  std::vector<Rows> rows;

  Tasks(const AdamWBox* all, int64_t count) : boxes(all), first(1, 0) {
    for (int64_t b = 0; b < count; ++b) {
      rows.emplace_back(boxes[b]);
      first.push_back(first.back() + (rows[b].run * rows[b].count + kWeights - 1) / kWeights);
    }
  }

  // Calls body(box, place, n) for the runs of neighbouring weights that make up a task.
  template <class F>
  void each_run(int64_t task, const F& body) const {
    const int64_t b = std::upper_bound(first.begin(), first.end(), task) - first.begin() - 1;
    int64_t at = (task - first[b]) * kWeights;
    const int64_t end = std::min(at + kWeights, rows[b].run * rows[b].count);
    while (at < end) {
      const int64_t in_row = at % rows[b].run;
      const int64_t n = std::min(rows[b].run - in_row, end - at);
      body(boxes[b], row_start(boxes[b], rows[b].outer, at / rows[b].run) + in_row, n);
      at += n;
    }
  }
};

// Sums in eight lanes, so that the compiler can use vectors.
template <class T>
double square_sum(const void* data, int64_t begin, int64_t n) {
  constexpr int64_t kLanes = 8;
  const T* const p = static_cast<const T*>(data) + begin;
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] += double(p[i + l]) * double(p[i + l]);
  double sum = 0;
  for (; i < n; ++i) sum += double(p[i]) * double(p[i]);
  for (const double lane : lanes) sum += lane;
  return sum;
}

}  // namespace

void adamw_step(const AdamWBox* boxes, int64_t count) {
  const KernelSet& k = kernels();
  const Tasks tasks(boxes, count);
  run_tasks(tasks.first.back(), 0, [&](int64_t task, void*) {
    tasks.each_run(task, [&](const AdamWBox& box, int64_t place, int64_t n) {
      k.adamw(box.step, place, n);
    });
  });
}

double adamw_gradient_norm(const AdamWBox* boxes, int64_t count) {
  const Tasks tasks(boxes, count);
  std::vector<double> sums(size_t(tasks.first.back()));
  run_tasks(tasks.first.back(), 0, [&](int64_t task, void*) {
    tasks.each_run(task, [&](const AdamWBox& box, int64_t place, int64_t n) {
      const void* const g = box.step.gradient;
      sums[task] += box.step.is_double ? square_sum<double>(g, place, n)
                                       : square_sum<float>(g, place, n);
    });
  });
  double squares = 0;
  for (const double sum : sums) squares += sum;
  return std::sqrt(squares);
}

}  // namespace growtas
