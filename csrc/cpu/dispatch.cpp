#include "dispatch.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

#if defined(GROWTAS_X86_LEVELS)
#include <cpuid.h>
#endif
#if defined(GROWTAS_TILE_LEVELS)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace growtas {

#if defined(GROWTAS_TILE_LEVELS)
namespace {

// Linux's names for its extended processor states (asm/prctl.h; absent from older headers).
constexpr int kGetSupportedStates = 0x1021, kRequestState = 0x1023, kTileData = 18;

// Whether the system manages the tile registers.
bool system_has_tiles() {
  uint64_t states = 0;
  return syscall(SYS_arch_prctl, kGetSupportedStates, &states) == 0 && (states >> kTileData & 1) != 0;
}

// Linux gives the tile registers, which are large, only to a process that asks. It asks once, for all
// its threads.
bool request_tiles() { return syscall(SYS_arch_prctl, kRequestState, kTileData) == 0; }

}  // namespace
#endif

std::vector<std::pair<std::string, bool>> cpu_features() {
#if defined(GROWTAS_X86_LEVELS)
  __builtin_cpu_init();
  // F16C has no name in older compilers: leaf 1, bit 29 of ecx; its state is AVX's.
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool leaf = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0;
  const bool f16c = leaf && (ecx & (1u << 29)) != 0;
  // AMX likewise: leaf 7, bits 22 and 24 of edx.
  const bool leaf7 = __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0;
  const bool avx = __builtin_cpu_supports("avx") != 0;
  return {
      {"sse2", __builtin_cpu_supports("sse2") != 0},
      {"avx", avx},
      {"f16c", avx && f16c},
      {"fma", __builtin_cpu_supports("fma") != 0},
      {"avx2", __builtin_cpu_supports("avx2") != 0},
      {"avx512f", __builtin_cpu_supports("avx512f") != 0},
      {"avx512bw", __builtin_cpu_supports("avx512bw") != 0},
      {"avx512dq", __builtin_cpu_supports("avx512dq") != 0},
      {"avx512vl", __builtin_cpu_supports("avx512vl") != 0},
      {"avx512_bf16", __builtin_cpu_supports("avx512bf16") != 0},
      {"amx_tile", leaf7 && (edx & (1u << 24)) != 0},
      {"amx_bf16", leaf7 && (edx & (1u << 22)) != 0},
  };
#else
  return {};
#endif
}

std::vector<std::string> compiled_levels() {
#if defined(GROWTAS_TILE_LEVELS)
  return {"baseline", "avx2", "avx512", "avx512_bf16", "amx_emulated", "amx"};
#elif defined(GROWTAS_X86_LEVELS)
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
      if (has_all({"avx512_bf16"})) {
        levels.emplace_back("avx512_bf16");
#if defined(GROWTAS_TILE_LEVELS)
        levels.emplace_back("amx_emulated");
        if (has_all({"amx_tile", "amx_bf16"}) && system_has_tiles()) levels.emplace_back("amx");
#endif
      }
    }
  }
#endif
  return levels;
}

std::string default_level() {
  std::string highest;
  for (const auto& level : supported_levels())
    if (level.compare(0, 3, "amx") != 0) highest = level;
  return highest;
}

static std::string choose_level() {
  const char* wanted = std::getenv("GROWTAS_SIMD");
  if (wanted == nullptr || *wanted == '\0') return default_level();
  const std::vector<std::string> levels = supported_levels();
  if (std::find(levels.begin(), levels.end(), wanted) == levels.end()) {
    std::string message = std::string("GROWTAS_SIMD=") + wanted + ": this machine can run";
    for (const auto& level : levels) message += " " + level;
    throw std::runtime_error(message);
  }
#if defined(GROWTAS_TILE_LEVELS)
  if (levels.back() == "amx" && wanted == levels.back() && !request_tiles())
    throw std::runtime_error("GROWTAS_SIMD=amx: the system does not give this process the tiles");
#endif
  return wanted;
}

const std::string& active_level() {
  static const std::string level = choose_level();  // a throw leaves it unset: asked again later
  return level;
}

}  // namespace growtas
