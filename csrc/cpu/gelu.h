// GELU(z) = z Phi(z) with the exact normal distribution Phi, and its derivative
// Phi(z) + z phi(z).
#pragma once

#include "simd.h"

namespace growtas {
namespace GROWTAS_LEVEL {

template <class T>
struct Normal {
  Vec<T> cumulative, density;  // Phi(z) and phi(z)
};

// With t = |z| and w = 1 / (1 + 0.27 t): Phi(-t) = e^(-t^2 / 2) P(w), P fitted to minimal absolute
// error of Phi (2e-9). The tail keeps its relative accuracy, so small results are right too.
GROWTAS_INLINE Normal<float> normal(const Vec<float>& z) {
  const Vec<float> t = maximum<float>(z, -z);
  const Vec<float> w = splat(1.0f) / (t * 0.27f + 1.0f);
  Vec<float> p = w * -0.133824439f + 0.569690717f;
  p = p * w - 0.543520497f;
  p = p * w + 0.528072853f;
  p = p * w - 0.0608754093f;
  p = p * w + 0.143670679f;
  p = p * w - 0.00321390607f;
  const Vec<float> e = exponential(t * t * -0.5f);
  const Vec<float> tail = e * p;
  return {z >= Vec<float>{} ? 1.0f - tail : tail, e * 0.398942280f};
}

GROWTAS_INLINE Normal<double> normal(const Vec<double>& z) {
  double lanes[kLanes<double>];
  store(lanes, z);
  for (int i = 0; i < kLanes<double>; ++i)
    lanes[i] = 0.5 * std::erfc(lanes[i] * -0.70710678118654752440);
  return {load(lanes), exponential(z * z * -0.5) * 0.39894228040143267794};
}

template <class T>
GROWTAS_INLINE Vec<T> gelu(const Vec<T>& z) {
  return z * normal(z).cumulative;
}

template <class T>
GROWTAS_INLINE Vec<T> gelu_derivative(const Vec<T>& z) {
  const Normal<T> n = normal(z);
  return n.cumulative + z * n.density;
}

}  // namespace GROWTAS_LEVEL
}  // namespace growtas
