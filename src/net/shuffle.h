// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// A provider around a provider that does everything the contract allows and a kind network never does: puts arrive
// late, in pieces and in any order, their sources are read at the last moment, posts are delayed and overtake other
// peers' puts.
#pragma once

#include <cstdint>
#include <memory>

#include "net/carrier.h"

namespace ferry::net {

struct ShuffleConfig {
  std::uint64_t seed = 0;              ///< 0: puts pass untouched, only posts are delayed
  std::int64_t max_post_delay_ns = 0;  ///< at most one second
};

/// Throws Error(invalid_argument) for a delay out of range.
std::unique_ptr<Carrier> make_shuffle(const ShuffleConfig& config, std::unique_ptr<Carrier> inner);

}  // namespace ferry::net
