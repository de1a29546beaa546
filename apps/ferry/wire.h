// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What the demo's rows are on the way.
#pragma once

#include <string>

#include "ferry/types.h"

namespace ferry::app {

/// The dtype that the layer hands over, and how the dispatch codes it.
struct Wire {
  std::string name = "bf16";
  DType dtype = DType::kBf16;
  Codec codec = Codec::kNone;
};

}  // namespace ferry::app
