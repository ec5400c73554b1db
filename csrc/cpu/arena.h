// How kernels divide the scratch memory they are given.
#pragma once

#include "simd.h"

namespace growtas {
namespace GROWTAS_LEVEL {

template <class T>
constexpr int64_t round_up(int64_t n) {
  return (n + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

// Hands out 64-byte aligned arrays; with a null base it only counts bytes.
struct Arena {
  char* base;
  size_t used = 0;

  template <class T>
  T* take(int64_t n) {
    T* p = base == nullptr ? nullptr : reinterpret_cast<T*>(base + used);
    used += (size_t(n) * sizeof(T) + 63) / 64 * 64;
    return p;
  }
};

}  // namespace GROWTAS_LEVEL
}  // namespace growtas
