// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Where in memory a tensor lies.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ferry/types.h"

namespace ferry {

/// The bytes from a tensor's first element to behind its last, whatever lies between; strides are not negative.
struct TensorExtent {
  const std::byte *begin = nullptr, *end = nullptr;

  explicit TensorExtent(const Tensor& tensor) : begin(static_cast<const std::byte*>(tensor.data)), end(begin) {
    if (begin == nullptr || tensor.num_elements() == 0) return;
    std::int64_t last = 0;
    for (std::size_t d = 0; d < static_cast<std::size_t>(tensor.ndim); ++d)
      last += (tensor.shape[d] - 1) * tensor.strides[d];
    end = begin + (last + 1) * static_cast<std::int64_t>(dtype_bytes(tensor.dtype));
  }
};

inline bool overlap(const Tensor& a, const Tensor& b) {
  const TensorExtent one(a), other(b);
  return one.begin < other.end && other.begin < one.end;
}

}  // namespace ferry
