// One AdamW step on weights that lie next to each other, in one pass over their five arrays.
#pragma once

#include "../adamw_formula.h"
#include "convert.h"
#include "kernels.h"
#include "simd.h"

namespace growtas {
namespace GROWTAS_LEVEL {

// Weights [begin, begin + n) that have been updated `count` times, this step included.
template <class T>
void adamw_span(const AdamW& a, double count, int64_t begin, int64_t n) {
  T* const weight = static_cast<T*>(a.parameter) + begin;
  const T* const gradient = static_cast<const T*>(a.gradient) + begin;
  T* const exp_avg = static_cast<T*>(a.exp_avg) + begin;
  T* const exp_avg_sq = static_cast<T*>(a.exp_avg_sq) + begin;
  uint16_t* const shadow = a.shadow == nullptr ? nullptr : a.shadow + begin;

  const AdamWRates<double> rates = *a.rates;
  const AdamWCorrection<double> correction = adamw_correction(count, rates);
  const T factor = T(a.gradient_factor);
  const auto root = [](const Vec<T>& x) { return square_root<T>(x); };
  for_each_vector<T>(n, [&](int64_t i, int64_t lanes) {
    Vec<T> w = load_n(weight + i, lanes);
    Vec<T> m = load_n(exp_avg + i, lanes), v = load_n(exp_avg_sq + i, lanes);
    adamw_move<T>(w, load_n(gradient + i, lanes) * factor, m, v, correction, rates, root);
    store_n<T>(exp_avg + i, m, lanes);
    store_n<T>(exp_avg_sq + i, v, lanes);
    store_n<T>(weight + i, w, lanes);
    if (shadow != nullptr)
      for (int64_t l = 0; l < lanes; ++l) shadow[i + l] = to_bfloat16(float(weight[i + l]));
  });
}

template <class T>
void adamw_run(const AdamW& a, int64_t begin, int64_t n) {
  if (a.count == nullptr) return adamw_span<T>(a, a.step, begin, n);
  float* const count = a.count + begin;
  // Neighbours have nearly always been updated together: spans of one count are long.
  for (int64_t i = 0; i < n;) {
    const float before = count[i];
    int64_t end = i;
    while (end < n && count[end] == before) count[end++] = before + 1.0f;
    adamw_span<T>(a, double(before) + 1, begin + i, end - i);
    i = end;
  }
}

}  // namespace GROWTAS_LEVEL
}  // namespace growtas
