# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
#
# The way in: `make demo` runs the main job, `make test` runs all tests. Both set up everything they need.
#   JOBS=n    parallel compile jobs (default: all cores)
#   WERROR=ON warnings are errors
#   BENCH_FLAGS="--rounds 1 --only latency"   options of benchmarks/compare.py for make bench
.DEFAULT_GOAL := help
.PHONY: help demo test torch wheels build python configure asan tsan cuda fuzz lint format bench bundle clean
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

JOBS ?= $(shell nproc)
WERROR ?= OFF
HOST := build/host
PYTHON ?= python3
VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
TORCH_VENV := .venv-torch
# Builds in several folders share their objects through ccache (if it is there); their debug info may name any of the folders.
export CCACHE_NOHASHDIR := 1
export CMAKE_BUILD_PARALLEL_LEVEL := $(JOBS)

help:
	@echo "make demo    run a mixture-of-experts layer over 8 ranks and compare it with one process"
	@echo "make test    all tests: unit, conformance, fault, Python"
	@echo "make torch   tests of ferry.torch, deep_ep and their examples, with PyTorch from PyPI (a download of gigabytes)"
	@echo "make wheels  builds the wheels and runs them in clean environments"
	@echo "make asan | tsan | fuzz | cuda    configure, build and test with a preset"
	@echo "make bench   Ferry and the same job written with MPI, in turn, and the ratio (some minutes)"
	@echo "make bundle  libraries for tools/gpu.sh, which builds, tests and measures on a GPU machine without a network"
	@echo "make lint | format | clean"

# --- the two commands ------------------------------------------------------------------------------------------------------------

demo:
	@tools/setup.sh demo
	@cmake --preset host --log-level=WARNING -DFERRY_WERROR=$(WERROR)
	@cmake --build --preset host --target ferry_cli
	@$(HOST)/bin/ferry demo

test: build python
	@ctest --preset host --output-log $(HOST)/ctest.log -j $(JOBS)
	@$(VENV_PYTHON) -m pytest

# --- C++ -------------------------------------------------------------------------------------------------------------------------

configure:
	@tools/setup.sh test
	@cmake --preset host --log-level=WARNING -DFERRY_TESTS=ON -DFERRY_WERROR=$(WERROR)

build: configure
	@cmake --build --preset host

# ThreadSanitizer needs addresses where it expects them; some kernels spread them too far unless told not to.
fixed_addresses = $(shell setarch -R true 2>/dev/null && echo setarch -R)

# A build folder that another compiler made would lose the preset's choices in the change.
fresh_asan = $(shell grep -qs 'CMAKE_CXX_COMPILER:.*clang++' build/asan/CMakeCache.txt || echo --fresh)

asan tsan cuda:
	@tools/setup.sh $(if $(filter asan,$@),ci,test)
	@cmake --preset $@ $(if $(filter asan,$@),$(fresh_asan)) --log-level=WARNING
	@cmake --build --preset $@
	@$(if $(filter tsan,$@),$(fixed_addresses)) ctest --preset $@ --output-log build/$@/ctest.log -j $(JOBS)

# The fuzz programs are part of the asan build.
fuzz:
	@tools/setup.sh ci
	@cmake --preset asan $(fresh_asan) --log-level=WARNING
	@cmake --build --preset fuzz
	@ctest --preset fuzz --output-log build/asan/fuzz.log -j $(JOBS)

# --- Python ----------------------------------------------------------------------------------------------------------------------

PYTHON_SOURCES := $(shell find include src python CMakeLists.txt cmake pyproject.toml -type f -not -name '*.pyc' 2>/dev/null)

# Stamps carry what they depend on; an interrupted step leaves none behind.
$(VENV)/.made: tools/requirements.txt
	@tools/setup.sh test
	@tools/make_venv.sh $(PYTHON) $(VENV) tools/requirements.txt
	@touch $@

# The build folder is kept, so that only what changed is compiled again; the build tools come from the venv. The compiler and its
# flags are those of the host build, whose objects ccache then gives.
$(VENV)/.ferry: $(VENV)/.made $(PYTHON_SOURCES)
	@CXX="$${CXX:-c++}" PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV_PYTHON) -m pip install --quiet --no-build-isolation --no-deps --force-reinstall \
	  --config-settings=build-dir=build/python --config-settings=cmake.build-type=RelWithDebInfo \
	  --config-settings=cmake.define.FERRY_WERROR=$(WERROR) .
	@touch $@

python: $(VENV)/.ferry

# --- PyTorch: an environment of its own, which installs the wheels as users do -------------------------------------------------------

$(TORCH_VENV)/.made: tools/requirements_torch.txt
	@tools/setup.sh test
	@tools/make_venv.sh $(PYTHON) $(TORCH_VENV) tools/requirements_torch.txt
	@touch $@

# The wheels; Ferry's comes out of the folder that `make python` has compiled in.
$(TORCH_VENV)/.ferry: $(TORCH_VENV)/.made $(VENV)/.ferry $(PYTHON_SOURCES)
	@rm -rf build/wheels
	@CXX="$${CXX:-c++}" PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV_PYTHON) -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir build/wheels \
	  --config-settings=build-dir=build/python --config-settings=cmake.build-type=RelWithDebInfo \
	  --config-settings=cmake.define.FERRY_WERROR=$(WERROR) .
	@$(VENV_PYTHON) -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir build/wheels ./python/deep_ep
	@$(TORCH_VENV)/bin/python -m pip install --quiet --no-deps --force-reinstall build/wheels/*.whl
	@touch $@

torch: $(TORCH_VENV)/.ferry
	@$(TORCH_VENV)/bin/python -m pytest tests/torch

# Without the CUDA backend, whose kernels would be compiled for each Python; FERRY_CUDA=ON builds what is given away.
wheels:
	@tools/setup.sh test
	@FERRY_CUDA=$${FERRY_CUDA:-OFF} tools/check_wheels.sh

# --- style, benchmarks, the rest ----------------------------------------------------------------------------------------------------

lint: $(VENV)/.made
	@tools/setup.sh ci
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" tools/lint.sh $(LINT_FLAGS)

format: $(VENV)/.made
	@tools/setup.sh ci
	@tools/our_files.sh cxx | xargs -r clang-format -i
	@tools/our_files.sh python | xargs -r $(VENV)/bin/ruff format --quiet

bench:
	@tools/setup.sh test
	@cmake --preset host --log-level=WARNING
	@cmake --build --preset host --target ferry_cli ferry_mpi_baseline
	@$(PYTHON) benchmarks/compare.py $(BENCH_FLAGS)

bundle:
	@tools/bundle.sh

clean:
	@rm -rf build
