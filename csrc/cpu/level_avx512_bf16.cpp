#include "kernels.h"

#if defined(GROWTAS_X86_LEVELS)

// System headers come before the pragma, so that nothing of theirs is compiled for this level.
#include <immintrin.h>

#include <cfloat>
#include <cmath>
#include <cstring>

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")
#endif

#define GROWTAS_LEVEL avx512_bf16
#define GROWTAS_TILE_ROWS 14
#define GROWTAS_VECTOR_BYTES 64
#define GROWTAS_F16C
#define GROWTAS_AVX512
#define GROWTAS_BFLOAT16_DOT

#include "level.inc"

namespace growtas {
const KernelSet& kernels_avx512_bf16() { return avx512_bf16::kKernels; }
}  // namespace growtas

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
