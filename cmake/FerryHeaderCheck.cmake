# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
#
# Every header must compile alone: one generated file per header that includes nothing else.
function(ferry_add_header_check)
  file(GLOB public_headers RELATIVE "${PROJECT_SOURCE_DIR}/include" CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/include/ferry/*.h")
  file(GLOB_RECURSE private_headers RELATIVE "${PROJECT_SOURCE_DIR}/src" CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/src/*.h")
  list(FILTER private_headers EXCLUDE REGEX "^cuda/") # needs nvcc; compiled with the CUDA backend
  set(checks "")
  foreach(header IN LISTS public_headers private_headers)
    string(REPLACE "/" "_" check "${header}")
    set(check "${CMAKE_CURRENT_BINARY_DIR}/header_check/${check}.cc")
    file(CONFIGURE OUTPUT "${check}" CONTENT "#include \"${header}\" // IWYU pragma: keep\n" @ONLY)
    list(APPEND checks "${check}")
  endforeach()
  add_library(header_check OBJECT ${checks})
  target_include_directories(header_check PRIVATE "${PROJECT_SOURCE_DIR}/src")
  target_compile_options(header_check PRIVATE -O0 -g0)
  target_link_libraries(header_check PRIVATE ferry::ferry ferry_flags ferry_fmt)
endfunction()
