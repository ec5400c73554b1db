// Executes the level `amx` on a CPU without AMX. Its instructions are unknown there: each raises
// SIGILL, is decoded and executed here, by Intel's description, and the level's results must have the
// same bits as those of `amx_emulated`. On a CPU with AMX nothing is caught: the two are compared.
//
//     g++ -std=c++20 -I csrc/cpu tests/sanitize/tile_instructions.cpp csrc/cpu/level_amx.cpp
//         csrc/cpu/level_amx_emulated.cpp csrc/cpu/level_avx512_bf16.cpp

#include <immintrin.h>
#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "kernels.h"

#if !defined(GROWTAS_TILE_LEVELS)
int main() { std::puts("this compiler does not know AMX"); }
#else

namespace {

struct Shapes {  // what LDTILECFG reads
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

Shapes shapes;
bool configured = false;
uint8_t registers[8][16][64];
long executed = 0;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "tile instructions: %s\n", what);
  std::abort();
}

void configure(const void* p) {
  std::memcpy(&shapes, p, sizeof(shapes));
  if (shapes.palette != 1 || shapes.start_row != 0) fail("LDTILECFG: palette or start row");
  for (const uint8_t byte : shapes.reserved)
    if (byte != 0) fail("LDTILECFG: reserved bytes");
  for (int t = 0; t < 16; ++t) {
    const int rows = shapes.rows[t], bytes = shapes.row_bytes[t];
    if (rows > 16 || bytes > 64 || (rows == 0) != (bytes == 0) || (t >= 8 && rows != 0))
      fail("LDTILECFG: a tile's size");
  }
  std::memset(registers, 0, sizeof(registers));
  configured = true;
}

float widened(uint16_t value) {
  const uint32_t bits = uint32_t(value) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

// TDPBF16PS. MXCSR has been set: it is not this function's business that subnormals are zero.
__attribute__((noinline, target("fma"))) void multiply(int c, int a, int b) {
  if (shapes.rows[c] != shapes.rows[a] || shapes.row_bytes[a] != 4 * shapes.rows[b] ||
      shapes.row_bytes[b] != shapes.row_bytes[c])
    fail("TDPBF16PS: shapes");
  for (int m = 0; m < shapes.rows[c]; ++m) {
    float sums[32] = {};
    const auto* left = reinterpret_cast<const uint16_t*>(registers[a][m]);
    for (int k = 0; k < shapes.rows[b]; ++k) {
      const auto* right = reinterpret_cast<const uint16_t*>(registers[b][k]);
      for (int j = 0; j < shapes.row_bytes[c] / 2; ++j)
        sums[j] = __builtin_fmaf(widened(left[2 * k + j % 2]), widened(right[j]), sums[j]);
    }
    auto* result = reinterpret_cast<float*>(registers[c][m]);
    for (int n = 0; n < shapes.row_bytes[c] / 4; ++n) {
      const float both = sums[2 * n] + sums[2 * n + 1];
      result[n] += both;
    }
  }
}

// Three-byte VEX prefix, opcode, ModRM, then SIB and displacement where ModRM says so.
void execute(int, siginfo_t*, void* context) {
  static const int kGeneral[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                   REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                   REG_R12, REG_R13, REG_R14, REG_R15};
  auto* general = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  const auto* code = reinterpret_cast<const uint8_t*>(general[REG_RIP]);
  // Map 0F38, W and L zero; R would name a tile beyond the eighth.
  if (code[0] != 0xc4 || (code[1] & 0x9f) != 0x82 || (code[2] & 0x84) != 0) fail("unknown prefix");
  const int high_index = code[1] & 0x40 ? 0 : 8, high_base = code[1] & 0x20 ? 0 : 8;
  const int prefix = code[2] & 3, third = ~(code[2] >> 3) & 15, opcode = code[3];
  const int mode = code[4] >> 6, tile = code[4] >> 3 & 7, rm = code[4] & 7;
  const uint8_t* next = code + 5;
  char* address = nullptr;
  int64_t stride = 0;
  const bool memory = mode != 3;
  if (memory) {
    if (mode == 0 && (rm == 5 || (rm == 4 && (*next & 7) == 5))) fail("address without a base");
    int base = rm | high_base;
    if (rm == 4) {
      const uint8_t sib = *next++;
      base = (sib & 7) | high_base;
      const int index = (sib >> 3 & 7) | high_index;
      if (index != 4) stride = general[kGeneral[index]] << (sib >> 6);
    }
    int32_t displacement = 0;
    if (mode == 1) displacement = int8_t(*next);
    if (mode == 2) std::memcpy(&displacement, next, 4);
    next += mode == 1 ? 1 : mode == 2 ? 4 : 0;
    address = reinterpret_cast<char*>(general[kGeneral[base]] + displacement);
  }

  if (opcode == 0x49 && prefix == 0 && memory && tile == 0) {
    configure(address + stride);
  } else if (!configured) {
    fail("no configuration");
  } else if (opcode == 0x49 && prefix == 0 && code[4] == 0xc0) {  // TILERELEASE
    configured = false;
  } else if (opcode == 0x49 && prefix == 3 && !memory && rm == 0) {  // TILEZERO
    std::memset(registers[tile], 0, sizeof(registers[tile]));
  } else if (opcode == 0x4b && prefix == 3 && memory && rm == 4) {  // TILELOADD
    std::memset(registers[tile], 0, sizeof(registers[tile]));
    for (int i = 0; i < shapes.rows[tile]; ++i)
      std::memcpy(registers[tile][i], address + i * stride, shapes.row_bytes[tile]);
  } else if (opcode == 0x4b && prefix == 2 && memory && rm == 4) {  // TILESTORED
    for (int i = 0; i < shapes.rows[tile]; ++i)
      std::memcpy(address + i * stride, registers[tile][i], shapes.row_bytes[tile]);
  } else if (opcode == 0x5c && prefix == 2 && !memory) {
    const unsigned before = _mm_getcsr();
    _mm_setcsr(0x9fc0);
    multiply(tile, rm, third);
    _mm_setcsr(before);
  } else {
    fail("unknown instruction");
  }
  ++executed;
  general[REG_RIP] += next - code;
}

using namespace growtas;

std::vector<uint16_t> random_values(int64_t n) {
  static std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> values(n);
  for (uint16_t& value : values) {
    const float sample = normal(generator);
    uint32_t bits;
    std::memcpy(&bits, &sample, 4);
    value = uint16_t(bits >> 16);
  }
  return values;
}

struct Memory {  // as kernels want it; what it holds must not matter
  std::vector<char> bytes;
  explicit Memory(size_t n) : bytes(n + 64, 0x7f) {}
  void* get() {
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(bytes.data()) + 63) / 64 * 64);
  }
};

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

struct Case {
  int64_t rows, in, out;
  bool gelu;
  std::vector<uint16_t> x, weight, dy;

  Case(int64_t rows, int64_t in, int64_t out, bool gelu)
      : rows(rows), in(in), out(out), gelu(gelu), x(random_values(rows * in)),
        weight(random_values(out * in)), dy(random_values(rows * out)) {}

  Memory pack(const KernelSet& k, bool out_is_reduced) const {
    const int64_t width = k.panel_width(false), columns = out_is_reduced ? in : out;
    const int64_t depth = round_up(out_is_reduced ? out : in, k.depth_unit(Product::bfloat16));
    Memory packed(size_t(round_up(columns, width) * depth) * 2);
    const WeightPacking packing{{weight.data(), DType::bfloat16}, {out, 0, in},      out, in,
                                out_is_reduced,                   Product::bfloat16, packed.get()};
    for (int64_t panel = 0; panel * width < columns; ++panel) k.pack_weight(packing, panel);
    return packed;
  }

  // The output and the gradients of x, the weight and the bias, one after another.
  std::vector<float> run(const KernelSet& k) const {
    std::vector<float> results(rows * out + rows * in + out * in + out, 1);
    float* const y = results.data();
    float* const dx = y + rows * out;
    float* const dweight = dx + rows * in;
    float* const dbias = dweight + out * in;

    Memory packed = pack(k, false);
    RowsProduct product = {};
    product.rows = rows, product.depth = in, product.columns = out;
    product.product = Product::bfloat16;
    product.a = {x.data(), DType::bfloat16}, product.a_stride = in, product.gelu_of_a = gelu;
    product.packed = packed.get();
    product.c = {y, DType::float32}, product.c_stride = out;
    Memory scratch(k.rows_product_scratch_bytes(product, rows));
    k.rows_product(product, 0, rows, scratch.get());

    packed = pack(k, true);
    LinearBackward backward = {};
    backward.rows = rows, backward.out = out, backward.in = in, backward.chunk = 128;
    backward.product = Product::bfloat16;
    backward.dy = {dy.data(), DType::bfloat16}, backward.dy_stride = out;
    backward.x = {x.data(), DType::bfloat16}, backward.x_stride = in, backward.gelu_of_x = gelu;
    backward.packed = packed.get();
    backward.dx = {dx, DType::float32}, backward.dx_stride = in;
    backward.dweight = {dweight, DType::float32}, backward.dweight_rows = {out, 0, in};
    scratch = Memory(k.linear_backward_scratch_bytes(backward));
    k.linear_backward(backward, {0, rows, 0, in, nullptr, dbias}, scratch.get());
    return results;
  }
};

}  // namespace

int main() {
  struct sigaction action = {};
  action.sa_sigaction = execute;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGILL, &action, nullptr);
  syscall(SYS_arch_prctl, 0x1023, 18);  // the tile registers, if there are any

  const int64_t sizes[][3] = {{1, 1, 1},    {13, 31, 33},  {16, 32, 32},  {32, 64, 64},
                              {47, 64, 35}, {100, 96, 50}, {257, 70, 24}, {130, 216, 49}};
  for (const auto& size : sizes) {
    for (const bool gelu : {false, true}) {
      const Case one(size[0], size[1], size[2], gelu);
      const std::vector<float> want = one.run(kernels_amx_emulated()), found = one.run(kernels_amx());
      if (std::memcmp(want.data(), found.data(), want.size() * sizeof(float)) != 0)
        fail("other bits than emulated");
      if (configured) fail("the tile registers were not given back");
    }
  }
  std::printf("same bits as emulated; %ld instructions were caught and executed\n", executed);
}
#endif
