// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Row sums. One plain function per element type and operation, because clones cannot be templates; the loops inside are shared.
#include "wire/rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "core/clones.h"
#include "ferry/error.h"
#include "wire/float.h"

namespace ferry::wire {
namespace {

// Inner loops have a constant length, so that compilers vectorise them at -O2 too.
constexpr std::int64_t kStride = 32;

struct Bf16 {
  using Code = std::uint16_t;
  FERRY_HD_INLINE static float load(Code code) { return bf16_to_float(code); }
  FERRY_HD_INLINE static Code store(float value) { return float_to_bf16(value); }
};
struct Fp16 {
  using Code = std::uint16_t;
  FERRY_HD_INLINE static float load(Code code) { return fp16_to_float(code); }
  FERRY_HD_INLINE static Code store(float value) { return float_to_fp16(value); }
};
struct Fp32 {
  using Code = float;
  FERRY_HD_INLINE static float load(Code code) { return code; }
  FERRY_HD_INLINE static Code store(float value) { return value; }
};

FERRY_HD_INLINE float fused(float a, float b, float c) {
#if defined(__GNUC__)
  return __builtin_fmaf(a, b, c);  // std::fma is a function that GCC does not inline into clones
#else
  return std::fma(a, b, c);
#endif
}

template <class Element>
FERRY_HD_INLINE void add_loop(float* __restrict acc, const typename Element::Code* __restrict row, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + kStride <= n; i += kStride) {
    for (std::int64_t k = 0; k < kStride; ++k) acc[i + k] += Element::load(row[i + k]);
  }
  for (; i < n; ++i) acc[i] += Element::load(row[i]);
}

template <class Element>
FERRY_HD_INLINE void fma_loop(float* __restrict acc, const typename Element::Code* __restrict row, float weight,
                              std::int64_t n) {
  std::int64_t i = 0;
  for (; i + kStride <= n; i += kStride) {
    for (std::int64_t k = 0; k < kStride; ++k) acc[i + k] = fused(weight, Element::load(row[i + k]), acc[i + k]);
  }
  for (; i < n; ++i) acc[i] = fused(weight, Element::load(row[i]), acc[i]);
}

template <class Element>
FERRY_HD_INLINE void load_loop(float* __restrict acc, const typename Element::Code* __restrict row, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + kStride <= n; i += kStride) {
    for (std::int64_t k = 0; k < kStride; ++k) acc[i + k] = Element::load(row[i + k]);
  }
  for (; i < n; ++i) acc[i] = Element::load(row[i]);
}

template <class Element>
FERRY_HD_INLINE void round_loop(typename Element::Code* __restrict out, const float* __restrict acc, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + kStride <= n; i += kStride) {
    for (std::int64_t k = 0; k < kStride; ++k) out[i + k] = Element::store(acc[i + k]);
  }
  for (; i < n; ++i) out[i] = Element::store(acc[i]);
}

FERRY_CLONES void add_bf16(float* acc, const std::uint16_t* row, std::int64_t n) {
  add_loop<Bf16>(acc, row, n);
}
FERRY_CLONES void add_fp16(float* acc, const std::uint16_t* row, std::int64_t n) {
  add_loop<Fp16>(acc, row, n);
}
FERRY_CLONES void add_fp32(float* acc, const float* row, std::int64_t n) {
  add_loop<Fp32>(acc, row, n);
}

FERRY_CLONES void fma_bf16(float* acc, const std::uint16_t* row, float w, std::int64_t n) {
  fma_loop<Bf16>(acc, row, w, n);
}
FERRY_CLONES void fma_fp16(float* acc, const std::uint16_t* row, float w, std::int64_t n) {
  fma_loop<Fp16>(acc, row, w, n);
}
FERRY_CLONES void fma_fp32(float* acc, const float* row, float w, std::int64_t n) {
  fma_loop<Fp32>(acc, row, w, n);
}

FERRY_CLONES void load_bf16(float* acc, const std::uint16_t* row, std::int64_t n) {
  load_loop<Bf16>(acc, row, n);
}
FERRY_CLONES void load_fp16(float* acc, const std::uint16_t* row, std::int64_t n) {
  load_loop<Fp16>(acc, row, n);
}

FERRY_CLONES void round_bf16(std::uint16_t* out, const float* acc, std::int64_t n) {
  round_loop<Bf16>(out, acc, n);
}
FERRY_CLONES void round_fp16(std::uint16_t* out, const float* acc, std::int64_t n) {
  round_loop<Fp16>(out, acc, n);
}

// Two bf16 are the halves of a 32-bit word, and each half in place is a float: no shuffles, and the sums stay in registers.
// Vectors are written out, because compilers take such a loop over rows for no vector loop.
typedef std::uint32_t Words __attribute__((vector_size(32)));
typedef float Floats __attribute__((vector_size(32)));

/// float_to_bf16 whose result stays in the upper half.
FERRY_HD_INLINE void round_halves(Words& bits) {
  const Words quiet_nan = bits | 0x400000u;
  const Words rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  bits = (bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded;
}

// Two vectors at a time: compilers would make memcpy of a loop with one.
FERRY_CLONES void copy_words(std::byte* to, const std::byte* from, std::int64_t bytes) {
  for (std::int64_t at = 0; at < bytes; at += 2 * static_cast<std::int64_t>(sizeof(Words))) {
    Words first, second;
    std::memcpy(&first, from + at, sizeof(Words));
    std::memcpy(&second, from + at + sizeof(Words), sizeof(Words));
    std::memcpy(to + at, &first, sizeof(Words));
    std::memcpy(to + at + sizeof(Words), &second, sizeof(Words));
  }
}

FERRY_CLONES void sum_bf16_words(std::byte* out, std::span<const void* const> rows, std::int64_t bytes) {
  for (std::int64_t at = 0; at < bytes; at += static_cast<std::int64_t>(sizeof(Words))) {
    Floats low{}, high{};
    for (const void* row : rows) {
      Words words;
      std::memcpy(&words, static_cast<const std::byte*>(row) + at, sizeof(words));
      low += reinterpret_cast<Floats>(words << 16);
      high += reinterpret_cast<Floats>(words & 0xffff0000u);
    }
    Words low_bits = reinterpret_cast<Words>(low), high_bits = reinterpret_cast<Words>(high);
    round_halves(low_bits);
    round_halves(high_bits);
    const Words sums = (low_bits >> 16) | (high_bits & 0xffff0000u);
    std::memcpy(out + at, &sums, sizeof(sums));
  }
}

[[noreturn]] void refuse(const char* function, DType dtype) {
  throw Error(ErrorCode::kInternal, std::string("wire::") + function + ": dtype " + name(dtype) +
                                        " cannot be summed; expected bf16, fp16 or fp32");
}

void load(DType dtype, float* acc, const void* row, std::int64_t n) {
  switch (dtype) {
    case DType::kBf16:
      return load_bf16(acc, static_cast<const std::uint16_t*>(row), n);
    case DType::kFp16:
      return load_fp16(acc, static_cast<const std::uint16_t*>(row), n);
    case DType::kFp32:
      std::copy_n(static_cast<const float*>(row), n, acc);
      return;
    default:
      refuse("set_bias", dtype);
  }
}

}  // namespace

void accumulate(DType dtype, float* acc, const void* row, std::int64_t n) {
  switch (dtype) {
    case DType::kBf16:
      return add_bf16(acc, static_cast<const std::uint16_t*>(row), n);
    case DType::kFp16:
      return add_fp16(acc, static_cast<const std::uint16_t*>(row), n);
    case DType::kFp32:
      return add_fp32(acc, static_cast<const float*>(row), n);
    default:
      refuse("accumulate", dtype);
  }
}

void accumulate_weighted(DType dtype, float* acc, const void* row, float weight, std::int64_t n) {
  switch (dtype) {
    case DType::kBf16:
      return fma_bf16(acc, static_cast<const std::uint16_t*>(row), weight, n);
    case DType::kFp16:
      return fma_fp16(acc, static_cast<const std::uint16_t*>(row), weight, n);
    case DType::kFp32:
      return fma_fp32(acc, static_cast<const float*>(row), weight, n);
    default:
      refuse("accumulate_weighted", dtype);
  }
}

void copy_row(void* to, const void* from, std::int64_t bytes) {
  const bool is_aligned =
      (reinterpret_cast<std::uintptr_t>(to) | reinterpret_cast<std::uintptr_t>(from)) % sizeof(Words) == 0;
  const std::int64_t whole = is_aligned ? bytes / 64 * 64 : 0;
  copy_words(static_cast<std::byte*>(to), static_cast<const std::byte*>(from), whole);
  if (whole < bytes) {
    std::memcpy(static_cast<std::byte*>(to) + whole, static_cast<const std::byte*>(from) + whole,
                static_cast<std::size_t>(bytes - whole));
  }
}

void sum_bf16_rows(void* out, std::span<const void* const> rows, std::int64_t n) {
  constexpr std::int64_t kElements = sizeof(Words) / 2;
  const std::int64_t whole = n / kElements * kElements;
  sum_bf16_words(static_cast<std::byte*>(out), rows, whole * 2);
  for (std::int64_t i = whole; i < n; ++i) {
    float sum = 0.0f;
    for (const void* row : rows) sum += bf16_to_float(static_cast<const std::uint16_t*>(row)[i]);
    static_cast<std::uint16_t*>(out)[i] = float_to_bf16(sum);
  }
}

void round_row(DType dtype, void* out, const float* acc, std::int64_t n) {
  switch (dtype) {
    case DType::kBf16:
      return round_bf16(static_cast<std::uint16_t*>(out), acc, n);
    case DType::kFp16:
      return round_fp16(static_cast<std::uint16_t*>(out), acc, n);
    case DType::kFp32:
      std::copy_n(acc, n, static_cast<float*>(out));
      return;
    default:
      refuse("round_row", dtype);
  }
}

void set_bias(DType dtype0, const void* bias0, DType dtype1, const void* bias1, float* acc, std::int64_t n) {
  if (bias0 != nullptr) {
    load(dtype0, acc, bias0, n);
    if (bias1 != nullptr) accumulate(dtype1, acc, bias1, n);
  } else if (bias1 != nullptr) {
    load(dtype1, acc, bias1, n);
  } else {
    std::fill_n(acc, n, 0.0f);
  }
}

}  // namespace ferry::wire
