// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The CUDA stream of a call. Who calls may name it; otherwise it is the current stream of the framework that the arrays
// come from. Frameworks are asked only if they were imported already, and none is linked.
#pragma once

#include <nanobind/nanobind.h>

#include <optional>
#include <string>
#include <vector>

#include "argument.h"

namespace ferry::python {

/// A CUDA stream and the Python object that it came from, which keeps it.
struct Stream {
  void* handle = nullptr;  ///< a cudaStream_t; null: the legacy default stream
  nanobind::object keeper{};
};

struct StreamKind {
  static constexpr auto name = nanobind::detail::const_name("ferry.values.StreamLike");
};
using StreamLike = Argument<StreamKind>;

/// A handle as a number, or an object with __cuda_stream__ or cuda_stream. 0 and 1 are the legacy default stream, 2 is the
/// per-thread one. Throws Error(invalid_argument) for anything else and for a stream of another GPU than `device`.
Stream parse_stream(const std::string& function, nanobind::handle value, int device);

/// The stream that work on `array` goes to on GPU `device`: the current one of PyTorch or CuPy if it is an array of theirs.
std::optional<Stream> current_stream(nanobind::handle array, int device);

bool is_torch_tensor(nanobind::handle value);

/// Chooses the stream of one call from its arrays.
class StreamChoice {
 public:
  /// `written`: the stream that wrote a ferry.Array last, if that is known.
  void look_at(nanobind::handle array, const std::optional<Stream>& written, int device);

  /// The current stream of the first array that has one, else the stream that wrote the first ferry.Array, else the legacy
  /// default stream. It is made to follow the other streams that were seen, on the device.
  Stream choose(int device) const;

 private:
  std::optional<Stream> current_;
  std::vector<Stream> written_;
};

}  // namespace ferry::python
