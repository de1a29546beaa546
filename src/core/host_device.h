// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Marks functions that a CPU and a GPU both call.
#pragma once

#if defined(__CUDACC__)
#define FERRY_HD __host__ __device__
#else
#define FERRY_HD
#endif

// Forced, because GCC does not inline a plain function into a clone for another machine (core/clones.h) by itself.
#if defined(__CUDACC__)
#define FERRY_HD_INLINE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define FERRY_HD_INLINE inline __attribute__((always_inline))
#else
#define FERRY_HD_INLINE inline
#endif
