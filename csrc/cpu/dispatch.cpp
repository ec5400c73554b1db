#include "dispatch.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

#if defined(GROWTAS_X86_LEVELS)
#include <cpuid.h>
#endif

namespace growtas {

std::vector<std::pair<std::string, bool>> cpu_features() {
#if defined(GROWTAS_X86_LEVELS)
  __builtin_cpu_init();
  // F16C has no name in older compilers: leaf 1, bit 29 of ecx; its state is AVX's.
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool leaf = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0;
  const bool avx = __builtin_cpu_supports("avx") != 0;
  return {
      {"sse2", __builtin_cpu_supports("sse2") != 0},
      {"avx", avx},
      {"f16c", avx && leaf && (ecx & (1u << 29)) != 0},
      {"fma", __builtin_cpu_supports("fma") != 0},
      {"avx2", __builtin_cpu_supports("avx2") != 0},
      {"avx512f", __builtin_cpu_supports("avx512f") != 0},
      {"avx512bw", __builtin_cpu_supports("avx512bw") != 0},
      {"avx512dq", __builtin_cpu_supports("avx512dq") != 0},
      {"avx512vl", __builtin_cpu_supports("avx512vl") != 0},
      {"avx512_bf16", __builtin_cpu_supports("avx512bf16") != 0},
  };
#else
  return {};
#endif
}

std::vector<std::string> compiled_levels() {
#if defined(GROWTAS_X86_LEVELS)
  return {"baseline", "avx2", "avx512", "avx512_bf16"};
#else
  return {"baseline"};
#endif
}

std::vector<std::string> supported_levels() {
  std::vector<std::string> levels{"baseline"};
#if defined(GROWTAS_X86_LEVELS)
  const auto features = cpu_features();
  const auto has_all = [&](std::initializer_list<const char*> names) {
    return std::all_of(names.begin(), names.end(), [&](const char* name) {
      return std::any_of(features.begin(), features.end(),
                         [&](const auto& f) { return f.first == name && f.second; });
    });
  };
  if (has_all({"avx2", "fma", "f16c"})) {
    levels.emplace_back("avx2");
    if (has_all({"avx512f", "avx512bw", "avx512dq", "avx512vl"})) {
      levels.emplace_back("avx512");
      if (has_all({"avx512_bf16"})) levels.emplace_back("avx512_bf16");
    }
  }
#endif
  return levels;
}

static std::string choose_level() {
  const std::vector<std::string> levels = supported_levels();
  const char* wanted = std::getenv("GROWTAS_SIMD");
  if (wanted == nullptr || *wanted == '\0') return levels.back();
  if (std::find(levels.begin(), levels.end(), wanted) == levels.end()) {
    std::string message = std::string("GROWTAS_SIMD=") + wanted + ": this machine can run";
    for (const auto& level : levels) message += " " + level;
    throw std::runtime_error(message);
  }
  return wanted;
}

const std::string& active_level() {
  static const std::string level = choose_level();  // a throw leaves it unset: asked again later
  return level;
}

}  // namespace growtas
