#include "bindings/bindings.h"

PYBIND11_MODULE(_C, m) { sage::bind(m); }
