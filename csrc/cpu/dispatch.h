// Which SIMD level runs. No torch here: the Python module reports from the same code.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "kernels.h"

namespace growtas {

// Levels compiled into this binary, lowest first.
std::vector<std::string> compiled_levels();

// Those of them this CPU (and its operating system) can run, lowest first.
std::vector<std::string> supported_levels();

// The highest of those that are chosen without being named. The tile levels are not: `amx` has never
// run on a CPU with AMX, and `amx_emulated` is there for tests.
std::string default_level();

// The level in use: the default one, or the one named by the environment variable GROWTAS_SIMD.
// Throws std::runtime_error when that names a level this machine cannot run.
const std::string& active_level();

// Run-time CPU features, empty on an architecture without run-time dispatch.
std::vector<std::pair<std::string, bool>> cpu_features();

}  // namespace growtas
