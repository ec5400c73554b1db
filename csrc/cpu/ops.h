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

}  // namespace growtas
