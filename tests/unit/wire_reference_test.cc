// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The conversions of the conformance suite's reference were written apart from the library's; they must agree.
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "support/floats.h"
#include "wire/float.h"

namespace ferry::wire {
namespace {

std::uint16_t stored16(DType dtype, float value) {
  std::byte bytes[2];
  test::store(dtype, value, bytes);
  return static_cast<std::uint16_t>(static_cast<unsigned>(bytes[0]) | static_cast<unsigned>(bytes[1]) << 8);
}

bool same(float a, float b) {
  return test::same_element(DType::kFp32, reinterpret_cast<const std::byte*>(&a),
                            reinterpret_cast<const std::byte*>(&b));
}

TEST(WireReference, DecodesAlike) {
  for (unsigned code = 0; code < 65536; ++code) {
    const std::byte bytes[2] = {static_cast<std::byte>(code & 0xff), static_cast<std::byte>(code >> 8)};
    ASSERT_TRUE(same(test::load(DType::kBf16, bytes), bf16_to_float(static_cast<std::uint16_t>(code)))) << code;
    ASSERT_TRUE(same(test::load(DType::kFp16, bytes), fp16_to_float(static_cast<std::uint16_t>(code)))) << code;
    if (code > 255) continue;
    ASSERT_TRUE(same(test::load(DType::kFp8E4m3, bytes), e4m3_to_float(static_cast<std::uint8_t>(code)))) << code;
    ASSERT_TRUE(same(test::load(DType::kUe8m0, bytes), ue8m0_to_float(static_cast<std::uint8_t>(code)))) << code;
  }
}

TEST(WireReference, EncodesAlike) {
  std::mt19937 random(29);
  for (int i = 0; i < 400'000; ++i) {
    auto bits = static_cast<std::uint32_t>(random());
    if (i % 2 != 0) bits = (bits & 0x80ffffffu) | (96u + (bits >> 26) % 48u) << 23;
    if (i % 5 == 0) bits &= 0xffff8000u;  // ties
    const float value = bits_float(bits);
    if (value != value) continue;
    ASSERT_EQ(stored16(DType::kBf16, value), float_to_bf16(value)) << std::hexfloat << value;
    ASSERT_EQ(stored16(DType::kFp16, value), float_to_fp16(value)) << std::hexfloat << value;
    std::byte e4m3;
    test::store(DType::kFp8E4m3, value, &e4m3);
    ASSERT_EQ(static_cast<std::uint8_t>(e4m3), float_to_e4m3(value)) << std::hexfloat << value;
  }
}

}  // namespace
}  // namespace ferry::wire
