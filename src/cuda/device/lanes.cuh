// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// All lanes of a warp.
#pragma once

namespace ferry::cuda {

inline constexpr unsigned kAll = 0xffffffffu;

}  // namespace ferry::cuda
