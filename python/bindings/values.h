// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Small values by name: Python says "latency" or ferry.Mode.LATENCY (which is a string, too).
#pragma once

#include <nanobind/nanobind.h>

#include <chrono>
#include <optional>
#include <string>
#include <string_view>

#include "ferry/types.h"

namespace ferry::python {

/// Each throws Error(invalid_argument) that lists the allowed names. `function` is named in the message.
Mode parse_mode(const std::string& function, std::string_view text);
Layout parse_layout(const std::string& function, std::string_view text);
Codec parse_codec(const std::string& function, std::string_view text);
Output parse_output(const std::string& function, std::string_view text);
/// Takes the names that NumPy and ml_dtypes use, too ("bfloat16", "float8_e4m3fn", ...).
DType parse_dtype(const std::string& function, const std::string& argument, std::string_view text);
std::optional<DType> find_dtype(std::string_view text);
Reduction::Group parse_reduction_group(const std::string& function, std::string_view text);
Reduction::Order parse_reduction_order(const std::string& function, std::string_view text);
/// A Reduction object or the name of a preset.
Reduction parse_reduction(const std::string& function, nanobind::handle value);

const char* name(Reduction::Group group) noexcept;
const char* name(Reduction::Order order) noexcept;

/// Seconds, greater than zero; at most ten years.
std::chrono::nanoseconds parse_timeout(const std::string& function, double seconds);
std::optional<std::chrono::nanoseconds> parse_timeout(const std::string& function, std::optional<double> seconds);

}  // namespace ferry::python
