// C (+)= A B on row-major matrices. A is read one scalar at a time (either way round), B and C by
// whole vectors: the caller pads their columns to kLanes.
#pragma once

#include "simd.h"

namespace growtas {
namespace GROWTAS_LEVEL {

// Rows of C held in registers, two vectors wide: as many as leave room for B and one scalar.
constexpr int kTileRows = GROWTAS_TILE_ROWS;

// What one multiply-add reads: a value, or two neighbours of the reduction in one 32-bit lane.
template <class E>
struct Element {
  using Sum = E;
  static constexpr int values = 1;
};

template <class E>
using Sum = typename Element<E>::Sum;

template <class T>
GROWTAS_INLINE void multiply_add(Vec<T>& sum, T a, const Vec<T>& b) {
  sum += splat(a) * b;
}

#if defined(GROWTAS_BFLOAT16_DOT)
enum class BFloat16Pair : uint32_t {};  // the earlier value in the low half

template <>
struct Element<BFloat16Pair> {
  using Sum = float;
  static constexpr int values = 2;
};

template <>
struct Simd<BFloat16Pair> {
  using Vec = Simd<float>::Bits;
  static constexpr int lanes = kLanes<float>;
};

GROWTAS_INLINE void multiply_add(Vec<float>& sum, BFloat16Pair a, const Vec<BFloat16Pair>& b) {
  sum = _mm512_dpbf16_ps(sum, __m512bh(_mm512_set1_epi32(int(a))), bit_cast<__m512bh>(b));
}
#endif

// acc += A B for M rows and NV vectors of columns. kTransposed: A is given as [K, M], else [M, K].
template <class E, int M, int NV, bool kTransposed>
GROWTAS_INLINE void multiply_tile(int64_t depth, const E* a, int64_t lda, const E* b, int64_t ldb,
                                  Vec<Sum<E>> (&acc)[M][NV]) {
  // One pointer per three rows, two of them reached by an index: more addresses than that do not fit
  // the registers of x86, and are then reloaded by the ports that should multiply.
  constexpr int kBases = kTransposed ? 1 : (M + 2) / 3;
  const E* base[kBases];
  GROWTAS_UNROLL
  for (int i = 0; i < kBases; ++i) {
    base[i] = a + 3 * i * lda;
    GROWTAS_OPAQUE(base[i]);
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec<E> row[NV];
    GROWTAS_UNROLL
    for (int v = 0; v < NV; ++v) row[v] = load(b + k * ldb + v * kLanes<E>);
    GROWTAS_UNROLL
    for (int m = 0; m < M; ++m) {
      const E scalar = kTransposed ? base[0][m] : base[m / 3 % kBases][m % 3 * lda];
      GROWTAS_UNROLL
      for (int v = 0; v < NV; ++v) multiply_add(acc[m][v], scalar, row[v]);
    }
    GROWTAS_UNROLL
    for (int i = 0; i < kBases; ++i) base[i] += kTransposed ? lda : 1;
  }
}

template <class E, int M, int NV, bool kTransposed>
GROWTAS_INLINE void gemm_tile(int64_t depth, const E* a, int64_t lda, const E* b, int64_t ldb,
                              Sum<E>* c, int64_t ldc, bool accumulate, Sum<E> alpha = 1) {
  using S = Sum<E>;
  Vec<S> acc[M][NV] = {};
  multiply_tile<E, M, NV, kTransposed>(depth, a, lda, b, ldb, acc);
  GROWTAS_UNROLL
  for (int m = 0; m < M; ++m) {
    GROWTAS_UNROLL
    for (int v = 0; v < NV; ++v) {
      S* const p = c + m * ldc + v * kLanes<S>;
      store(p, accumulate ? load(p) + acc[m][v] * alpha : acc[m][v] * alpha);
    }
  }
}

template <int M>
struct Height {
  static constexpr int value = M;
};

// f(first row, Height): full tiles, then blocks of 8, 4, 2 and 1 rows.
template <class F>
GROWTAS_INLINE void for_each_tile(int64_t rows, const F& f) {
  int64_t m = 0;
  for (; m + kTileRows <= rows; m += kTileRows) f(m, Height<kTileRows>());
  if (kTileRows > 8 && m + 8 <= rows) {
    f(m, Height<8>());
    m += 8;
  }
  if (kTileRows > 4 && m + 4 <= rows) {
    f(m, Height<4>());
    m += 4;
  }
  for (; m + 2 <= rows; m += 2) f(m, Height<2>());
  if (m < rows) f(m, Height<1>());
}

// All rows against NV vectors of columns.
template <class E, int NV, bool kTransposed>
GROWTAS_NOINLINE void gemm_columns(int64_t rows, int64_t depth, const E* a, int64_t lda,
                                   const E* b, int64_t ldb, Sum<E>* c, int64_t ldc,
                                   bool accumulate, Sum<E> alpha) {
  for_each_tile(rows, [&](int64_t m, auto height) {
    gemm_tile<E, height.value, NV, kTransposed>(depth, a + m * (kTransposed ? 1 : lda), lda, b,
                                                ldb, c + m * ldc, ldc, accumulate, alpha);
  });
}

// C (+)= alpha A B; `depth` counts elements.
template <bool kTransposed, class E>
GROWTAS_INLINE void gemm(int64_t rows, int64_t columns, int64_t depth, const E* a, int64_t lda,
                         const E* b, int64_t ldb, Sum<E>* c, int64_t ldc, bool accumulate,
                         Sum<E> alpha = 1) {
  constexpr int64_t L = kLanes<Sum<E>>;
  int64_t n = 0;
  for (; n + 2 * L <= columns; n += 2 * L)
    gemm_columns<E, 2, kTransposed>(rows, depth, a, lda, b + n, ldb, c + n, ldc, accumulate, alpha);
  if (n < columns)
    gemm_columns<E, 1, kTransposed>(rows, depth, a, lda, b + n, ldb, c + n, ldc, accumulate, alpha);
}

}  // namespace GROWTAS_LEVEL
}  // namespace growtas
