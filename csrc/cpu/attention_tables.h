// Expanding the stored tables to the offsets of a grid, and folding their gradients back.
#pragma once

#include "attention_layout.h"

namespace growtas {
namespace GROWTAS_LEVEL {

template <class T>
void prepare_side(const AttentionShape& shape, const ConstBuffer& stored, int64_t first_table,
                  const Dims<T>& d, const TableSide<T>& side) {
  const int64_t R = shape.table_rows, P = d.padded_dim;
  for (int64_t axis = 0; axis < 2; ++axis) {
    const int64_t extent = axis == 0 ? d.grid_h : d.grid_w;
    T* rows = axis == 0 ? side.vertical : side.horizontal;
    T* transposed = axis == 0 ? side.vertical_t : side.horizontal_t;
    const int64_t stride = axis == 0 ? side.vertical_stride : side.horizontal_stride;
    const int64_t table = (first_table + axis) * R;
    zero(rows, (2 * extent - 1) * P);
    zero(transposed, d.dim * stride);
    for (int64_t o = 0; o < 2 * extent - 1; ++o) {
      T* row = rows + o * P;
      const int64_t source = table + table_row(o - (extent - 1), R);
      widen_row(stored.at(source * d.dim), stored.dtype, row, d.dim);
      for (int64_t k = 0; k < d.dim; ++k) transposed[k * stride + o] = row[k];
    }
  }
  // Both axes use row 0 where the class token is the query or the key.
  zero(side.class_row, P);
  for (int64_t axis = 0; axis < 2; ++axis) {
    for (int64_t k = 0; k < d.dim; ++k) {
      T value;
      widen_row(stored.at((first_table + axis) * R * d.dim + k), stored.dtype, &value, 1);
      side.class_row[k] += value;
    }
  }
}

template <class T>
void prepare_tables(const AttentionShape& shape, const ConstBuffer& stored, void* prepared) {
  const Dims<T> d(shape);
  Arena arena{static_cast<char*>(prepared)};
  const Tables<T> tables(arena, d);
  prepare_side(shape, stored, 0, d, tables.keys);
  prepare_side(shape, stored, 2, d, tables.values);
}

// Adds the partial gradients of all chunks, in order, to dtables. Clamped offsets share a row.
template <class T>
void fold_partials(const AttentionShape& shape, const T* partials, int64_t chunks,
                   const Buffer& dtables, T* sum) {
  const Dims<T> d(shape);
  const int64_t R = shape.table_rows, P = d.padded_dim;
  const int64_t side = TableGradient<T>::elements(d);
  // `sum` holds [4, R, padded_dim].
  zero(sum, 4 * R * P);
  for (int64_t c = 0; c < chunks; ++c) {
    for (int64_t table = 0; table < 4; ++table) {
      const bool vertical = table % 2 == 0;
      T* const base = const_cast<T*>(partials) + c * 2 * side + (table / 2) * side;
      const TableGradient<T> gradient(base, d);
      const T* rows = vertical ? gradient.vertical : gradient.horizontal;
      const int64_t extent = vertical ? d.grid_h : d.grid_w;
      T* out = sum + table * R * P;
      for (int64_t o = 0; o < 2 * extent - 1; ++o) {
        T* row = out + table_row(o - (extent - 1), R) * P;
        for (int64_t k = 0; k < P; k += kLanes<T>)
          store(row + k, load(row + k) + load(rows + o * P + k));
      }
      if (d.first == 1)
        for (int64_t k = 0; k < P; k += kLanes<T>)
          store(out + k, load(out + k) + load(gradient.class_row + k));
    }
  }
  for (int64_t r = 0; r < 4 * R; ++r) {
    for (int64_t k = 0; k < d.dim; ++k) {
      T value;
      widen_row(ConstBuffer{dtables.data, dtables.dtype}.at(r * d.dim + k), dtables.dtype, &value,
                1);
      value += sum[r * P + k];
      narrow_row(&value, dtables.at(r * d.dim + k), dtables.dtype, 1);
    }
  }
}

}  // namespace GROWTAS_LEVEL
}  // namespace growtas
