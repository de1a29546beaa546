// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Arguments that are Python objects of several kinds.
#pragma once

#include <nanobind/nanobind.h>

namespace ferry::python {

/// An argument that may be several kinds of Python object (never None) and is looked at later. `Kind` gives the type
/// that the stubs show.
template <typename Kind>
struct Argument {
  nanobind::object value;
};

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
