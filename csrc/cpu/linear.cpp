#include <algorithm>
#include <cstring>

#include "ops.h"
#include "parallel.h"

namespace growtas {
namespace {

// A task takes so many rows that what it reads and writes stays in a core's cache while every panel of
// the weight passes by.
constexpr int64_t kRowsBytes = 400 << 10;
constexpr int64_t kMaxRows = 112;
// The backward finishes so many rows together (twice as many where two make an element). With fewer it
// would add into the weight's gradient too often, with more a panel of inputs would not stay in the
// first cache.
constexpr int64_t kChunk = 182;
// The rows are divided into parts, each of which sums a gradient of its own. There are as many as pay
// for adding them up; the number depends on the shape alone, so the bits do not depend on the threads.
constexpr int64_t kPartRows = 1536, kMaxParts = 8;

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

int64_t ceil_div(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

int64_t product_bytes(Product product) {
  return product == Product::float64 ? 8 : product == Product::float32 ? 4 : 2;
}

size_t packed_bytes(int64_t panels, int64_t depth, Product product) {
  const int64_t width = kernels().panel_width(product == Product::float64);
  return size_t(panels * width * depth * product_bytes(product));
}

const void* pack(WeightPacking weight, Product product, int64_t panels, void* packed) {
  weight.product = product;
  weight.packed = packed;
  run_tasks(panels, 0, [&](int64_t panel, void*) { kernels().pack_weight(weight, panel); });
  return packed;
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
  const int64_t depth = round_up(args.inner, k.depth_unit(args.product));

  const AlignedMemory packed(packed_bytes(panels, depth, args.product));
  args.packed = pack(weight, args.product, panels, packed.get());

  const AlignedMemory wide_bias(bias.data == nullptr ? 0 : size_t(panels * width) * element);
  if (bias.data != nullptr) {
    std::memset(wide_bias.get(), 0, size_t(panels * width) * element);
    for (int64_t j = 0; j < args.columns; j += bias_rows.rows)
      k.widen({bias.at(bias_rows.offset(j)), bias.dtype}, wide_bias.get() + j * element, is_double,
              bias_rows.rows);
    args.bias = wide_bias.get();
  }

  int64_t row_bytes = depth * product_bytes(args.product);
  for (const ConstBuffer& other : {ConstBuffer{args.c.data, args.c.dtype}, args.residual})
    if (other.data != nullptr) row_bytes += args.columns * element_size(other.dtype);
  const int64_t unit = k.tile_rows(args.product);
  const int64_t limit = std::clamp(kRowsBytes / row_bytes, unit, kMaxRows);
  const int64_t tasks = round_up(ceil_div(args.rows, limit), thread_count());
  const int64_t block = round_up(ceil_div(args.rows, tasks), unit);
  run_tasks(ceil_div(args.rows, block), k.rows_product_scratch_bytes(args, block),
            [&](int64_t task, void* scratch) {
              k.rows_product(args, task * block, std::min(args.rows, (task + 1) * block), scratch);
            });
}

void linear_backward(LinearBackward args, WeightPacking weight) {
  if (args.rows == 0) return;
  const KernelSet& k = kernels();
  const bool is_double = args.product == Product::float64;
  const int64_t values = args.product == Product::bfloat16 ? 2 : 1;
  const int64_t width = k.panel_width(is_double), panels = ceil_div(args.in, width);
  const bool with_sums = args.dweight.data != nullptr || args.dbias.data != nullptr;

  const int64_t parts =
      with_sums ? std::clamp<int64_t>(args.rows / kPartRows, 1, kMaxParts)
                : ceil_div(args.rows, kChunk * values);
  const int64_t unit = k.tile_rows(args.product) * values;
  const int64_t part_rows = round_up(ceil_div(args.rows, parts), unit);
  const int64_t limit = kChunk * values;
  args.chunk = round_up(ceil_div(part_rows, ceil_div(part_rows, limit)), unit);

  const int64_t depth = round_up(args.out, k.depth_unit(args.product));
  const bool with_dx = args.dx.data != nullptr;
  const AlignedMemory packed(with_dx ? packed_bytes(panels, depth, args.product) : 0);
  if (with_dx) args.packed = pack(weight, args.product, panels, packed.get());

  // The first part adds into the gradient itself where that has the arithmetic type.
  const size_t element = is_double ? 8 : 4;
  const bool direct = args.dweight.dtype == (is_double ? DType::float64 : DType::float32);
  const int64_t own = args.dweight.data == nullptr ? 0 : parts - (direct ? 1 : 0);
  const size_t sums_bytes = size_t(args.out * args.in) * element;
  const AlignedMemory sums(size_t(own) * sums_bytes);
  const AlignedMemory bias_sums(args.dbias.data == nullptr ? 0
                                                           : size_t(parts * args.out) * element);

  int64_t blocks = ceil_div(thread_count(), parts);
  while (parts * blocks % thread_count() != 0 && blocks < panels) ++blocks;
  const int64_t wide = round_up(ceil_div(args.in, blocks), width);
  blocks = ceil_div(args.in, wide);
  run_tasks(parts * blocks, k.linear_backward_scratch_bytes(args), [&](int64_t task, void* scratch) {
    const int64_t index = task / blocks, column = task % blocks * wide;
    LinearPart part = {};
    part.m0 = std::min(args.rows, index * part_rows);
    part.m1 = std::min(args.rows, part.m0 + part_rows);
    part.k0 = column;
    part.k1 = std::min(args.in, column + wide);
    if (index >= parts - own) part.dweight = sums.get() + size_t(index - (parts - own)) * sums_bytes;
    if (args.dbias.data != nullptr && column == 0)
      part.dbias = bias_sums.get() + size_t(index * args.out) * element;
    k.linear_backward(args, part, scratch);
  });

  if (own > 0) {
    constexpr int64_t kRows = 32;
    run_tasks(ceil_div(args.out, kRows), 0, [&](int64_t task, void*) {
      for (int64_t n = task * kRows; n < std::min(args.out, (task + 1) * kRows); ++n)
        k.add_partials({args.dweight.at(args.dweight_rows.offset(n)), args.dweight.dtype},
                       sums.get() + size_t(n * args.in) * element, is_double, own,
                       args.out * args.in, args.in);
    });
  }
  for (int64_t n = 0; args.dbias.data != nullptr && n < args.out; n += args.dbias_rows.rows)
    k.add_partials({args.dbias.at(args.dbias_rows.offset(n)), args.dbias.dtype},
                   bias_sums.get() + size_t(n) * element, is_double, parts, args.out,
                   args.dbias_rows.rows);
}

}  // namespace growtas
