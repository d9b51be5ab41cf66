// What the extension modules have in common: sage._C and, in tests, sage._emulator.
#pragma once
#include <pybind11/pybind11.h>

namespace sage {

void bind(pybind11::module_& m);

}  // namespace sage
