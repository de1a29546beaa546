// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Pure arithmetic over the K choices of one token: which ranks and nodes it needs, each once, and in what order its partial
// sums return. `owner[k]` is the rank (or node) of choice k, -1 without a choice.
#pragma once

#include <cstdint>

#include "wire/float.h"

namespace ferry::routing {

/// True if choice k has an owner that no earlier choice has.
FERRY_HD inline bool is_first_of_owner(const std::int32_t* owner, int k) {
  if (owner[k] < 0) return false;
  for (int j = 0; j < k; ++j) {
    if (owner[j] == owner[k]) return false;
  }
  return true;
}

/// Position of the last choice of an owner; -1 if it has none.
FERRY_HD inline int last_choice_of(const std::int32_t* owner, int top_k, std::int32_t which) {
  for (int k = top_k - 1; k >= 0; --k) {
    if (owner[k] == which) return k;
  }
  return -1;
}

/// Number of distinct owners below `which`: the place of its partial sum among a token's returned rows. At most K - 1 for an
/// owner of the token, so K places per token suffice.
FERRY_HD inline int return_place(const std::int32_t* owner, int top_k, std::int32_t which) {
  int place = 0;
  for (int k = 0; k < top_k; ++k) {
    if (owner[k] < which && is_first_of_owner(owner, k)) ++place;
  }
  return place;
}

/// The distinct owners of a token, ascending, or by the position of their last choice. Returns how many.
FERRY_HD inline int distinct_owners(const std::int32_t* owner, int top_k, bool by_last_choice, std::int32_t* out) {
  int count = 0;
  for (int k = 0; k < top_k; ++k) {
    if (owner[k] < 0) continue;
    if (by_last_choice) {
      if (last_choice_of(owner, top_k, owner[k]) == k) out[count++] = owner[k];
      continue;
    }
    if (!is_first_of_owner(owner, k)) continue;
    int at = count++;
    for (; at > 0 && out[at - 1] > owner[k]; --at) out[at] = out[at - 1];
    out[at] = owner[k];
  }
  return count;
}

}  // namespace ferry::routing
