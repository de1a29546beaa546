// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Refusals with one shape: function, argument, seen, expected.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>

#include "ferry/error.h"
#include "ferry/types.h"

namespace ferry {

/// "ferry::Group::dispatch: topk_ids has shape [4, 2], expected [T, K] with T = 5"
[[noreturn]] inline void refuse(std::string_view function, std::string_view argument, std::string_view seen,
                                std::string_view expected) {
  Error error(ErrorCode::kInvalidArgument,
              fmt::format("{}: {} is {}, expected {}", function, argument, seen, expected));
  error.step = function;
  error.argument = argument;
  throw error;
}

/// "[4, 7168] bf16"
std::string describe(const Tensor& tensor);

}  // namespace ferry
