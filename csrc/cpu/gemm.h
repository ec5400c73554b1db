// C (+)= A B on small row-major matrices held in scratch memory. A is read one scalar at a time
// (either way round), B and C by whole vectors: the caller pads their columns to kLanes.
#pragma once

#include "simd.h"

namespace growtas {
namespace GROWTAS_LEVEL {

// Rows of C held in registers, two vectors wide: as many as leave room for B and one scalar.
constexpr int kTileRows = GROWTAS_TILE_ROWS;

// kTransposed: A is given as [K, M], else as [M, K].
template <class T, int M, int NV, bool kTransposed>
GROWTAS_INLINE void gemm_tile(int64_t depth, const T* a, int64_t lda, const T* b, int64_t ldb,
                              T* c, int64_t ldc, bool accumulate) {
  Vec<T> acc[M][NV];
  GROWTAS_UNROLL
  for (int m = 0; m < M; ++m) {
    GROWTAS_UNROLL
    for (int v = 0; v < NV; ++v)
      acc[m][v] = accumulate ? load(c + m * ldc + v * kLanes<T>) : Vec<T>{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> row[NV];
    GROWTAS_UNROLL
    for (int v = 0; v < NV; ++v) row[v] = load(b + k * ldb + v * kLanes<T>);
    GROWTAS_UNROLL
    for (int m = 0; m < M; ++m) {
      const Vec<T> scalar = splat(kTransposed ? a[k * lda + m] : a[m * lda + k]);
      GROWTAS_UNROLL
      for (int v = 0; v < NV; ++v) acc[m][v] += scalar * row[v];
    }
  }
  GROWTAS_UNROLL
  for (int m = 0; m < M; ++m) {
    GROWTAS_UNROLL
    for (int v = 0; v < NV; ++v) store(c + m * ldc + v * kLanes<T>, acc[m][v]);
  }
}

// All rows against NV vectors of columns. Tails are cut into blocks of 8, 4, 2 and 1 rows.
template <class T, int NV, bool kTransposed>
GROWTAS_NOINLINE void gemm_columns(int64_t rows, int64_t depth, const T* a, int64_t lda,
                                   const T* b, int64_t ldb, T* c, int64_t ldc, bool accumulate) {
  const int64_t step = kTransposed ? 1 : lda;
  int64_t m = 0;
#define GROWTAS_TILE(M) \
  gemm_tile<T, M, NV, kTransposed>(depth, a + m * step, lda, b, ldb, c + m * ldc, ldc, accumulate)
  for (; m + kTileRows <= rows; m += kTileRows) GROWTAS_TILE(kTileRows);
  if (kTileRows > 8 && m + 8 <= rows) {
    GROWTAS_TILE(8);
    m += 8;
  }
  if (kTileRows > 4 && m + 4 <= rows) {
    GROWTAS_TILE(4);
    m += 4;
  }
  for (; m + 2 <= rows; m += 2) GROWTAS_TILE(2);
  if (m < rows) GROWTAS_TILE(1);
#undef GROWTAS_TILE
}

template <bool kTransposed, class T>
GROWTAS_INLINE void gemm(int64_t rows, int64_t columns, int64_t depth, const T* a, int64_t lda,
                         const T* b, int64_t ldb, T* c, int64_t ldc, bool accumulate) {
  int64_t n = 0;
  for (; n + 2 * kLanes<T> <= columns; n += 2 * kLanes<T>)
    gemm_columns<T, 2, kTransposed>(rows, depth, a, lda, b + n, ldb, c + n, ldc, accumulate);
  if (n < columns)
    gemm_columns<T, 1, kTransposed>(rows, depth, a, lda, b + n, ldb, c + n, ldc, accumulate);
}

}  // namespace GROWTAS_LEVEL
}  // namespace growtas
