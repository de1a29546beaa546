// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Arrays on the way in and out: anything with __dlpack__ or the buffer protocol becomes a Tensor, and a Tensor with its
// owner becomes a ferry.Array that NumPy, PyTorch, JAX and CuPy can read without a copy.
//
// Arrays on a GPU are asked for with stream=-1: whoever exports them inserts nothing and waits for nothing. Ferry's calls
// run on a stream that is chosen for the whole call (streams.h).
#pragma once

#include <nanobind/nanobind.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "argument.h"
#include "ferry/types.h"
#include "streams.h"

namespace ferry::python {

struct ArrayKind {
  static constexpr auto name = nanobind::detail::const_name("ferry.values.ArrayLike");
};
using ArrayLike = Argument<ArrayKind>;

/// Where memory lies, in DLPack's numbers.
struct Device {
  static constexpr std::int32_t kCpu = 1, kCuda = 2, kCudaHost = 3, kRocmHost = 11, kCudaManaged = 13;

  std::int32_t type = kCpu;
  std::int32_t id = 0;

  bool is_gpu() const { return type == kCuda; }
  bool is_managed() const { return type == kCudaManaged; }
  bool is_host() const { return type == kCpu || type == kCudaHost || type == kRocmHost; }
  bool operator==(const Device&) const = default;
};

/// Where an array lies and, on a GPU, the stream that wrote it last; none: unknown.
struct Place {
  Device device;
  std::optional<Stream> stream;
};

/// A tensor and what keeps its memory.
struct Array {
  Tensor tensor;
  std::shared_ptr<const void> owner;
  bool is_readonly = false;
  Place place{};
};

enum class Access : std::uint8_t { kRead, kWrite };

/// Who asks for an array, for messages: "ferry.Group.dispatch", "payload[1]"; and where it must lie, if not anywhere.
struct ArrayArgument {
  std::string function;
  std::string argument;
  std::optional<Device> home{};
};

/// Views `value` without a copy. Throws Error(invalid_argument) naming the argument: no array, a dtype that Ferry does
/// not know, more than three dimensions, memory of another device than the argument's home, or read-only memory where it
/// will be written. `as` says what the elements stand for and must have their size. Never waits for a GPU.
Array read_array(nanobind::handle value, const ArrayArgument& argument, Access access = Access::kRead,
                 std::optional<DType> as = std::nullopt);

/// A numpy.ndarray that views the same memory; bf16, fp8 and UE8M0 as ml_dtypes. Throws Error(invalid_argument) for
/// memory of a GPU.
nanobind::object to_numpy(const Array& array);

/// A DLPack capsule; `arguments` are those of __dlpack__ in the array API standard. On a GPU the stream given there is
/// made to follow the stream that wrote the array; nothing waits on the host.
nanobind::object to_dlpack(const Array& array, const nanobind::kwargs& arguments);

nanobind::tuple to_tuple(const std::array<std::int64_t, 3>& values, int count);

/// Empty (None) if there is no tensor.
std::optional<Array> to_python(const Tensor& tensor, const std::shared_ptr<const void>& owner, const Place& place);

}  // namespace ferry::python
