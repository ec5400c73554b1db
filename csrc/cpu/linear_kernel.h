// The three products of a linear layer on a slice of its weight. Sums run over chunks of the
// reduction, each chunk in registers, then in order: the same bits however the work is divided.
#pragma once

#include "arena.h"
#include "gemm_pack.h"

namespace growtas {
namespace GROWTAS_LEVEL {

constexpr int64_t kChunk = 256;  // elements summed in a row

template <class S>
GROWTAS_INLINE S sample_scale(const SampleScale& scale, int64_t row) {
  return scale.data == nullptr ? S(1) : static_cast<const S*>(scale.data)[row / scale.rows];
}

template <class E>
struct RowsScratch {
  E* a;
  Sum<E>* tile;
  int64_t a_stride;

  RowsScratch(Arena arena, const RowsProduct& p, int64_t rows) {
    a_stride = round_up<Sum<E>>(elements<E>(p.depth));
    tile = arena.take<Sum<E>>(kTileRows * kPanel<E>);
    a = arena.take<E>(in_place(p) ? 0 : rows * a_stride);
    bytes = arena.used;
  }
  static bool in_place(const RowsProduct& p) {
    return !p.gelu_of_a && holds_elements<E>(p.a, p.a_stride, p.depth);
  }
  size_t bytes;
};

// Wide rows of z come best from memory in one piece, so where c loses nothing by being stored
// before, its rows are multiplied by GELU'(z) when all panels are done, while they are in cache.
template <class S>
GROWTAS_INLINE bool derivative_last(const RowsProduct& p) {
  return p.c.dtype == kOwnType<S> && p.residual.data == nullptr;
}

template <class S>
void multiply_by_derivative(const RowsProduct& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    S* const c = static_cast<S*>(p.c.at(i * p.c_stride));
    for_each_vector<S>(p.columns, [&](int64_t j, int64_t n) {
      const Vec<S> z = load_values<S>(p.derivative_at, i * p.derivative_stride + j, n);
      store_n<S>(c + j, load_n(c + j, n) * gelu_derivative<S>(z), n);
    });
  }
}

// `columns` values of rows [m, m + height) from the tile to c, and on their way whatever is fused.
template <class E, int NV>
GROWTAS_INLINE void finish_tile(const RowsProduct& p, int64_t m, int height, int64_t n,
                                int64_t columns, Sum<E>* tile) {
  using S = Sum<E>;
  S* row = tile;
  for (int64_t i = m; i < m + height; ++i, row += kPanel<E>) {
    for (int v = 0; v < NV; ++v) {
      const int64_t j = n + v * kLanes<S>;
      const int64_t left = columns - v * kLanes<S>;
      const int64_t count = left > kLanes<S> ? kLanes<S> : left;
      Vec<S> sum = load(row + v * kLanes<S>);
      if (p.bias != nullptr) sum += load(static_cast<const S*>(p.bias) + j);
      if (p.preactivation.data != nullptr)
        store_values<S>(p.preactivation, i * p.preactivation_stride + j, sum, count);
      if (p.gelu_of_sum) sum = gelu<S>(sum);
      if (p.derivative_at.data != nullptr && !derivative_last<S>(p))
        sum *= gelu_derivative<S>(
            load_values<S>(p.derivative_at, i * p.derivative_stride + j, count));
      if (p.scale.data != nullptr) sum *= splat(sample_scale<S>(p.scale, i));
      if (p.residual.data != nullptr)
        sum += load_values<S>(p.residual, i * p.residual_stride + j, count);
      store(row + v * kLanes<S>, sum);
    }
  }
  // Apart from the reads above: where c lies a multiple of 4 KiB from what is read, some CPUs take
  // one for the other and stall for each line.
  row = tile;
  for (int64_t i = m; i < m + height; ++i, row += kPanel<E>) {
    for (int v = 0; v < NV; ++v) {
      const int64_t left = columns - v * kLanes<S>;
      store_values<S>(p.c, i * p.c_stride + n + v * kLanes<S>, load(row + v * kLanes<S>),
                      left > kLanes<S> ? kLanes<S> : left);
    }
  }
}

// The same for whole panels where nothing but a bias is fused.
template <class E, int NV>
GROWTAS_INLINE void finish_plain_tile(const RowsProduct& p, int64_t m, int height, int64_t n,
                                      const Sum<E>* tile) {
  using S = Sum<E>;
  Vec<S> bias[NV] = {};
  if (p.bias != nullptr) {
    GROWTAS_UNROLL
    for (int v = 0; v < NV; ++v) bias[v] = load(static_cast<const S*>(p.bias) + n + v * kLanes<S>);
  }
  const Buffer c = p.c;
  const int64_t stride = p.c_stride;
  int64_t at = m * stride + n;
  for (int i = 0; i < height; ++i, tile += kPanel<E>, at += stride) {
    GROWTAS_UNROLL
    for (int v = 0; v < NV; ++v)
      store_values<S>(c, at + v * kLanes<S>, load(tile + v * kLanes<S>) + bias[v], kLanes<S>);
  }
}

template <class S>
GROWTAS_INLINE bool is_plain(const RowsProduct& p) {
  return p.preactivation.data == nullptr && !p.gelu_of_sum &&
         (p.derivative_at.data == nullptr || derivative_last<S>(p)) &&
         p.scale.data == nullptr && p.residual.data == nullptr;
}

GROWTAS_INLINE void prefetch(const void* p, int64_t bytes) {
#if defined(__GNUC__)
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(p) + i);
#endif
}

// The rows that finish_tile will read, fetched while the sums are formed.
GROWTAS_INLINE void prefetch_finish(const RowsProduct& p, int64_t m, int height, int64_t n,
                                    int64_t columns) {
  const auto fetch = [&](const void* data, DType dtype, int64_t stride) {
    const int64_t size = element_size(dtype);
    const char* row = static_cast<const char*>(data) + (m * stride + n) * size;
    for (int i = 0; i < height; ++i, row += stride * size) prefetch(row, columns * size);
  };
  if (p.derivative_at.data != nullptr)
    fetch(p.derivative_at.data, p.derivative_at.dtype, p.derivative_stride);
  if (p.residual.data != nullptr) fetch(p.residual.data, p.residual.dtype, p.residual_stride);
}

template <class E, int NV>
GROWTAS_NOINLINE void panel_product(const RowsProduct& p, int64_t begin, int64_t rows, const E* a,
                                    int64_t lda, int64_t n, const E* panel, Sum<E>* tile) {
  using S = Sum<E>;
  const int64_t depth = elements<E>(p.depth);
  const int64_t chunks = (depth + kChunk - 1) / kChunk;
  const int64_t columns = p.columns - n < kPanel<E> ? p.columns - n : kPanel<E>;
  const bool plain = columns == NV * kLanes<S> && is_plain<S>(p);
  for_each_tile(rows, [&](int64_t m, auto height) {
    if (!plain) prefetch_finish(p, begin + m, height.value, n, columns);
    for (int64_t c = 0, k = 0; c < chunks; ++c) {
      const int64_t end = (c + 1) * depth / chunks;
      gemm_tile<E, height.value, NV, false>(end - k, a + m * lda + k, lda, panel + k * kPanel<E>,
                                            kPanel<E>, tile, kPanel<E>, c > 0);
      k = end;
    }
    if (plain)
      finish_plain_tile<E, NV>(p, begin + m, height.value, n, tile);
    else
      finish_tile<E, NV>(p, begin + m, height.value, n, columns, tile);
  });
}

template <class E>
void rows_product_block(const RowsProduct& p, int64_t begin, int64_t end, void* scratch) {
  const RowsScratch<E> s(Arena{static_cast<char*>(scratch)}, p, end - begin);
  const E* a = static_cast<const E*>(p.a.at(begin * p.a_stride));
  int64_t lda = p.a_stride / Element<E>::values;
  if (!RowsScratch<E>::in_place(p)) {
    stage_rows(p.a, begin, end - begin, p.a_stride, p.depth, p.gelu_of_a, s.a, s.a_stride);
    a = s.a;
    lda = s.a_stride;
  }
  const int64_t depth = elements<E>(p.depth);
  for (int64_t n = 0; n < p.columns; n += kPanel<E>) {
    const E* panel = static_cast<const E*>(p.packed) + n * depth;
    if (p.columns - n > kLanes<Sum<E>>)
      panel_product<E, 2>(p, begin, end - begin, a, lda, n, panel, s.tile);
    else
      panel_product<E, 1>(p, begin, end - begin, a, lda, n, panel, s.tile);
  }
  if (p.derivative_at.data != nullptr && derivative_last<Sum<E>>(p))
    multiply_by_derivative<Sum<E>>(p, begin, end);
}

template <class E>
struct WeightScratch {
  E *dy, *x;
  static constexpr int64_t kRows = kChunk * Element<E>::values;  // of dy and x at a time
  Sum<E>*tile, *dweight, *dbias, *partial;
  int64_t width, dweight_stride;
  size_t bytes;

  WeightScratch(Arena arena, const WeightGradient& p, const Block& b) {
    const int64_t depth = elements<E>(p.rows < kRows ? p.rows : kRows);
    width = round_up<Sum<E>>(b.n1 - b.n0);
    tile = arena.take<Sum<E>>(kTileRows * kPanel<E>);
    dbias = arena.take<Sum<E>>(width);
    partial = arena.take<Sum<E>>(width);
    x = arena.take<E>(depth * kPanel<E>);
    dy = arena.take<E>(in_place(p) ? 0 : depth * width);
    dweight_stride = b.k1 - b.k0;
    dweight = arena.take<Sum<E>>(sums_in_place(p) ? 0 : (b.n1 - b.n0) * dweight_stride);
    bytes = arena.used;
  }
  static bool in_place(const WeightGradient& p) {
    return Element<E>::values == 1 && p.scale.data == nullptr && p.dy.dtype == kOwnType<Sum<E>>;
  }
  static bool sums_in_place(const WeightGradient& p) {
    return p.dweight.data == nullptr || p.dweight.dtype == kOwnType<Sum<E>>;
  }
};

// sums[i] += column n0 + i of dy over the rows [first, first + rows), a few rows at a time.
template <class S>
void add_columns(const WeightGradient& p, int64_t first, int64_t rows, int64_t n0, int64_t n,
                 S* partial, S* sums) {
  constexpr int64_t few = 32;
  for (int64_t begin = first; begin < first + rows; begin += few) {
    const int64_t end = first + rows < begin + few ? first + rows : begin + few;
    for (int64_t m = begin; m < end; ++m) {
      const Vec<S> scale = splat(sample_scale<S>(p.scale, m));
      for_each_vector<S>(n, [&](int64_t i, int64_t count) {
        const Vec<S> v = load_values<S>(p.dy, m * p.dy_stride + n0 + i, count) * scale;
        store(partial + i, m == begin ? v : load(partial + i) + v);
      });
    }
    for_each_vector<S>(
        n, [&](int64_t i, int64_t) { store(sums + i, load(sums + i) + load(partial + i)); });
  }
}

// Rows [n, n + height) and `columns` columns from k on of the block gain the tile.
template <class E, int NV, class Row>
GROWTAS_INLINE void add_tile(int64_t m, int height, int64_t columns, const Sum<E>* tile,
                             const Row& row) {
  using S = Sum<E>;
  for (int i = 0; i < height; ++i) {
    S* const dst = row(m + i);
    GROWTAS_UNROLL
    for (int v = 0; v < NV; ++v) {
      const int64_t left = columns - v * kLanes<S>;
      const int64_t count = left < kLanes<S> ? left : kLanes<S>;
      S* const at = dst + v * kLanes<S>;
      store_n<S>(at, load_n(at, count) + load(tile + i * kPanel<E> + v * kLanes<S>), count);
    }
  }
}

// Rows of memory that will be packed later, fetched share by share while tiles are computed.
struct Upcoming {
  const char* row = nullptr;
  int64_t left = 0, stride = 0, bytes = 0, share = 0;

  Upcoming() = default;
  // `columns` values from column j on of rows [first, first + rows), over `steps` calls.
  Upcoming(const ConstBuffer& src, int64_t src_stride, int64_t first, int64_t rows, int64_t j,
           int64_t columns, int64_t steps)
      : row(static_cast<const char*>(src.at(first * src_stride + j))),
        left(rows),
        stride(src_stride * element_size(src.dtype)),
        bytes(columns * element_size(src.dtype)),
        share((rows + steps - 1) / steps) {}

  GROWTAS_INLINE void fetch() {
    for (int64_t i = 0; i < share && left > 0; ++i, --left, row += stride) prefetch(row, bytes);
  }
};

template <class E, int NV, class Row>
GROWTAS_NOINLINE void panel_gradient(int64_t rows, int64_t depth, const E* dy, int64_t dy_stride,
                                     const E* x, int64_t columns, Sum<E>* tile, const Row& row,
                                     Upcoming& next_dy, Upcoming& next_x) {
  for_each_tile(rows, [&](int64_t m, auto height) {
    for (int i = 0; i < height.value; ++i)
      prefetch(row(m + i), columns * int64_t(sizeof(Sum<E>)));
    next_dy.fetch();
    next_x.fetch();
    gemm_tile<E, height.value, NV, true>(depth, dy + m, dy_stride, x, kPanel<E>, tile, kPanel<E>,
                                         false);
    add_tile<E, NV>(m, height.value, columns, tile, row);
  });
}

template <class E>
void weight_gradient_block(const WeightGradient& p, const Block& b, void* scratch) {
  using S = Sum<E>;
  using Scratch = WeightScratch<E>;
  const Scratch s(Arena{static_cast<char*>(scratch)}, p, b);
  const int64_t n = b.n1 - b.n0;
  const bool with_bias = p.dbias.data != nullptr && b.k0 == 0;
  const bool with_weight = p.dweight.data != nullptr;
  if (with_bias) std::memset(s.dbias, 0, size_t(s.width) * sizeof(S));
  if (!Scratch::sums_in_place(p)) std::memset(s.dweight, 0, size_t(n * s.dweight_stride) * sizeof(S));

  for (int64_t first = 0; first < p.rows; first += Scratch::kRows) {
    const int64_t rows = p.rows - first < Scratch::kRows ? p.rows - first : Scratch::kRows;
    if (with_bias) add_columns(p, first, rows, b.n0, n, s.partial, s.dbias);
    if (!with_weight) continue;
    const E* dy = static_cast<const E*>(p.dy.at(first * p.dy_stride + b.n0));
    int64_t dy_stride = p.dy_stride;
    if (!Scratch::in_place(p)) {
      pack_rows<E>(
          p.dy, first, rows, b.n0, n, [&](int64_t m) { return m * p.dy_stride; },
          [&](int64_t m) { return sample_scale<S>(p.scale, m); }, false, s.dy, s.width);
      dy = s.dy;
      dy_stride = s.width;
    }
    const int64_t depth = elements<E>(rows);
    const int64_t next = first + rows;
    const int64_t next_rows = p.rows - next < Scratch::kRows ? p.rows - next : Scratch::kRows;
    const int64_t tiles = (n + kTileRows - 1) / kTileRows;
    const int64_t panels = (b.k1 - b.k0 + kPanel<E> - 1) / kPanel<E>;
    Upcoming next_dy(p.dy, p.dy_stride, next, next_rows, b.n0, n, tiles * panels);
    for (int64_t k = b.k0; k < b.k1; k += kPanel<E>) {
      const int64_t columns = b.k1 - k < kPanel<E> ? b.k1 - k : kPanel<E>;
      pack_rows<E>(
          p.x, first, rows, k, columns, [&](int64_t m) { return m * p.x_stride; },
          [](int64_t) { return 1; }, p.gelu_of_x, s.x, kPanel<E>);
      const int64_t after = k + kPanel<E>;
      Upcoming next_x;
      if (after < b.k1)
        next_x = Upcoming(p.x, p.x_stride, first, rows, after,
                          b.k1 - after < kPanel<E> ? b.k1 - after : kPanel<E>, tiles);
      else
        next_x = Upcoming(p.x, p.x_stride, next, next_rows, b.k0, columns, tiles);
      const auto row = [&](int64_t i) {
        return Scratch::sums_in_place(p)
                   ? static_cast<S*>(p.dweight.at(p.dweight_rows.offset(b.n0 + i) + k))
                   : s.dweight + i * s.dweight_stride + k - b.k0;
      };
      if (columns > kLanes<S>)
        panel_gradient<E, 2>(n, depth, dy, dy_stride, s.x, columns, s.tile, row, next_dy, next_x);
      else
        panel_gradient<E, 1>(n, depth, dy, dy_stride, s.x, columns, s.tile, row, next_dy, next_x);
    }
  }

  const auto add = [](const Buffer& dst, int64_t offset, const S* values, int64_t count) {
    for_each_vector<S>(count, [&](int64_t i, int64_t left) {
      const Vec<S> sum = load_values<S>({dst.data, dst.dtype}, offset + i, left);
      store_values<S>(dst, offset + i, sum + load_n(values + i, left), left);
    });
  };
  if (!Scratch::sums_in_place(p)) {
    for (int64_t i = 0; i < n; ++i)
      add(p.dweight, p.dweight_rows.offset(b.n0 + i) + b.k0, s.dweight + i * s.dweight_stride,
          s.dweight_stride);
  }
  if (with_bias) {
    for (int64_t i = 0; i < n; ++i) add(p.dbias, p.dbias_rows.offset(b.n0 + i), s.dbias + i, 1);
  }
}

}  // namespace GROWTAS_LEVEL
}  // namespace growtas
