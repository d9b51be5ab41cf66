// In place of csrc/api/device.cpp: one CUDA device, which SAGE_EMULATOR_ARCH chooses.
#include "api/device.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "api/status.h"

namespace sage {

namespace {

// What SAGE_EMULATOR_ARCH may name.
struct Emulated {
  char const* name;
  int32_t architecture;
};

constexpr int32_t kSmCount = 3;  // so few that a persistent block has several tiles of Q

constexpr Emulated kEmulated[] = {{"sm80", 80}, {"sm89", 89}, {"sm90", 90}, {"sm120", 120}};

}  // namespace

static Status emulated(int32_t index, Emulated const** result) {
  SAGE_REQUIRE(index == 0, "the emulator has CUDA device 0 only, got %d", index);
  char const* const name = std::getenv("SAGE_EMULATOR_ARCH");
  for (Emulated const& candidate : kEmulated) {
    if (std::strcmp(name && *name ? name : "sm80", candidate.name) == 0) {
      *result = &candidate;
      return {};
    }
  }
  return make_status(StatusCode::kInvalidArgument, "SAGE_EMULATOR_ARCH must be sm80, sm89, sm90 or sm120, got '%s'",
                     name);
}

Status cuda_device_count(int32_t* count) {
  *count = 1;
  return {};
}

Status cuda_device(int32_t index, CudaDevice* device) {
  Emulated const* is = nullptr;
  SAGE_TRY(emulated(index, &is));
  *device = {};
  std::snprintf(device->name, sizeof device->name, "emulated %s", is->name);
  device->compute_capability_major = is->architecture / 10;
  device->compute_capability_minor = is->architecture % 10;
  device->sm_count = kSmCount;
  return {};
}

Status cuda_limits(Device const& device, CudaLimits* limits) {
  int32_t architecture = device.architecture;
  if (architecture == 0) {
    Emulated const* is = nullptr;
    SAGE_TRY(emulated(device.index, &is));
    architecture = is->architecture;
  }
  *limits = *known_limits(architecture);
  limits->sm_count = kSmCount;
  return {};
}

Status check_current_device(int32_t) { return {}; }

}  // namespace sage
