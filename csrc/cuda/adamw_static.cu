// AdamW in three launches at most, whatever was sampled: the norm of the gradients, what moves, the
// step. Every sum has a fixed order.
#include <cuda_runtime.h>

#include "adamw_static.h"

namespace growtas {
namespace {

constexpr int kThreads = 256;
constexpr int kDecisionThreads = 1024;

// W neighbouring weights, loaded and stored at once.
template <int W>
struct alignas(4 * W) Lanes {
  float at[W];

  __device__ static Lanes load(const float* p) { return *reinterpret_cast<const Lanes*>(p); }
  __device__ void store(float* p) const { *reinterpret_cast<Lanes*>(p) = *this; }
};

// The sum over the block's threads, for all of them; a tree of fixed shape.
template <int Threads>
__device__ double block_sum(double value) {
  __shared__ double sums[Threads];
  sums[threadIdx.x] = value;
  __syncthreads();
  for (int half = Threads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }
  return sums[0];
}

// Calls body(place) for this thread's vectors of W weights of the block's tile.
template <int W, class F>
__device__ void each_vector(const Target& t, const F& body) {
  const int64_t begin = (blockIdx.x - t.first_tile) * kTile;
  const int64_t end = begin + kTile < t.weights ? begin + kTile : t.weights;
  for (int64_t place = begin + threadIdx.x * W; place < end; place += kThreads * W) body(place);
}

template <int W>
__device__ double square_sum(const StaticAdamW& a, const Target& t, const Box& frozen) {
  double sum = 0;
  const bool free = frozen.side[kSides - 1] == 0;
  each_vector<W>(t, [&](int64_t place) {
    int64_t at[kSides], from = 0;
    if (!free) {
      locate(t, uint32_t(place), at);
      from = reach(frozen, at) - at[kSides - 1];
    }
    const Lanes<W> g = Lanes<W>::load(t.gradient + place);
    for (int l = 0; l < W; ++l)
      if (l >= from) sum += double(g.at[l]) * g.at[l];
  });
  return sum;
}

__global__ void __launch_bounds__(kThreads) square_sum_kernel(StaticAdamW a) {
  const int64_t p = a.tiles[blockIdx.x];
  const Target t = a.targets[p];
  const double own = t.aligned ? square_sum<4>(a, t, a.frozen[p]) : square_sum<1>(a, t, a.frozen[p]);
  const double sum = block_sum<kThreads>(own);
  if (threadIdx.x == 0) a.partials[blockIdx.x] = sum;
}

// One block.
__global__ void __launch_bounds__(kDecisionThreads) decision_kernel(StaticAdamW a) {
  double own = 0;
  if (a.measure)
    for (int64_t i = threadIdx.x; i < a.tile_count; i += kDecisionThreads) own += a.partials[i];
  const double squares = block_sum<kDecisionThreads>(own);
  if (threadIdx.x == 0) conclude(a, squares);
  __syncthreads();
  for (int64_t i = threadIdx.x; i < a.count * kShells; i += kDecisionThreads)
    decide(a, i / kShells, int(i % kShells));
}

// What of a parameter moves, in shared memory.
struct Moving {
  Box frozen;
  Box edges[kShells];
  float steps[kShells];  // 0 where the shell stays
  bool any, whole;       // something moves; all of it by one count
};

template <int W>
__device__ void update(const StaticAdamW& a, const Target& t, const Moving& m, const Box* boxes) {
  const Rates r = a.rates[t.rates];
  const float factor = *a.factor;
  const float blend = t.average == nullptr ? 0.0f : *a.blend;
  const bool masked = a.inactive == Inactive::masked;
  Correction c = adamw_correction(m.whole ? m.steps[kShells - 1] : 1.0f, r);
  each_vector<W>(t, [&](int64_t place) {
    float steps[W];  // this one included; 0 where a weight stays
    bool moves = m.whole;
    for (int l = 0; l < W; ++l) steps[l] = m.whole ? m.steps[kShells - 1] : 0.0f;
    if (m.any && !m.whole) {
      int64_t at[kSides];
      locate(t, uint32_t(place), at);
      const int64_t first = at[kSides - 1], frozen = reach(m.frozen, at);
      if (masked) {
        int64_t to = 0;
        for (int64_t g = 0; g < a.subnets; ++g) {
          const int64_t own = reach(boxes[g], at);
          to = own > to ? own : to;
        }
        for (int l = 0; l < W; ++l)
          if (first + l >= frozen && first + l < to) steps[l] = t.count[place + l] + 1.0f;
      } else {
        int64_t from = frozen;
        for (int s = 0; s < kShells; ++s) {
          const int64_t to = reach(m.edges[s], at);
          for (int l = 0; l < W; ++l)
            if (first + l >= from && first + l < to) steps[l] = m.steps[s];
          from = to > from ? to : from;
        }
      }
      for (int l = 0; l < W; ++l) moves = moves || steps[l] > 0;
    }
    if (!moves && t.average == nullptr) return;
    Lanes<W> weight = Lanes<W>::load(t.parameter + place);
    if (moves) {
      const Lanes<W> gradient = Lanes<W>::load(t.gradient + place);
      Lanes<W> exp_avg = Lanes<W>::load(t.exp_avg + place);
      Lanes<W> exp_avg_sq = Lanes<W>::load(t.exp_avg_sq + place);
      for (int l = 0; l < W; ++l) {
        if (!(steps[l] > 0)) continue;
        if (steps[l] != c.steps) c = adamw_correction(steps[l], r);
        move(weight.at[l], gradient.at[l] * factor, exp_avg.at[l], exp_avg_sq.at[l], c, r);
        if (masked) t.count[place + l] = steps[l];
        if (t.shadow != nullptr) t.shadow[place + l] = rounded_to_bfloat16(weight.at[l]);
      }
      weight.store(t.parameter + place);
      exp_avg.store(t.exp_avg + place);
      exp_avg_sq.store(t.exp_avg_sq + place);
    }
    if (t.average == nullptr) return;
    Lanes<W> average = Lanes<W>::load(t.average + place);
    for (int l = 0; l < W; ++l) average.at[l] = averaged(average.at[l], weight.at[l], blend);
    average.store(t.average + place);
  });
}

__global__ void __launch_bounds__(kThreads) update_kernel(StaticAdamW a) {
  extern __shared__ Box boxes[];  // [subnets], what each sampled
  __shared__ Moving m;
  const int64_t p = a.tiles[blockIdx.x];
  const Target t = a.targets[p];
  const bool masked = a.inactive == Inactive::masked;
  if (threadIdx.x < kShells) {
    const int64_t own = p * kShells + threadIdx.x;
    m.edges[threadIdx.x] = a.edges[own];
    m.steps[threadIdx.x] = a.active[own] ? a.steps[own] : 0.0f;
  }
  if (masked)
    for (int64_t g = threadIdx.x; g < a.subnets; g += kThreads) boxes[g] = sampled_box(a, t, g);
  __syncthreads();
  if (threadIdx.x == 0) {
    m.frozen = a.frozen[p];
    m.any = false;
    for (int s = 0; s < kShells; ++s) m.any = m.any || m.steps[s] > 0;
    m.whole = m.any && !masked && m.frozen.side[kSides - 1] == 0 &&
              m.edges[kShells - 2].side[kSides - 1] == 0;
  }
  __syncthreads();
  if (!m.any && t.average == nullptr) return;
  if (t.aligned)
    update<4>(a, t, m, boxes);
  else
    update<1>(a, t, m, boxes);
}

}  // namespace

void adamw_static_cuda(const StaticAdamW& a, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  const auto tiles = unsigned(a.tile_count);
  if (a.measure) square_sum_kernel<<<tiles, kThreads, 0, s>>>(a);
  decision_kernel<<<1, kDecisionThreads, 0, s>>>(a);
  update_kernel<<<tiles, kThreads, size_t(a.subnets) * sizeof(Box), s>>>(a);
}

}  // namespace growtas
