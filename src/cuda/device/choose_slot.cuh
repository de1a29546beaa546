// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Which copy of an expert a token uses.
#pragma once

#include "cuda/args.h"

namespace ferry::cuda {

/// As Placement::choose_slot; `windows`[rank] is null for ranks that are left out. Rare: most experts have one place, which callers
/// look up.
__device__ __noinline__ inline std::int32_t choose_slot(const GroupArgs& group, std::byte* const* windows,
                                                        std::int32_t expert, std::int64_t token) {
  const PlacementArgs& p = group.placement;
  const std::int32_t begin = p.first_place[expert], end = p.first_place[expert + 1];
  const auto is_live = [&](std::int32_t place) { return windows[p.rank_of_slot[p.slot_of_place[place]]] != nullptr; };
  std::int32_t num_live = 0;
  for (std::int32_t i = begin; i < end; ++i) num_live += is_live(i) ? 1 : 0;
  if (num_live == 0) return -1;
  std::int64_t skip = (group.rank + token) % num_live;
  for (std::int32_t i = begin; i < end; ++i) {
    if (is_live(i) && skip-- == 0) return p.slot_of_place[i];
  }
  return -1;
}

}  // namespace ferry::cuda
