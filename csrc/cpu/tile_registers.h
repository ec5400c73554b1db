// The tile registers of AMX: matrices of up to 16 rows of 64 bytes, and the product of two of them,
// sums[16][16] += A[16][16 pairs] B[16 pairs][16]. Twice: as the processor's instructions, and as an
// emulation with the same bits (GROWTAS_TILES_EMULATED) for CPUs with AVX-512 alone.
#pragma once

#include "gemm.h"

namespace growtas {
namespace GROWTAS_LEVEL {

constexpr int64_t kTileSide = 16;

// What multiplies elements E beside the vectors: nothing, or the tile registers.
template <class E>
struct TileUnit {};

#if defined(GROWTAS_TILES)

// Whose rows a register holds: sums are registers 0 (left) and 1 (right) for A's upper tile, 2 and 3
// for its lower one; A's tiles are 4 and 5, B's 6 and 7.
constexpr bool is_lower(int tile) { return tile == 2 || tile == 3 || tile == 5; }
constexpr bool is_second_operand(int tile) { return tile >= 6; }

// While it lives, this thread's tile registers are its own. Strides are in bytes.
template <>
class TileUnit<BFloat16Pair> {
 public:
  TileUnit() { set_rows(2 * kTileSide); }
  TileUnit(const TileUnit&) = delete;
  TileUnit& operator=(const TileUnit&) = delete;

  // Rows of A and of the sums, 1 to 32 in both tiles together: no more are read or written.
  void set_rows(int64_t rows) {
    if (rows == rows_) return;
    rows_ = rows;
    upper_ = rows < kTileSide ? rows : kTileSide;
    lower_ = rows > kTileSide ? rows - kTileSide : kTileSide;  // in use only above 16 rows
    configure();
  }

#if defined(GROWTAS_TILES_EMULATED)
  template <int R>
  void zero() {
    std::memset(registers_[R], 0, sizeof(registers_[R]));
  }

  template <int R>
  void load(const void* p, int64_t stride) {
    for (int64_t i = 0; i < rows_of(R); ++i)
      std::memcpy(registers_[R][i], static_cast<const char*>(p) + i * stride, 64);
  }

  template <int R>
  void store(void* p, int64_t stride) const {
    for (int64_t i = 0; i < rows_of(R); ++i)
      std::memcpy(static_cast<char*>(p) + i * stride, registers_[R][i], 64);
  }

  // As TDPBF16PS is documented (Intel's instruction set reference): the earlier and the later values
  // of all pairs are summed apart by fused multiply-adds, in order, then joined, then added; to
  // nearest, subnormal numbers taken and left as zero.
  template <int C, int A, int B>
  void multiply_add() {
    const unsigned before = _mm_getcsr();
    _mm_setcsr(0x9fc0);  // to nearest, no exceptions, subnormals are zero on both sides
    multiply_add(registers_[C], registers_[A], registers_[B], rows_of(C));
    _mm_setcsr(before);
  }

 private:
  using Register = uint32_t[kTileSide][kTileSide];

  void configure() {}

  // A function of its own: the compiler may move arithmetic across what sets the rounding.
  static GROWTAS_NOINLINE void multiply_add(Register& sums, const Register& a, const Register& b,
                                            int64_t rows) {
    using Bits = Simd<float>::Bits;
    for (int64_t m = 0; m < rows; ++m) {
      Vec<float> earlier = {}, later = {};
      for (int64_t k = 0; k < kTileSide; ++k) {
        const Bits pairs = bit_cast<Bits>(b[k]);
        earlier = _mm512_fmadd_ps(splat(bit_cast<float>(a[m][k] << 16)),
                                  bit_cast<Vec<float>>(pairs << 16), earlier);
        later = _mm512_fmadd_ps(splat(bit_cast<float>(a[m][k] & 0xffff0000u)),
                                bit_cast<Vec<float>>(pairs & 0xffff0000u), later);
      }
      const Vec<float> sum = bit_cast<Vec<float>>(sums[m]) + (earlier + later);
      std::memcpy(sums[m], &sum, sizeof(sum));
    }
  }

  alignas(64) Register registers_[8];
#else
  ~TileUnit() { __asm__ volatile("tilerelease"); }

  // Not the compiler's intrinsics: GCC's are macros that take no template argument, and some of its
  // versions do not say that a load reads memory.
  template <int R>
  GROWTAS_INLINE void zero() {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(R));
  }

  template <int R>
  GROWTAS_INLINE void load(const void* p, int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(R) : "memory");
  }

  template <int R>
  GROWTAS_INLINE void store(void* p, int64_t stride) const {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(R) : "memory");
  }

  template <int C, int A, int B>
  GROWTAS_INLINE void multiply_add() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }

 private:
  void configure() {
    struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } shapes;
    static_assert(sizeof(shapes) == 64, "what the instruction reads");
    for (int tile = 0; tile < 8; ++tile) {
      shapes.row_bytes[tile] = 64;
      shapes.rows[tile] = uint8_t(rows_of(tile));
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(shapes));
  }
#endif

  int64_t rows_of(int tile) const {
    return is_second_operand(tile) ? kTileSide : is_lower(tile) ? lower_ : upper_;
  }

  int64_t rows_ = 0, upper_ = 0, lower_ = 0;
};

#endif

}  // namespace GROWTAS_LEVEL
}  // namespace growtas
