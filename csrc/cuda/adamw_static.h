// One AdamW step of all parameters, of which only the device knows what was sampled: descriptors,
// boxes and arithmetic, the same for the CPU and for CUDA.
#pragma once

#include <cstdint>
#include <cstring>

#include "../adamw_formula.h"

namespace growtas {

constexpr int kSides = 4;     // of a box; a parameter with fewer dimensions has leading ones
constexpr int kShells = 8;    // boxes of a parameter that count their steps on their own
constexpr int kTile = 4096;   // weights of one task

// What happens to weights that a step did not sample.
enum class Inactive : int64_t { dense, skip, masked };

// A leading box; empty if a side is 0.
struct Box {
  int32_t side[kSides];
};

// A parameter, its state, and which extents bound its box: side d is `factor[d]` times column
// `column[d]` of row `row`, or the whole dimension where `column[d]` is negative.
struct Target {
  float* parameter;
  const float* gradient;
  float* exp_avg;
  float* exp_avg_sq;
  float* count;      // updates of each weight; null unless masked
  uint16_t* shadow;  // bfloat16 copy of the parameter, or null
  float* average;    // moving average of the parameter, or null
  int64_t weights;
  int64_t first_tile;
  int64_t aligned;  // rows and addresses are multiples of four weights
  int64_t size[kSides];
  int64_t column[kSides];
  int64_t factor[kSides];
  int64_t row;
  int64_t active;  // a column: the box is empty where it holds 0; negative: there is none
  int64_t rates;   // index of its hyperparameters
};
constexpr int kTargetFields = 25;
static_assert(sizeof(Target) == kTargetFields * sizeof(int64_t), "a row of int64");

using Rates = AdamWRates<float>;

struct StaticAdamW {
  const Target* targets;
  int64_t count;         // targets
  const int32_t* tiles;  // [tile_count]: whose weights a task moves
  int64_t tile_count;
  const Box* frozen;  // [count]
  const Box* edges;   // [count, kShells]: nested, smallest first, the whole parameter last
  float* steps;       // [count, kShells]: updates so far; one more where the step moves the shell
  int32_t* active;    // [count, kShells], written: whether it does
  const Rates* rates;
  const int32_t* extents;  // [subnets, rows, columns]
  int64_t subnets, rows, columns;
  const float* scale;  // of the gradients, or null
  const float* blend;  // share of the new weights in the averages; null: there are none
  double* partials;    // [tile_count], written if `measure`
  float* norm;         // written if `measure`
  float* found_inf;    // written: 1 if there is a scale and a gradient is not finite
  float* factor;       // written: of the gradients
  float largest;       // norm
  bool measure;        // the norm is needed: to clip, or to find what is not finite
  Inactive inactive;
};

// What a subnet samples of a parameter.
GROWTAS_BOTH Box sampled_box(const StaticAdamW& a, const Target& t, int64_t subnet) {
  const int32_t* const row = a.extents + (subnet * a.rows + t.row) * a.columns;
  const bool active = t.active < 0 || row[t.active] != 0;
  Box box;
  for (int d = 0; d < kSides; ++d) {
    const int64_t side = t.column[d] < 0 ? t.size[d] : t.factor[d] * row[t.column[d]];
    box.side[d] = active ? int32_t(side < t.size[d] ? side : t.size[d]) : 0;
  }
  return box;
}

// Whether a step that sampled `box` sampled anything of `edge` outside of `inner`.
GROWTAS_BOTH bool reaches(const Box& box, const Box& edge, const Box& inner) {
  bool outside = false;
  for (int d = 0; d < kSides; ++d) {
    const int32_t side = box.side[d] < edge.side[d] ? box.side[d] : edge.side[d];
    if (side == 0) return false;
    outside = outside || side > inner.side[d];
  }
  return outside;
}

// How far the box reaches along the row of weights (last dimension) at these outer indices.
GROWTAS_BOTH int64_t reach(const Box& box, const int64_t* at) {
  bool inside = true;
  for (int d = 0; d < kSides - 1; ++d) inside = inside && at[d] < box.side[d];
  return inside ? box.side[kSides - 1] : 0;
}

// The indices of a weight from its place.
GROWTAS_BOTH void locate(const Target& t, uint32_t place, int64_t* at) {
  for (int d = kSides - 1; d > 0; --d) {
    at[d] = place % uint32_t(t.size[d]);
    place /= uint32_t(t.size[d]);
  }
  at[0] = place;
}

// Whether the step moves shell `s` of target `p`; counts it.
GROWTAS_BOTH void decide(const StaticAdamW& a, int64_t p, int s) {
  const Box none = {{0, 0, 0, 0}};
  const Box* const edges = a.edges + p * kShells;
  const int64_t own = p * kShells + s;
  bool moves = a.inactive == Inactive::dense && a.steps[own] > 0;
  for (int64_t g = 0; g < a.subnets && !moves; ++g)
    moves = reaches(sampled_box(a, a.targets[p], g), edges[s], s == 0 ? none : edges[s - 1]);
  moves = moves && *a.found_inf == 0;
  a.active[own] = moves;
  if (moves) a.steps[own] += 1.0f;
}

// From the sum of the squares of all gradients: the norm, whether the step is left out, and what
// the gradients are to be multiplied by.
GROWTAS_BOTH void conclude(const StaticAdamW& a, double squares) {
  const float inverse = a.scale == nullptr ? 1.0f : 1.0f / *a.scale;
  float factor = inverse;
  bool left_out = false;
  if (a.measure) {
    const float norm = float(sqrt(squares)) * inverse;
    const float ratio = a.largest / (norm + 1e-6f);
    left_out = a.scale != nullptr && !(squares - squares == 0);
    *a.norm = norm;
    if (!(ratio > 1.0f)) factor *= ratio;  // NaN stays
  }
  *a.found_inf = left_out ? 1.0f : 0.0f;
  *a.factor = factor;
}

using Correction = AdamWCorrection<float>;

GROWTAS_BOTH void move(float& weight, float gradient, float& exp_avg, float& exp_avg_sq,
                       const Correction& c, const Rates& r) {
  adamw_move<float>(weight, gradient, exp_avg, exp_avg_sq, c, r,
                    [](float x) { return sqrtf(x); });
}

// torch's lerp, which is exact at both ends.
GROWTAS_BOTH float averaged(float average, float weight, float blend) {
  const float difference = weight - average;
  return blend < 0.5f ? average + blend * difference : weight - difference * (1.0f - blend);
}

// bfloat16, to nearest, ties to even.
GROWTAS_BOTH uint16_t rounded_to_bfloat16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return uint16_t(value == value ? (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16 : 0x7fc0u);
}

// Three phases, each a function of the whole plan, one after the other.
void adamw_static_cpu(const StaticAdamW& plan);
// On a CUDA stream of the current device; nothing waits.
void adamw_static_cuda(const StaticAdamW& plan, void* stream);

}  // namespace growtas
