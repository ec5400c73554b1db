// The one file that registers operators (cuda/bindings.cpp: those of the CUDA library). Stable ABI
// only: one build serves every torch from TORCH_TARGET_VERSION on. All operators write into given tensors, so Python owns allocation.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <initializer_list>
#include <optional>

#include "adamw_boxes.h"
#include "adamw_static_plan.h"
#include "cpu/ops.h"

namespace {

using growtas::AttentionShape;
using growtas::Buffer;
using growtas::ConstBuffer;
using growtas::DType;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

DType dtype_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Double: return DType::float64;
    case ScalarType::Float: return DType::float32;
    case ScalarType::BFloat16: return DType::bfloat16;
    case ScalarType::Half: return DType::float16;
    default: break;
  }
  STD_TORCH_CHECK(false, name, ": dtype must be float64, float32, bfloat16 or float16");
  return DType::float32;
}

ConstBuffer input(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.is_cpu(), name, ": must be a CPU tensor");
  return {t.const_data_ptr(), dtype_of(t, name)};
}

Buffer output(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.is_cpu(), name, ": must be a CPU tensor");
  return {t.mutable_data_ptr(), dtype_of(t, name)};
}

void check_shape(const Tensor& t, const char* name, std::initializer_list<int64_t> shape) {
  bool same = t.dim() == int64_t(shape.size());
  int64_t axis = 0;
  for (const int64_t size : shape) {
    if (!same) break;
    same = t.size(axis++) == size;
  }
  STD_TORCH_CHECK(same, name, ": unexpected shape");
}

void check_dtype(const char* name, DType dtype, DType wanted, const char* like) {
  STD_TORCH_CHECK(dtype == wanted, name, ": dtype must be ", like);
}

// [rows, width] with contiguous rows; returns the row stride.
int64_t check_rows(const Tensor& t, const char* name, int64_t rows, int64_t width) {
  check_shape(t, name, {rows, width});
  STD_TORCH_CHECK(rows == 0 || width == 1 || t.stride(1) == 1, name,
                  ": last dimension must be contiguous");
  return t.stride(0);
}

void check_contiguous(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.is_contiguous(), name, ": must be contiguous");
}

// A parameter of which the first `width` entries are meant.
void check_parameter(const Tensor& t, const char* name, int64_t width) {
  STD_TORCH_CHECK(t.dim() == 1 && t.size(0) >= width, name, ": must be 1-D with at least ", width,
                  " entries");
  check_contiguous(t, name);
}

DType arithmetic(DType storage) {
  return storage == DType::float64 ? DType::float64 : DType::float32;
}

void layer_norm_forward(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps,
                        const Tensor& y, const Tensor& mean, const Tensor& rstd) {
  STD_TORCH_CHECK(x.dim() == 2 && x.size(1) > 0, "x: must be [rows, width] with width > 0");
  growtas::LayerNormForward a;
  a.rows = x.size(0);
  a.width = x.size(1);
  a.x = input(x, "x");
  a.weight = input(weight, "weight");
  a.bias = input(bias, "bias");
  a.y = output(y, "y");
  a.mean = output(mean, "mean");
  a.rstd = output(rstd, "rstd");
  a.x_stride = check_rows(x, "x", a.rows, a.width);
  a.y_stride = check_rows(y, "y", a.rows, a.width);
  a.eps = eps;
  check_parameter(weight, "weight", a.width);
  check_parameter(bias, "bias", a.width);
  check_shape(mean, "mean", {a.rows});
  check_shape(rstd, "rstd", {a.rows});
  check_contiguous(mean, "mean");
  check_contiguous(rstd, "rstd");
  check_dtype("mean", a.mean.dtype, arithmetic(a.x.dtype), "float32 (float64 for float64 x)");
  check_dtype("rstd", a.rstd.dtype, arithmetic(a.x.dtype), "float32 (float64 for float64 x)");
  growtas::layer_norm_forward(a);
}

Buffer parameter_gradient(const std::optional<Tensor>& t, const char* name, int64_t width) {
  if (!t.has_value()) return {};
  check_parameter(*t, name, width);
  return output(*t, name);
}

void layer_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight,
                         const Tensor& mean, const Tensor& rstd, const Tensor& dx,
                         const std::optional<Tensor>& dweight,
                         const std::optional<Tensor>& dbias) {
  STD_TORCH_CHECK(x.dim() == 2 && x.size(1) > 0, "x: must be [rows, width] with width > 0");
  growtas::LayerNormBackward a;
  a.rows = x.size(0);
  a.width = x.size(1);
  a.dy = input(dy, "dy");
  a.x = input(x, "x");
  a.weight = input(weight, "weight");
  a.mean = input(mean, "mean");
  a.rstd = input(rstd, "rstd");
  a.dx = output(dx, "dx");
  a.dy_stride = check_rows(dy, "dy", a.rows, a.width);
  a.x_stride = check_rows(x, "x", a.rows, a.width);
  a.dx_stride = check_rows(dx, "dx", a.rows, a.width);
  check_parameter(weight, "weight", a.width);
  check_shape(mean, "mean", {a.rows});
  check_shape(rstd, "rstd", {a.rows});
  check_contiguous(mean, "mean");
  check_contiguous(rstd, "rstd");
  check_dtype("mean", a.mean.dtype, arithmetic(a.x.dtype), "float32 (float64 for float64 x)");
  check_dtype("rstd", a.rstd.dtype, arithmetic(a.x.dtype), "float32 (float64 for float64 x)");
  growtas::layer_norm_backward(a, parameter_gradient(dweight, "dweight", a.width),
                               parameter_gradient(dbias, "dbias", a.width));
}

AttentionShape attention_shape(const Tensor& qkv, const std::optional<Tensor>& tables,
                               int64_t num_heads, int64_t grid_h, int64_t grid_w, double scale) {
  STD_TORCH_CHECK(qkv.dim() == 3, "qkv: must be [batch, tokens, 3 * num_heads * head_dim]");
  check_contiguous(qkv, "qkv");
  STD_TORCH_CHECK(num_heads > 0 && qkv.size(2) > 0 && qkv.size(2) % (3 * num_heads) == 0,
                  "qkv: last dimension ", qkv.size(2), " is not 3 * num_heads * head_dim with ",
                  num_heads, " heads");
  AttentionShape s;
  s.batch = qkv.size(0);
  s.tokens = qkv.size(1);
  s.heads = num_heads;
  s.head_dim = qkv.size(2) / (3 * num_heads);
  s.grid_h = grid_h;
  s.grid_w = grid_w;
  STD_TORCH_CHECK(grid_h > 0 && grid_w > 0 && grid_h <= s.tokens && grid_w <= s.tokens,
                  "grid: ", grid_h, " x ", grid_w, " does not fit ", s.tokens, " tokens");
  s.class_token = s.tokens - grid_h * grid_w;
  STD_TORCH_CHECK(s.class_token == 0 || s.class_token == 1, "grid: ", grid_h, " x ", grid_w,
                  " patches and at most one class token do not make ", s.tokens, " tokens");
  s.product = growtas::product_of(dtype_of(qkv, "qkv"));
  // Pairs of values need heads that hold whole pairs.
  if (s.product == growtas::Product::bfloat16 && s.head_dim % 2 != 0)
    s.product = growtas::Product::float32;
  s.scale = scale;
  s.table_rows = 0;
  if (tables.has_value()) {
    const Tensor& t = *tables;
    STD_TORCH_CHECK(t.dim() == 3 && t.size(0) == 4 && t.size(2) == s.head_dim,
                    "tables: must be [4, rows, ", s.head_dim, "]");
    s.table_rows = t.size(1);
    STD_TORCH_CHECK(s.table_rows >= 2 && s.table_rows % 2 == 0,
                    "tables: rows must be 2 * max_relative_position + 2, not ", s.table_rows);
    check_contiguous(t, "tables");
  }
  return s;
}

void check_lse(const Tensor& lse, const AttentionShape& s, DType dtype) {
  check_shape(lse, "lse", {s.batch, s.heads, s.tokens});
  check_contiguous(lse, "lse");
  check_dtype("lse", dtype_of(lse, "lse"), arithmetic(dtype), "float32 (float64 for float64 qkv)");
}

void check_out(const Tensor& out, const char* name, const AttentionShape& s) {
  check_shape(out, name, {s.batch, s.tokens, s.heads * s.head_dim});
  check_contiguous(out, name);
}

void attention_forward(const Tensor& qkv, const std::optional<Tensor>& tables, int64_t num_heads,
                       int64_t grid_h, int64_t grid_w, double scale, const Tensor& out,
                       const Tensor& lse) {
  growtas::AttentionForward a;
  a.shape = attention_shape(qkv, tables, num_heads, grid_h, grid_w, scale);
  a.qkv = input(qkv, "qkv");
  a.tables = nullptr;
  a.out = output(out, "out");
  a.lse = output(lse, "lse");
  check_out(out, "out", a.shape);
  check_lse(lse, a.shape, a.qkv.dtype);
  growtas::attention_forward(a, tables.has_value() ? input(*tables, "tables") : ConstBuffer{});
}

void attention_backward(const Tensor& dout, const Tensor& qkv, const std::optional<Tensor>& tables,
                        const Tensor& lse, int64_t num_heads, int64_t grid_h, int64_t grid_w,
                        double scale, const Tensor& dqkv, const std::optional<Tensor>& dtables) {
  growtas::AttentionBackward a;
  a.shape = attention_shape(qkv, tables, num_heads, grid_h, grid_w, scale);
  a.dout = input(dout, "dout");
  a.qkv = input(qkv, "qkv");
  a.lse = input(lse, "lse");
  a.tables = nullptr;
  a.dqkv = output(dqkv, "dqkv");
  check_out(dout, "dout", a.shape);
  if (a.dout.dtype != a.qkv.dtype && !a.shape.is_double())
    a.shape.product = growtas::Product::float32;  // pairs are read as they are stored
  check_lse(lse, a.shape, a.qkv.dtype);
  check_shape(dqkv, "dqkv", {qkv.size(0), qkv.size(1), qkv.size(2)});
  check_contiguous(dqkv, "dqkv");
  Buffer table_gradient;
  if (dtables.has_value()) {
    STD_TORCH_CHECK(tables.has_value(), "dtables: given without tables");
    check_shape(*dtables, "dtables", {4, a.shape.table_rows, a.shape.head_dim});
    check_contiguous(*dtables, "dtables");
    table_gradient = output(*dtables, "dtables");
  }
  growtas::attention_backward(a, tables.has_value() ? input(*tables, "tables") : ConstBuffer{},
                              table_gradient);
}

// A weight [R, in_max] or [P, R, in_max] with contiguous rows, of which the first `out` rows of
// each part are meant.
growtas::StackedRows weight_rows(const Tensor& t, const char* name, int64_t out, int64_t in) {
  const int64_t rows = t.dim() - 2;
  STD_TORCH_CHECK(t.dim() == 2 || t.dim() == 3, name, ": must be [out, in] or [parts, out, in]");
  STD_TORCH_CHECK(out >= 1 && out <= t.size(rows) && in >= 1 && in <= t.size(rows + 1), name,
                  ": has no slice of ", out, " x ", in);
  STD_TORCH_CHECK(t.size(rows + 1) == 1 || t.stride(rows + 1) == 1, name,
                  ": last dimension must be contiguous");
  return {out, t.dim() == 3 ? t.stride(0) : 0, t.stride(rows)};
}

int64_t parts_of(const Tensor& weight) { return weight.dim() == 3 ? weight.size(0) : 1; }

// A bias [P * out_max], of which a prefix is meant, or [P, out_max], sliced like the weight.
growtas::StackedRows bias_rows(const Tensor& t, const char* name, int64_t parts, int64_t out) {
  check_contiguous(t, name);
  const bool stacked = t.dim() == 2;
  STD_TORCH_CHECK((t.dim() == 1 && t.size(0) >= parts * out) ||
                      (stacked && t.size(0) == parts && t.size(1) >= out),
                  name, ": has no slice of ", parts, " x ", out);
  return {out, stacked ? t.size(1) : out, 1};
}

growtas::SampleScale sample_scale(const std::optional<Tensor>& t, int64_t rows, DType activation) {
  if (!t.has_value()) return {};
  STD_TORCH_CHECK(t->dim() == 1 && t->size(0) > 0 && rows % t->size(0) == 0,
                  "scale: must hold one factor per sample");
  check_contiguous(*t, "scale");
  check_dtype("scale", dtype_of(*t, "scale"), arithmetic(activation),
              "float32 (float64 for float64 activations)");
  return {t->const_data_ptr(), rows / t->size(0)};
}

ConstBuffer optional_rows(const std::optional<Tensor>& t, const char* name, int64_t rows,
                          int64_t width, int64_t& stride) {
  stride = 0;
  if (!t.has_value()) return {};
  stride = check_rows(*t, name, rows, width);
  return input(*t, name);
}

void linear_forward(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                    int64_t out_features, bool gelu_of_x, const std::optional<Tensor>& scale,
                    const std::optional<Tensor>& residual, const Tensor& y) {
  STD_TORCH_CHECK(x.dim() == 2, "x: must be [rows, in]");
  const int64_t parts = parts_of(weight);
  growtas::RowsProduct a = {};
  a.rows = x.size(0);
  a.inner = x.size(1);
  a.columns = parts * out_features;
  growtas::WeightPacking w = {};
  w.weight = input(weight, "weight");
  w.rows = weight_rows(weight, "weight", out_features, a.inner);
  w.out = a.columns;
  w.in = a.inner;
  a.a = input(x, "x");
  a.a_stride = check_rows(x, "x", a.rows, a.inner);
  a.product = growtas::product_of(a.a.dtype);
  a.gelu_of_a = gelu_of_x;
  a.scale = sample_scale(scale, a.rows, a.a.dtype);
  a.residual = optional_rows(residual, "residual", a.rows, a.columns, a.residual_stride);
  a.c = output(y, "y");
  a.c_stride = check_rows(y, "y", a.rows, a.columns);
  growtas::rows_product(
      a, w, bias.has_value() ? input(*bias, "bias") : ConstBuffer{},
      bias.has_value() ? bias_rows(*bias, "bias", parts, out_features) : growtas::StackedRows{});
}

void linear_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, int64_t out_features,
                     bool gelu_of_x, const std::optional<Tensor>& scale,
                     const std::optional<Tensor>& dx, const std::optional<Tensor>& dweight,
                     const std::optional<Tensor>& dbias) {
  STD_TORCH_CHECK(x.dim() == 2, "x: must be [rows, in]");
  const int64_t parts = parts_of(weight);
  growtas::LinearBackward a = {};
  a.rows = x.size(0);
  a.out = parts * out_features;
  a.in = x.size(1);
  a.dy = input(dy, "dy");
  a.x = input(x, "x");
  a.dy_stride = check_rows(dy, "dy", a.rows, a.out);
  a.x_stride = check_rows(x, "x", a.rows, a.in);
  a.product = growtas::product_of(a.x.dtype);
  a.gelu_of_x = gelu_of_x;
  a.scale = sample_scale(scale, a.rows, a.x.dtype);
  growtas::WeightPacking w = {};
  w.weight = input(weight, "weight");
  w.rows = weight_rows(weight, "weight", out_features, a.in);
  w.out = a.out;
  w.in = a.in;
  w.out_is_reduced = true;
  if (dx.has_value()) {
    a.dx = output(*dx, "dx");
    a.dx_stride = check_rows(*dx, "dx", a.rows, a.in);
  }
  if (dweight.has_value()) {
    STD_TORCH_CHECK(parts_of(*dweight) == parts, "dweight: must have ", parts, " parts");
    a.dweight = output(*dweight, "dweight");
    a.dweight_rows = weight_rows(*dweight, "dweight", out_features, a.in);
  }
  if (dbias.has_value()) {
    a.dbias = output(*dbias, "dbias");
    a.dbias_rows = bias_rows(*dbias, "dbias", parts, out_features);
  }
  growtas::linear_backward(a, w);
}

void run_adamw_static(const growtas::StaticAdamW& plan, const Tensor& targets) {
  STD_TORCH_CHECK(targets.is_cpu(), "targets: must be a CPU tensor");
  growtas::adamw_static_cpu(plan);
}

}  // namespace

STABLE_TORCH_LIBRARY(growtas_native, m) {
  m.def(
      "linear_forward(Tensor x, Tensor weight, Tensor? bias, int out_features, bool gelu_of_x, "
      "Tensor? scale, Tensor? residual, Tensor(a!) y) -> ()");
  m.def(
      "linear_backward(Tensor dy, Tensor x, Tensor weight, int out_features, bool gelu_of_x, "
      "Tensor? scale, Tensor(a!)? dx, Tensor(b!)? dweight, Tensor(c!)? dbias) -> ()");
  m.def(
      "layer_norm_forward(Tensor x, Tensor weight, Tensor bias, float eps, Tensor(a!) y, "
      "Tensor(b!) mean, Tensor(c!) rstd) -> ()");
  m.def(
      "layer_norm_backward(Tensor dy, Tensor x, Tensor weight, Tensor mean, Tensor rstd, "
      "Tensor(a!) dx, Tensor(b!)? dweight, Tensor(c!)? dbias) -> ()");
  m.def(
      "attention_forward(Tensor qkv, Tensor? tables, int num_heads, int grid_h, int grid_w, "
      "float scale, Tensor(a!) out, Tensor(b!) lse) -> ()");
  m.def(
      "attention_backward(Tensor dout, Tensor qkv, Tensor? tables, Tensor lse, "
      "int num_heads, int grid_h, int grid_w, float scale, Tensor(a!) dqkv, "
      "Tensor(b!)? dtables) -> ()");
  m.def(
      "adamw_(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] exp_avgs, "
      "Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] counts, Tensor(e!)[] shadows, float[] steps, "
      "int[] boxes, float[] rates, float gradient_factor) -> ()");
  m.def("gradient_norm_(Tensor[] gradients, int[] boxes, Tensor(a!) norm) -> ()");
  m.def(growtas::kAdamWStaticSchema);
}

STABLE_TORCH_LIBRARY_IMPL(growtas_native, CPU, m) {
  m.impl("linear_forward", TORCH_BOX(&linear_forward));
  m.impl("linear_backward", TORCH_BOX(&linear_backward));
  m.impl("layer_norm_forward", TORCH_BOX(&layer_norm_forward));
  m.impl("layer_norm_backward", TORCH_BOX(&layer_norm_backward));
  m.impl("attention_forward", TORCH_BOX(&attention_forward));
  m.impl("attention_backward", TORCH_BOX(&attention_backward));
  m.impl("adamw_", TORCH_BOX(&growtas::adamw_));
  m.impl("gradient_norm_", TORCH_BOX(&growtas::gradient_norm_));
  m.impl("adamw_static_", TORCH_BOX(&growtas::adamw_static<run_adamw_static>));
}
