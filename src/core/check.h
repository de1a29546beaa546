// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Errors with one shape each: refusals say function, argument, seen, expected; failures of a call say step, call and peers.
#pragma once

#include <fmt/format.h>

#include <chrono>
#include <cstdint>
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

/// What cannot be done here; `why` says what is missing and what would work.
[[noreturn]] inline void refuse_unsupported(std::string_view function, std::string_view argument,
                                            std::string_view why) {
  Error error(ErrorCode::kUnsupported, fmt::format("{}: {}", function, why));
  error.step = function;
  error.argument = argument;
  throw error;
}

/// How a call that had begun ended at `step`. The caller adds what else is known, and throws it.
inline Error call_error(ErrorCode code, std::string_view step, std::uint64_t epoch, const std::string& message) {
  Error error(code, message);
  error.step = step;
  error.epoch = epoch;
  return error;
}
/// The same where one rank is the reason.
inline Error peer_error(ErrorCode code, std::string_view step, std::uint64_t epoch, int peer,
                        const std::string& message) {
  Error error = call_error(code, step, epoch, message);
  error.peers.push_back({.rank = peer});
  return error;
}

/// Longest wait that can be asked for. Twice that, from now on, can still be counted in nanoseconds.
constexpr std::chrono::nanoseconds kMaxTimeout = std::chrono::hours(24 * 3653);  // ten years

inline void check_timeout(std::string_view function, std::chrono::nanoseconds timeout) {
  if (timeout.count() <= 0 || timeout > kMaxTimeout)
    refuse(function, "timeout", fmt::format("{} ns", timeout.count()), "above 0, and at most ten years");
}

/// "[4, 7168] bf16"
std::string describe(const Tensor& tensor);

/// Strides that nobody takes, of one element or in an empty tensor, may be anything; here they become those of a dense tensor.
void tidy_strides(Tensor& tensor);

}  // namespace ferry
