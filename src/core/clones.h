// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// FERRY_CLONES in front of a hot function makes GCC compile it twice, for machines with AVX2 and FMA and for any x86-64, and
// choose at load time (by level: a named processor such as haswell would be chosen on exactly that processor only). Both give the same bits, because contraction is off and fma is only what is written as std::fma.
#pragma once

// Sanitizers instrument the resolver, which runs before they are ready; clang 14 has no clones.
#if defined(__GNUC__) && __GNUC__ >= 12 && !defined(__clang__) && defined(__x86_64__) && !defined(FERRY_NO_CLONES) && \
    !defined(__CUDACC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define FERRY_CLONES __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define FERRY_CLONES
#endif
