// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What travels with a token beside its payload: who it is, where its choices live and which rows they take.
#pragma once

#include <cstdint>

#include "wire/float.h"

namespace ferry::wire {

/// A view of one record of 32-bit words: four words, then four arrays of K words. The same layout on the wire, in the receive
/// window and in the handle. Its size is a multiple of 16 bytes for every K.
///
///   word 0          source rank
///   word 1          source token
///   word 2          row in the rail's forward region (counted from the source's first row there), -1 if it came straight
///   word 3          unused, 0
///   slots[K]        global slot of each choice, -1 = no choice (negative id, or all copies masked)
///   rows[K]         the choice's row in its rank's result: rank-major row or expert row, by layout; -1 without a choice
///   tokens[K]       rank-major row of the token at the choice's rank; -1 without a choice
///   weights[K]      float32
///
/// Latency mode leaves rows and tokens at -1 on the wire: the receiver fills in its own.
class TokenMeta {
 public:
  FERRY_HD TokenMeta(void* record, int top_k) : words_(static_cast<std::int32_t*>(record)), top_k_(top_k) {}

  FERRY_HD static constexpr std::int64_t bytes(int top_k) { return 16 + 16 * static_cast<std::int64_t>(top_k); }

  FERRY_HD std::int32_t& source_rank() const { return words_[0]; }
  FERRY_HD std::int32_t& source_token() const { return words_[1]; }
  FERRY_HD std::int32_t& forward_row() const { return words_[2]; }
  FERRY_HD std::int32_t* slots() const { return words_ + 4; }
  FERRY_HD std::int32_t* rows() const { return words_ + 4 + top_k_; }
  FERRY_HD std::int32_t* tokens() const { return words_ + 4 + 2 * top_k_; }
  FERRY_HD float* weights() const { return reinterpret_cast<float*>(words_ + 4 + 3 * top_k_); }
  FERRY_HD int top_k() const { return top_k_; }

 private:
  std::int32_t* words_;
  int top_k_;
};

}  // namespace ferry::wire
