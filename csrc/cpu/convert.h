// Rows between storage types and the arithmetic type. Rounding is to nearest, ties to even.
#pragma once

#include "dtype.h"
#include "simd.h"

namespace growtas {
namespace GROWTAS_LEVEL {

GROWTAS_INLINE float from_bfloat16(uint16_t bits) {
  return bit_cast<float>(uint32_t(bits) << 16);
}

GROWTAS_INLINE uint16_t to_bfloat16(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return uint16_t(value == value ? rounded : 0x7fc0u);
}

// Half to float: the exponent is rebiased by a multiplication, which also normalises subnormals.
GROWTAS_INLINE float from_float16(uint16_t half) {
  const uint32_t magnitude = uint32_t(half & 0x7fffu) << 13;
  const float scaled = bit_cast<float>(magnitude) * 5.192296858534828e33f;  // 2^112
  const uint32_t special = bit_cast<uint32_t>(scaled) | 0x7f800000u;        // inf and NaN
  const uint32_t bits = magnitude >= 0x0f800000u ? special : bit_cast<uint32_t>(scaled);
  return bit_cast<float>(bits | (uint32_t(half & 0x8000u) << 16));
}

GROWTAS_INLINE uint16_t to_float16(float value) {
  const uint32_t all = bit_cast<uint32_t>(value);
  const uint32_t sign = (all >> 16) & 0x8000u;
  const uint32_t bits = all & 0x7fffffffu;
  // Below 2^-14 the result is subnormal: adding 0.5 leaves the rounded value in the low bits.
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(bits) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (bits - 0x38000000u + 0x0fffu + ((bits >> 13) & 1u)) >> 13;
  uint32_t half = bits < 0x38800000u ? subnormal : normal;
  half = bits >= 0x477ff000u ? 0x7c00u : half;  // rounds beyond the largest finite value
  half = bits > 0x7f800000u ? 0x7e00u : half;   // NaN
  return uint16_t(half | sign);
}

template <class T>
GROWTAS_INLINE void widen_row(const void* src, DType dtype, T* dst, int64_t n) {
  if (dtype == DType::float64) {
    const double* p = static_cast<const double*>(src);
    for (int64_t i = 0; i < n; ++i) dst[i] = T(p[i]);
  } else if (dtype == DType::float32) {
    const float* p = static_cast<const float*>(src);
    for (int64_t i = 0; i < n; ++i) dst[i] = T(p[i]);
  } else if (dtype == DType::bfloat16) {
    const uint16_t* p = static_cast<const uint16_t*>(src);
    for (int64_t i = 0; i < n; ++i) dst[i] = T(from_bfloat16(p[i]));
  } else {
    const uint16_t* p = static_cast<const uint16_t*>(src);
    int64_t i = 0;
#if defined(GROWTAS_F16C)
    for (; i + 8 <= n; i += 8) {
      float lanes[8];
      _mm256_storeu_ps(lanes, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + i))));
      for (int j = 0; j < 8; ++j) dst[i + j] = T(lanes[j]);
    }
#endif
    for (; i < n; ++i) dst[i] = T(from_float16(p[i]));
  }
}

template <class T>
GROWTAS_INLINE void narrow_row(const T* src, void* dst, DType dtype, int64_t n) {
  if (dtype == DType::float64) {
    double* p = static_cast<double*>(dst);
    for (int64_t i = 0; i < n; ++i) p[i] = double(src[i]);
  } else if (dtype == DType::float32) {
    float* p = static_cast<float*>(dst);
    for (int64_t i = 0; i < n; ++i) p[i] = float(src[i]);
  } else if (dtype == DType::bfloat16) {
    uint16_t* p = static_cast<uint16_t*>(dst);
    for (int64_t i = 0; i < n; ++i) p[i] = to_bfloat16(float(src[i]));
  } else {
    uint16_t* p = static_cast<uint16_t*>(dst);
    int64_t i = 0;
#if defined(GROWTAS_F16C)
    for (; i + 8 <= n; i += 8) {
      float lanes[8];
      for (int j = 0; j < 8; ++j) lanes[j] = float(src[i + j]);
      _mm_storeu_si128((__m128i*)(p + i), _mm256_cvtps_ph(_mm256_loadu_ps(lanes), 0));
    }
#endif
    for (; i < n; ++i) p[i] = to_float16(float(src[i]));
  }
}

template <class T>
constexpr DType kOwnType = sizeof(T) == 8 ? DType::float64 : DType::float32;

// A row as the arithmetic type: in place when it already is, else widened into `buffer`.
template <class T>
GROWTAS_INLINE const T* read_row(const ConstBuffer& src, int64_t offset, T* buffer, int64_t n) {
  if (src.dtype == kOwnType<T>) return static_cast<const T*>(src.data) + offset;
  widen_row(src.at(offset), src.dtype, buffer, n);
  return buffer;
}

// Up to one vector of values from or to any storage type; nothing beyond the n values is touched.
template <class T>
GROWTAS_INLINE Vec<T> load_values(const ConstBuffer& src, int64_t offset, int64_t n) {
  if (src.dtype == kOwnType<T>) return load_n(static_cast<const T*>(src.data) + offset, n);
#if GROWTAS_VECTOR_BYTES > 0
  if constexpr (sizeof(T) == 4) {
    if (src.dtype == DType::bfloat16 && n == kLanes<T>) {
      Simd<float>::Halves halves;
      std::memcpy(&halves, src.at(offset), sizeof(halves));
      return bit_cast<Vec<T>>(__builtin_convertvector(halves, Simd<float>::Bits) << 16);
    }
  }
#endif
  T lanes[kLanes<T>] = {};
  widen_row(src.at(offset), src.dtype, lanes, n);
  return load(lanes);
}

template <class T>
GROWTAS_INLINE void store_values(const Buffer& dst, int64_t offset, const Vec<T>& v, int64_t n) {
  if (dst.dtype == kOwnType<T>) {
    store_n(static_cast<T*>(dst.data) + offset, v, n);
    return;
  }
#if GROWTAS_VECTOR_BYTES > 0
  if constexpr (sizeof(T) == 4) {
    if (dst.dtype == DType::bfloat16 && n == kLanes<T>) {
#if defined(GROWTAS_BFLOAT16_DOT)
      const __m256bh narrow = _mm512_cvtneps_pbh(v);
      std::memcpy(dst.at(offset), &narrow, sizeof(narrow));
#else
      using Bits = Simd<float>::Bits;
      const Bits bits = bit_cast<Bits>(v);
      const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
      const Bits kept = v == v ? rounded : Bits{} + 0x7fc0u;
      const Simd<float>::Halves halves = __builtin_convertvector(kept, Simd<float>::Halves);
      std::memcpy(dst.at(offset), &halves, sizeof(halves));
#endif
      return;
    }
  }
#endif
  T lanes[kLanes<T>] = {};
  store(lanes, v);
  narrow_row(lanes, dst.at(offset), dst.dtype, n);
}

}  // namespace GROWTAS_LEVEL
}  // namespace growtas
