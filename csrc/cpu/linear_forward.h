// The forward product of a linear layer on a slice of its weight, rows by rows.
#pragma once

#include "linear_tiles.h"

namespace growtas {
namespace GROWTAS_LEVEL {

template <class E>
struct RowsScratch {
  E* a;
  Sum<E>* tile;
  int64_t a_stride;

  RowsScratch(Arena arena, const RowsProduct& p, int64_t rows) {
    a_stride = round_up<Sum<E>>(elements<E>(p.inner));
    tile = arena.take<Sum<E>>(kRows<E> * kPanel<E>);
    a = arena.take<E>(in_place(p) ? 0 : rows * a_stride);
    bytes = arena.used;
  }
  static bool in_place(const RowsProduct& p) {
    return !p.gelu_of_a && reads_in_place<E>(p.a, p.a_stride, p.inner);
  }
  size_t bytes;
};

// `columns` values of rows [m, m + height) from the tile to c, and on their way whatever is fused.
template <class E, int NV>
GROWTAS_INLINE void finish_tile(const RowsProduct& p, int64_t m, int64_t height, int64_t n,
                                int64_t columns, const Vec<Sum<E>> (&bias)[NV],
                                Sum<E>* tile) {
  using S = Sum<E>;
  S* row = tile;
  for (int64_t i = m; i < m + height; ++i, row += kPanel<E>) {
    for (int v = 0; v < NV; ++v) {
      const int64_t j = n + v * kLanes<S>;
      const int64_t left = columns - v * kLanes<S>;
      const int64_t count = left > kLanes<S> ? kLanes<S> : left;
      Vec<S> sum = load(row + v * kLanes<S>) + bias[v];
      if (p.scale.data != nullptr) sum *= splat(sample_scale<S>(p.scale, i));
      if (p.residual.data != nullptr)
        sum += load_values<S>(p.residual, i * p.residual_stride + j, count);
      store(row + v * kLanes<S>, sum);
    }
  }
  // Written only after all reads above: where c lies a multiple of 4 KiB from what is read, some CPUs
  // take one for the other and stall for each line.
  row = tile;
  for (int64_t i = m; i < m + height; ++i, row += kPanel<E>) {
    for (int v = 0; v < NV; ++v) {
      const int64_t left = columns - v * kLanes<S>;
      store_values<S>(p.c, i * p.c_stride + n + v * kLanes<S>, load(row + v * kLanes<S>),
                      left > kLanes<S> ? kLanes<S> : left);
    }
  }
}

GROWTAS_INLINE bool is_plain(const RowsProduct& p) {
  return p.scale.data == nullptr && p.residual.data == nullptr;
}

// Fetches the rows that finish_tile will read and write, while the sums are formed.
GROWTAS_INLINE void prefetch_finish(const RowsProduct& p, int64_t m, int64_t height, int64_t n,
                                    int64_t columns) {
  for (int64_t i = m; i < m + height; ++i) {
    prefetch(p.c.at(i * p.c_stride + n), columns * element_size(p.c.dtype));
    if (p.residual.data != nullptr)
      prefetch(p.residual.at(i * p.residual_stride + n),
               columns * element_size(p.residual.dtype));
  }
}

template <class E, int NV>
GROWTAS_NOINLINE void panel_product(const RowsProduct& p, int64_t begin, int64_t rows, const E* a,
                                    int64_t lda, int64_t n, const E* panel, Sum<E>* tile,
                                    [[maybe_unused]] TileUnit<E>& unit) {
  using S = Sum<E>;
  const int64_t depth = padded_elements<E>(p.inner);
  const int64_t columns = p.columns - n < kPanel<E> ? p.columns - n : kPanel<E>;
  Vec<S> bias[NV] = {};
  if (p.bias != nullptr) {
    GROWTAS_UNROLL
    for (int v = 0; v < NV; ++v) bias[v] = load(static_cast<const S*>(p.bias) + n + v * kLanes<S>);
  }
  if constexpr (kTiled<E>) {
    for_each_block<E>(rows, [&](int64_t m, int64_t height) {
      prefetch_finish(p, begin + m, height, n, columns);
      multiply_tiles<E, NV>(unit, height, depth, a + m * lda, {lda, kTileSide * lda, kTileSide},
                            panel, tile);
      finish_tile<E, NV>(p, begin + m, height, n, columns, bias, tile);
    });
  } else {
    const bool plain = columns == NV * kLanes<S> && is_plain(p);
    for_each_tile(rows, [&](int64_t m, auto height) {
      prefetch_finish(p, begin + m, height.value, n, columns);
      Vec<S> sums[height.value][NV] = {};
      multiply_chunks<E, height.value, NV>(depth, a + m * lda, lda, panel, tile, sums);
      if (plain) {
        GROWTAS_UNROLL
        for (int i = 0; i < height.value; ++i) {
          GROWTAS_UNROLL
          for (int v = 0; v < NV; ++v)
            store_values<S>(p.c, (begin + m + i) * p.c_stride + n + v * kLanes<S>,
                            sums[i][v] + bias[v], kLanes<S>);
        }
        return;
      }
      store_tile<E>(sums, tile);
      finish_tile<E, NV>(p, begin + m, height.value, n, columns, bias, tile);
    });
  }
}

template <class E>
void rows_product_block(const RowsProduct& p, int64_t begin, int64_t end, void* scratch) {
  const RowsScratch<E> s(Arena{static_cast<char*>(scratch)}, p, end - begin);
  const E* a = static_cast<const E*>(p.a.at(begin * p.a_stride));
  int64_t lda = p.a_stride / Element<E>::values;
  if (!RowsScratch<E>::in_place(p)) {
    stage_rows(p.a, begin, end - begin, p.a_stride, p.inner, p.gelu_of_a, s.a, s.a_stride);
    a = s.a;
    lda = s.a_stride;
  }
  TileUnit<E> unit;
  const int64_t depth = padded_elements<E>(p.inner);
  for (int64_t n = 0; n < p.columns; n += kPanel<E>) {
    const E* panel = static_cast<const E*>(p.packed) + n * depth;
    if (p.columns - n > kLanes<Sum<E>>)
      panel_product<E, 2>(p, begin, end - begin, a, lda, n, panel, s.tile, unit);
    else
      panel_product<E, 1>(p, begin, end - begin, a, lda, n, panel, s.tile, unit);
  }
}

}  // namespace GROWTAS_LEVEL
}  // namespace growtas
