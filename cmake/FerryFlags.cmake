# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
#
# ferry_flags: how our own code is compiled. It is linked privately and never exported.
add_library(ferry_flags INTERFACE)
set(cxx $<COMPILE_LANGUAGE:CXX>)

# Host and device, and every compiler, must give the same bits: no fused multiply-add that the source does not ask for.
target_compile_options(ferry_flags INTERFACE $<${cxx}:-ffp-contract=off>)
target_compile_options(ferry_flags INTERFACE "$<${cxx}:-Wall;-Wextra;-Wshadow>")
if(FERRY_WERROR)
  target_compile_options(ferry_flags INTERFACE $<${cxx}:-Werror>)
endif()
set(CMAKE_CXX_EXTENSIONS OFF)

# Sanitizers concern every object, also those of the tests. Function multiversioning goes through ifuncs, which run before
# a sanitizer's runtime is up; FERRY_NO_CLONES leaves it out.
set(ferry_sanitizer_flags "")
if(FERRY_SANITIZE STREQUAL "address")
  set(ferry_sanitizer_flags -fsanitize=address,undefined -fno-sanitize-recover=all)
elseif(FERRY_SANITIZE STREQUAL "thread")
  set(ferry_sanitizer_flags -fsanitize=thread)
endif()
if(FERRY_FUZZ)
  list(APPEND ferry_sanitizer_flags -fsanitize=fuzzer-no-link)
endif()
if(ferry_sanitizer_flags)
  add_compile_options("$<${cxx}:${ferry_sanitizer_flags};-fno-omit-frame-pointer>")
  add_link_options(${ferry_sanitizer_flags})
  target_compile_definitions(ferry_flags INTERFACE FERRY_NO_CLONES)
  # Instrumented code misleads GCC's flow analysis into false alarms, mostly inside fmt; the host preset keeps these warnings.
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    target_compile_options(ferry_flags INTERFACE
      $<${cxx}:-Wno-stringop-overflow> $<${cxx}:-Wno-maybe-uninitialized> $<${cxx}:-Wno-array-bounds>)
  endif()
  set(ferry_fast_code "")
else()
  # For the loops over rows of the command line and the baseline.
  set(ferry_fast_code $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CONFIG:Release,RelWithDebInfo>>:-O3>)
endif()
