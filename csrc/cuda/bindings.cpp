// Registers the operators of the CUDA library. It is a library of its own, because the CPU's must
// load where there is no CUDA.

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>

#include "../adamw_static_plan.h"

namespace {

void run_adamw_static(const growtas::StaticAdamW& plan, const torch::stable::Tensor& targets) {
  STD_TORCH_CHECK(targets.is_cuda(), "targets: must be on a CUDA device");
  const int32_t device = targets.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  growtas::adamw_static_cuda(plan, stream);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(growtas_native, CUDA, m) {
  m.impl("adamw_static_", TORCH_BOX(&growtas::adamw_static<run_adamw_static>));
}
