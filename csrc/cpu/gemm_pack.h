// Operands of the products of linear.h, brought into the order the register tile reads them in:
// panels [depth][2 * kLanes] for the operand read by vectors.
#pragma once

#include "convert.h"
#include "gelu.h"
#include "gemm.h"
#include "kernels.h"
#include "tile_registers.h"

namespace growtas {
namespace GROWTAS_LEVEL {

// Whether the products of linear.h multiply elements E with tile registers.
#if defined(GROWTAS_TILES)
template <class E>
constexpr bool kTiled = Element<E>::values == 2;
#else
template <class E>
constexpr bool kTiled = false;
#endif

template <class E>
constexpr int kPanel = 2 * kLanes<Sum<E>>;

// Elements that hold n values of the reduction.
template <class E>
constexpr int64_t elements(int64_t n) {
  return (n + Element<E>::values - 1) / Element<E>::values;
}

// The same, padded to what a product of linear.h reads: zeros follow the last value.
template <class E>
constexpr int64_t padded_elements(int64_t n) {
  constexpr int64_t unit = kTiled<E> ? kTileSide : 1;
  return (elements<E>(n) + unit - 1) / unit * unit;
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
  const __m512i order = _mm512_set_epi16(
      31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19,
      3, 18, 2, 17, 1, 16, 0);
  const __m512i both = bit_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
  return bit_cast<Vec<BFloat16Pair>>(_mm512_permutexvar_epi16(order, both));
}

template <>
GROWTAS_INLINE Vec<BFloat16Pair> neighbours<BFloat16Pair>(const float* p) {
  return bit_cast<Vec<BFloat16Pair>>(_mm512_cvtne2ps_pbh(load(p + kLanes<float>), load(p)));
}
#endif

// GELU of what becomes elements.
template <class E>
GROWTAS_INLINE Gelu<Sum<E>> gelu_of_elements(const Vec<Sum<E>>& z) {
  if constexpr (Element<E>::values == 2)
    return gelu_to_bfloat16(z);
  else
    return gelu_with_derivative(z);
}

// Whether the rows of a buffer are already a sequence of elements.
template <class E>
GROWTAS_INLINE bool holds_elements(const ConstBuffer& src, [[maybe_unused]] int64_t stride,
                                   [[maybe_unused]] int64_t depth) {
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
    store(values + i * kLanes<S>, gelued ? gelu_of_elements<E>(v).value : v);
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

// Columns [n0, n0 + n) of rows of values, which are the reduction, as rows of `width` elements, zeros
// after the last one. offset(row) says where a row starts.
template <class E, class Offset>
GROWTAS_INLINE void pack_rows(const ConstBuffer& src, int64_t rows, int64_t n0, int64_t n,
                              const Offset& offset, E* dst, int64_t width) {
  using S = Sum<E>;
  constexpr int L = kLanes<S>;
  for (int64_t m = 0; m < rows; m += Element<E>::values, dst += width) {
    const bool has_second = Element<E>::values == 2 && m + 1 < rows;
    const int64_t at = offset(m) + n0, second_at = has_second ? offset(m + 1) + n0 : 0;
    for (int64_t i = 0; i < width; i += L) {
      Vec<S> value = {}, second = {};
      if (i < n) {
        const int64_t count = n - i < L ? n - i : L;
        value = load_values<S>(src, at + i, count);
        if (has_second) second = load_values<S>(src, second_at + i, count);
      }
      const Vec<E> v = interleave<E>(value, second);
      std::memcpy(static_cast<void*>(dst + i), &v, sizeof(v));
    }
  }
}

// Rows [first, end) of a panel.
template <class E>
GROWTAS_INLINE void clear_rows(E* panel, int64_t first, int64_t end) {
  std::memset(static_cast<void*>(panel + first * kPanel<E>), 0,
              size_t((end - first) * kPanel<E>) * sizeof(E));
}

// A panel of columns that are stored as rows: kPanel rows, transposed by squares.
template <class E>
void pack_transposed(const WeightPacking& p, int64_t panel, E* dst) {
  using S = Sum<E>;
  constexpr int L = kLanes<S>;
  constexpr int64_t step = L * Element<E>::values;
  const int64_t depth = padded_elements<E>(p.in);
  for (int64_t half = 0; half < kPanel<E>; half += L) {
    int64_t rows[L] = {};
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
  const int64_t depth = padded_elements<E>(p.out_is_reduced ? p.out : p.in);
  E* const dst = static_cast<E*>(p.packed) + panel * depth * kPanel<E>;
  if (!p.out_is_reduced) {
    pack_transposed(p, panel, dst);
    return;
  }
  const int64_t n0 = panel * kPanel<E>;
  const int64_t n = p.in - n0 < kPanel<E> ? p.in - n0 : kPanel<E>;
  pack_rows<E>(
      p.weight, p.out, n0, n, [&](int64_t j) { return p.rows.offset(j); }, dst, kPanel<E>);
  clear_rows(dst, elements<E>(p.out), depth);
}

}  // namespace GROWTAS_LEVEL
}  // namespace growtas
