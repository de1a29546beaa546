// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Arrays on the way in and out: anything with __dlpack__ or the buffer protocol becomes a Tensor, and a Tensor with its
// owner becomes a ferry.Array that NumPy, PyTorch, JAX and CuPy can read without a copy.
#pragma once

#include <nanobind/nanobind.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "ferry/types.h"

namespace ferry::python {

/// An argument that may be several kinds of Python object (never None) and is looked at later. `Kind` gives the type
/// that the stubs show.
template <typename Kind>
struct Argument {
  nanobind::object value;
};

struct ArrayKind {
  static constexpr auto name = nanobind::detail::const_name("ferry.values.ArrayLike");
};
using ArrayLike = Argument<ArrayKind>;

/// A tensor and what keeps its memory.
struct Array {
  Tensor tensor;
  std::shared_ptr<const void> owner;
  bool is_readonly = false;
};

enum class Access : std::uint8_t { kRead, kWrite };

/// Who asks for an array, for messages: "ferry.Group.dispatch", "payload[1]".
struct ArrayArgument {
  std::string function;
  std::string argument;
};

/// Views `value` without a copy. Throws Error(invalid_argument) naming the argument: no array, a dtype that Ferry does
/// not know, more than three dimensions, memory that the CPU cannot read, or read-only memory where it will be
/// written. `as` says what the elements stand for and must have their size.
Array read_array(nanobind::handle value, const ArrayArgument& argument, Access access = Access::kRead,
                 std::optional<DType> as = std::nullopt);

/// A numpy.ndarray that views the same memory; bf16, fp8 and UE8M0 as ml_dtypes.
nanobind::object to_numpy(const Array& array);

/// A DLPack capsule; `arguments` are those of __dlpack__ in the array API standard.
nanobind::object to_dlpack(const Array& array, const nanobind::kwargs& arguments);

nanobind::tuple to_tuple(const std::array<std::int64_t, 3>& values, int count);

/// Empty (None) if there is no tensor.
std::optional<Array> to_python(const Tensor& tensor, const std::shared_ptr<const void>& owner);

}  // namespace ferry::python

namespace nanobind::detail {

template <typename Kind>
struct type_caster<ferry::python::Argument<Kind>> {
  using Value_ = ferry::python::Argument<Kind>;
  NB_TYPE_CASTER(Value_, Kind::name)

  bool from_python(handle source, std::uint32_t, cleanup_list*) noexcept {
    if (source.is_none()) return false;
    value.value = borrow(source);
    return true;
  }
  static handle from_cpp(const Value_& source, rv_policy, cleanup_list*) noexcept { return source.value.inc_ref(); }
};

}  // namespace nanobind::detail
