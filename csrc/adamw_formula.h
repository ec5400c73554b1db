// AdamW's formula, once for every path: one number at a time or in vectors, on the CPU and on CUDA
// devices. Loshchilov and Hutter, "Decoupled Weight Decay Regularization", algorithm 2.
//
// All functions are `static`: sources compiled for different SIMD levels must not share them.
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define GROWTAS_BOTH __host__ __device__ inline
#else
#define GROWTAS_BOTH inline
#endif

namespace growtas {

// Hyperparameters: blend = 1 - beta, given apart because float would lose it.
template <class S>
struct AdamWRates {
  S lr, decay, blend1, beta2, blend2, log_beta1, log_beta2, eps;
};
constexpr int kRateFields = 8;

// What depends on the number of updates only, this one included.
template <class S>
struct AdamWCorrection {
  S steps, step_size, root_scale;
};

static GROWTAS_BOTH float root_of(float x) { return sqrtf(x); }
static GROWTAS_BOTH double root_of(double x) { return sqrt(x); }
static GROWTAS_BOTH float expm1_of(float x) { return expm1f(x); }
static GROWTAS_BOTH double expm1_of(double x) { return expm1(x); }

// 1 - beta^steps = -expm1(steps * log beta); log 0 = -inf gives the right 1.
template <class S>
static GROWTAS_BOTH AdamWCorrection<S> adamw_correction(S steps, const AdamWRates<S>& r) {
  return {steps, r.lr / -expm1_of(steps * r.log_beta1),
          S(1) / root_of(-expm1_of(steps * r.log_beta2))};
}

// V is T or a vector of T, of which `root` takes the square root; rates and correction are given in
// S and used in T.
template <class T, class V, class S, class Root>
static GROWTAS_BOTH void adamw_move(V& weight, const V& gradient, V& exp_avg, V& exp_avg_sq,
                                    const AdamWCorrection<S>& c, const AdamWRates<S>& r,
                                    const Root& root) {
  exp_avg += (gradient - exp_avg) * T(r.blend1);
  exp_avg_sq = exp_avg_sq * T(r.beta2) + gradient * gradient * T(r.blend2);
  const V denominator = root(exp_avg_sq) * T(c.root_scale) + T(r.eps);
  weight = weight * T(S(1) - r.lr * r.decay) - exp_avg / denominator * T(c.step_size);
}

}  // namespace growtas
