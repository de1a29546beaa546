// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Refusals that the bindings make themselves, in the same shape as the library's: function, argument, seen, expected.
#pragma once

#include <string>

#include "ferry/error.h"

namespace ferry::python {

[[noreturn]] inline void refuse(const std::string& function, const std::string& argument, const std::string& seen,
                                const std::string& expected) {
  Error error(ErrorCode::kInvalidArgument, function + ": " + argument + " is " + seen + ", expected " + expected);
  error.step = function;
  error.argument = argument;
  throw error;
}

}  // namespace ferry::python
