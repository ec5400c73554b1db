// Whatever the compiler targets by default: SSE2 on x86-64, NEON on arm64, plain C++ elsewhere.

#include "kernels.h"

#define GROWTAS_LEVEL baseline
#define GROWTAS_TILE_ROWS 6
#if defined(__GNUC__) && !defined(GROWTAS_SCALAR)
#define GROWTAS_VECTOR_BYTES 16
#else
#define GROWTAS_VECTOR_BYTES 0
#endif

#include "level.inc"

namespace growtas {
const KernelSet& kernels_baseline() { return baseline::kKernels; }
}  // namespace growtas
