// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Row sums. One plain function per element type and operation, because clones cannot be templates; the loops inside are shared.
#include "wire/rows.h"

#include <algorithm>
#include <cmath>
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
