// Attention with 2-D relative position on keys and values, one (image, head) per task.
// Scores exist for one tile of queries at a time; the backward recomputes them from lse.
#pragma once

#include "attention_operands.h"

namespace growtas {
namespace GROWTAS_LEVEL {

// Where head `h` of image `b` starts in qkv [B, N, 3, h, d] and in out [B, N, h, d].
struct HeadOffsets {
  int64_t q, k, v, qkv_stride, out, out_stride, lse;

  HeadOffsets(const AttentionShape& s, int64_t batch_head) {
    const int64_t b = batch_head / s.heads, h = batch_head % s.heads;
    const int64_t width = s.heads * s.head_dim;
    qkv_stride = 3 * width;
    out_stride = width;
    q = b * s.tokens * qkv_stride + h * s.head_dim;
    k = q + width;
    v = k + width;
    out = b * s.tokens * out_stride + h * s.head_dim;
    lse = batch_head * s.tokens;
  }
};

// Fetches a row, or a row of q, k and v, some time before it is read or written: a head's rows lie
// apart, so the processor does not fetch them ahead by itself.
template <class B>
GROWTAS_INLINE void prefetch(const B& buffer, int64_t offset, int64_t dim) {
  const char* row = static_cast<const char*>(buffer.at(offset));
  for (int64_t byte = 0; byte < dim * element_size(buffer.dtype); byte += 64)
    GROWTAS_PREFETCH(row + byte);
}

template <class B>
GROWTAS_INLINE void prefetch(const B& qkv, const HeadOffsets& at, int64_t token, int64_t dim) {
  const int64_t row = token * at.qkv_stride;
  prefetch(qkv, at.q + row, dim);
  prefetch(qkv, at.k + row, dim);
  prefetch(qkv, at.v + row, dim);
}

// The first dim values of src row i times factor(i), as row i of dst.
template <class T, class F>
void write_matrix(T* src, const Dims<T>& d, const Buffer& dst, int64_t offset, int64_t stride,
                  const F& factor) {
  for (int64_t i = 0; i < d.tokens; ++i) {
    T* row = src + i * d.padded_dim;
    scale_row(row, factor(i), d.padded_dim);
    narrow_row(row, dst.at(offset + i * stride), dst.dtype, d.dim);
  }
}

// A tile of scores, with room for the vector that fill_bias and sum_by_position may run over.
template <class T>
T* take_tile(Arena& arena, const Dims<T>& d) {
  return arena.take<T>(d.tile * d.tile_stride + 2 * kLanes<T>);
}

// The larger array of a SideTerms as pairs; values need none.
template <class E>
E* take_sum_elements(Arena& arena, const Dims<Sum<E>>& d) {
  const int64_t padded = d.padded_h > d.padded_w ? d.padded_h : d.padded_w;
  return arena.take<E>(kPairs<E> ? elements<E>(d.tokens * padded) + kLanes<E> : 0);
}

template <class E>
struct ForwardScratch {
  using T = Sum<E>;
  T *out, *total, *tile;
  E *queries, *key_panels, *values, *weights, *sum_elements;
  SideTerms<T> bias, sums;

  ForwardScratch(Arena& arena, const Dims<T>& d, const OperandDims<E>& o)
      : out(arena.take<T>(d.tokens * d.padded_dim)),
        total(arena.take<T>(d.tokens)), tile(take_tile(arena, d)),
        queries(arena.take<E>(d.tokens * o.row_stride)),
        key_panels(arena.take<E>(d.panels * o.depth * 2 * kLanes<T>)),
        values(arena.take<E>(o.keys * d.padded_dim)),
        weights(arena.take<E>(kPairs<E> ? d.tile * o.keys_stride : 0)),
        sum_elements(take_sum_elements<E>(arena, d)), bias(arena, d), sums(arena, d) {}
};

// Scores to exp(score - max), zero beyond the tokens.
template <class T>
GROWTAS_NOINLINE void exponentiate_row(T* row, int64_t tokens, T* max_score, T* total) {
  constexpr int64_t L = kLanes<T>;
  const int64_t whole = tokens / L * L;
  const auto in_row = first_lanes<T>(tokens - whole);
  const Vec<T> lowest = splat(T(-INFINITY));
  Vec<T> high = lowest;
  for (int64_t j = 0; j < whole; j += L) high = maximum<T>(high, load(row + j));
  if (whole < tokens) high = maximum<T>(high, in_row ? load(row + whole) : lowest);
  const T max = max_lanes<T>(high);

  Vec<T> sum = {};
  for (int64_t j = 0; j < whole; j += L) {
    const Vec<T> e = exponential(load(row + j) - max);
    store(row + j, e);
    sum += e;
  }
  if (whole < tokens) {
    const Vec<T> raw = load(row + whole) - max;
    const Vec<T> e = in_row ? exponential(raw) : Vec<T>{};
    store(row + whole, e);
    sum += e;
  }
  *max_score = max;
  *total = sum_lanes<T>(sum);
}

// lse = max + ln(total), total = 1 / total, where lse holds max.
template <class T>
void finish_rows(int64_t tokens, T* lse, T* total) {
  for_each_vector<T>(tokens, [&](int64_t i, int64_t n) {
    const Vec<T> sum = load_n(total + i, n);
    store_n(lse + i, load_n(lse + i, n) + logarithm(sum), n);
    store_n(total + i, T(1) / sum, n);
  });
}

// Reads the queries as an operand of products. Values are scaled here, pairs are left as they are
// stored; the factor that the products still lack is returned.
template <class E>
Sum<E> read_queries(const ConstBuffer& qkv, int64_t offset, int64_t stride,
                    const Dims<Sum<E>>& d, const OperandDims<E>& o, Sum<E> scale, E* queries) {
  if constexpr (kPairs<E>) {
    read_elements(qkv, offset, stride, d, o, queries);
    return scale;
  } else {
    read_matrix(qkv, offset, stride, d, queries, scale);
    return 1;
  }
}

template <class E>
void attention_forward_task(const AttentionForward& a, int64_t batch_head, int64_t next,
                            void* scratch) {
  using T = Sum<E>;
  const Dims<T> d(a.shape);
  const OperandDims<E> o(d);
  const HeadOffsets at(a.shape, batch_head);
  Arena arena{static_cast<char*>(scratch)};
  const ForwardScratch<E> s(arena, d, o);
  Arena table_arena{const_cast<char*>(static_cast<const char*>(a.tables))};
  const bool relative = a.tables != nullptr;
  const Tables<E> tables(table_arena, d);
  const bool has_next = next < a.shape.batch * a.shape.heads;
  const HeadOffsets next_at(a.shape, next);
  T* lse = static_cast<T*>(a.lse.data) + at.lse;

  const T alpha = read_queries(a.qkv, at.q, at.qkv_stride, d, o, T(a.shape.scale), s.queries);
  pack_panels(a.qkv, at.k, at.qkv_stride, d, o, s.key_panels);
  stack_tokens(a.qkv, at.v, at.qkv_stride, d, s.values);
  if (relative) project(s.queries, o.row_stride, alpha, tables.keys, d, s.bias);

  for (int64_t i0 = 0; i0 < d.tokens; i0 += d.tile) {
    const int64_t rows = d.tokens - i0 < d.tile ? d.tokens - i0 : d.tile;
    if (relative)
      for (int64_t i = 0; i < rows; ++i) fill_bias(i0 + i, s.bias, d, s.tile + i * d.tile_stride);
    multiply_panels(s.queries + i0 * o.row_stride, s.key_panels, d, o, rows, s.tile, relative,
                    alpha);
    for (int64_t i = i0; i < i0 + rows; ++i) {
      if (has_next) prefetch(a.qkv, next_at, i, d.dim);
      prefetch(a.out, at.out + i * at.out_stride, d.dim);
      exponentiate_row(s.tile + (i - i0) * d.tile_stride, d.tokens, lse + i, s.total + i);
    }
    // A loop apart from the one above, because loads that straddle its stores would wait for them.
    for (int64_t i = 0; i < rows && relative; ++i)
      sum_by_position(i0 + i, s.tile + i * d.tile_stride, d, s.sums);
    gemm<false>(rows, d.padded_dim, o.keys, along_keys(s.tile, d, o, rows, s.weights),
                o.keys_stride, s.values, d.padded_dim, s.out + i0 * d.padded_dim, d.padded_dim,
                false);
  }
  if (relative) add_table_product(s.sums, tables.values, d, s.sum_elements, s.out);
  finish_rows(d.tokens, lse, s.total);
  write_matrix(s.out, d, a.out, at.out, at.out_stride, [&](int64_t i) { return s.total[i]; });
}

// Where operands are values, they share the memory of the matrix they are read from; pairs have memory
// of their own.
template <class E>
struct BackwardScratch {
  using T = Sum<E>;
  T *q, *dout, *dq, *dk, *dv, *p_tile, *ds_tile;
  E *queries, *douts, *key_panels, *value_panels;
  E *query_stack, *dout_stack, *key_stack, *weights, *sum_elements;
  SideTerms<T> key_bias, value_bias, ds_sums, p_sums;

  // p_sums serve the table gradient only: without one they share the memory of ds_sums.
  BackwardScratch(Arena& arena, const Dims<T>& d, const OperandDims<E>& o, bool with_dtables)
      : q(arena.take<T>(d.tokens * d.padded_dim)), dout(arena.take<T>(d.tokens * d.padded_dim)),
        dq(arena.take<T>(d.tokens * d.padded_dim)), dk(arena.take<T>(d.tokens * d.padded_dim)),
        dv(arena.take<T>(d.tokens * d.padded_dim)), p_tile(take_tile(arena, d)),
        ds_tile(take_tile(arena, d)), queries(rows(arena, q, d, o)), douts(rows(arena, dout, d, o)),
        key_panels(arena.take<E>(d.panels * o.depth * 2 * kLanes<T>)),
        value_panels(arena.take<E>(d.panels * o.depth * 2 * kLanes<T>)),
        query_stack(stack(arena, q, d, o)), dout_stack(stack(arena, dout, d, o)),
        key_stack(arena.take<E>(o.keys * d.padded_dim)),
        weights(arena.take<E>(kPairs<E> ? d.tile * d.tile_stride : 0)),
        sum_elements(take_sum_elements<E>(arena, d)), key_bias(arena, d), value_bias(arena, d),
        ds_sums(arena, d), p_sums(with_dtables ? SideTerms<T>(arena, d) : ds_sums) {}

  static E* rows(Arena& arena, T* same, const Dims<T>& d, const OperandDims<E>& o) {
    return kPairs<E> ? arena.take<E>(d.tokens * o.row_stride) : reinterpret_cast<E*>(same);
  }
  static E* stack(Arena& arena, T* same, const Dims<T>& d, const OperandDims<E>& o) {
    return kPairs<E> ? arena.take<E>(o.keys * d.padded_dim) : reinterpret_cast<E*>(same);
  }
};

// p: scores to probabilities exp(score - lse); ds: gradients of the probabilities to gradients
// of the scores, p (ds - sum p ds). Both zero beyond the tokens. The sum equals dout . out, but
// taken from the row itself its rounding errors are those of ds and cancel.
template <class T>
GROWTAS_INLINE void softmax_gradient_row(T* p, T* ds, int64_t tokens, T lse) {
  constexpr int64_t L = kLanes<T>;
  const int64_t whole = tokens / L * L;
  Vec<T> weighted = {};
  for (int64_t j = 0; j < whole; j += L) {
    const Vec<T> e = exponential(load(p + j) - lse);
    store(p + j, e);
    weighted += e * load(ds + j);
  }
  if (whole < tokens) {
    const auto in_row = first_lanes<T>(tokens - whole);
    const Vec<T> e = exponential(load(p + whole) - lse);
    const Vec<T> g = in_row ? load(ds + whole) : Vec<T>{};
    store(p + whole, in_row ? e : Vec<T>{});
    store(ds + whole, g);
    weighted += load(p + whole) * g;
  }
  const T mean = sum_lanes<T>(weighted);
  for (int64_t j = 0; j < tokens; j += L) store(ds + j, load(p + j) * (load(ds + j) - mean));
}

template <class E>
void attention_backward_task(const AttentionBackward& a, int64_t batch_head, int64_t next,
                             Sum<E>* partial, void* scratch) {
  using T = Sum<E>;
  const Dims<T> d(a.shape);
  const OperandDims<E> o(d);
  const HeadOffsets at(a.shape, batch_head);
  Arena arena{static_cast<char*>(scratch)};
  const BackwardScratch<E> s(arena, d, o, partial != nullptr);
  Arena table_arena{const_cast<char*>(static_cast<const char*>(a.tables))};
  const bool relative = a.tables != nullptr;
  const Tables<E> tables(table_arena, d);
  const bool has_next = next < a.shape.batch * a.shape.heads;
  const HeadOffsets next_at(a.shape, next);
  const T* lse = static_cast<const T*>(a.lse.data) + at.lse;
  const int64_t P = d.padded_dim;

  const T alpha = read_queries(a.qkv, at.q, at.qkv_stride, d, o, T(a.shape.scale), s.queries);
  const bool with_dtables = partial != nullptr;
  if (with_dtables || !kPairs<E>) read_matrix(a.dout, at.out, at.out_stride, d, s.dout);
  pack_panels(a.qkv, at.k, at.qkv_stride, d, o, s.key_panels);
  pack_panels(a.qkv, at.v, at.qkv_stride, d, o, s.value_panels);
  stack_tokens(a.qkv, at.k, at.qkv_stride, d, s.key_stack);
  if constexpr (kPairs<E>) {
    if (with_dtables) read_matrix(a.qkv, at.q, at.qkv_stride, d, s.q, T(a.shape.scale));
    read_elements(a.dout, at.out, at.out_stride, d, o, s.douts);
    stack_tokens(a.qkv, at.q, at.qkv_stride, d, s.query_stack);
    stack_tokens(a.dout, at.out, at.out_stride, d, s.dout_stack);
  }
  if (relative) {
    project(s.queries, o.row_stride, alpha, tables.keys, d, s.key_bias);
    project(s.douts, o.row_stride, T(1), tables.values, d, s.value_bias);
  }

  for (int64_t i0 = 0; i0 < d.tokens; i0 += d.tile) {
    const int64_t rows = d.tokens - i0 < d.tile ? d.tokens - i0 : d.tile;
    if (relative) {
      for (int64_t i = 0; i < rows; ++i) {
        fill_bias(i0 + i, s.key_bias, d, s.p_tile + i * d.tile_stride);
        fill_bias(i0 + i, s.value_bias, d, s.ds_tile + i * d.tile_stride);
      }
    }
    multiply_panels(s.queries + i0 * o.row_stride, s.key_panels, d, o, rows, s.p_tile, relative,
                    alpha);
    multiply_panels(s.douts + i0 * o.row_stride, s.value_panels, d, o, rows, s.ds_tile, relative,
                    T(1));
    for (int64_t i = i0; i < i0 + rows; ++i) {
      if (has_next) {
        prefetch(a.qkv, next_at, i, d.dim);
        prefetch(a.dout, next_at.out + i * at.out_stride, d.dim);
      }
      prefetch(a.dqkv, at, i, d.dim);
      const int64_t row = (i - i0) * d.tile_stride;
      softmax_gradient_row(s.p_tile + row, s.ds_tile + row, d.tokens, lse[i]);
    }
    // Loops apart, as in the forward.
    for (int64_t i = 0; i < rows && relative; ++i)
      sum_by_position(i0 + i, s.ds_tile + i * d.tile_stride, d, s.ds_sums);
    for (int64_t i = 0; i < rows && with_dtables; ++i)
      sum_by_position(i0 + i, s.p_tile + i * d.tile_stride, d, s.p_sums);
    const int64_t depth = elements<E>(rows), first = elements<E>(i0);
    gemm<false>(rows, P, o.keys, along_keys(s.ds_tile, d, o, rows, s.weights), o.keys_stride,
                s.key_stack, P, s.dq + i0 * P, P, false);
    gemm<true>(d.tokens, P, depth, along_queries(s.p_tile, d, rows, s.weights), d.tile_stride,
               s.dout_stack + first * P, P, s.dv, P, i0 > 0);
    gemm<true>(d.tokens, P, depth, along_queries(s.ds_tile, d, rows, s.weights), d.tile_stride,
               s.query_stack + first * P, P, s.dk, P, i0 > 0, alpha);
  }
  if (relative) add_table_product(s.ds_sums, tables.keys, d, s.sum_elements, s.dq);
  if (with_dtables) {
    const int64_t side = TableGradient<T>::elements(d);
    add_table_gradient(s.ds_sums, s.q, d, TableGradient<T>(partial, d));
    add_table_gradient(s.p_sums, s.dout, d, TableGradient<T>(partial + side, d));
  }
  const auto as_is = [](int64_t) { return T(1); };
  write_matrix(s.dq, d, a.dqkv, at.q, at.qkv_stride, [&](int64_t) { return T(a.shape.scale); });
  write_matrix(s.dk, d, a.dqkv, at.k, at.qkv_stride, as_is);
  write_matrix(s.dv, d, a.dqkv, at.v, at.qkv_stride, as_is);
}

}  // namespace GROWTAS_LEVEL
}  // namespace growtas
