// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// logfmt10 of the reference: from the words of src/wire/logfmt.h, sharing no code with it.
#pragma once

#include <vector>

namespace ferry::test {

/// What a row of bf16 values is after it was coded and restored, in chunks of 768 channels of groups of 128.
std::vector<float> through_logfmt(std::vector<float> row);

}  // namespace ferry::test
