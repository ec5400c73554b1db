// growtas._C: what Python wants to know about the build and the CPU. No torch, no tensors.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/dispatch.h"

namespace py = pybind11;

namespace {

const char* compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

py::dict build_facts() {
  py::dict facts;
  facts["compiler"] = compiler();
  // The oldest torch the operator library runs with, as "major.minor".
  const unsigned long long target = TORCH_TARGET_VERSION;
  facts["torch_target"] =
      std::to_string(target >> 56) + "." + std::to_string((target >> 48) & 0xff);
  facts["simd_levels"] = growtas::compiled_levels();
  return facts;
}

py::dict cpu_features() {
  py::dict features;
  for (const auto& [name, present] : growtas::cpu_features()) features[py::str(name)] = present;
  return features;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build facts and CPU features of the growtas native library.";
  m.def("build_facts", &build_facts,
        "dict: compiler, torch_target (oldest torch), simd_levels (those compiled)");
  m.def("cpu_features", &cpu_features, "dict[str, bool]; empty without run-time dispatch");
  m.def("simd_levels", &growtas::supported_levels, "SIMD levels this CPU can run, lowest first");
  m.def("default_simd_level", &growtas::default_level,
        "SIMD level in use when GROWTAS_SIMD names none");
  m.def("simd_level", &growtas::active_level,
        "SIMD level in use. RuntimeError when GROWTAS_SIMD names one this machine cannot run");
}
