#include <algorithm>
#include <cstring>

#include "dispatch.h"
#include "ops.h"
#include "parallel.h"

namespace growtas {

static const KernelSet& kernels_of([[maybe_unused]] const std::string& level) {
#if defined(GROWTAS_TILE_LEVELS)
  if (level == "amx") return kernels_amx();
  if (level == "amx_emulated") return kernels_amx_emulated();
#endif
#if defined(GROWTAS_X86_LEVELS)
  if (level == "avx512_bf16") return kernels_avx512_bf16();
  if (level == "avx512") return kernels_avx512();
  if (level == "avx2") return kernels_avx2();
#endif
  return kernels_baseline();
}

const KernelSet& kernels() {
  static const KernelSet& set = kernels_of(active_level());
  return set;
}

void layer_norm_forward(LayerNormForward args) {
  if (args.rows == 0) return;
  const KernelSet& k = kernels();
  const bool is_double = args.x.dtype == DType::float64;
  const DType own = is_double ? DType::float64 : DType::float32;
  const size_t row_bytes = size_t(args.width) * element_size(own);
  const AlignedMemory parameters(2 * row_bytes);
  k.widen(args.weight, parameters.get(), is_double, args.width);
  k.widen(args.bias, parameters.get() + row_bytes, is_double, args.width);
  args.weight = {parameters.get(), own};
  args.bias = {parameters.get() + row_bytes, own};

  const int64_t block = std::max<int64_t>(1, 16384 / args.width);
  const int64_t tasks = (args.rows + block - 1) / block;
  run_tasks(tasks, k.layer_norm_scratch_bytes(args.width, is_double),
            [&](int64_t task, void* scratch) {
              k.layer_norm_forward(args, task * block, std::min(args.rows, (task + 1) * block),
                                   scratch);
            });
}

void layer_norm_backward(LayerNormBackward args, Buffer dweight, Buffer dbias) {
  if (args.rows == 0) return;
  const KernelSet& k = kernels();
  const bool is_double = args.x.dtype == DType::float64;
  const DType own = is_double ? DType::float64 : DType::float32;
  const size_t row_bytes = size_t(args.width) * element_size(own);
  const AlignedMemory weight(row_bytes);
  k.widen(args.weight, weight.get(), is_double, args.width);
  args.weight = {weight.get(), own};

  // Chunks depend on the shape alone, and their sums are added in order: the same bits come out
  // for any number of threads.
  const int64_t chunk = std::max<int64_t>(32, (args.rows + 63) / 64);
  const int64_t chunks = (args.rows + chunk - 1) / chunk;
  // [chunks, 2, width]: the two sums of a chunk lie next to each other, never 4 KiB apart.
  const AlignedMemory partials(2 * size_t(chunks) * row_bytes);
  run_tasks(chunks, k.layer_norm_scratch_bytes(args.width, is_double),
            [&](int64_t task, void* scratch) {
              char* const dw = partials.get() + 2 * size_t(task) * row_bytes;
              char* const db = dw + row_bytes;
              std::memset(dw, 0, 2 * row_bytes);
              k.layer_norm_backward(args, task * chunk, std::min(args.rows, (task + 1) * chunk), dw,
                                    db, scratch);
            });
  const int64_t stride = 2 * args.width;
  if (dweight.data != nullptr)
    k.add_partials(dweight, partials.get(), is_double, chunks, stride, args.width);
  if (dbias.data != nullptr)
    k.add_partials(dbias, partials.get() + row_bytes, is_double, chunks, stride, args.width);
}

}  // namespace growtas
