// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Rows of the fp8 codec on the host.
#include "wire/fp8_quant.h"

#include <algorithm>

#include "core/clones.h"

namespace ferry::wire {
namespace {

// Inner loops have a constant length, so that compilers vectorise them at -O2 too. Both scale blocks are multiples of it.
constexpr std::int64_t kStride = 32;

FERRY_CLONES std::uint16_t largest_magnitude(const std::uint16_t* x, std::int64_t n) {
  std::uint32_t lanes[kStride] = {};
  std::int64_t i = 0;
  for (; i + kStride <= n; i += kStride) {
    for (std::int64_t k = 0; k < kStride; ++k) {
      const std::uint32_t magnitude = bf16_magnitude_or_zero(x[i + k]);
      lanes[k] = select(magnitude > lanes[k], magnitude, lanes[k]);
    }
  }
  std::uint32_t largest = 0;
  for (; i < n; ++i) largest = std::max<std::uint32_t>(largest, bf16_magnitude_or_zero(x[i]));
  for (const std::uint32_t lane : lanes) largest = std::max(largest, lane);
  return static_cast<std::uint16_t>(largest);
}

FERRY_CLONES void encode(const std::uint16_t* __restrict x, std::int64_t n, float multiplier,
                         std::uint8_t* __restrict data) {
  std::int64_t i = 0;
  for (; i + kStride <= n; i += kStride) {
    for (std::int64_t k = 0; k < kStride; ++k) data[i + k] = fp8_encode(x[i + k], multiplier);
  }
  for (; i < n; ++i) data[i] = fp8_encode(x[i], multiplier);
}

FERRY_CLONES void decode(const std::uint8_t* __restrict data, std::int64_t n, float scale, float* __restrict out) {
  std::int64_t i = 0;
  for (; i + kStride <= n; i += kStride) {
    for (std::int64_t k = 0; k < kStride; ++k) out[i + k] = e4m3_to_float(data[i + k]) * scale;
  }
  for (; i < n; ++i) out[i] = e4m3_to_float(data[i]) * scale;
}

}  // namespace

void quantise_row_f32(const std::uint16_t* x, std::int64_t hidden, int scale_block, std::uint8_t* data, float* scales) {
  for (std::int64_t begin = 0; begin < hidden; begin += scale_block) {
    const std::int64_t n = std::min<std::int64_t>(scale_block, hidden - begin);
    const Fp8ScaleF32 scale = fp8_scale_f32(largest_magnitude(x + begin, n));
    encode(x + begin, n, scale.multiplier, data + begin);
    *scales++ = scale.scale;
  }
}

void quantise_row_ue8m0(const std::uint16_t* x, std::int64_t hidden, int scale_block, std::uint8_t* data,
                        std::uint8_t* scales) {
  for (std::int64_t begin = 0; begin < hidden; begin += scale_block) {
    const std::int64_t n = std::min<std::int64_t>(scale_block, hidden - begin);
    const Fp8ScaleUe8m0 scale = fp8_scale_ue8m0(largest_magnitude(x + begin, n));
    encode(x + begin, n, scale.multiplier, data + begin);
    *scales++ = scale.scale;
  }
}

void dequantise_row_f32(const std::uint8_t* data, const float* scales, std::int64_t hidden, int scale_block,
                        float* out) {
  for (std::int64_t begin = 0; begin < hidden; begin += scale_block) {
    decode(data + begin, std::min<std::int64_t>(scale_block, hidden - begin), *scales++, out + begin);
  }
}

void dequantise_row_ue8m0(const std::uint8_t* data, const std::uint8_t* scales, std::int64_t hidden, int scale_block,
                          float* out) {
  for (std::int64_t begin = 0; begin < hidden; begin += scale_block) {
    decode(data + begin, std::min<std::int64_t>(scale_block, hidden - begin), ue8m0_to_float(*scales++), out + begin);
  }
}

}  // namespace ferry::wire
