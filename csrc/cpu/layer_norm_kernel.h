// y = (x - mean) rstd w + b over rows of E values, and its gradients. E is the sampled width: only
// the first E entries of the whole parameter arrive here. Two passes over a row in L1, so the
// variance does not cancel.
#pragma once

#include "convert.h"
#include "kernels.h"
#include "simd.h"

namespace growtas {
namespace GROWTAS_LEVEL {

template <class T>
size_t layer_norm_scratch(int64_t width) {
  return 2 * size_t(width) * sizeof(T);
}

template <class T>
void layer_norm_forward_rows(const LayerNormForward& a, int64_t begin, int64_t end, T* scratch) {
  const int64_t width = a.width;
  const T* weight = static_cast<const T*>(a.weight.data);
  const T* bias = static_cast<const T*>(a.bias.data);
  const DType own = sizeof(T) == 8 ? DType::float64 : DType::float32;
  T* wide_y = scratch + width;
  for (int64_t i = begin; i < end; ++i) {
    const T* x = read_row<T>(a.x, i * a.x_stride, scratch, width);
    T* y = a.y.dtype == own ? static_cast<T*>(a.y.at(i * a.y_stride)) : wide_y;

    Vec<T> sum[4] = {};
    int64_t j = 0;
    for (; j + 4 * kLanes<T> <= width; j += 4 * kLanes<T>) {
      GROWTAS_UNROLL
      for (int u = 0; u < 4; ++u) sum[u] += load(x + j + u * kLanes<T>);
    }
    for_each_vector<T>(width - j, [&](int64_t k, int64_t n) { sum[0] += load_n(x + j + k, n); });
    const T mean = sum_lanes<T>((sum[0] + sum[1]) + (sum[2] + sum[3])) / T(width);

    Vec<T> square[4] = {};
    for (j = 0; j + 4 * kLanes<T> <= width; j += 4 * kLanes<T>) {
      GROWTAS_UNROLL
      for (int u = 0; u < 4; ++u) {
        const Vec<T> d = load(x + j + u * kLanes<T>) - mean;
        square[u] += d * d;
      }
    }
    for_each_vector<T>(width - j, [&](int64_t k, int64_t n) {
      Vec<T> d = load_n(x + j + k, n) - mean;
      if (n < kLanes<T>) d = first_lanes<T>(n) ? d : Vec<T>{};
      square[0] += d * d;
    });
    const T variance =
        sum_lanes<T>((square[0] + square[1]) + (square[2] + square[3])) / T(width);
    const T rstd = T(1) / std::sqrt(variance + T(a.eps));
    static_cast<T*>(a.mean.data)[i] = mean;
    static_cast<T*>(a.rstd.data)[i] = rstd;

    for_each_vector<T>(width, [&](int64_t k, int64_t n) {
      const Vec<T> normal = (load_n(x + k, n) - mean) * rstd;
      store_n<T>(y + k, normal * load_n(weight + k, n) + load_n(bias + k, n), n);
    });
    if (y == wide_y) narrow_row(y, a.y.at(i * a.y_stride), a.y.dtype, width);
  }
}

// With xhat = (x - mean) rstd and g = dy w: dx = rstd (g - mean(g) - xhat mean(g xhat)),
// dw = sum over rows of dy xhat, db = sum over rows of dy.
template <class T>
void layer_norm_backward_rows(const LayerNormBackward& a, int64_t begin, int64_t end, T* dweight,
                              T* dbias, T* scratch) {
  const int64_t width = a.width;
  const T* weight = static_cast<const T*>(a.weight.data);
  const DType own = sizeof(T) == 8 ? DType::float64 : DType::float32;
  for (int64_t i = begin; i < end; ++i) {
    const T* x = read_row<T>(a.x, i * a.x_stride, scratch, width);
    const T* dy = read_row<T>(a.dy, i * a.dy_stride, scratch + width, width);
    const T mean = static_cast<const T*>(a.mean.data)[i];
    const T rstd = static_cast<const T*>(a.rstd.data)[i];

    Vec<T> sum_g = {}, sum_gx = {};
    for_each_vector<T>(width, [&](int64_t k, int64_t n) {
      const Vec<T> d = load_n(dy + k, n);
      const Vec<T> xhat = (load_n(x + k, n) - mean) * rstd;
      // Lanes beyond the row hold dy = 0, and 0 * xhat is 0 unless mean or rstd is not finite,
      // in which case the whole row is NaN anyway.
      const Vec<T> g = d * load_n(weight + k, n);
      sum_g += g;
      sum_gx += g * xhat;
      store_n<T>(dweight + k, load_n(dweight + k, n) + d * xhat, n);
      store_n<T>(dbias + k, load_n(dbias + k, n) + d, n);
    });
    const T mean_g = sum_lanes<T>(sum_g) / T(width);
    const T mean_gx = sum_lanes<T>(sum_gx) / T(width);

    // The row of dx may overwrite the widened x: each vector is read before it is written.
    T* dx = a.dx.dtype == own ? static_cast<T*>(a.dx.at(i * a.dx_stride)) : scratch;
    for_each_vector<T>(width, [&](int64_t k, int64_t n) {
      const Vec<T> xhat = (load_n(x + k, n) - mean) * rstd;
      const Vec<T> g = load_n(dy + k, n) * load_n(weight + k, n);
      store_n<T>(dx + k, (g - mean_g - xhat * mean_gx) * rstd, n);
    });
    if (dx == scratch) narrow_row(dx, a.dx.at(i * a.dx_stride), a.dx.dtype, width);
  }
}

template <class T>
void add_partials_in_order(Buffer dst, const T* partials, int64_t chunks, int64_t stride,
                           int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes<T>) {
    const int64_t n = count - i < kLanes<T> ? count - i : kLanes<T>;
    Vec<T> sum = {};
    for (int64_t c = 0; c < chunks; ++c) sum += load_n(partials + c * stride + i, n);
    store_values<T>(dst, i, load_values<T>({dst.data, dst.dtype}, i, n) + sum, n);
  }
}

}  // namespace GROWTAS_LEVEL
}  // namespace growtas
