// Operands of the products of linear.h, brought into the order the register tile reads them in:
// panels [depth][2 * kLanes] for the operand read by vectors.
#pragma once

#include "convert.h"
#include "gelu.h"
#include "gemm.h"
#include "kernels.h"

namespace growtas {
namespace GROWTAS_LEVEL {

template <class E>
constexpr int kPanel = 2 * kLanes<Sum<E>>;

// Elements that hold n values of the reduction.
template <class E>
constexpr int64_t elements(int64_t n) {
  return (n + Element<E>::values - 1) / Element<E>::values;
}

// Elements from two rows of values (the second is ignored where an element is one value) ...
template <class E>
GROWTAS_INLINE Vec<E> interleave(const Vec<Sum<E>>& first, const Vec<Sum<E>>&) {
  return first;
}

// ... and from neighbours in one row.
template <class E>
GROWTAS_INLINE Vec<E> neighbours(const Sum<E>* p) {
  return load(p);
}

#if defined(GROWTAS_BFLOAT16_DOT)
template <>
GROWTAS_INLINE Vec<BFloat16Pair> interleave<BFloat16Pair>(const Vec<float>& first,
                                                          const Vec<float>& second) {
  using Half = Simd<float>::Halves;
  using Bits = Simd<float>::Bits;
  const Half low = bit_cast<Half>(_mm512_cvtneps_pbh(first));
  const Half high = bit_cast<Half>(_mm512_cvtneps_pbh(second));
  return __builtin_convertvector(low, Bits) | (__builtin_convertvector(high, Bits) << 16);
}

template <>
GROWTAS_INLINE Vec<BFloat16Pair> neighbours<BFloat16Pair>(const float* p) {
  return bit_cast<Vec<BFloat16Pair>>(_mm512_cvtne2ps_pbh(load(p + kLanes<float>), load(p)));
}
#endif

// Whether the rows of a buffer are already a sequence of elements.
template <class E>
GROWTAS_INLINE bool holds_elements(const ConstBuffer& src, int64_t stride, int64_t depth) {
#if defined(GROWTAS_BFLOAT16_DOT)
  if constexpr (sizeof(E) != sizeof(Sum<E>) || Element<E>::values == 2)
    return src.dtype == DType::bfloat16 && stride % 2 == 0 && depth % 2 == 0 &&
           reinterpret_cast<uintptr_t>(src.data) % 4 == 0;
#endif
  return src.dtype == kOwnType<Sum<E>>;
}

// One vector of elements from n neighbouring values, zeros beyond.
template <class E>
GROWTAS_INLINE Vec<E> load_elements(const ConstBuffer& src, int64_t offset, int64_t n, bool gelued) {
  using S = Sum<E>;
  constexpr int64_t count = kLanes<S> * Element<E>::values;
#if defined(GROWTAS_BFLOAT16_DOT)
  if constexpr (Element<E>::values == 2) {
    if (src.dtype == DType::bfloat16 && n == count && !gelued) {
      Vec<E> v;
      std::memcpy(&v, src.at(offset), sizeof(v));
      return v;
    }
  }
#endif
  if (src.dtype == kOwnType<S> && n == count && !gelued)
    return neighbours<E>(static_cast<const S*>(src.data) + offset);
  S values[count];
  GROWTAS_UNROLL
  for (int i = 0; i < Element<E>::values; ++i) {
    const int64_t left = n - i * kLanes<S>;
    Vec<S> v = {};
    if (left > 0)
      v = load_values<S>(src, offset + i * kLanes<S>, left < kLanes<S> ? left : kLanes<S>);
    store(values + i * kLanes<S>, gelued ? gelu<S>(v) : v);
  }
  return neighbours<E>(values);
}

// Rows of the buffer, one after another, each padded with zeros to whole elements' vectors.
template <class E>
void stage_rows(const ConstBuffer& src, int64_t first, int64_t rows, int64_t stride, int64_t depth,
                bool gelued, E* dst, int64_t dst_stride) {
  constexpr int64_t step = kLanes<E> * Element<E>::values;
  for (int64_t m = first; m < first + rows; ++m, dst += dst_stride) {
    for (int64_t k = 0; k < depth; k += step) {
      const int64_t n = depth - k < step ? depth - k : step;
      store(reinterpret_cast<Sum<E>*>(dst + k / Element<E>::values),
            bit_cast<Vec<Sum<E>>>(load_elements<E>(src, m * stride + k, n, gelued)));
    }
  }
}

// Columns [n0, n0 + n) of rows [first, first + rows), which are the reduction, as panels of `width`
// columns: [panel][elements][width]. Rows are read from end to end, as memory likes it.
// offset(row) says where a row starts, factor(row) scales it.
template <class E, class Offset, class Factor>
GROWTAS_INLINE void pack_rows(const ConstBuffer& src, int64_t first, int64_t rows, int64_t n0,
                              int64_t n, const Offset& offset, const Factor& factor, bool gelued,
                              E* dst, int64_t width) {
  using S = Sum<E>;
  const int64_t panel = elements<E>(rows) * width;
  for (int64_t m = 0; m < rows; m += Element<E>::values, dst += width) {
    const bool has_second = Element<E>::values == 2 && m + 1 < rows;
    const int64_t at = offset(first + m) + n0;
    const int64_t second_at = has_second ? offset(first + m + 1) + n0 : 0;
    const Vec<S> scale = splat(S(factor(first + m)));
    const Vec<S> second_scale = splat(has_second ? S(factor(first + m + 1)) : S(0));
    int64_t i = 0;
    for (E* out = dst; i < n; out += panel) {
      for (int64_t lane = 0; lane < width && i < n; lane += kLanes<S>, i += kLanes<S>) {
        const int64_t count = n - i < kLanes<S> ? n - i : kLanes<S>;
        Vec<S> value = load_values<S>(src, at + i, count);
        value = (gelued ? gelu<S>(value) : value) * scale;
        Vec<S> second = {};
        if (has_second) {
          second = load_values<S>(src, second_at + i, count);
          second = (gelued ? gelu<S>(second) : second) * second_scale;
        }
        const Vec<E> v = interleave<E>(value, second);
        std::memcpy(out + lane, &v, sizeof(v));
      }
    }
    if (n % width != 0 && n % width <= width - kLanes<S>) {
      const Vec<E> zero = {};
      std::memcpy(dst + n / width * panel + width - kLanes<S>, &zero, sizeof(zero));
    }
  }
}

// A panel of columns that are stored as rows: kPanel rows, transposed by squares.
template <class E>
void pack_transposed(const WeightPacking& p, int64_t panel, E* dst) {
  using S = Sum<E>;
  constexpr int L = kLanes<S>;
  constexpr int64_t step = L * Element<E>::values;
  const int64_t depth = elements<E>(p.in);
  for (int64_t half = 0; half < kPanel<E>; half += L) {
    int64_t rows[L];
    int count = 0;
    for (; count < L && panel * kPanel<E> + half + count < p.out; ++count)
      rows[count] = p.rows.offset(panel * kPanel<E> + half + count);
    for (int64_t k = 0; k < p.in; k += step) {
      const int64_t n = p.in - k < step ? p.in - k : step;
      Vec<S> square[L] = {};
      for (int i = 0; i < count; ++i)
        square[i] = bit_cast<Vec<S>>(load_elements<E>(p.weight, rows[i] + k, n, false));
      transpose<S>(square);
      E* const out = dst + k / Element<E>::values * kPanel<E> + half;
      const int64_t left = depth - k / Element<E>::values;
      for (int i = 0; i < L && i < left; ++i) std::memcpy(out + i * kPanel<E>, &square[i], sizeof(square[i]));
    }
  }
}

template <class E>
void pack_panel(const WeightPacking& p, int64_t panel) {
  const int64_t depth = elements<E>(p.out_is_reduced ? p.out : p.in);
  E* const dst = static_cast<E*>(p.packed) + panel * depth * kPanel<E>;
  if (!p.out_is_reduced) {
    pack_transposed(p, panel, dst);
    return;
  }
  const int64_t n0 = panel * kPanel<E>;
  const int64_t n = p.in - n0 < kPanel<E> ? p.in - n0 : kPanel<E>;
  pack_rows<E>(
      p.weight, 0, p.out, n0, n, [&](int64_t j) { return p.rows.offset(j); },
      [](int64_t) { return 1; }, false, dst, kPanel<E>);
}

}  // namespace GROWTAS_LEVEL
}  // namespace growtas
