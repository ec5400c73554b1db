// The CPU's form of csrc/cuda/adamw_static.cu, task by task the same.
#include "../cuda/adamw_static.h"

#include <algorithm>
#include <vector>

#include "parallel.h"

namespace growtas {
namespace {

// Calls row(at, place, n) for the parts of rows (of the last dimension) that make up a task.
template <class F>
void each_row(const Target& t, int64_t task, const F& row) {
  int64_t place = (task - t.first_tile) * kTile;
  const int64_t end = std::min(place + kTile, t.weights);
  while (place < end) {
    int64_t at[kSides];
    locate(t, uint32_t(place), at);
    const int64_t n = std::min(t.size[kSides - 1] - at[kSides - 1], end - place);
    row(at, place, n);
    place += n;
  }
}

double square_sum(const StaticAdamW& a, int64_t task) {
  const int64_t p = a.tiles[task];
  const Target& t = a.targets[p];
  double sum = 0;
  each_row(t, task, [&](const int64_t* at, int64_t place, int64_t n) {
    const int64_t first = at[kSides - 1];
    for (int64_t i = std::max<int64_t>(0, reach(a.frozen[p], at) - first); i < n; ++i)
      sum += double(t.gradient[place + i]) * t.gradient[place + i];
  });
  return sum;
}

// Weights [begin, end) by their places; `steps` of all of them, this one included, or 0 if each
// has a count of its own.
void span(const StaticAdamW& a, const Target& t, int64_t begin, int64_t end, float steps) {
  const Rates& r = a.rates[t.rates];
  const float factor = *a.factor;
  Correction c = adamw_correction(steps, r);
  for (int64_t i = begin; i < end; ++i) {
    if (t.count != nullptr) {
      t.count[i] += 1.0f;
      if (t.count[i] != c.steps) c = adamw_correction(t.count[i], r);
    }
    move(t.parameter[i], t.gradient[i] * factor, t.exp_avg[i], t.exp_avg_sq[i], c, r);
    if (t.shadow != nullptr) t.shadow[i] = rounded_to_bfloat16(t.parameter[i]);
  }
}

void update(const StaticAdamW& a, int64_t task) {
  const int64_t p = a.tiles[task];
  const Target& t = a.targets[p];
  const int32_t* const active = a.active + p * kShells;
  std::vector<Box> boxes;
  if (a.inactive == Inactive::masked && active[kShells - 1] != 0)
    for (int64_t g = 0; g < a.subnets; ++g) boxes.push_back(sampled_box(a, t, g));
  each_row(t, task, [&](const int64_t* at, int64_t place, int64_t n) {
    const int64_t first = at[kSides - 1];
    const auto within = [&](int64_t from, int64_t to, float steps) {
      span(a, t, place + std::max(from - first, int64_t(0)), place + std::min(to - first, n),
           steps);
    };
    int64_t from = reach(a.frozen[p], at);
    if (a.inactive == Inactive::masked) {
      int64_t to = 0;
      for (const Box& box : boxes) to = std::max(to, reach(box, at));
      within(from, to, 0);
    } else {
      for (int s = 0; s < kShells; ++s) {
        const int64_t to = reach(a.edges[p * kShells + s], at);
        if (active[s] != 0) within(from, to, a.steps[p * kShells + s]);
        from = std::max(from, to);
      }
    }
    if (t.average != nullptr)
      for (int64_t i = place; i < place + n; ++i)
        t.average[i] = averaged(t.average[i], t.parameter[i], *a.blend);
  });
}

}  // namespace

void adamw_static_cpu(const StaticAdamW& a) {
  double squares = 0;
  if (a.measure) {
    run_tasks(a.tile_count, 0, [&](int64_t task, void*) { a.partials[task] = square_sum(a, task); });
    for (int64_t task = 0; task < a.tile_count; ++task) squares += a.partials[task];
  }
  conclude(a, squares);
  for (int64_t p = 0; p < a.count; ++p)
    for (int s = 0; s < kShells; ++s) decide(a, p, s);
  run_tasks(a.tile_count, 0, [&](int64_t task, void*) { update(a, task); });
}

}  // namespace growtas
