// Storage types, named without any torch header so that the kernels compile alone.
#pragma once

#include <cstdint>

namespace growtas {

enum class DType { float64, float32, bfloat16, float16 };

inline int64_t element_size(DType dtype) {
  return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
}

// A typed base pointer plus an element offset: what every kernel argument is.
struct ConstBuffer {
  const void* data = nullptr;
  DType dtype = DType::float32;

  const void* at(int64_t offset) const {
    return static_cast<const char*>(data) + offset * element_size(dtype);
  }
};

struct Buffer {
  void* data = nullptr;
  DType dtype = DType::float32;

  void* at(int64_t offset) const {
    return static_cast<char*>(data) + offset * element_size(dtype);
  }
};

}  // namespace growtas
