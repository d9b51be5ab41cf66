// The extension module sage._emulator: sage._C with the emulated GPU as its only device, and the emulator's controls.
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "bindings/bindings.h"
#include "simt/config.h"
#include "simt/stats.h"

namespace py = pybind11;

static void configure(std::optional<std::string> const& schedule, std::optional<std::string> const& async_timing,
                      std::optional<std::string> const& accumulate) {
  simt::Config const before = simt::configuration();
  try {
    if (schedule) simt::configure_schedule(schedule->c_str());
    if (async_timing) simt::configure_async(async_timing->c_str());
    if (accumulate) simt::configure_accumulate(accumulate->c_str());
  } catch (...) {
    simt::configure(before);  // all of it or nothing
    throw;
  }
}

static py::dict stats() {
  using namespace py::literals;
  simt::Stats const s = simt::stats();
  return py::dict("launches"_a = s.launches, "switches"_a = s.switches, "collectives"_a = s.collectives,
                  "mma"_a = s.mma, "ldsm_phases"_a = s.ldsm_phases, "ldsm_conflicts"_a = s.ldsm_conflicts,
                  "stsm_phases"_a = s.stsm_phases, "stsm_conflicts"_a = s.stsm_conflicts);
}

PYBIND11_MODULE(_emulator, m) {
  using namespace py::literals;
  m.doc() = "The CUDA kernels of sage, run thread by thread on the CPU. For tests.";
  sage::bind(m);
  m.def("configure", &configure, py::kw_only(), "schedule"_a = py::none(), "async_timing"_a = py::none(),
        "accumulate"_a = py::none(),
        "Changes the next launches; values as of SAGE_EMULATOR_SCHEDULE, _ASYNC and _ACCUMULATE.");
  m.def("stats", &stats, "Counters of all launches since reset_stats.");
  m.def("reset_stats", &simt::reset_stats);
}
