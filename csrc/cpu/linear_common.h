// What both directions of a linear layer share. Sums run over chunks of the reduction, each chunk in
// registers, then in order: the same bits however the work is divided.
#pragma once

#include "arena.h"
#include "gemm_pack.h"

namespace growtas {
namespace GROWTAS_LEVEL {

constexpr int64_t kChunk = 256;  // elements summed in a row

// Rows of a block of sums: the vectors', or two tile registers'.
template <class E>
constexpr int64_t kRows = kTiled<E> ? 2 * kTileSide : kTileRows;

// Whether a product can read the rows of a buffer where they are.
template <class E>
GROWTAS_INLINE bool reads_in_place(const ConstBuffer& src, int64_t stride, int64_t depth) {
  return holds_elements<E>(src, stride, depth) && elements<E>(depth) == padded_elements<E>(depth);
}

template <class S>
GROWTAS_INLINE S sample_scale(const SampleScale& scale, int64_t row) {
  return scale.data == nullptr ? S(1) : static_cast<const S*>(scale.data)[row / scale.rows];
}

// sums = A B of a tile and a panel, the reduction in chunks of kChunk at most; `tile` holds the sum
// of the chunks so far.
template <class E, int M, int NV>
GROWTAS_INLINE void multiply_chunks(int64_t depth, const E* a, int64_t lda, const E* panel,
                                    Sum<E>* tile, Vec<Sum<E>> (&sums)[M][NV]) {
  const int64_t chunks = (depth + kChunk - 1) / kChunk;
  int64_t k = 0;
  for (int64_t c = 1; c < chunks; ++c) {
    const int64_t end = c * depth / chunks;
    gemm_tile<E, M, NV, false>(end - k, a + k, lda, panel + k * kPanel<E>, kPanel<E>, tile,
                               kPanel<E>, c > 1);
    k = end;
  }
  multiply_tile<E, M, NV, false>(depth - k, a + k, lda, panel + k * kPanel<E>, kPanel<E>, sums);
  if (chunks > 1) {
    GROWTAS_UNROLL
    for (int i = 0; i < M; ++i) {
      GROWTAS_UNROLL
      for (int v = 0; v < NV; ++v) sums[i][v] += load(tile + i * kPanel<E> + v * kLanes<Sum<E>>);
    }
  }
}

template <class E, int M, int NV>
GROWTAS_INLINE void store_tile(const Vec<Sum<E>> (&sums)[M][NV], Sum<E>* tile) {
  GROWTAS_UNROLL
  for (int i = 0; i < M; ++i) {
    GROWTAS_UNROLL
    for (int v = 0; v < NV; ++v) store(tile + i * kPanel<E> + v * kLanes<Sum<E>>, sums[i][v]);
  }
}

GROWTAS_INLINE void prefetch(const void* p, int64_t bytes) {
#if defined(__GNUC__)
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(p) + i);
#endif
}

}  // namespace GROWTAS_LEVEL
}  // namespace growtas
