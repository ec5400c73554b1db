// The register tile of linear.h's products where E is multiplied by tile registers: 32 x 32 sums. A
// needs no packing for rows that lie in memory as pairs; the panels of B are those of the vectors.
#pragma once

#include "linear_common.h"

namespace growtas {
namespace GROWTAS_LEVEL {

// Where the tiles of A lie, in elements: from a row to the next, from the upper tile to the lower
// one, from one tile of the reduction to the next.
struct TilesOfRows {
  int64_t row, lower, depth;
};

template <class E, bool kLower, int NV>
GROWTAS_INLINE void multiply_registers(TileUnit<E>& unit, int64_t depth, const E* a,
                                       const TilesOfRows& at, const E* panel, Sum<E>* tile) {
  constexpr int64_t kRow = kPanel<E> * int64_t(sizeof(E));
  unit.template zero<0>();
  if constexpr (NV > 1) unit.template zero<1>();
  if constexpr (kLower) unit.template zero<2>();
  if constexpr (kLower && NV > 1) unit.template zero<3>();
  for (int64_t k = 0; k < depth; k += kTileSide, a += at.depth, panel += kTileSide * kPanel<E>) {
    unit.template load<6>(panel, kRow);
    if constexpr (NV > 1) unit.template load<7>(panel + kTileSide, kRow);
    unit.template load<4>(a, at.row * int64_t(sizeof(E)));
    unit.template multiply_add<0, 4, 6>();
    if constexpr (NV > 1) unit.template multiply_add<1, 4, 7>();
    if constexpr (kLower) {
      unit.template load<5>(a + at.lower, at.row * int64_t(sizeof(E)));
      unit.template multiply_add<2, 5, 6>();
      if constexpr (NV > 1) unit.template multiply_add<3, 5, 7>();
    }
  }
  unit.template store<0>(tile, kRow);
  if constexpr (NV > 1) unit.template store<1>(tile + kTileSide, kRow);
  if constexpr (kLower) unit.template store<2>(tile + kTileSide * kPanel<E>, kRow);
  if constexpr (kLower && NV > 1) unit.template store<3>(tile + kTileSide * (kPanel<E> + 1), kRow);
}

// tile[rows][NV vectors] = A B for up to 32 rows; `depth` is whole tiles.
template <class E, int NV>
GROWTAS_INLINE void multiply_tiles(TileUnit<E>& unit, int64_t rows, int64_t depth, const E* a,
                                   const TilesOfRows& at, const E* panel, Sum<E>* tile) {
  unit.set_rows(rows);
  if (rows > kTileSide)
    multiply_registers<E, true, NV>(unit, depth, a, at, panel, tile);
  else
    multiply_registers<E, false, NV>(unit, depth, a, at, panel, tile);
}

// f(first row, height): 32 rows at a time.
template <class E, class F>
GROWTAS_INLINE void for_each_block(int64_t rows, const F& f) {
  for (int64_t m = 0; m < rows; m += kRows<E>) f(m, rows - m < kRows<E> ? rows - m : kRows<E>);
}

// The stripes of dy, rows of 16 columns as pack_stripes leaves them, to tiles [column][pair of rows]:
// the operand A of the weight's gradient. Pairs beyond `filled` become zero.
template <class E>
void turn_stripes(E* stripes, int64_t count, int64_t filled, int64_t depth) {
  using S = Sum<E>;
  for (E* tile = stripes; tile < stripes + count * depth * kTileSide; tile += kTileSide * kTileSide) {
    const int64_t first = (tile - stripes) / kTileSide % depth;
    Vec<S> square[kTileSide];
    for (int64_t i = 0; i < kTileSide; ++i) {
      square[i] = Vec<S>{};
      if (first + i < filled) std::memcpy(&square[i], tile + i * kTileSide, sizeof(square[i]));
    }
    transpose<S>(square);
    std::memcpy(static_cast<void*>(tile), square, sizeof(square));
  }
}

}  // namespace GROWTAS_LEVEL
}  // namespace growtas
