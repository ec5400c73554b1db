// What one SIMD level offers. The same kernel sources are compiled once per level; the drivers
// (layer_norm.cpp, attention.cpp) own threads, scratch memory and the order of every reduction.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dtype.h"

// Levels above the baseline are compiled where a function's target can be set, and chosen at run
// time. -DGROWTAS_SCALAR builds the path of other compilers and architectures: no vectors at all.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(GROWTAS_SCALAR)
#define GROWTAS_X86_LEVELS 1
#endif

// AMX: Linux hands out the tile registers; a compiler with the header (GCC's or Clang's name of it)
// has an assembler that knows the instructions.
#if defined(GROWTAS_X86_LEVELS) && defined(__linux__) && defined(__has_include)
#if __has_include(<amxbf16intrin.h>) || __has_include(<amxintrin.h>)
#define GROWTAS_TILE_LEVELS 1
#endif
#endif

namespace growtas {

// Rows of E values, last dimension contiguous. Arithmetic is in double when x is, else in float.
struct LayerNormForward {
  int64_t rows, width;
  ConstBuffer x, weight, bias;
  Buffer y, mean, rstd;
  int64_t x_stride, y_stride;
  double eps;
};

struct LayerNormBackward {
  int64_t rows, width;
  ConstBuffer dy, x, weight, mean, rstd;
  Buffer dx;
  int64_t dy_stride, x_stride, dx_stride;
};

// What large products multiply: sums are in double for float64, else in float.
enum class Product { float64, float32, bfloat16 };

// qkv is [batch, tokens, 3, heads, head_dim], tables [4, table_rows, head_dim] in the order
// key-vertical, key-horizontal, value-vertical, value-horizontal.
struct AttentionShape {
  int64_t batch, tokens, heads, head_dim;
  int64_t grid_h, grid_w;
  int64_t class_token;  // 1 when token 0 is a class token, else 0
  int64_t table_rows;   // 2 r + 2; 0 without relative position
  Product product;
  double scale;

  bool is_double() const { return product == Product::float64; }
};

struct AttentionForward {
  AttentionShape shape;
  ConstBuffer qkv;
  const void* tables;  // prepared by prepare_tables, or null
  Buffer out, lse;
};

struct AttentionBackward {
  AttentionShape shape;
  ConstBuffer dout, qkv, lse;
  const void* tables;
  Buffer dqkv;
};

// Row j of a stack of matrices of which the first `rows` rows each are meant.
struct StackedRows {
  int64_t rows, part_stride, row_stride;

  int64_t offset(int64_t j) const { return j / rows * part_stride + j % rows * row_stride; }
};

// A factor per sample: row m of an activation is scaled by data[m / rows]. No factor when null.
struct SampleScale {
  const void* data = nullptr;  // arithmetic type
  int64_t rows = 1;
};

// One operand, the weight's slice, copied into panels as wide as the register tile.
struct WeightPacking {
  ConstBuffer weight;
  StackedRows rows;
  int64_t out, in;     // out counts the rows of all parts
  bool out_is_reduced; // for the input gradient; else `in` is, for the forward product
  Product product;
  void* packed;
};

// c = (act(a) B + bias) * scale + residual. Rows are contiguous.
struct RowsProduct {
  int64_t rows, inner, columns;
  Product product;
  ConstBuffer a;
  int64_t a_stride;
  bool gelu_of_a;
  const void* packed;
  const void* bias;  // arithmetic type, padded with zeros to whole panels; or null
  SampleScale scale;
  ConstBuffer residual;  // or null
  Buffer c;
  int64_t residual_stride, c_stride;
};

// With g = scale dy: dx = (g W) * act'(x), dweight += g^T act(x), dbias += the sum of g over rows.
// Any of the three may be null. Rows are contiguous.
struct LinearBackward {
  int64_t rows, out, in;
  int64_t chunk;  // rows that are finished together
  Product product;
  ConstBuffer dy, x;
  int64_t dy_stride, x_stride;
  bool gelu_of_x;
  SampleScale scale;
  const void* packed;  // the weight, out_is_reduced; null without dx
  Buffer dx;
  int64_t dx_stride;
  Buffer dweight, dbias;
  StackedRows dweight_rows, dbias_rows;
};

// Rows [m0, m1) and columns [k0, k1) of x. Sums go to `dweight` [out, in] and `dbias` [out] of the
// arithmetic type; dweight null: straight into the gradient, dbias null: none are wanted.
struct LinearPart {
  int64_t m0, m1, k0, k1;
  void *dweight, *dbias;
};

template <class S>
struct AdamWRates;

// A contiguous parameter and the arrays of its shape that AdamW moves, all of one arithmetic type
// but for `count` (updates of each weight so far; null: `step` holds for all, this one included)
// and `shadow` (a bfloat16 copy of the weights; may be null).
struct AdamW {
  bool is_double;
  void* parameter;
  const void* gradient;
  void *exp_avg, *exp_avg_sq;
  float* count;
  uint16_t* shadow;
  double step;
  const AdamWRates<double>* rates;
  double gradient_factor;  // gradients count times this
};

// Every pointer called `scratch` is 64-byte aligned, owned by the caller and holds the bytes the
// matching *_bytes function asks for; its contents on entry do not matter.
struct KernelSet {
  const char* name;

  // Rows [begin, end). weight and bias hold `width` values of the arithmetic type.
  size_t (*layer_norm_scratch_bytes)(int64_t width, bool is_double);
  void (*layer_norm_forward)(const LayerNormForward&, int64_t begin, int64_t end, void* scratch);
  // Adds the chunk's weight and bias gradient into dweight and dbias (arithmetic type).
  void (*layer_norm_backward)(const LayerNormBackward&, int64_t begin, int64_t end, void* dweight,
                              void* dbias, void* scratch);
  // dst[i] += sum over chunks, in order, of partials[chunk * stride + i], for i in [0, n).
  void (*add_partials)(Buffer dst, const void* partials, bool is_double, int64_t chunks,
                       int64_t stride, int64_t n);
  // To the arithmetic type.
  void (*widen)(ConstBuffer src, void* dst, bool is_double, int64_t n);

  size_t (*attention_tables_bytes)(const AttentionShape&);
  void (*attention_prepare_tables)(const AttentionShape&, ConstBuffer tables, void* prepared);
  size_t (*attention_forward_scratch_bytes)(const AttentionShape&);
  // `next`: the task this thread is likely to do next, fetched from memory meanwhile; a number
  // beyond the last task if there is none.
  void (*attention_forward)(const AttentionForward&, int64_t batch_head, int64_t next,
                            void* scratch);
  // Partial table gradients cover the relative offsets the grid has, not the stored rows.
  size_t (*attention_partial_elements)(const AttentionShape&);
  size_t (*attention_backward_scratch_bytes)(const AttentionShape&, bool with_dtables);
  // Adds into partial when it is not null.
  void (*attention_backward)(const AttentionBackward&, int64_t batch_head, int64_t next,
                             void* partial, void* scratch);
  // Adds the chunks' partials, in order, into dtables ([4, table_rows, head_dim]).
  void (*attention_fold_partials)(const AttentionShape&, const void* partials, int64_t chunks,
                                  Buffer dtables, void* scratch);

  bool bfloat16_products;  // else bfloat16 operands are widened
  int64_t (*panel_width)(bool is_double);
  int64_t (*tile_rows)(Product);
  // Values the reduction of a product is padded to with zeros.
  int64_t (*depth_unit)(Product);
  void (*pack_weight)(const WeightPacking&, int64_t panel);
  size_t (*rows_product_scratch_bytes)(const RowsProduct&, int64_t rows);
  void (*rows_product)(const RowsProduct&, int64_t begin, int64_t end, void* scratch);
  size_t (*linear_backward_scratch_bytes)(const LinearBackward&);
  void (*linear_backward)(const LinearBackward&, const LinearPart&, void* scratch);
  // Weights [begin, begin + n) of the flattened parameter.
  void (*adamw)(const AdamW&, int64_t begin, int64_t n);
};

const KernelSet& kernels_baseline();
#if defined(GROWTAS_X86_LEVELS)
const KernelSet& kernels_avx2();
const KernelSet& kernels_avx512();
const KernelSet& kernels_avx512_bf16();
#endif
#if defined(GROWTAS_TILE_LEVELS)
const KernelSet& kernels_amx();
const KernelSet& kernels_amx_emulated();
#endif

}  // namespace growtas
