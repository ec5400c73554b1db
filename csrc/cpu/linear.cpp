#include <algorithm>
#include <cstring>

#include "ops.h"
#include "parallel.h"

namespace growtas {
namespace {

// What one task reads and writes stays in a core's cache while every panel of the weight passes by:
// rows are finished 128 bytes at a time, but memory hands out longer pieces.
constexpr int64_t kRowsBytes = 400 << 10;
constexpr int64_t kMaxRows = 112;
// Rows of a weight's gradient in one task: the more, the fewer times x is packed.
constexpr int64_t kMaxHeight = 672;

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

int64_t ceil_div(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

int64_t product_bytes(Product product) {
  return product == Product::float64 ? 8 : product == Product::float32 ? 4 : 2;
}

}  // namespace

Product product_of(DType activation) {
  if (activation == DType::float64) return Product::float64;
  if (activation == DType::bfloat16 && kernels().bfloat16_products) return Product::bfloat16;
  return Product::float32;
}

void rows_product(RowsProduct args, WeightPacking weight, ConstBuffer bias, StackedRows bias_rows) {
  if (args.rows == 0) return;
  const KernelSet& k = kernels();
  const bool is_double = args.product == Product::float64;
  const size_t element = is_double ? 8 : 4;
  const int64_t width = k.panel_width(is_double);
  const int64_t panels = ceil_div(args.columns, width);
  const int64_t depth = round_up(args.depth, args.product == Product::bfloat16 ? 2 : 1);

  const AlignedMemory packed(size_t(panels * width * depth * product_bytes(args.product)));
  weight.product = args.product;
  weight.packed = packed.get();
  run_tasks(panels, 0, [&](int64_t panel, void*) { k.pack_weight(weight, panel); });
  args.packed = packed.get();

  const AlignedMemory wide_bias(bias.data == nullptr ? 0 : size_t(panels * width) * element);
  if (bias.data != nullptr) {
    std::memset(wide_bias.get(), 0, size_t(panels * width) * element);
    for (int64_t j = 0; j < args.columns; j += bias_rows.rows)
      k.widen({bias.at(bias_rows.offset(j)), bias.dtype}, wide_bias.get() + j * element, is_double,
              bias_rows.rows);
    args.bias = wide_bias.get();
  }

  int64_t row_bytes = depth * product_bytes(args.product);
  for (const ConstBuffer& other :
       {ConstBuffer{args.c.data, args.c.dtype}, args.derivative_at, args.residual,
        ConstBuffer{args.preactivation.data, args.preactivation.dtype}})
    if (other.data != nullptr) row_bytes += args.columns * element_size(other.dtype);
  const int64_t limit = std::clamp(kRowsBytes / row_bytes, k.tile_rows, kMaxRows);
  const int64_t tasks = round_up(ceil_div(args.rows, limit), thread_count());
  const int64_t block = round_up(ceil_div(args.rows, tasks), k.tile_rows);
  run_tasks(ceil_div(args.rows, block), k.rows_product_scratch_bytes(args, block),
            [&](int64_t task, void* scratch) {
              k.rows_product(args, task * block, std::min(args.rows, (task + 1) * block), scratch);
            });
}

void weight_gradient(const WeightGradient& args) {
  if (args.rows == 0) return;
  const KernelSet& k = kernels();
  const int64_t width = k.panel_width(args.product == Product::float64);
  const int64_t threads = thread_count();
  int64_t down = ceil_div(args.out, kMaxHeight), across = 1;
  while (across * down % threads != 0 && across * down < 4 * threads)
    ++(args.out * across > args.in * down ? down : across);
  const int64_t high = round_up(ceil_div(args.out, down), k.tile_rows);
  const int64_t wide = round_up(ceil_div(args.in, across), width);
  const int64_t columns = ceil_div(args.in, wide);
  const auto block = [&](int64_t task) {
    const int64_t n = task / columns * high, m = task % columns * wide;
    return Block{n, std::min(args.out, n + high), m, std::min(args.in, m + wide)};
  };
  run_tasks(ceil_div(args.out, high) * columns, k.weight_gradient_scratch_bytes(args, block(0)),
            [&](int64_t task, void* scratch) { k.weight_gradient(args, block(task), scratch); });
}

}  // namespace growtas
