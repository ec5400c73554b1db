#include "kernels.h"

#if defined(GROWTAS_TILE_LEVELS)

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

#define GROWTAS_LEVEL amx
#define GROWTAS_TILE_ROWS 14
#define GROWTAS_VECTOR_BYTES 64
#define GROWTAS_F16C
#define GROWTAS_AVX512
#define GROWTAS_BFLOAT16_DOT
#define GROWTAS_TILES

#include "level_tiles.inc"

namespace growtas {
const KernelSet& kernels_amx() {
  static const KernelSet set = amx::with_tiles();
  return set;
}
}  // namespace growtas

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
