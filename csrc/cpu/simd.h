// Vectors of one SIMD level, built on the GNU vector extensions (GCC and Clang, any architecture).
// Other compilers get vectors of one lane and the same kernels. Included once per level, inside
// that level's namespace, after the target pragma: everything here has internal meaning only.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__GNUC__)
#define GROWTAS_INLINE inline __attribute__((always_inline))
#define GROWTAS_NOINLINE __attribute__((noinline))
#else
#define GROWTAS_INLINE inline
#define GROWTAS_NOINLINE
#endif

// Keeps the compiler from knowing what a variable holds.
#if defined(__GNUC__)
#define GROWTAS_OPAQUE(variable) __asm__("" : "+r"(variable))
#else
#define GROWTAS_OPAQUE(variable)
#endif

// Fetches into the second cache, because the first is full of what is being computed.
#if defined(__GNUC__)
#define GROWTAS_PREFETCH(address) __builtin_prefetch(address, 0, 2)
#else
#define GROWTAS_PREFETCH(address) ((void)(address))
#endif

#if defined(__clang__)
#define GROWTAS_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define GROWTAS_UNROLL _Pragma("GCC unroll 32")
#else
#define GROWTAS_UNROLL
#endif

namespace growtas {
namespace GROWTAS_LEVEL {

template <class T>
struct Simd;

#if GROWTAS_VECTOR_BYTES > 0
template <>
struct Simd<float> {
  typedef float Vec __attribute__((vector_size(GROWTAS_VECTOR_BYTES)));
  typedef int32_t Mask __attribute__((vector_size(GROWTAS_VECTOR_BYTES)));
  typedef uint32_t Bits __attribute__((vector_size(GROWTAS_VECTOR_BYTES)));
  typedef uint16_t Halves __attribute__((vector_size(GROWTAS_VECTOR_BYTES / 2)));
  static constexpr int lanes = GROWTAS_VECTOR_BYTES / 4;
};
template <>
struct Simd<double> {
  typedef double Vec __attribute__((vector_size(GROWTAS_VECTOR_BYTES)));
  typedef int64_t Mask __attribute__((vector_size(GROWTAS_VECTOR_BYTES)));
  static constexpr int lanes = GROWTAS_VECTOR_BYTES / 8;
};
template <class T>
GROWTAS_INLINE T get_lane(const typename Simd<T>::Vec& v, int lane) {
  return v[lane];
}
#else
template <>
struct Simd<float> {
  using Vec = float;
  using Mask = bool;
  using Bits = uint32_t;
  static constexpr int lanes = 1;
};
template <>
struct Simd<double> {
  using Vec = double;
  using Mask = bool;
  static constexpr int lanes = 1;
};
template <class T>
GROWTAS_INLINE T get_lane(const T& v, int) {
  return v;
}
#endif

template <class T>
using Vec = typename Simd<T>::Vec;

template <class T>
constexpr int kLanes = Simd<T>::lanes;

template <class To, class From>
GROWTAS_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "sizes differ");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

template <class T>
GROWTAS_INLINE Vec<T> splat(T value) {
  return value - Vec<T>{};  // folds to a broadcast; adding zero would not, for -0.0's sake
}

template <class T>
GROWTAS_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

template <class T>
GROWTAS_INLINE void store(T* p, const Vec<T>& v) {
  std::memcpy(p, &v, sizeof(v));
}

// All ones in the first n lanes: `first_lanes(n) ? v : 0` drops a tail, NaN included.
template <class T>
GROWTAS_INLINE typename Simd<T>::Mask first_lanes(int64_t n) {
  T index[kLanes<T>];
  for (int i = 0; i < kLanes<T>; ++i) index[i] = T(i);
  return load(index) < splat(T(n));
}

// load_partial: the first n lanes, the others zero; nothing beyond p[n - 1] is read.
// store_partial: writes n lanes and nothing beyond.
#if defined(GROWTAS_AVX512)
GROWTAS_INLINE Vec<float> load_partial(const float* p, int64_t n) {
  return _mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
}
GROWTAS_INLINE Vec<double> load_partial(const double* p, int64_t n) {
  return _mm512_maskz_loadu_pd(__mmask8((1u << n) - 1), p);
}
GROWTAS_INLINE void store_partial(float* p, const Vec<float>& v, int64_t n) {
  _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), v);
}
GROWTAS_INLINE void store_partial(double* p, const Vec<double>& v, int64_t n) {
  _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1), v);
}
#elif defined(GROWTAS_AVX2)
GROWTAS_INLINE Vec<float> load_partial(const float* p, int64_t n) {
  return _mm256_maskload_ps(p, bit_cast<__m256i>(first_lanes<float>(n)));
}
GROWTAS_INLINE Vec<double> load_partial(const double* p, int64_t n) {
  return _mm256_maskload_pd(p, bit_cast<__m256i>(first_lanes<double>(n)));
}
GROWTAS_INLINE void store_partial(float* p, const Vec<float>& v, int64_t n) {
  _mm256_maskstore_ps(p, bit_cast<__m256i>(first_lanes<float>(n)), v);
}
GROWTAS_INLINE void store_partial(double* p, const Vec<double>& v, int64_t n) {
  _mm256_maskstore_pd(p, bit_cast<__m256i>(first_lanes<double>(n)), v);
}
#else
template <class T>
GROWTAS_INLINE Vec<T> load_partial(const T* p, int64_t n) {
  T lanes[kLanes<T>] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}
template <class T>
GROWTAS_INLINE void store_partial(T* p, const Vec<T>& v, int64_t n) {
  T lanes[kLanes<T>];
  store(lanes, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}
#endif

// f(i, n): vectors of kLanes, then one tail of n < kLanes values.
template <class T, class F>
GROWTAS_INLINE void for_each_vector(int64_t width, const F& f) {
  int64_t i = 0;
  for (; i + kLanes<T> <= width; i += kLanes<T>) f(i, int64_t(kLanes<T>));
  if (i < width) f(i, width - i);
}

template <class T>
GROWTAS_INLINE Vec<T> load_n(const T* p, int64_t n) {
  return n == kLanes<T> ? load(p) : load_partial(p, n);
}

template <class T>
GROWTAS_INLINE void store_n(T* p, const Vec<T>& v, int64_t n) {
  if (n == kLanes<T>)
    store(p, v);
  else
    store_partial(p, v, n);
}

template <class T>
GROWTAS_INLINE Vec<T> square_root(const Vec<T>& v) {
#if defined(GROWTAS_AVX512)
  if constexpr (sizeof(T) == 4) return _mm512_maskz_sqrt_ps(__mmask16(-1), v);
  else return _mm512_maskz_sqrt_pd(__mmask8(-1), v);
#elif defined(GROWTAS_AVX2)
  if constexpr (sizeof(T) == 4) return _mm256_sqrt_ps(v);
  else return _mm256_sqrt_pd(v);
#else
  T lanes[kLanes<T>];
  store(lanes, v);
  for (T& lane : lanes) lane = std::sqrt(lane);
  return load(lanes);
#endif
}

// 1 / v to about one unit in the last place, for v within the square roots of the largest and the
// smallest number.
template <class T>
GROWTAS_INLINE Vec<T> reciprocal(const Vec<T>& v) {
#if defined(GROWTAS_AVX512)
  if constexpr (sizeof(T) == 4) {
    const Vec<T> guess = _mm512_maskz_rcp14_ps(__mmask16(-1), v);
    return guess * (T(2) - v * guess);
  }
#endif
  return T(1) / v;
}

template <class T>
GROWTAS_INLINE Vec<T> maximum(const Vec<T>& a, const Vec<T>& b) {
  return a > b ? a : b;
}

// e^x to about one unit in the last place for x <= 88; 0 below the smallest normal number.
// x = n ln2 + r with |r| <= ln2 / 2, e^r by a polynomial fitted to minimal relative error
// (3e-9), 2^n through the exponent bits. NaN stays NaN.
GROWTAS_INLINE Vec<float> exponential(const Vec<float>& x) {
  using Bits = Simd<float>::Bits;
  const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const Vec<float> shifted = x * 1.44269504f + shift;
  const Vec<float> n = shifted - shift;
  Vec<float> r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Vec<float> p = r * 0.001381454008f + 0.008368745213f;
  p = p * r + 0.04166839079f;
  p = p * r + 0.166665204f;
  p = p * r + 0.4999999343f;
  const Vec<float> exp_r = (p * (r * r) + r) + 1.0f;
  const Bits power = (bit_cast<Bits>(shifted) << 23) + 0x3f800000u;
  const Vec<float> result = exp_r * bit_cast<Vec<float>>(power);
  return x < splat(-87.3f) ? Vec<float>{} : result;
}

GROWTAS_INLINE Vec<double> exponential(const Vec<double>& x) {
  double lanes[kLanes<double>];
  store(lanes, x);
  for (int i = 0; i < kLanes<double>; ++i) lanes[i] = std::exp(lanes[i]);
  return load(lanes);
}

// ln x to about one unit in the last place for finite x >= 1; NaN stays NaN. x = 2^n (1 + f) with
// 1 + f in [sqrt(1/2), sqrt(2)); ln(1 + f) = f - f^2 / 2 + f^3 p(f), p fitted to minimal error of
// the whole relative to it (6e-9).
GROWTAS_INLINE Vec<float> logarithm(const Vec<float>& x) {
  using Bits = Simd<float>::Bits;
  const Bits bits = bit_cast<Bits>(x);
  const Bits power = (bits - 0x3f3504f3u) >> 23;
  const Vec<float> n = bit_cast<Vec<float>>(power | 0x4b000000u) - 8388608.0f;
  const Vec<float> f = bit_cast<Vec<float>>(bits - (power << 23)) - 1.0f;
  Vec<float> p = f * -0.07634498f + 0.12761578f;
  p = p * f - 0.13160183f;
  p = p * f + 0.14201757f;
  p = p * f - 0.16623357f;
  p = p * f + 0.20001227f;
  p = p * f - 0.2500082f;
  p = p * f + 0.3333333f;
  const Vec<float> square = f * f;
  const Vec<float> ln = f + (p * f - 0.5f) * square;
  const Vec<float> result = n * 0.693359375f + (ln - n * 2.12194440e-4f);
  return x == x ? result : x;
}

GROWTAS_INLINE Vec<double> logarithm(const Vec<double>& x) {
  double lanes[kLanes<double>];
  store(lanes, x);
  for (int i = 0; i < kLanes<double>; ++i) lanes[i] = std::log(lanes[i]);
  return load(lanes);
}

#if GROWTAS_VECTOR_BYTES > 0 && defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define GROWTAS_HAS_SHUFFLE 1
#endif
#endif

#if defined(GROWTAS_HAS_SHUFFLE)
template <int... I>
struct Lanes {};
template <int N, int... I>
struct MakeLanes : MakeLanes<N - 1, N - 1, I...> {};
template <int... I>
struct MakeLanes<0, I...> {
  using type = Lanes<I...>;
};

// Low halves interleaved: a0 b0 a1 b1 ...; high halves likewise.
template <class V, int... I>
GROWTAS_INLINE V interleave_low(const V& a, const V& b, Lanes<I...>) {
  return __builtin_shufflevector(a, b, (I / 2 + (I % 2) * int(sizeof...(I)))...);
}
template <class V, int... I>
GROWTAS_INLINE V interleave_high(const V& a, const V& b, Lanes<I...>) {
  return __builtin_shufflevector(
      a, b, (I / 2 + int(sizeof...(I)) / 2 + (I % 2) * int(sizeof...(I)))...);
}

template <int kBy, class V, int... I>
GROWTAS_INLINE V rotate_lanes(const V& v, Lanes<I...>) {
  return __builtin_shufflevector(v, v, ((I + kBy) % int(sizeof...(I)))...);
}

template <class T, int kBy>
GROWTAS_INLINE Vec<T> rotate(const Vec<T>& v) {
  return rotate_lanes<kBy>(v, typename MakeLanes<kLanes<T>>::type());
}
#else
template <class T, int kBy>
GROWTAS_INLINE Vec<T> rotate(const Vec<T>& v) {
  T lanes[2 * kLanes<T>];
  store(lanes, v);
  store(lanes + kLanes<T>, v);
  return load(lanes + kBy);
}
#endif

// Every lane joined with every other by f, halves first.
template <class T, int kHalf = kLanes<T> / 2, class F>
GROWTAS_INLINE T join_lanes(const Vec<T>& v, const F& f) {
  if constexpr (kHalf == 0)
    return get_lane<T>(v, 0);
  else
    return join_lanes<T, kHalf / 2>(f(v, rotate<T, kHalf>(v)), f);
}

template <class T>
GROWTAS_INLINE T sum_lanes(const Vec<T>& v) {
  return join_lanes<T>(v, [](const Vec<T>& a, const Vec<T>& b) { return a + b; });
}

template <class T>
GROWTAS_INLINE T max_lanes(const Vec<T>& v) {
  return join_lanes<T>(v, [](const Vec<T>& a, const Vec<T>& b) { return maximum<T>(a, b); });
}

// sums[l] = the sum of the lanes of v[l]: a tree of interleavings, so one add serves two vectors.
template <class T>
GROWTAS_INLINE Vec<T> sum_each(Vec<T> (&v)[kLanes<T>]);

#if defined(GROWTAS_HAS_SHUFFLE)
// Steps are template arguments, not loops: the arrays must be in registers early on.
template <class T, int kHalf>
GROWTAS_INLINE void sum_pairs(Vec<T> (&v)[kLanes<T>]) {
  using L = typename MakeLanes<kLanes<T>>::type;
  GROWTAS_UNROLL
  for (int i = 0; i < kHalf; ++i)
    v[i] = interleave_low(v[i], v[i + kHalf], L()) + interleave_high(v[i], v[i + kHalf], L());
  if constexpr (kHalf > 1) sum_pairs<T, kHalf / 2>(v);
}

template <class T>
GROWTAS_INLINE Vec<T> sum_each(Vec<T> (&v)[kLanes<T>]) {
  sum_pairs<T, kLanes<T> / 2>(v);
  return v[0];
}

template <class T, int kStep>
GROWTAS_INLINE void transpose_step(Vec<T> (&v)[kLanes<T>]) {
  using L = typename MakeLanes<kLanes<T>>::type;
  constexpr int half = kLanes<T> / 2;
  Vec<T> next[kLanes<T>];
  GROWTAS_UNROLL
  for (int i = 0; i < half; ++i) {
    next[2 * i] = interleave_low(v[i], v[i + half], L());
    next[2 * i + 1] = interleave_high(v[i], v[i + half], L());
  }
  GROWTAS_UNROLL
  for (int i = 0; i < kLanes<T>; ++i) v[i] = next[i];
  if constexpr (2 * kStep < kLanes<T>) transpose_step<T, 2 * kStep>(v);
}

// Transposes a square of kLanes x kLanes values in place.
template <class T>
GROWTAS_INLINE void transpose(Vec<T> (&v)[kLanes<T>]) {
  transpose_step<T, 1>(v);
}
#else
template <class T>
GROWTAS_INLINE Vec<T> sum_each(Vec<T> (&v)[kLanes<T>]) {
  T sums[kLanes<T>];
  for (int i = 0; i < kLanes<T>; ++i) sums[i] = sum_lanes<T>(v[i]);
  return load(sums);
}

template <class T>
GROWTAS_INLINE void transpose(Vec<T> (&v)[kLanes<T>]) {
  T square[kLanes<T>][kLanes<T>];
  for (int i = 0; i < kLanes<T>; ++i) {
    T lanes[kLanes<T>];
    store(lanes, v[i]);
    for (int j = 0; j < kLanes<T>; ++j) square[j][i] = lanes[j];
  }
  for (int i = 0; i < kLanes<T>; ++i) v[i] = load(square[i]);
}
#endif

}  // namespace GROWTAS_LEVEL
}  // namespace growtas
