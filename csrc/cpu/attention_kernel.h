// Attention with 2-D relative position on keys and values, one (image, head) per task.
// Scores exist for one tile of queries at a time; the backward recomputes them from lse.
#pragma once

#include "attention_layout.h"

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

template <class T>
GROWTAS_INLINE void scale_row(T* row, T factor, int64_t padded) {
  for (int64_t k = 0; k < padded; k += kLanes<T>) store(row + k, load(row + k) * factor);
}

template <class T>
void write_matrix(const T* src, const Dims<T>& d, const Buffer& dst, int64_t offset,
                  int64_t stride) {
  for (int64_t i = 0; i < d.tokens; ++i)
    narrow_row(src + i * d.padded_dim, dst.at(offset + i * stride), dst.dtype, d.dim);
}

// A tile of scores, with room for the vector that fill_bias and sum_by_position may run over.
template <class T>
T* take_tile(Arena& arena, const Dims<T>& d) {
  return arena.take<T>(d.tile * d.tile_stride + 2 * kLanes<T>);
}

template <class T>
struct ForwardScratch {
  T *q, *k, *k_panels, *v, *out, *inverse, *tile;
  SideTerms<T> bias, sums;

  ForwardScratch(Arena& arena, const Dims<T>& d)
      : q(arena.take<T>(d.tokens * d.padded_dim)), k(arena.take<T>(d.tokens * d.padded_dim)),
        k_panels(arena.take<T>(d.panels * d.dim * 2 * kLanes<T>)),
        v(arena.take<T>(d.tokens * d.padded_dim)), out(arena.take<T>(d.tokens * d.padded_dim)),
        inverse(arena.take<T>(d.tokens)), tile(take_tile(arena, d)), bias(arena, d),
        sums(arena, d) {}
};

// Scores to exp(score - max), zero beyond the tokens. Returns the sum; *lse = max + log(sum).
template <class T>
GROWTAS_INLINE T exponentiate_row(T* row, int64_t tokens, T* lse) {
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
  const T total = sum_lanes<T>(sum);
  *lse = max + std::log(total);
  return total;
}

template <class T>
void attention_forward_task(const AttentionForward& a, int64_t batch_head, void* scratch) {
  const Dims<T> d(a.shape);
  const HeadOffsets at(a.shape, batch_head);
  Arena arena{static_cast<char*>(scratch)};
  const ForwardScratch<T> s(arena, d);
  Arena table_arena{const_cast<char*>(static_cast<const char*>(a.tables))};
  const bool relative = a.tables != nullptr;
  const Tables<T> tables(table_arena, d);
  T* lse = static_cast<T*>(a.lse.data) + at.lse;

  read_matrix(a.qkv, at.q, at.qkv_stride, d, s.q);
  read_matrix(a.qkv, at.k, at.qkv_stride, d, s.k);
  read_matrix(a.qkv, at.v, at.qkv_stride, d, s.v);
  for (int64_t i = 0; i < d.tokens; ++i)
    scale_row(s.q + i * d.padded_dim, T(a.shape.scale), d.padded_dim);
  pack_panels(s.k, d, s.k_panels);
  if (relative) project(s.q, tables.keys, d, s.bias);

  for (int64_t i0 = 0; i0 < d.tokens; i0 += d.tile) {
    const int64_t rows = d.tokens - i0 < d.tile ? d.tokens - i0 : d.tile;
    if (relative)
      for (int64_t i = 0; i < rows; ++i) fill_bias(i0 + i, s.bias, d, s.tile + i * d.tile_stride);
    multiply_panels(s.q + i0 * d.padded_dim, s.k_panels, d, rows, s.tile, relative);
    for (int64_t i = 0; i < rows; ++i) {
      T* row = s.tile + i * d.tile_stride;
      s.inverse[i0 + i] = T(1) / exponentiate_row(row, d.tokens, lse + i0 + i);
      if (relative) sum_by_position(i0 + i, row, d, s.sums);
    }
    gemm<false>(rows, d.padded_dim, d.tokens, s.tile, d.tile_stride, s.v, d.padded_dim,
                s.out + i0 * d.padded_dim, d.padded_dim, false);
  }
  if (relative) add_table_product(s.sums, tables.values, d, s.out);
  for (int64_t i = 0; i < d.tokens; ++i)
    scale_row(s.out + i * d.padded_dim, s.inverse[i], d.padded_dim);
  write_matrix(s.out, d, a.out, at.out, at.out_stride);
}

template <class T>
struct BackwardScratch {
  T *q, *k, *k_panels, *v_panels, *dout, *dq, *dk, *dv, *p_tile, *ds_tile;
  SideTerms<T> key_bias, value_bias, ds_sums, p_sums;

  // p_sums serve the table gradient only: without one they share the memory of ds_sums.
  BackwardScratch(Arena& arena, const Dims<T>& d, bool with_dtables)
      : q(arena.take<T>(d.tokens * d.padded_dim)), k(arena.take<T>(d.tokens * d.padded_dim)),
        k_panels(arena.take<T>(d.panels * d.dim * 2 * kLanes<T>)),
        v_panels(arena.take<T>(d.panels * d.dim * 2 * kLanes<T>)),
        dout(arena.take<T>(d.tokens * d.padded_dim)),
        dq(arena.take<T>(d.tokens * d.padded_dim)), dk(arena.take<T>(d.tokens * d.padded_dim)),
        dv(arena.take<T>(d.tokens * d.padded_dim)), p_tile(take_tile(arena, d)),
        ds_tile(take_tile(arena, d)), key_bias(arena, d), value_bias(arena, d),
        ds_sums(arena, d), p_sums(with_dtables ? SideTerms<T>(arena, d) : ds_sums) {}
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

template <class T>
void attention_backward_task(const AttentionBackward& a, int64_t batch_head, T* partial,
                             void* scratch) {
  const Dims<T> d(a.shape);
  const HeadOffsets at(a.shape, batch_head);
  Arena arena{static_cast<char*>(scratch)};
  const BackwardScratch<T> s(arena, d, partial != nullptr);
  Arena table_arena{const_cast<char*>(static_cast<const char*>(a.tables))};
  const bool relative = a.tables != nullptr;
  const Tables<T> tables(table_arena, d);
  const T* lse = static_cast<const T*>(a.lse.data) + at.lse;
  const int64_t P = d.padded_dim;

  // dq serves as the buffer for v before it is computed.
  read_matrix(a.qkv, at.v, at.qkv_stride, d, s.dq);
  pack_panels(s.dq, d, s.v_panels);
  read_matrix(a.dout, at.out, at.out_stride, d, s.dout);
  read_matrix(a.qkv, at.q, at.qkv_stride, d, s.q);
  for (int64_t i = 0; i < d.tokens; ++i) scale_row(s.q + i * P, T(a.shape.scale), P);
  read_matrix(a.qkv, at.k, at.qkv_stride, d, s.k);
  pack_panels(s.k, d, s.k_panels);
  if (relative) {
    project(s.q, tables.keys, d, s.key_bias);
    project(s.dout, tables.values, d, s.value_bias);
  }

  for (int64_t i0 = 0; i0 < d.tokens; i0 += d.tile) {
    const int64_t rows = d.tokens - i0 < d.tile ? d.tokens - i0 : d.tile;
    if (relative) {
      for (int64_t i = 0; i < rows; ++i) {
        fill_bias(i0 + i, s.key_bias, d, s.p_tile + i * d.tile_stride);
        fill_bias(i0 + i, s.value_bias, d, s.ds_tile + i * d.tile_stride);
      }
    }
    multiply_panels(s.q + i0 * P, s.k_panels, d, rows, s.p_tile, relative);
    multiply_panels(s.dout + i0 * P, s.v_panels, d, rows, s.ds_tile, relative);
    for (int64_t i = 0; i < rows; ++i) {
      T* p = s.p_tile + i * d.tile_stride;
      T* ds = s.ds_tile + i * d.tile_stride;
      softmax_gradient_row(p, ds, d.tokens, lse[i0 + i]);
      if (relative) sum_by_position(i0 + i, ds, d, s.ds_sums);
      if (partial != nullptr) sum_by_position(i0 + i, p, d, s.p_sums);
    }
    gemm<false>(rows, P, d.tokens, s.ds_tile, d.tile_stride, s.k, P, s.dq + i0 * P, P, false);
    gemm<true>(d.tokens, P, rows, s.p_tile, d.tile_stride, s.dout + i0 * P, P, s.dv, P, i0 > 0);
    gemm<true>(d.tokens, P, rows, s.ds_tile, d.tile_stride, s.q + i0 * P, P, s.dk, P, i0 > 0);
  }
  if (relative) add_table_product(s.ds_sums, tables.keys, d, s.dq);
  for (int64_t i = 0; i < d.tokens; ++i) scale_row(s.dq + i * P, T(a.shape.scale), P);
  if (partial != nullptr) {
    const int64_t side = TableGradient<T>::elements(d);
    add_table_gradient(s.ds_sums, s.q, d, TableGradient<T>(partial, d));
    add_table_gradient(s.p_sums, s.dout, d, TableGradient<T>(partial + side, d));
  }
  write_matrix(s.dq, d, a.dqkv, at.q, at.qkv_stride);
  write_matrix(s.dk, d, a.dqkv, at.k, at.qkv_stride);
  write_matrix(s.dv, d, a.dqkv, at.v, at.qkv_stride);
}

}  // namespace GROWTAS_LEVEL
}  // namespace growtas
