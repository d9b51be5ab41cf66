# The two commands are `make demo` and `make test`. The first of any of these makes VENV when there is none and installs
# what is needed into it; after that no network is used, and the package is rebuilt when its sources change.
PYTHON ?= python3
VENV ?= .venv
# What pip installs as PyTorch where VENV has none yet. Where your package index gives a CUDA build of several gigabytes,
# name another: make TORCH="torch==2.13.0 --index-url URL" test, or point VENV at an environment that has PyTorch.
TORCH ?= torch==2.13.0
# A kernel's translation unit takes 1.5 GB.
EMULATOR_JOBS ?= 2
# Passed on: make test ARGS="-k varlen", make bench ARGS="--preset long".
ARGS ?=
# What a wheel is built with: CUDA=13.5 takes the compiler from pip, CUDA_HOME=/usr/local/cuda-12.9 an installed toolkit.
# CUDA on the command line comes before CUDA_HOME in the environment.
CUDA ?=
ifneq ($(CUDA),)
  ifeq ($(origin CUDA_HOME),environment)
    override CUDA_HOME :=
  endif
endif

bin := $(VENV)/bin
pip := $(bin)/python -m pip --disable-pip-version-check
build_requires := $(shell sed -n '/^\[build-system\]/,/^\[project\]/s/^requires = \[\(.*\)\]/\1/p' pyproject.toml | tr -d ',')
sources := CMakeLists.txt pyproject.toml README.md third_party/cutlass/resolve.cmake \
  $(shell find csrc cmake python -type f -not -path '*/__pycache__/*' -not -name '*.so')
emulator_sources := $(shell find tests/emulator csrc/kernels -type f)
ifneq ($(shell command -v ccache),)
  export CMAKE_CXX_COMPILER_LAUNCHER := ccache
  export CMAKE_CUDA_COMPILER_LAUNCHER := ccache
endif

define check_python
@command -v $(PYTHON) >/dev/null || { echo 'sage needs Python >= 3.10: no $(PYTHON) here; name one: make PYTHON=/path/to/python3'; exit 1; }
@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 10) or sys.exit(f"sage needs Python >= 3.10, $(PYTHON) is {v[0]}.{v[1]}; name another: make PYTHON=/path/to/python3")'
endef

.PHONY: help demo test test-long bench build emulator cpp sass gpu-check wheel wheel-test clean
help:
	@echo 'make demo   run a text-embedding model with quantized attention beside PyTorch'"'"'s'
	@echo 'make test   build and run all tests'
	@echo 'make test-long  plant bugs in the kernels, which the tests must catch; the emulator under sanitizers; AVX-VNNI on AVX-512; all CUDA kernels for all architectures'
	@echo 'make bench  measure speed and error beside PyTorch'"'"'s attention'
	@echo 'make emulator  build the CUDA kernels for the emulator, which the tests run without a GPU'
	@echo 'make build  build the package and install it into $(VENV)'
	@echo 'make cpp    build the C++ package and install it into build/install'
	@echo 'make wheel CUDA=13.5  build dist/sage_attn-VERSION+cu135-....whl; CUDA_HOME=/usr/local/cuda-12.9: with an installed toolkit'
	@echo 'make wheel-test CUDA=13.5  build it, install it into a new environment and run the tests on it'
	@echo 'make gpu-check  on a machine with a GPU: build for it, run the tests that need it, measure; needs no network'
	@echo 'make sass   read the compiled CUDA kernels: registers, spills, the instructions of their loops'
	@echo 'make clean  remove what was built (not $(VENV))'

demo: build
	$(bin)/python -m sage demo $(ARGS)

test: build emulator
	$(bin)/python -m pytest $(ARGS)

test-long: build emulator
	$(bin)/python tests/planted_bugs.py
	$(bin)/python tests/sanitized_emulator.py
	$(bin)/python tests/avx_vnni_on_avx512.py
	$(bin)/python -m pytest -m long

bench: build
	$(bin)/python -m sage bench $(ARGS)

build: $(VENV)/installed.stamp

emulator: $(VENV)/emulator.stamp

cpp: $(VENV)/tools.stamp
	$(bin)/cmake -S . -B build/cpp -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(bin)/ninja) -DPython_EXECUTABLE=$(abspath $(bin)/python)
	$(bin)/cmake --build build/cpp
	$(bin)/cmake --install build/cpp --prefix build/install --component cpp

wheel:
	$(check_python)
	@$(PYTHON) cmake/wheel.py build --cuda '$(CUDA)' --cuda-home '$(CUDA_HOME)'

wheel-test: wheel
	@$(PYTHON) cmake/wheel.py test --cuda '$(CUDA)' --cuda-home '$(CUDA_HOME)' --torch '$(TORCH)' -- $(ARGS)

gpu-check:
	$(PYTHON) benchmarks/gpu_check.py $(ARGS)

sass: build
	$(bin)/python tests/sass.py build/python $(ARGS)

clean:
	rm -rf build $(VENV)/installed.stamp $(VENV)/emulator.stamp

# The build tools, which pip brings, and PyTorch.
$(VENV)/tools.stamp: pyproject.toml
	$(check_python)
	test -x $(bin)/python || $(PYTHON) -m venv $(VENV)
	$(pip) install 'pip>=23.1' cmake ninja $(build_requires)
	$(bin)/python -c 'import torch' 2>/dev/null || $(pip) install $(TORCH)
	@touch $@

$(VENV)/installed.stamp: $(VENV)/tools.stamp $(sources)
	@echo 'Building sage; installing it with what the demo, the benchmark and the tests need (the first time: a few minutes)'
	$(pip) install --quiet --no-build-isolation -C build-dir=build/python '.[demo,bench,test]'
	@touch $@

# sage._emulator, beside the installed package and never in a wheel. It needs no CUDA compiler, but CUDA's headers.
$(VENV)/emulator.stamp: $(VENV)/installed.stamp $(emulator_sources)
	@echo 'Building the CUDA kernels for the emulator (the first time: a few minutes)'
	command -v nvcc >/dev/null || $(pip) install --quiet -r cmake/cuda_headers.txt
	$(bin)/cmake -S . -B build/emulator -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(bin)/ninja) \
	  -DPython_EXECUTABLE=$(abspath $(bin)/python) -DSAGE_EMULATOR=ON -DSAGE_CUDA=OFF -DSAGE_CPU=OFF $(CMAKE_ARGS)
	$(bin)/cmake --build build/emulator --parallel $(EMULATOR_JOBS)
	$(bin)/cmake --install build/emulator --component emulator \
	  --prefix $$($(bin)/python -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
	@touch $@
