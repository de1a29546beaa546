# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
#
# Every header must compile alone. A header with a source file of its own is that file's first include, which proves it; for
# each other one a generated file includes nothing else.
function(ferry_is_first_include header result)
  set(${result} FALSE PARENT_SCOPE)
  string(REGEX REPLACE "\\.h$" ".cc" source "${PROJECT_SOURCE_DIR}/src/${header}")
  if(EXISTS "${source}")
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${source}")
    file(STRINGS "${source}" first REGEX "^#include" LIMIT_COUNT 1)
    if(first STREQUAL "#include \"${header}\"")
      set(${result} TRUE PARENT_SCOPE)
    endif()
  endif()
endfunction()

function(ferry_add_header_check)
  file(GLOB public_headers RELATIVE "${PROJECT_SOURCE_DIR}/include" CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/include/ferry/*.h")
  file(GLOB_RECURSE private_headers RELATIVE "${PROJECT_SOURCE_DIR}/src" CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/src/*.h")
  list(FILTER private_headers EXCLUDE REGEX "^cuda/") # needs nvcc; compiled with the CUDA backend
  set(checks "")
  foreach(header IN LISTS public_headers private_headers)
    ferry_is_first_include("${header}" proven)
    if(proven)
      continue()
    endif()
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
