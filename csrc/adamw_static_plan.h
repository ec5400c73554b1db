// The operator adamw_static_: its schema and its arguments, checked; one for every device.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>

#include "cuda/adamw_static.h"

namespace growtas {

constexpr char kAdamWStaticSchema[] =
    "adamw_static_(Tensor targets, Tensor tiles, Tensor frozen, Tensor edges, Tensor(a!) steps, "
    "Tensor(b!) active, Tensor rates, Tensor extents, Tensor? scale, Tensor? blend, "
    "Tensor(c!) partials, Tensor(d!) norm, Tensor(e!) found_inf, Tensor(f!) factor, "
    "float largest, bool measure, int inactive) -> ()";

template <class T>
T* checked(const torch::stable::Tensor& t, const char* name, torch::headeronly::ScalarType dtype,
           std::initializer_list<int64_t> shape) {
  bool same = t.dim() == int64_t(shape.size()) && t.is_contiguous() && t.scalar_type() == dtype;
  int64_t axis = 0;
  for (const int64_t size : shape) same = same && t.size(axis++) == size;
  STD_TORCH_CHECK(same, name, ": not the dtype, the shape or the layout it must have");
  return static_cast<T*>(t.mutable_data_ptr());
}

// The operator on one device, where `Run` takes the checked plan.
template <void (*Run)(const StaticAdamW& plan, const torch::stable::Tensor& targets)>
void adamw_static(
    const torch::stable::Tensor& targets, const torch::stable::Tensor& tiles,
    const torch::stable::Tensor& frozen, const torch::stable::Tensor& edges,
    const torch::stable::Tensor& steps, const torch::stable::Tensor& active,
    const torch::stable::Tensor& rates, const torch::stable::Tensor& extents,
    const std::optional<torch::stable::Tensor>& scale,
    const std::optional<torch::stable::Tensor>& blend, const torch::stable::Tensor& partials,
    const torch::stable::Tensor& norm, const torch::stable::Tensor& found_inf,
    const torch::stable::Tensor& factor, double largest, bool measure, int64_t inactive) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(extents.dim() == 3 && extents.size(0) > 0,
                  "extents: must be [subnets, rows, columns]");
  STD_TORCH_CHECK(inactive >= 0 && inactive <= 2, "inactive: must be 0, 1 or 2, not ", inactive);
  StaticAdamW a = {};
  a.count = targets.size(0);
  a.tile_count = tiles.size(0);
  a.subnets = extents.size(0);
  a.rows = extents.size(1);
  a.columns = extents.size(2);
  const int64_t n = a.count;
  const auto int32 = ScalarType::Int, real = ScalarType::Float;
  a.targets = checked<Target>(targets, "targets", ScalarType::Long, {n, kTargetFields});
  a.tiles = checked<int32_t>(tiles, "tiles", int32, {a.tile_count});
  a.frozen = checked<Box>(frozen, "frozen", int32, {n, kSides});
  a.edges = checked<Box>(edges, "edges", int32, {n, kShells, kSides});
  a.steps = checked<float>(steps, "steps", real, {n, kShells});
  a.active = checked<int32_t>(active, "active", int32, {n, kShells});
  a.rates = checked<Rates>(rates, "rates", real, {rates.size(0), kRateFields});
  a.extents = checked<int32_t>(extents, "extents", int32, {a.subnets, a.rows, a.columns});
  if (scale.has_value()) a.scale = checked<float>(*scale, "scale", real, {});
  if (blend.has_value()) a.blend = checked<float>(*blend, "blend", real, {});
  a.partials = checked<double>(partials, "partials", ScalarType::Double, {a.tile_count});
  a.norm = checked<float>(norm, "norm", real, {});
  a.found_inf = checked<float>(found_inf, "found_inf", real, {});
  a.factor = checked<float>(factor, "factor", real, {});
  a.largest = float(largest);
  a.measure = measure;
  a.inactive = Inactive(inactive);
  Run(a, targets);
}

}  // namespace growtas
