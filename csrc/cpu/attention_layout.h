// Shapes of the scratch arrays of one attention task, and the prepared tables all tasks share.
//
// A query of the patch at (y, x) meets the key patch at (Y, X) with the bias
//     q . Tv[clamp(Y - y)] + q . Th[clamp(X - x)],
// so the tables are first expanded to one row per offset the grid has, 2 H - 1 vertical and
// 2 W - 1 horizontal ones. For a fixed y the offsets of Y = 0 .. H-1 are then H neighbouring rows:
// every product with a table is a small matrix product over a window that slides with y (or x).
#pragma once

#include "arena.h"
#include "convert.h"
#include "gemm.h"
#include "kernels.h"

namespace growtas {
namespace GROWTAS_LEVEL {

template <class T>
struct Dims {
  int64_t tokens, dim, padded_dim;     // padded to whole vectors
  int64_t grid_h, grid_w, padded_h, padded_w;
  int64_t first;                       // index of the first patch: 1 after a class token
  int64_t panels;                      // key panels of 2 * kLanes
  int64_t tile, tile_stride;           // queries per tile, row stride of a tile of scores

  explicit Dims(const AttentionShape& s)
      : tokens(s.tokens), dim(s.head_dim), padded_dim(round_up<T>(s.head_dim)),
        grid_h(s.grid_h), grid_w(s.grid_w), padded_h(round_up<T>(s.grid_h)),
        padded_w(round_up<T>(s.grid_w)), first(s.class_token),
        panels((s.tokens + 2 * kLanes<T> - 1) / (2 * kLanes<T>)) {
    tile = kTileRows * (tokens <= 256 ? 8 : tokens <= 512 ? 4 : tokens <= 2048 ? 2 : 1);
    if (tile > tokens) tile = tokens;
    // An odd number of cache lines: neighbouring rows never share a cache set.
    const int64_t line = 64 / sizeof(T);
    const int64_t lines = (tokens + line - 1) / line;
    tile_stride = (lines + (lines % 2 == 0)) * line;
  }
};

// One side (keys or values) of the expanded tables. `vertical` and `horizontal` are
// [offsets, padded_dim]; the transposed copies are [dim, stride] for products with a query.
template <class T>
struct TableSide {
  T *vertical, *horizontal, *class_row;
  T *vertical_t, *horizontal_t;
  int64_t vertical_stride, horizontal_stride;

  TableSide(Arena& arena, const Dims<T>& d) {
    vertical = arena.take<T>((2 * d.grid_h - 1) * d.padded_dim);
    horizontal = arena.take<T>((2 * d.grid_w - 1) * d.padded_dim);
    class_row = arena.take<T>(d.padded_dim);
    vertical_stride = d.grid_h + d.padded_h;
    horizontal_stride = d.grid_w + d.padded_w;
    vertical_t = arena.take<T>(d.dim * vertical_stride);
    horizontal_t = arena.take<T>(d.dim * horizontal_stride);
  }
};

template <class T>
struct Tables {
  TableSide<T> keys, values;
  Tables(Arena& arena, const Dims<T>& d) : keys(arena, d), values(arena, d) {}
};

// Row of the stored table for an offset (key minus query).
inline int64_t table_row(int64_t offset, int64_t table_rows) {
  const int64_t reach = (table_rows - 2) / 2;
  const int64_t clamped = offset < -reach ? -reach : offset > reach ? reach : offset;
  return clamped + reach + 1;
}

template <class T>
GROWTAS_INLINE void scale_row(T* row, T factor, int64_t padded) {
  for (int64_t k = 0; k < padded; k += kLanes<T>) store(row + k, load(row + k) * factor);
}

template <class T>
void zero(T* p, int64_t n) {
  std::memset(p, 0, size_t(n) * sizeof(T));
}

// dst[l] = factor * src row l, cut to `dim` and padded with zeros to padded_dim.
template <class T>
void read_matrix(const ConstBuffer& src, int64_t offset, int64_t stride, const Dims<T>& d, T* dst,
                 T factor = 1) {
  for (int64_t i = 0; i < d.tokens; ++i) {
    T* row = dst + i * d.padded_dim;
    widen_row(src.at(offset + i * stride), src.dtype, row, d.dim);
    for (int64_t k = d.dim; k < d.padded_dim; ++k) row[k] = T(0);
    if (factor != T(1)) scale_row(row, factor, d.padded_dim);
  }
}

// Per-query terms of one side: products of every token's row with the table rows it can meet
// (a bias), or sums of a tile row over the keys of a grid row, a grid column, the class token.
template <class T>
struct SideTerms {
  T *vertical, *horizontal, *class_term;

  SideTerms(Arena& arena, const Dims<T>& d) {
    vertical = arena.take<T>(d.tokens * d.padded_h);
    horizontal = arena.take<T>(d.tokens * d.padded_w);
    class_term = arena.take<T>(d.tokens);
  }
};

template <class T>
GROWTAS_INLINE T dot(const T* a, const T* b, int64_t padded) {
  Vec<T> sum = {};
  for (int64_t k = 0; k < padded; k += kLanes<T>) sum += load(a + k) * load(b + k);
  return sum_lanes<T>(sum);
}

// terms = x . tables, x [tokens, padded_dim].
template <class T>
void project(const T* x, const TableSide<T>& side, const Dims<T>& d, const SideTerms<T>& terms) {
  const T* patches = x + d.first * d.padded_dim;
  for (int64_t y = 0; y < d.grid_h; ++y) {
    const int64_t row = d.first + y * d.grid_w;
    gemm<false>(d.grid_w, d.padded_h, d.dim, x + row * d.padded_dim, d.padded_dim,
                side.vertical_t + (d.grid_h - 1 - y), side.vertical_stride,
                terms.vertical + row * d.padded_h, d.padded_h, false);
  }
  for (int64_t c = 0; c < d.grid_w; ++c)
    gemm<false>(d.grid_h, d.padded_w, d.dim, patches + c * d.padded_dim,
                d.grid_w * d.padded_dim, side.horizontal_t + (d.grid_w - 1 - c),
                side.horizontal_stride, terms.horizontal + (d.first + c) * d.padded_w,
                d.grid_w * d.padded_w, false);
  if (d.first == 1)
    for (int64_t i = 0; i < d.tokens; ++i)
      terms.class_term[i] = dot(x + i * d.padded_dim, side.class_row, d.padded_dim);
}

// Writes the bias of query i into a row of scores. The last vector of a grid row may run over
// into the next one, which is written after it; rows must therefore be filled in order.
template <class T>
GROWTAS_NOINLINE void fill_bias(int64_t i, const SideTerms<T>& terms, const Dims<T>& d, T* row) {
  if (i < d.first) {
    for (int64_t j = 0; j < d.tokens; ++j) row[j] = terms.class_term[i];
    return;
  }
  if (d.first == 1) row[0] = terms.class_term[i];
  const T* vertical = terms.vertical + i * d.padded_h;
  const T* horizontal = terms.horizontal + i * d.padded_w;
  for (int64_t y = 0; y < d.grid_h; ++y) {
    T* keys = row + d.first + y * d.grid_w;
    for (int64_t x = 0; x < d.grid_w; x += kLanes<T>)
      store(keys + x, load(horizontal + x) + vertical[y]);
  }
}

// Sums of a row of probabilities (or their gradients) by grid row, grid column and class token.
// The row must hold kLanes readable values beyond its tokens.
template <class T>
GROWTAS_NOINLINE void sum_by_position(int64_t i, const T* row, const Dims<T>& d,
                                    const SideTerms<T>& terms) {
  constexpr int64_t L = kLanes<T>;
  T* vertical = terms.vertical + i * d.padded_h;
  T* horizontal = terms.horizontal + i * d.padded_w;
  if (i < d.first) {
    Vec<T> sum = {};
    for (int64_t j = 0; j < d.tokens; j += L)
      sum += j + L <= d.tokens ? load(row + j) : load_partial(row + j, d.tokens - j);
    terms.class_term[i] = sum_lanes<T>(sum);
    return;
  }
  if (d.first == 1) terms.class_term[i] = row[0];
  for (int64_t x = 0; x < d.grid_w; x += L) store(horizontal + x, Vec<T>{});
  const auto in_grid = first_lanes<T>(d.grid_w % L == 0 ? L : d.grid_w % L);
  for (int64_t y0 = 0; y0 < d.grid_h; y0 += L) {
    Vec<T> rows[L];
    const int64_t count = d.grid_h - y0 < L ? d.grid_h - y0 : L;
    const T* keys = row + d.first + y0 * d.grid_w;
    Vec<T> columns = load(horizontal);
    GROWTAS_UNROLL
    for (int y = 0; y < L; ++y) {
      rows[y] = Vec<T>{};
      if (y < count) {
        const Vec<T> all = load(keys + y * d.grid_w);
        rows[y] = d.grid_w < L ? (in_grid ? all : Vec<T>{}) : all;
        columns += rows[y];
      }
    }
    store(horizontal, columns);
    for (int64_t x = L; x < d.grid_w; x += L) {
      columns = load(horizontal + x);
      GROWTAS_UNROLL
      for (int y = 0; y < L; ++y) {
        if (y < count) {
          const Vec<T> all = load(keys + y * d.grid_w + x);
          const Vec<T> inside = x + L > d.grid_w ? (in_grid ? all : Vec<T>{}) : all;
          rows[y] += inside;
          columns += inside;
        }
      }
      store(horizontal + x, columns);
    }
    store(vertical + y0, sum_each<T>(rows));
  }
}

// dst[tokens, padded_dim] += sums . tables: the value side of the relative term, or the part of a
// query's gradient that comes through its bias.
template <class T>
void add_table_product(const SideTerms<T>& sums, const TableSide<T>& side, const Dims<T>& d,
                       T* dst) {
  const int64_t P = d.padded_dim;
  for (int64_t y = 0; y < d.grid_h; ++y) {
    const int64_t row = d.first + y * d.grid_w;
    gemm<false>(d.grid_w, P, d.grid_h, sums.vertical + row * d.padded_h, d.padded_h,
                side.vertical + (d.grid_h - 1 - y) * P, P, dst + row * P, P, true);
  }
  for (int64_t c = 0; c < d.grid_w; ++c)
    gemm<false>(d.grid_h, P, d.grid_w, sums.horizontal + (d.first + c) * d.padded_w,
                d.grid_w * d.padded_w, side.horizontal + (d.grid_w - 1 - c) * P, P,
                dst + (d.first + c) * P, d.grid_w * P, true);
  if (d.first == 1)
    gemm<false>(d.tokens, P, 1, sums.class_term, 1, side.class_row, P, dst, P, true);
}

// Gradient of one side of the tables, by offset, from the sums above and the rows they multiply.
template <class T>
struct TableGradient {
  T *vertical, *horizontal, *class_row;

  TableGradient(T* p, const Dims<T>& d)
      : vertical(p), horizontal(p + (2 * d.grid_h - 1) * d.padded_dim),
        class_row(horizontal + (2 * d.grid_w - 1) * d.padded_dim) {}

  static int64_t elements(const Dims<T>& d) {
    return (2 * d.grid_h + 2 * d.grid_w - 1) * d.padded_dim;
  }
};

template <class T>
void add_table_gradient(const SideTerms<T>& sums, const T* x, const Dims<T>& d,
                        const TableGradient<T>& gradient) {
  const int64_t P = d.padded_dim;
  for (int64_t y = 0; y < d.grid_h; ++y) {
    const int64_t row = d.first + y * d.grid_w;
    gemm<true>(d.grid_h, P, d.grid_w, sums.vertical + row * d.padded_h, d.padded_h, x + row * P,
               P, gradient.vertical + (d.grid_h - 1 - y) * P, P, true);
  }
  for (int64_t c = 0; c < d.grid_w; ++c)
    gemm<true>(d.grid_w, P, d.grid_h, sums.horizontal + (d.first + c) * d.padded_w,
               d.grid_w * d.padded_w, x + (d.first + c) * P, d.grid_w * P,
               gradient.horizontal + (d.grid_w - 1 - c) * P, P, true);
  if (d.first == 1)
    gemm<true>(1, P, d.tokens, sums.class_term, 1, x, P, gradient.class_row, P, true);
}

}  // namespace GROWTAS_LEVEL
}  // namespace growtas
