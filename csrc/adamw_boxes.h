// The operators adamw_ and gradient_norm_: their arguments, checked, as boxes of the CPU's kernels.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <vector>

#include "adamw_formula.h"
#include "cpu/ops.h"

namespace growtas {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// One array of an AdamW step: like the parameter, or missing.
void* adamw_array(const std::vector<Tensor>& arrays, const char* name, size_t i, const Tensor& like,
                  ScalarType dtype) {
  if (arrays.empty()) return nullptr;
  const Tensor& t = arrays[i];
  STD_TORCH_CHECK(t.is_cpu() && t.scalar_type() == dtype, name, ": not the dtype it must have");
  STD_TORCH_CHECK(t.is_contiguous(), name, ": must be contiguous");
  bool same = t.dim() == like.dim();
  for (int64_t d = 0; same && d < like.dim(); ++d) same = t.size(d) == like.size(d);
  STD_TORCH_CHECK(same, name, ": must have the shape of its parameter");
  return t.mutable_data_ptr();
}

constexpr size_t kBoxFields = 1 + 2 * kBoxDims;

// Fills in where a box lies; `numbers` holds the starts and the lengths. False if it is empty.
bool place_box(AdamWBox& box, const Tensor& like, const int64_t* numbers) {
  STD_TORCH_CHECK(like.dim() <= kBoxDims, "parameters: at most ", kBoxDims, " dimensions");
  bool empty = false;
  for (int64_t d = 0; d < kBoxDims; ++d) {
    const int64_t own = d - (kBoxDims - like.dim());
    box.shape[d] = own < 0 ? 1 : like.size(own);
    box.start[d] = numbers[d];
    box.length[d] = numbers[kBoxDims + d];
    STD_TORCH_CHECK(box.start[d] >= 0 && box.length[d] >= 0 &&
                        box.start[d] + box.length[d] <= box.shape[d],
                    "boxes: a box reaches beyond its parameter");
    empty = empty || box.length[d] == 0;
  }
  return !empty;
}

// The boxes that are not empty: `boxes` holds kBoxFields numbers for each, which parameter, the
// starts and the lengths; fill(step, i, dtype) adds what there is of parameter i.
template <class F>
std::vector<AdamWBox> work_of(const std::vector<Tensor>& parameters, const char* name,
                              const std::vector<int64_t>& boxes, const F& fill) {
  STD_TORCH_CHECK(boxes.size() % kBoxFields == 0, "boxes: must hold ", kBoxFields,
                  " numbers each");
  std::vector<AdamWBox> work;
  for (size_t at = 0; at < boxes.size(); at += kBoxFields) {
    STD_TORCH_CHECK(boxes[at] >= 0 && size_t(boxes[at]) < parameters.size(),
                    "boxes: no parameter ", boxes[at]);
    const size_t i = size_t(boxes[at]);
    const ScalarType dtype = parameters[i].scalar_type();
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, name,
                    ": must be float32 or float64");
    AdamWBox box = {};
    box.step.is_double = dtype == ScalarType::Double;
    fill(box.step, i, dtype);
    if (place_box(box, parameters[i], &boxes[at + 1])) work.push_back(box);
  }
  return work;
}

// `steps` gives the updates of each parameter, this one included, unless `counts` holds those of
// each weight. `rates` are the fields of AdamWRates.
void adamw_(std::vector<Tensor> parameters, std::vector<Tensor> gradients,
            std::vector<Tensor> exp_avgs, std::vector<Tensor> exp_avg_sqs,
            std::vector<Tensor> counts, std::vector<Tensor> shadows, std::vector<double> steps,
            std::vector<int64_t> boxes, std::vector<double> rates, double gradient_factor) {
  const size_t n = parameters.size();
  const auto fits = [n](size_t size, bool optional) { return size == n || (optional && size == 0); };
  STD_TORCH_CHECK(fits(gradients.size(), false) && fits(exp_avgs.size(), false) &&
                      fits(exp_avg_sqs.size(), false) && fits(counts.size(), true) &&
                      fits(shadows.size(), true) && fits(steps.size(), !counts.empty()),
                  "lists: one entry per parameter is needed");
  STD_TORCH_CHECK(rates.size() == kRateFields, "rates: must be ", kRateFields, " numbers");
  const AdamWRates<double> own_rates = {rates[0], rates[1], rates[2], rates[3],
                                        rates[4], rates[5], rates[6], rates[7]};
  const auto work = work_of(
      parameters, "parameters", boxes, [&](AdamW& step, size_t i, ScalarType dtype) {
        const auto array = [&](const std::vector<Tensor>& arrays, const char* name,
                               ScalarType own) {
          return adamw_array(arrays, name, i, parameters[i], own);
        };
        step.parameter = array(parameters, "parameters", dtype);
        step.gradient = array(gradients, "gradients", dtype);
        step.exp_avg = array(exp_avgs, "exp_avgs", dtype);
        step.exp_avg_sq = array(exp_avg_sqs, "exp_avg_sqs", dtype);
        step.count = static_cast<float*>(array(counts, "counts", ScalarType::Float));
        step.shadow = static_cast<uint16_t*>(array(shadows, "shadows", ScalarType::BFloat16));
        step.step = counts.empty() ? steps[i] : 0;
        STD_TORCH_CHECK(!counts.empty() || step.step >= 1, "steps: must be 1 or more");
        step.rates = &own_rates;
        step.gradient_factor = gradient_factor;
      });
  adamw_step(work.data(), int64_t(work.size()));
}

// norm: float64 [].
void gradient_norm_(std::vector<Tensor> gradients, std::vector<int64_t> boxes, const Tensor& norm) {
  STD_TORCH_CHECK(norm.is_cpu() && norm.numel() == 1 && norm.scalar_type() == ScalarType::Double,
                  "norm: must be one float64 on the CPU");
  const auto work =
      work_of(gradients, "gradients", boxes, [&](AdamW& step, size_t i, ScalarType dtype) {
        step.gradient = adamw_array(gradients, "gradients", i, gradients[i], dtype);
      });
  *static_cast<double*>(norm.mutable_data_ptr()) =
      adamw_gradient_norm(work.data(), int64_t(work.size()));
}

}  // namespace
}  // namespace growtas
