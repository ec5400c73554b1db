// The operators on plain buffers: threads, scratch memory and fixed-order reductions.
#pragma once

#include "kernels.h"

namespace growtas {

// The kernels of the active SIMD level.
const KernelSet& kernels();

// weight and bias in any storage type.
void layer_norm_forward(LayerNormForward args);
// Adds the first `width` entries of the weight and bias gradients; either may be null.
void layer_norm_backward(LayerNormBackward args, Buffer dweight, Buffer dbias);

// tables.data may be null (no relative position).
void attention_forward(AttentionForward args, ConstBuffer tables);
// dtables.data may be null; else the gradient is added.
void attention_backward(AttentionBackward args, ConstBuffer tables, Buffer dtables);

// weight is [out over all parts, in] by `weight_rows`; the packed weight, bias and scale of the
// product are filled in here.
void rows_product(RowsProduct args, WeightPacking weight, ConstBuffer bias, StackedRows bias_rows);
// Fills in `chunk` and the packed weight.
void linear_backward(LinearBackward args, WeightPacking weight);

// What a product with an activation of this type computes with.
Product product_of(DType activation);

constexpr int kBoxDims = 4;

// A box of a parameter with up to four dimensions (leading ones of size 1 where it has fewer).
struct AdamWBox {
  AdamW step;
  int64_t shape[kBoxDims], start[kBoxDims], length[kBoxDims];
};

// The boxes must not overlap.
void adamw_step(const AdamWBox* boxes, int64_t count);
// The 2-norm of all gradients inside the boxes, summed in one order; no other array is read.
double adamw_gradient_norm(const AdamWBox* boxes, int64_t count);

}  // namespace growtas
