// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// bf16 to fp8 e4m3 with a scale per block of channels, 16 channels to a lane: the same bits as src/wire/fp8_quant.h.
#pragma once

#include <cstdint>

#include "cuda/device/packets.cuh"
#include "ferry/types.h"
#include "wire/fp8_quant.h"

namespace ferry::cuda::latency {

/// 16 bf16 channels.
struct Channels {
  std::uint32_t pairs[8] = {};
};

/// The largest magnitude, NaN counted as 0.
__device__ inline std::uint32_t largest_magnitude(const Channels& x) {
  std::uint32_t largest = 0;
#pragma unroll
  for (std::uint32_t pair : x.pairs) {
    const std::uint32_t magnitudes = pair & 0x7fff7fffu;
    largest = __vmaxu2(largest, magnitudes & ~__vcmpgtu2(magnitudes, 0x7f807f80u));
  }
  return max(largest & 0xffffu, largest >> 16);
}

/// Over `lanes` neighbouring lanes, a power of two.
__device__ inline std::uint32_t largest_of_lanes(std::uint32_t value, int lanes) {
  for (int step = 1; step < lanes; step *= 2) value = max(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}

/// Two e4m3 bytes, of `low` and `high`. A NaN's sign may differ from that of the host: any NaN equals any NaN.
__device__ inline std::uint32_t encode_pair(float low, float high) {
#if __CUDA_ARCH__ >= 890
  std::uint16_t both;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(both) : "f"(high), "f"(low));
  return both;
#else
  return wire::float_to_e4m3(low) | static_cast<std::uint32_t>(wire::float_to_e4m3(high)) << 8;
#endif
}

__device__ inline uint4 encode(const Channels& x, float multiplier) {
  std::uint32_t out[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const std::uint32_t a = x.pairs[2 * i], b = x.pairs[2 * i + 1];
    const auto low = [](std::uint32_t pair) { return __uint_as_float(pair << 16); };
    const auto high = [](std::uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); };
    out[i] = encode_pair(low(a) * multiplier, high(a) * multiplier) |
             encode_pair(low(b) * multiplier, high(b) * multiplier) << 16;
  }
  return make_uint4(out[0], out[1], out[2], out[3]);
}

}  // namespace ferry::cuda::latency
