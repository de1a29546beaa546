# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
#
# What can be chosen at configure time, and the defaults.
if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE RelWithDebInfo CACHE STRING "Build type" FORCE)
endif()

# Declares a cache variable that takes one of a few words.
function(ferry_choice name default help)
  set(${name} "${default}" CACHE STRING "${help} (${ARGN})")
  set_property(CACHE ${name} PROPERTY STRINGS ${ARGN})
  if(NOT "${${name}}" IN_LIST ARGN)
    message(FATAL_ERROR "${name} is '${${name}}', expected one of: ${ARGN}")
  endif()
endfunction()

set(ferry_auto_if_top AUTO)
if(NOT PROJECT_IS_TOP_LEVEL)
  set(ferry_auto_if_top OFF)
endif()

ferry_choice(FERRY_CUDA AUTO "Compile the CUDA backend; AUTO: where nvcc is found" AUTO ON OFF)
ferry_choice(FERRY_LIBFABRIC AUTO "Networks between machines; AUTO: where libfabric's headers are found" AUTO ON OFF)
set(FERRY_CUDA_ARCHITECTURES 90 CACHE STRING "GPU architectures of the CUDA backend")
ferry_choice(FERRY_TESTS ${ferry_auto_if_top} "Build tests; AUTO: where GoogleTest is found" AUTO ON OFF)
ferry_choice(FERRY_SANITIZE none "Instrument everything" none address thread)
option(FERRY_APPS "Build the command line" ${PROJECT_IS_TOP_LEVEL})
option(FERRY_EXAMPLES "Build the examples" ${PROJECT_IS_TOP_LEVEL})
option(FERRY_BENCHMARKS "Build the benchmarks" ${PROJECT_IS_TOP_LEVEL})
option(FERRY_FUZZ "Build the libFuzzer targets (clang only)" OFF)
set(FERRY_FUZZ_SECONDS 60 CACHE STRING "Seconds that all fuzz tests take together")
option(FERRY_WERROR "Warnings are errors" OFF)
option(FERRY_PYTHON "Build only the Python extension; set by pip install" OFF)

if(FERRY_FUZZ AND NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  message(FATAL_ERROR "FERRY_FUZZ needs clang, the compiler is ${CMAKE_CXX_COMPILER_ID}; use: cmake --preset asan")
endif()

if(FERRY_FUZZ AND NOT FERRY_SANITIZE STREQUAL "address")
  message(FATAL_ERROR "FERRY_FUZZ without FERRY_SANITIZE=address would see crashes only; use: cmake --preset asan")
endif()

if(PROJECT_IS_TOP_LEVEL AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  find_program(FERRY_CCACHE ccache)
  mark_as_advanced(FERRY_CCACHE)
  if(FERRY_CCACHE)
    set(CMAKE_CXX_COMPILER_LAUNCHER "${FERRY_CCACHE}")
    set(CMAKE_CUDA_COMPILER_LAUNCHER "${FERRY_CCACHE}")
  endif()
endif()
