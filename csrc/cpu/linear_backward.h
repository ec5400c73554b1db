// The backward of a linear layer on a slice of its weight, in one pass over the rows: while a chunk
// of dy is in cache, its share of the weight's and the bias's gradient is added and dx of its rows
// is finished. GELU and its derivative come from one evaluation.
#pragma once

#include "linear_tiles.h"

namespace growtas {
namespace GROWTAS_LEVEL {

// dy is packed into stripes of kStripeColumns columns, each row of a stripe padded to whole vectors.
template <class E>
constexpr int64_t kStripeColumns = kTiled<E> ? kTileSide : kTileRows;
template <class E>
constexpr int64_t kStripe = round_up<Sum<E>>(kStripeColumns<E>);

template <class E>
constexpr int64_t stripe_count(int64_t out) {
  return (out + kStripeColumns<E> - 1) / kStripeColumns<E>;
}

template <class E>
struct BackwardChunk {
  using S = Sum<E>;
  int64_t depth, stripe, dy_stride;  // in elements; `stripe` from one stripe to the next
  S *tile, *inputs, *bias, *bias_sum;
  E *x, *packed_dy, *dy;
  S** weight_rows;
  size_t bytes;

  BackwardChunk(Arena arena, const LinearBackward& p) {
    const int64_t stripes = stripe_count<E>(p.out);
    depth = padded_elements<E>(p.chunk);
    stripe = depth * kStripe<E>;
    dy_stride = round_up<S>(elements<E>(p.out));
    tile = arena.take<S>(kRows<E> * kPanel<E>);
    inputs = arena.take<S>(kRows<E> * kPanel<E>);
    bias = arena.take<S>(stripes * kStripe<E>);
    bias_sum = arena.take<S>(stripes * kStripe<E>);
    x = arena.take<E>(depth * kPanel<E>);
    packed_dy = arena.take<E>(stripes * stripe);
    dy = arena.take<E>(in_place(p) ? 0 : p.chunk * dy_stride);
    weight_rows = arena.take<S*>(p.out);
    bytes = arena.used;
  }
  static bool in_place(const LinearBackward& p) {
    return p.dx.data == nullptr || reads_in_place<E>(p.dy, p.dy_stride, p.out);
  }
};

// Rows [first, first + rows) of scaled dy into stripes, and their sums by column into `bias`.
template <class E>
void pack_stripes(const LinearBackward& p, int64_t first, int64_t rows, const BackwardChunk<E>& s) {
  using S = Sum<E>;
  constexpr int L = kLanes<S>;
  for (int64_t m = 0; m < rows; m += Element<E>::values) {
    const bool has_second = Element<E>::values == 2 && m + 1 < rows;
    const int64_t at = (first + m) * p.dy_stride;
    const Vec<S> scale = splat(sample_scale<S>(p.scale, first + m));
    const Vec<S> second_scale =
        has_second ? splat(sample_scale<S>(p.scale, first + m + 1)) : Vec<S>{};
    E* out = s.packed_dy + m / Element<E>::values * kStripe<E>;
    S* sum = s.bias;
    for (int64_t n = 0; n < p.out; n += kStripeColumns<E>, out += s.stripe, sum += kStripe<E>) {
      for (int64_t lane = 0; lane < kStripe<E> && n + lane < p.out; lane += L) {
        const int64_t left = p.out - n - lane;
        const int64_t count = left < L ? left : L;
        const Vec<S> value = load_values<S>(p.dy, at + n + lane, count) * scale;
        Vec<S> second = {};
        if (has_second)
          second = load_values<S>(p.dy, at + p.dy_stride + n + lane, count) * second_scale;
        const Vec<S> both = value + second;
        store(sum + lane, m == 0 ? both : load(sum + lane) + both);
        const Vec<E> v = interleave<E>(value, second);
        std::memcpy(static_cast<void*>(out + lane), &v, sizeof(v));
      }
    }
  }
}

// Columns [k, k + columns) of act(x) in rows [first, first + rows) as the panel of inputs.
template <class E, int NV>
GROWTAS_NOINLINE void pack_inputs(const LinearBackward& p, int64_t first, int64_t rows, int64_t k,
                                  int64_t columns, E* out) {
  using S = Sum<E>;
  constexpr int L = kLanes<S>;
  const ConstBuffer x = p.x;
  const int64_t stride = p.x_stride;
  const bool gelu_of_x = p.gelu_of_x;
  int64_t at = first * stride + k;
  for (int64_t m = 0; m < rows; m += Element<E>::values, out += kPanel<E>) {
    GROWTAS_UNROLL
    for (int v = 0; v < NV; ++v) {
      const int64_t left = columns - v * L;
      const int64_t count = left < L ? left : L;
      Vec<S> value = load_values<S>(x, at + v * L, count), second = {};
      if (Element<E>::values == 2 && m + 1 < rows)
        second = load_values<S>(x, at + stride + v * L, count);
      if (gelu_of_x) {
        value = gelu_of_elements<E>(value).value;
        if (Element<E>::values == 2) second = gelu_of_elements<E>(second).value;
      }
      const Vec<E> pair = interleave<E>(value, second);
      std::memcpy(static_cast<void*>(out + v * L), &pair, sizeof(pair));
    }
    at += stride * Element<E>::values;
  }
}

// Rows [m, m + height) of dx from the tile, and of act(x) into the panel of inputs: `in_panel` is
// the row's place there.
template <class E, int NV>
GROWTAS_INLINE void finish_gradient(const LinearBackward& p, int64_t m, int64_t height, int64_t k,
                                    int64_t columns, int64_t in_panel,
                                    const BackwardChunk<E>& s) {
  using S = Sum<E>;
  constexpr int L = kLanes<S>;
  for (int i = 0; i < height; ++i) {
    const Vec<S> scale = splat(sample_scale<S>(p.scale, m + i));
    GROWTAS_UNROLL
    for (int v = 0; v < NV; ++v) {
      S* const at = s.tile + i * kPanel<E> + v * L;
      Vec<S> sum = load(at) * scale;
      if (p.gelu_of_x) {
        const int64_t left = columns - v * L;
        const Vec<S> z =
            load_values<S>(p.x, (m + i) * p.x_stride + k + v * L, left < L ? left : L);
        const Gelu<S> gelu = gelu_of_elements<E>(z);
        sum *= gelu.derivative;
        store(s.inputs + i * kPanel<E> + v * L, gelu.value);
      }
      store(at, sum);
    }
  }
  // Written only after all reads above: where dx lies a multiple of 4 KiB from what is read, some CPUs
  // take one for the other and stall for each line.
  for (int i = 0; i < height; ++i) {
    for (int v = 0; v < NV; ++v) {
      const int64_t left = columns - v * L;
      store_values<S>(p.dx, (m + i) * p.dx_stride + k + v * L,
                      load(s.tile + i * kPanel<E> + v * L), left < L ? left : L);
    }
  }
  if (!p.gelu_of_x) return;
  E* out = s.x + in_panel / Element<E>::values * kPanel<E>;
  for (int i = 0; i < height; i += Element<E>::values, out += kPanel<E>) {
    for (int v = 0; v < NV; ++v) {
      const S* const at = s.inputs + i * kPanel<E> + v * L;
      const Vec<E> pair = interleave<E>(
          load(at), Element<E>::values == 2 && i + 1 < height ? load(at + kPanel<E>) : Vec<S>{});
      std::memcpy(static_cast<void*>(out + v * L), &pair, sizeof(pair));
    }
  }
}

// Fetches what finish_gradient will read and write, while the sums are formed.
GROWTAS_INLINE void prefetch_gradient(const LinearBackward& p, int64_t m, int64_t height, int64_t k,
                                      int64_t columns) {
  for (int64_t i = m; i < m + height; ++i) {
    prefetch(p.dx.at(i * p.dx_stride + k), columns * element_size(p.dx.dtype));
    if (p.gelu_of_x) prefetch(p.x.at(i * p.x_stride + k), columns * element_size(p.x.dtype));
  }
}

// Columns [k, k + columns) of dx; with GELU the panel of inputs comes along.
template <class E, int NV>
GROWTAS_NOINLINE void input_gradient_panel(const LinearBackward& p, int64_t first, int64_t rows,
                                           const E* dy, int64_t dy_stride, int64_t k,
                                           int64_t columns, const BackwardChunk<E>& s,
                                           [[maybe_unused]] TileUnit<E>& unit) {
  using S = Sum<E>;
  const int64_t depth = padded_elements<E>(p.out);
  const E* const panel = static_cast<const E*>(p.packed) + k * depth;
  if constexpr (kTiled<E>) {
    for_each_block<E>(rows, [&](int64_t m, int64_t height) {
      prefetch_gradient(p, first + m, height, k, columns);
      multiply_tiles<E, NV>(unit, height, depth, dy + m * dy_stride,
                            {dy_stride, kTileSide * dy_stride, kTileSide}, panel, s.tile);
      finish_gradient<E, NV>(p, first + m, height, k, columns, m, s);
    });
  } else {
    const bool plain = columns == NV * kLanes<S> && !p.gelu_of_x && p.scale.data == nullptr;
    for_each_tile(rows, [&](int64_t m, auto height) {
      prefetch_gradient(p, first + m, height.value, k, columns);
      Vec<S> sums[height.value][NV] = {};
      multiply_chunks<E, height.value, NV>(depth, dy + m * dy_stride, dy_stride, panel, s.tile,
                                           sums);
      if (plain) {
        GROWTAS_UNROLL
        for (int i = 0; i < height.value; ++i) {
          GROWTAS_UNROLL
          for (int v = 0; v < NV; ++v)
            store_values<S>(p.dx, (first + m + i) * p.dx_stride + k + v * kLanes<S>, sums[i][v],
                            kLanes<S>);
        }
        return;
      }
      store_tile<E>(sums, s.tile);
      finish_gradient<E, NV>(p, first + m, height.value, k, columns, m, s);
    });
  }
}

// Fetches memory that will be read later, a share of it with each tile that is computed.
struct Upcoming {
  const char* row = nullptr;
  int64_t left = 0, stride = 0, bytes = 0, share = 0;

  // `columns` values from column j on of rows [first, first + rows), in `steps` shares.
  Upcoming(const ConstBuffer& src, int64_t src_stride, int64_t first, int64_t rows, int64_t j,
           int64_t columns, int64_t steps)
      : row(static_cast<const char*>(src.at(first * src_stride + j))), left(rows),
        stride(src_stride * element_size(src.dtype)), bytes(columns * element_size(src.dtype)),
        share((rows + steps - 1) / steps) {}

  GROWTAS_INLINE void fetch() {
    for (int64_t i = 0; i < share && left > 0; ++i, --left, row += stride) prefetch(row, bytes);
  }
};

// Adds sums of columns [k, k + columns) that are in the tile to rows of the weight's gradient.
template <class E, int NV>
GROWTAS_INLINE void add_tile(const Sum<E>* tile, int64_t height, Sum<E>** rows, int64_t k,
                             int64_t columns, bool first_chunk) {
  using S = Sum<E>;
  constexpr int L = kLanes<S>;
  for (int64_t i = 0; i < height; ++i) {
    for (int v = 0; v < NV; ++v) {
      const int64_t count = columns - v * L < L ? columns - v * L : L;
      S* const at = rows[i] + k + v * L;
      const Vec<S> sum = load(tile + i * kPanel<E> + v * L);
      store_n<S>(at, first_chunk ? sum : load_n(at, count) + sum, count);
    }
  }
}

// Columns [k, k + columns) of the weight's gradient gain the chunk's product.
template <class E, int NV>
GROWTAS_NOINLINE void weight_gradient_panel(int64_t out, int64_t depth, int64_t k, int64_t columns,
                                            bool first_chunk, const BackwardChunk<E>& s,
                                            Upcoming& next_dy, Upcoming& next_x,
                                            [[maybe_unused]] TileUnit<E>& unit) {
  using S = Sum<E>;
  constexpr int L = kLanes<S>;
  const auto prefetch_all = [&](S** rows, int64_t height) {
    for (int64_t i = 0; !first_chunk && i < height; ++i)
      prefetch(rows[i] + k, columns * int64_t(sizeof(S)));
    next_dy.fetch();
    next_x.fetch();
  };
  if constexpr (kTiled<E>) {
    for_each_block<E>(out, [&](int64_t n, int64_t height) {
      S** const rows = s.weight_rows + n;
      prefetch_all(rows, height);
      // Zeros fill the last stripe, so that the registers need no other shape for it.
      multiply_tiles<E, NV>(unit, round_up<S>(height), depth,
                            s.packed_dy + n / kStripeColumns<E> * s.stripe,
                            {kTileSide, s.stripe, kTileSide * kTileSide}, s.x, s.tile);
      add_tile<E, NV>(s.tile, height, rows, k, columns, first_chunk);
    });
  } else {
    const bool whole = columns == NV * L;
    for_each_tile(out, [&](int64_t n, auto height) {
      S** const rows = s.weight_rows + n;
      prefetch_all(rows, height.value);
      Vec<S> acc[height.value][NV] = {};
      multiply_tile<E, height.value, NV, true>(
          depth, s.packed_dy + n / kStripeColumns<E> * s.stripe + n % kStripeColumns<E>, kStripe<E>,
          s.x, kPanel<E>, acc);
      GROWTAS_UNROLL
      for (int i = 0; i < height.value; ++i) {
        GROWTAS_UNROLL
        for (int v = 0; v < NV; ++v) {
          S* const at = rows[i] + k + v * L;
          if (whole)
            store(at, first_chunk ? acc[i][v] : load(at) + acc[i][v]);
          else
            store(s.tile + i * kPanel<E> + v * L, acc[i][v]);
        }
      }
      if (!whole) add_tile<E, NV>(s.tile, height.value, rows, k, columns, first_chunk);
    });
  }
}

template <class E>
void linear_backward_part(const LinearBackward& p, const LinearPart& part, void* scratch) {
  using S = Sum<E>;
  const BackwardChunk<E> s(Arena{static_cast<char*>(scratch)}, p);
  const bool with_weight = p.dweight.data != nullptr;
  const bool with_bias = part.dbias != nullptr;
  // The sums of this part, or the gradient itself, which then takes part in them.
  const bool own_sums = part.dweight != nullptr;
  TileUnit<E> unit;
  for (int64_t n = 0; with_weight && n < p.out; ++n)
    s.weight_rows[n] = own_sums
                           ? static_cast<S*>(part.dweight) + n * p.in
                           : static_cast<S*>(p.dweight.at(p.dweight_rows.offset(n)));

  for (int64_t first = part.m0; first < part.m1; first += p.chunk) {
    const int64_t rows = part.m1 - first < p.chunk ? part.m1 - first : p.chunk;
    const bool first_chunk = first == part.m0;
    if (with_weight || with_bias) pack_stripes(p, first, rows, s);
    if constexpr (kTiled<E>) {
      if (with_weight)
        turn_stripes(s.packed_dy, stripe_count<E>(p.out), elements<E>(rows), s.depth);
    }
    if (with_bias) {
      const int64_t n = stripe_count<E>(p.out) * kStripe<E>;
      for (int64_t i = 0; i < n; i += kLanes<S>)
        store(s.bias_sum + i,
              first_chunk ? load(s.bias + i) : load(s.bias_sum + i) + load(s.bias + i));
    }
    const E* dy = static_cast<const E*>(p.dy.at(first * p.dy_stride));
    int64_t dy_stride = p.dy_stride / Element<E>::values;
    if (!BackwardChunk<E>::in_place(p)) {
      stage_rows(p.dy, first, rows, p.dy_stride, p.out, false, s.dy, s.dy_stride);
      dy = s.dy;
      dy_stride = s.dy_stride;
    }
    const int64_t next = first + rows;
    const int64_t next_rows = part.m1 - next < p.chunk ? part.m1 - next : p.chunk;
    const int64_t tiles = (p.out + kRows<E> - 1) / kRows<E>;
    const int64_t panels = (part.k1 - part.k0 + kPanel<E> - 1) / kPanel<E>;
    Upcoming next_dy(p.dy, p.dy_stride, next, next_rows, 0, p.out, tiles * panels);
    for (int64_t k = part.k0; k < part.k1; k += kPanel<E>) {
      const int64_t columns = part.k1 - k < kPanel<E> ? part.k1 - k : kPanel<E>;
      const bool wide = columns > kLanes<S>;
      if (p.dx.data != nullptr) {
        if (wide)
          input_gradient_panel<E, 2>(p, first, rows, dy, dy_stride, k, columns, s, unit);
        else
          input_gradient_panel<E, 1>(p, first, rows, dy, dy_stride, k, columns, s, unit);
      }
      if (!with_weight) continue;
      if (p.dx.data == nullptr || !p.gelu_of_x) {
        if (wide)
          pack_inputs<E, 2>(p, first, rows, k, columns, s.x);
        else
          pack_inputs<E, 1>(p, first, rows, k, columns, s.x);
      }
      const int64_t depth = padded_elements<E>(rows);
      clear_rows(s.x, elements<E>(rows), depth);
      const bool replace = own_sums && first_chunk;
      const int64_t after = k + columns;
      const bool last = after == part.k1;
      Upcoming next_x(p.x, p.x_stride, last ? next : first, last ? next_rows : rows,
                      last ? part.k0 : after,
                      last || part.k1 - after > kPanel<E> ? kPanel<E> : part.k1 - after, tiles);
      if (wide)
        weight_gradient_panel<E, 2>(p.out, depth, k, columns, replace, s, next_dy, next_x, unit);
      else
        weight_gradient_panel<E, 1>(p.out, depth, k, columns, replace, s, next_dy, next_x, unit);
    }
  }
  for (int64_t n = 0; with_bias && n < p.out; ++n)
    static_cast<S*>(part.dbias)[n] = s.bias_sum[n / kStripeColumns<E> * kStripe<E> + n % kStripeColumns<E>];
}

}  // namespace GROWTAS_LEVEL
}  // namespace growtas
