// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// From what a kernel noted when it gave up to the error that the host raises.
#pragma once

#include "cuda/args.h"
#include "ferry/error.h"

namespace ferry::cuda {

/// What a kernel of `rank` wrote down, as the error that the host raises.
Error error_of(const Fault& fault, int rank);

}  // namespace ferry::cuda
