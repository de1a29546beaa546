// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// FERRY_CLONES in front of a hot function makes GCC compile it twice, for AVX2 machines and for any x86-64, and choose at load
// time. Both give the same bits, because contraction is off and fma is only what is written as std::fma.
#pragma once

// Sanitizers instrument the resolver, which runs before they are ready; clang 14 has no clones.
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && !defined(FERRY_NO_CLONES) && !defined(__CUDACC__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define FERRY_CLONES __attribute__((target_clones("arch=haswell", "default")))
#else
#define FERRY_CLONES
#endif
