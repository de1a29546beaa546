# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
#
# Debian packages that each of our commands needs; read by tools/setup.sh.

# Compiler, build tools and header-only libraries of the library and the command line.
packages_demo="g++ cmake ninja-build libfmt-dev libcli11-dev nlohmann-json3-dev libfabric-dev"
# libfabric-dev brings the library that networks between machines open at run time.
# Tests (iproute2: nodes in network namespaces), the Python extension, the MPI baseline of the benchmarks.
packages_test="$packages_demo libgtest-dev libgmock-dev python3-venv python3-dev openmpi-bin libopenmpi-dev iproute2"
# Fuzzing, style checks, repeated builds.
packages_ci="$packages_test clang clang-format clang-tidy ccache"
