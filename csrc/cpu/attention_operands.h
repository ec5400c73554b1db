// The operands of attention's large products, for elements E: values themselves, or pairs of
// bfloat16 values where the machine multiplies those. Sums and everything else are T = Sum<E>.
#pragma once

#include "attention_layout.h"

namespace growtas {
namespace GROWTAS_LEVEL {

// Row strides of the arrays below, in elements.
template <class E>
struct OperandDims {
  int64_t depth, row_stride;   // elements of head_dim; of a row, padded to whole vectors
  int64_t keys, keys_stride;   // elements of the tokens; of a tile's row of scores

  explicit OperandDims(const Dims<Sum<E>>& d)
      : depth(elements<E>(d.dim)), row_stride(round_up<Sum<E>>(depth)),
        keys(elements<E>(d.tokens)),
        keys_stride(kPairs<E> ? round_up<Sum<E>>(keys) : d.tile_stride) {}
};

// Rows [tokens, row_stride] of elements along head_dim, padded with zeros.
template <class E>
void read_elements(const ConstBuffer& src, int64_t offset, int64_t stride,
                   const Dims<Sum<E>>& d, const OperandDims<E>& o, E* dst) {
  if constexpr (kPairs<E>) {
    for (int64_t i = 0; i < d.tokens; ++i, dst += o.row_stride) {
      std::memset(static_cast<void*>(dst + o.row_stride - kLanes<E>), 0, kLanes<E> * sizeof(E));
      std::memcpy(static_cast<void*>(dst), src.at(offset + i * stride), size_t(d.dim) * 2);
    }
  } else {
    read_matrix(src, offset, stride, d, dst);
  }
}

// [elements of the tokens, padded_dim]: rows as the reduction of a product.
template <class E>
void stack_tokens(const ConstBuffer& src, int64_t offset, int64_t stride, const Dims<Sum<E>>& d,
                  E* dst) {
  pack_rows<E>(
      src, d.tokens, 0, d.dim, [&](int64_t i) { return offset + i * stride; }, dst, d.padded_dim);
}

// Panels [panel][depth][2 * kLanes] of the transpose of the tokens' rows.
template <class E>
void pack_panels(const ConstBuffer& src, int64_t offset, int64_t stride, const Dims<Sum<E>>& d,
                 const OperandDims<E>& o, E* panels) {
  using T = Sum<E>;
  constexpr int64_t L = kLanes<T>;
  constexpr int64_t step = L * Element<E>::values;
  for (int64_t row0 = 0; row0 < d.tokens; row0 += L) {
    E* out = panels + row0 / (2 * L) * o.depth * 2 * L + row0 % (2 * L);
    for (int64_t k0 = 0; k0 < d.dim; k0 += step, out += 2 * L * L) {
      const int64_t n = d.dim - k0 < step ? d.dim - k0 : step;
      Vec<T> square[L];
      for (int64_t l = 0; l < L; ++l) {
        const int64_t at = offset + (row0 + l) * stride + k0;
        square[l] = Vec<T>{};
        if (row0 + l < d.tokens)
          square[l] = bit_cast<Vec<T>>(load_elements<E>(src, at, n, false));
      }
      transpose<T>(square);
      for (int64_t k = 0; k < elements<E>(n); ++k)
        store_elements(out + k * 2 * L, bit_cast<Vec<E>>(square[k]));
    }
  }
}

// scores[rows, tokens] (+)= alpha x[rows, depth] . panels, `rows` tokens starting at x.
template <class E>
void multiply_panels(const E* x, const E* panels, const Dims<Sum<E>>& d, const OperandDims<E>& o,
                     int64_t rows, Sum<E>* scores, bool accumulate, Sum<E> alpha) {
  constexpr int64_t L = kLanes<Sum<E>>;
  for (int64_t p = 0; p < d.panels; ++p) {
    const int64_t left = d.tokens - p * 2 * L;
    gemm<false>(rows, left > L ? 2 * L : L, o.depth, x, o.row_stride, panels + p * o.depth * 2 * L,
                2 * L, scores + p * 2 * L, d.tile_stride, accumulate, alpha);
  }
}

// A tile's rows as elements along the keys: the tile itself, or its pairs written to `buffer`.
template <class E>
const E* along_keys(const Sum<E>* tile, const Dims<Sum<E>>& d, const OperandDims<E>& o,
                    int64_t rows, E* buffer) {
  if constexpr (kPairs<E>) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < o.keys; j += kLanes<E>) {
        store_elements(buffer + i * o.keys_stride + j,
                       neighbours<E>(tile + i * d.tile_stride + 2 * j));
      }
    }
    return buffer;
  } else {
    return tile;
  }
}

// A tile's columns as elements along the queries, [elements of rows, tile_stride]: likewise.
template <class E>
const E* along_queries(const Sum<E>* tile, const Dims<Sum<E>>& d, int64_t rows, E* buffer) {
  if constexpr (kPairs<E>) {
    for (int64_t i = 0; i < rows; i += 2) {
      const Sum<E>* first = tile + i * d.tile_stride;
      E* out = buffer + i / 2 * d.tile_stride;
      for (int64_t j = 0; j < d.tokens; j += kLanes<E>) {
        const Vec<Sum<E>> second = i + 1 < rows ? load(first + d.tile_stride + j) : Vec<Sum<E>>{};
        store_elements(out + j, interleave<E>(load(first + j), second));
      }
    }
    return buffer;
  } else {
    return tile;
  }
}

}  // namespace GROWTAS_LEVEL
}  // namespace growtas
