// In place of CUDA's header: the threads of a block are threads of the host, blocks come one after
// another. Shared memory is `static` (tests/kernels/test_adamw_cuda.py rewrites the declarations).
#pragma once

#include <barrier>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(threads)

using cudaStream_t = void*;

struct Index {
  unsigned x = 0;
};
inline thread_local Index threadIdx, blockIdx;
inline std::barrier<>* block_barrier = nullptr;

inline void __syncthreads() { block_barrier->arrive_and_wait(); }

template <class F>
void launch(unsigned blocks, unsigned threads, const F& kernel) {
  std::barrier<> barrier(threads);
  block_barrier = &barrier;
  std::vector<std::thread> all;
  for (unsigned t = 0; t < threads; ++t)
    all.emplace_back([&, t] {
      threadIdx.x = t;
      for (unsigned b = 0; b < blocks; ++b) {
        blockIdx.x = b;
        kernel();
        barrier.arrive_and_wait();
      }
    });
  for (std::thread& thread : all) thread.join();
}
