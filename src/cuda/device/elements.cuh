// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Sixteen bytes of a row as float32 and back. The same bits as src/wire/rows.h on the host: the conversions round to nearest
// even and keep denormals, sums are plain float32 operations in the order written.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "ferry/types.h"

namespace ferry::cuda {

template <DType kDType>
struct Elements;

template <>
struct Elements<DType::kBf16> {
  using Word = std::uint16_t;
  static constexpr int kCount = 8;
  __device__ static float widen(Word code) { return __uint_as_float(static_cast<std::uint32_t>(code) << 16); }
  __device__ static Word round(float value) { return __bfloat16_as_ushort(__float2bfloat16_rn(value)); }
};
template <>
struct Elements<DType::kFp16> {
  using Word = std::uint16_t;
  static constexpr int kCount = 8;
  __device__ static float widen(Word code) { return __half2float(__ushort_as_half(code)); }
  __device__ static Word round(float value) { return __half_as_ushort(__float2half_rn(value)); }
};
template <>
struct Elements<DType::kFp32> {
  using Word = std::uint32_t;
  static constexpr int kCount = 4;
  __device__ static float widen(Word code) { return __uint_as_float(code); }
  __device__ static Word round(float value) { return __float_as_uint(value); }
};

/// The elements of 16 bytes.
template <DType kDType>
struct Sixteen {
  using E = Elements<kDType>;
  static constexpr int kCount = E::kCount;
  typename E::Word words[kCount];

  __device__ static Sixteen of(uint4 bits) {
    Sixteen out;
    __builtin_memcpy(&out, &bits, 16);
    return out;
  }
  __device__ uint4 bits() const {
    uint4 out;
    __builtin_memcpy(&out, this, 16);
    return out;
  }
  /// From memory of any alignment that elements allow; `count` elements are read, the others are 0.
  __device__ static Sixteen load(const std::byte* at, int count) {
    if (count >= kCount && reinterpret_cast<std::uintptr_t>(at) % 16 == 0)
      return of(*reinterpret_cast<const uint4*>(at));
    Sixteen out;
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      out.words[i] = i < count ? reinterpret_cast<const typename E::Word*>(at)[i] : typename E::Word{0};
    return out;
  }
  __device__ void store(std::byte* at, int count) const {
    if (count >= kCount && reinterpret_cast<std::uintptr_t>(at) % 16 == 0) {
      *reinterpret_cast<uint4*>(at) = bits();
      return;
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i < count) reinterpret_cast<typename E::Word*>(at)[i] = words[i];
    }
  }
};

/// Float32 sums of as many elements as 16 bytes hold.
template <DType kDType>
struct Sums {
  static constexpr int kCount = Elements<kDType>::kCount;
  float values[kCount] = {};

  __device__ void add(const Sixteen<kDType>& row) {
    if constexpr (kDType == DType::kBf16) {
      const uint4 bits = row.bits();
      const std::uint32_t pairs[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        values[2 * i] += __uint_as_float(pairs[i] << 16);
        values[2 * i + 1] += __uint_as_float(pairs[i] & 0xffff0000u);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) values[i] += Elements<kDType>::widen(row.words[i]);
    }
  }
  __device__ void add_weighted(const Sixteen<kDType>& row, float weight) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = __fmaf_rn(weight, Elements<kDType>::widen(row.words[i]), values[i]);
  }
  __device__ Sixteen<kDType> round() const {
    if constexpr (kDType == DType::kBf16) {
      uint4 bits;  // two at a time
      auto* pairs = reinterpret_cast<__nv_bfloat162*>(&bits);
#pragma unroll
      for (int i = 0; i < 4; ++i) pairs[i] = __floats2bfloat162_rn(values[2 * i], values[2 * i + 1]);
      return Sixteen<kDType>::of(bits);
    } else {
      Sixteen<kDType> out;
#pragma unroll
      for (int i = 0; i < kCount; ++i) out.words[i] = Elements<kDType>::round(values[i]);
      return out;
    }
  }
};

/// Calls `use` with the dtype of rows as a constant.
template <typename Use>
__host__ __device__ void with_dtype(DType dtype, Use&& use) {
  if (dtype == DType::kBf16) return use.template operator()<DType::kBf16>();
  if (dtype == DType::kFp16) return use.template operator()<DType::kFp16>();
  use.template operator()<DType::kFp32>();
}

}  // namespace ferry::cuda
