# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
#
# The CUDA backend. Never required: AUTO leaves it out where nvcc is missing or src/cuda holds nothing to compile.
file(GLOB_RECURSE ferry_cuda_sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/src/cuda/*.cu")
file(GLOB_RECURSE ferry_cuda_host_sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/src/cuda/*.cc")
set(FERRY_HAS_CUDA OFF)

if(FERRY_CUDA STREQUAL "ON" OR (FERRY_CUDA STREQUAL "AUTO" AND ferry_cuda_sources))
  find_program(ferry_nvcc nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
  mark_as_advanced(ferry_nvcc)
  if(ferry_nvcc AND NOT CMAKE_CUDA_COMPILER)
    set(CMAKE_CUDA_COMPILER "${ferry_nvcc}")
  endif()
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES "${FERRY_CUDA_ARCHITECTURES}")
  endif()
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    # CMake 3.25 does not know that nvcc speaks C++20.
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
    endif()
    find_package(CUDAToolkit REQUIRED)
    set(FERRY_HAS_CUDA ON)
  elseif(FERRY_CUDA STREQUAL "ON")
    message(FATAL_ERROR "FERRY_CUDA=ON, but no working nvcc was found; install the CUDA toolkit or use FERRY_CUDA=AUTO")
  endif()
endif()
message(STATUS "CUDA backend: ${FERRY_HAS_CUDA}")

# Adds the CUDA backend's objects to a library, if it is built.
function(ferry_add_cuda_sources library)
  if(NOT FERRY_HAS_CUDA OR NOT ferry_cuda_sources)
    return()
  endif()
  add_library(ferry_cuda OBJECT ${ferry_cuda_sources} ${ferry_cuda_host_sources})
  set_target_properties(ferry_cuda PROPERTIES
    POSITION_INDEPENDENT_CODE ON CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON CXX_STANDARD 20 CXX_STANDARD_REQUIRED ON)
  target_include_directories(ferry_cuda PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}/include" "${CMAKE_CURRENT_SOURCE_DIR}/src")
  target_compile_options(ferry_cuda PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:--fmad=false;--expt-relaxed-constexpr;-lineinfo;-Xcompiler=-ffp-contract=off>")
  target_link_libraries(ferry_cuda PRIVATE ferry_flags ferry_fmt CUDA::cudart_static)
  target_sources(${library} PRIVATE $<TARGET_OBJECTS:ferry_cuda>)
  # Only where it is asked, and no include path: all other objects are those of a build without CUDA, which ccache then shares.
  set_source_files_properties(src/api/create.cc src/api/capability.cc PROPERTIES COMPILE_DEFINITIONS FERRY_HAS_CUDA)
  target_link_libraries(${library} PRIVATE $<LINK_ONLY:CUDA::cudart_static>)
endfunction()
