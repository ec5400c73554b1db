// GELU(z) = z Phi(z) with the exact normal distribution Phi, and its derivative
// Phi(z) + z phi(z).
#pragma once

#include "simd.h"

namespace growtas {
namespace GROWTAS_LEVEL {

template <class T>
struct Gelu {
  Vec<T> value, derivative;
};

// With t = |z| and w = 1 / (1 + 0.27 t): Phi(-t) = e^(-t^2 / 2) P(w), P fitted to minimal absolute
// error of Phi (2e-9), so GELU(z) = max(z, 0) - t Phi(-t), and its derivative is 1 + g for z >= 0
// and -g below, g = t phi(t) - Phi(-t). The tail keeps its relative accuracy. The exponential is
// 2^n 2^f with |f| <= 1/2, 2^f fitted to minimal relative error (8e-8).
GROWTAS_INLINE Gelu<float> gelu_with_derivative(const Vec<float>& z) {
  using Bits = Simd<float>::Bits;
  const Vec<float> zero = {};
  const Vec<float> magnitude = maximum<float>(z, -z);
  // Beyond, Phi(-t) and phi(t) are below 1e-36, and 2^n would leave the normal numbers.
  const Vec<float> t = magnitude > splat(12.8f) ? splat(12.8f) : magnitude;
  const Vec<float> w = reciprocal<float>(t * 0.27f + 1.0f);
  Vec<float> p = w * -0.133824439f + 0.569690717f;
  p = p * w - 0.543520497f;
  p = p * w + 0.528072853f;
  p = p * w - 0.0608754093f;
  p = p * w + 0.143670679f;
  p = p * w - 0.00321390607f;

  const Vec<float> square = t * t;
  const float half_log2e = 0.72134752f;
  const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const Vec<float> shifted = shift - square * half_log2e;
  const Vec<float> f = (shift - shifted) - square * half_log2e;
  Vec<float> e = f * 0.00132765f + 0.00967554f;
  e = e * f + 0.05550713f;
  e = e * f + 0.2402212f;
  e = e * f + 0.69314697f;
  e = e * f + 1.00000007f;
  e = bit_cast<Vec<float>>(bit_cast<Bits>(e) + (bit_cast<Bits>(shifted) << 23));

  const Vec<float> g = e * (t * 0.398942280f - p);
  return {maximum<float>(z, zero) - t * e * p, z >= zero ? 1.0f + g : -g};
}

GROWTAS_INLINE Gelu<double> gelu_with_derivative(const Vec<double>& z) {
  double value[kLanes<double>], derivative[kLanes<double>];
  store(value, z);
  for (int i = 0; i < kLanes<double>; ++i) {
    const double x = value[i];
    const double cumulative = 0.5 * std::erfc(x * -0.70710678118654752440);
    value[i] = x * cumulative;
    derivative[i] = cumulative + x * std::exp(x * x * -0.5) * 0.39894228040143267794;
  }
  return {load(value), load(derivative)};
}

// As near as bfloat16 can tell, at half the cost: the value to 2.5e-4 of itself for z >= -5 (rounding
// to bfloat16 changes it by 2e-3) and to 1.5e-6 below, the derivative to 1.3e-4. Phi(-t) = P(t)^16,
// P fitted to minimal relative error on [0, 5], and phi(t) = Q(t^2)^8, Q to minimal absolute error
// of t phi(t).
GROWTAS_INLINE Gelu<float> gelu_to_bfloat16(const Vec<float>& z) {
  const Vec<float> zero = {};
  const Vec<float> magnitude = maximum<float>(z, -z);
  const Vec<float> t = magnitude > splat(5.0f) ? splat(5.0f) : magnitude;
  Vec<float> p = t * -4.25344223e-05f + 6.53737749e-04f;
  p = p * t - 1.23231947e-03f;
  p = p * t - 1.80453863e-02f;
  p = p * t - 4.76135686e-02f;
  p = p * t + 9.57588315e-01f;
  p *= p;
  p *= p;
  p *= p;
  p *= p;

  const Vec<float> square = t * t;
  Vec<float> q = square * -2.63217207e-05f + 1.68363133e-03f;
  q = q * square - 5.56088686e-02f;
  q = q * square + 8.91437531e-01f;
  q *= q;
  q *= q;
  q *= q;

  const Vec<float> g = t * q - p;
  return {maximum<float>(z, zero) - t * p, z >= zero ? 1.0f + g : -g};
}

template <class T>
GROWTAS_INLINE Vec<T> gelu(const Vec<T>& z) {
  return gelu_with_derivative(z).value;
}

}  // namespace GROWTAS_LEVEL
}  // namespace growtas
