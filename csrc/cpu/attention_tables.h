// Expanding the stored tables to the offsets of a grid, and folding their gradients back.
#pragma once

#include "attention_layout.h"

namespace growtas {
namespace GROWTAS_LEVEL {

template <class E>
void prepare_axis(const AttentionShape& shape, const ConstBuffer& stored, int64_t table,
                  int64_t extent, const Dims<Sum<E>>& d, E* rows, E* transposed, int64_t stride,
                  Sum<E>* scratch) {
  using T = Sum<E>;
  const int64_t P = d.padded_dim, depth = elements<E>(d.dim);
  T* row = scratch;
  T* next = scratch + P + kLanes<T>;
  zero(scratch, 2 * (P + kLanes<T>));
  zero(transposed, depth * stride);
  for (int64_t o = 2 * extent - 2; o >= 0; --o) {
    const int64_t source = table * shape.table_rows + table_row(o - (extent - 1), shape.table_rows);
    widen_row(stored.at(source * d.dim), stored.dtype, row, d.dim);
    for (int64_t k = 0; k < P; k += kLanes<T>)
      store_elements(rows + o * P + k, interleave<E>(load(row + k), load(next + k)));
    for (int64_t k = 0; k < depth; k += kLanes<E>) {
      E column[kLanes<E>];
      store_elements(column, neighbours<E>(row + k * Element<E>::values));
      for (int64_t l = 0; l < kLanes<E> && k + l < depth; ++l)
        transposed[(k + l) * stride + o] = column[l];
    }
    T* const done = row;
    row = next;
    next = done;
  }
}

template <class E>
void prepare_side(const AttentionShape& shape, const ConstBuffer& stored, int64_t first_table,
                  const Dims<Sum<E>>& d, const TableSide<E>& side) {
  prepare_axis(shape, stored, first_table, d.grid_h, d, side.vertical, side.vertical_t,
               side.vertical_stride, side.scratch);
  prepare_axis(shape, stored, first_table + 1, d.grid_w, d, side.horizontal, side.horizontal_t,
               side.horizontal_stride, side.scratch);
  // Both axes use row 0 where the class token is the query or the key.
  zero(side.class_row, d.padded_dim);
  for (int64_t axis = 0; axis < 2; ++axis) {
    const int64_t source = (first_table + axis) * shape.table_rows;
    widen_row(stored.at(source * d.dim), stored.dtype, side.scratch, d.dim);
    for (int64_t k = 0; k < d.dim; ++k) side.class_row[k] += side.scratch[k];
    for (int64_t k = 0; k < elements<E>(d.dim); k += kLanes<E>)
      store_elements(side.class_elements + axis * d.padded_dim + k,
                     neighbours<E>(side.scratch + k * Element<E>::values));
  }
}

template <class E>
void prepare_tables(const AttentionShape& shape, const ConstBuffer& stored, void* prepared) {
  const Dims<Sum<E>> d(shape);
  Arena arena{static_cast<char*>(prepared)};
  const Tables<E> tables(arena, d);
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
