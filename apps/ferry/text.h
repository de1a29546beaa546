// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The demo's input: bytes of a text file become rows.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ferry/types.h"

namespace ferry::app {

/// The whole file. Throws std::runtime_error with a sentence if it cannot be read or is empty.
std::string read_text(const std::string& path);

/// Rows [count, hidden] of the tokens from `first` on, rounded to `dtype`. A token is a byte with the three before it
/// and its position, so that equal bytes give different rows. Positions past the end of the text start it again.
std::vector<float> embed(const std::string& text, std::int64_t first, std::int64_t count, std::int64_t hidden,
                         DType dtype, std::uint64_t seed);

}  // namespace ferry::app
