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
#include "gemm_pack.h"
#include "kernels.h"

namespace growtas {
namespace GROWTAS_LEVEL {

template <class E>
constexpr bool kPairs = Element<E>::values == 2;

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

// One side (keys or values) of the expanded tables, as elements E. `vertical` and `horizontal` are
// [offsets, padded_dim], a pair holding an offset's row and the next one's; the transposed copies,
// for products with a query, are [elements of dim, stride]. The class token has row 0 of both axes:
// class_row is the sum, class_elements [2, padded_dim] the two.
template <class E>
struct TableSide {
  using T = Sum<E>;
  E *vertical, *horizontal, *vertical_t, *horizontal_t, *class_elements;
  T *class_row, *scratch;
  int64_t vertical_stride, horizontal_stride;

  TableSide(Arena& arena, const Dims<T>& d) {
    vertical = arena.take<E>((2 * d.grid_h - 1) * d.padded_dim);
    horizontal = arena.take<E>((2 * d.grid_w - 1) * d.padded_dim);
    vertical_stride = d.grid_h + d.padded_h;
    horizontal_stride = d.grid_w + d.padded_w;
    vertical_t = arena.take<E>(elements<E>(d.dim) * vertical_stride);
    horizontal_t = arena.take<E>(elements<E>(d.dim) * horizontal_stride);
    class_elements = arena.take<E>(2 * d.padded_dim);
    class_row = arena.take<T>(d.padded_dim);
    scratch = arena.take<T>(2 * (d.padded_dim + kLanes<T>));
  }
};

template <class E>
struct Tables {
  TableSide<E> keys, values;
  Tables(Arena& arena, const Dims<Sum<E>>& d) : keys(arena, d), values(arena, d) {}
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

template <class E>
GROWTAS_INLINE void store_elements(E* p, const Vec<E>& v) {
  std::memcpy(static_cast<void*>(p), &v, sizeof(v));
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
    vertical = arena.take<T>(d.tokens * d.padded_h + kLanes<T>);
    horizontal = arena.take<T>(d.tokens * d.padded_w + kLanes<T>);
    class_term = arena.take<T>(d.tokens);
  }
};

template <class E>
GROWTAS_INLINE void add_products(Vec<Sum<E>>& sum, const Vec<E>& a, const Vec<E>& b) {
  sum += a * b;
}

#if defined(GROWTAS_BFLOAT16_DOT)
template <>
GROWTAS_INLINE void add_products<BFloat16Pair>(Vec<float>& sum, const Vec<BFloat16Pair>& a,
                                               const Vec<BFloat16Pair>& b) {
  sum = _mm512_dpbf16_ps(sum, bit_cast<__m512bh>(a), bit_cast<__m512bh>(b));
}
#endif

// x . (a + b), without the sum as an element, which would round it.
template <class E>
GROWTAS_INLINE Sum<E> dot(const E* x, const E* a, const E* b, int64_t padded) {
  Vec<Sum<E>> sum = {};
  for (int64_t k = 0; k < padded; k += kLanes<E>) {
    add_products<E>(sum, load(x + k), load(a + k));
    add_products<E>(sum, load(x + k), load(b + k));
  }
  return sum_lanes<Sum<E>>(sum);
}

// terms = alpha x . tables, x [tokens, stride], its rows padded with zeros to whole vectors.
template <class E>
void project(const E* x, int64_t stride, Sum<E> alpha, const TableSide<E>& side,
             const Dims<Sum<E>>& d, const SideTerms<Sum<E>>& terms) {
  const int64_t depth = elements<E>(d.dim);
  const E* patches = x + d.first * stride;
  for (int64_t y = 0; y < d.grid_h; ++y) {
    const int64_t row = y * d.grid_w;
    gemm<false>(d.grid_w, d.padded_h, depth, patches + row * stride, stride,
                side.vertical_t + (d.grid_h - 1 - y), side.vertical_stride,
                terms.vertical + (d.first + row) * d.padded_h, d.padded_h, false, alpha);
  }
  for (int64_t c = 0; c < d.grid_w; ++c)
    gemm<false>(d.grid_h, d.padded_w, depth, patches + c * stride, d.grid_w * stride,
                side.horizontal_t + (d.grid_w - 1 - c), side.horizontal_stride,
                terms.horizontal + (d.first + c) * d.padded_w, d.grid_w * d.padded_w, false,
                alpha);
  if (d.first == 1)
    for (int64_t i = 0; i < d.tokens; ++i)
      terms.class_term[i] = alpha * dot(x + i * stride, side.class_elements,
                                        side.class_elements + d.padded_dim, stride);
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

// n values, kLanes more readable, as elements: the values themselves, or pairs written to `buffer`.
template <class E>
const E* as_elements(const Sum<E>* values, int64_t n, E* buffer) {
  if constexpr (kPairs<E>) {
    for (int64_t i = 0; i < n; i += 2 * kLanes<E>) {
      store_elements(buffer + i / 2, neighbours<E>(values + i));
    }
    return buffer;
  } else {
    return values;
  }
}

// dst[tokens, padded_dim] += sums . tables: the value side of the relative term, or the part of a
// query's gradient that comes through its bias.
template <class E>
void add_table_product(const SideTerms<Sum<E>>& sums, const TableSide<E>& side,
                       const Dims<Sum<E>>& d, E* buffer, Sum<E>* dst) {
  constexpr int64_t values = Element<E>::values;
  const int64_t P = d.padded_dim, H = d.padded_h / values, W = d.padded_w / values;
  const E* vertical = as_elements(sums.vertical, d.tokens * d.padded_h, buffer);
  for (int64_t y = 0; y < d.grid_h; ++y) {
    const int64_t row = d.first + y * d.grid_w;
    gemm<false>(d.grid_w, P, elements<E>(d.grid_h), vertical + row * H, H,
                side.vertical + (d.grid_h - 1 - y) * P, values * P, dst + row * P, P, true);
  }
  const E* horizontal = as_elements(sums.horizontal, d.tokens * d.padded_w, buffer);
  for (int64_t c = 0; c < d.grid_w; ++c)
    gemm<false>(d.grid_h, P, elements<E>(d.grid_w), horizontal + (d.first + c) * W, d.grid_w * W,
                side.horizontal + (d.grid_w - 1 - c) * P, values * P, dst + (d.first + c) * P,
                d.grid_w * P, true);
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
