// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What dispatch and combine must give, computed in one process from all ranks' inputs, straight from the documented words.
// Shares no code with the library but its plain value types.
#pragma once

#include <cstdint>
#include <vector>

#include "support/cases.h"

namespace ferry::test {

/// Where a result row comes from. `source` -1: a padding row.
struct Origin {
  int source = -1;
  std::int64_t token = 0;
  int choice = -1;  ///< -1 in rank_major
  int local = -1;   ///< local expert of an expert layout's row
};

struct ExpectedDispatch {
  std::vector<Origin> rows;  ///< N; Nx with padding; E_local * C
  std::vector<Block> blocks;
  std::vector<std::vector<std::byte>> payload;  ///< per block, rows.size() rows without gaps; padding rows are zero
  std::vector<std::int64_t> ids;                ///< rank_major [N * K]
  std::vector<float> weights;                   ///< rank_major [N * K], else per row
  std::int64_t num_rows = 0;
  std::vector<std::int32_t> source_offsets, expert_counts, expert_offsets;
  std::vector<std::int32_t> rank_counts;  ///< [R, R] rows that rank i sends to rank j
  std::vector<std::int64_t> host_expert_counts;
  std::vector<std::int32_t> source_tokens;  ///< token at its source of each rank-major row
};

class Reference {
 public:
  Reference(const Case& c, int round);

  const Case& test_case() const { return case_; }
  int round() const { return round_; }
  const RankInputs& inputs(int rank) const { return inputs_[static_cast<std::size_t>(rank)]; }

  /// `capacity`: rows per expert of expert_padded.
  ExpectedDispatch dispatch(int rank, std::int64_t capacity) const;
  /// Rows of the fullest expert of any rank.
  std::int64_t fullest_expert() const;
  /// Rows that the receive window of `rank` must hold.
  std::int64_t needed_rows(int rank, std::int64_t capacity) const;

  /// [T * width] in the combine dtype.
  std::vector<std::byte> combine(int rank) const;
  /// [T * K] of combined weights.
  std::vector<float> combined_weights(int rank) const;

  /// Replaces the weights that travel (for a cached dispatch that brings others).
  void set_weights(int rank, std::vector<float> weights);

 private:
  struct Choice {
    bool live = false;
    Place place{};
    float weight = 0;
  };
  void route(int rank);
  void weigh(int rank);
  const Choice& choice(int rank, std::int64_t token, int k) const;
  bool visits(int source, std::int64_t token, int rank) const;
  std::vector<std::byte> wire_row(int source, std::int64_t token) const;
  std::vector<Origin> expert_rows(int rank, int local) const;
  void fill_rows(ExpectedDispatch& expected, int rank) const;

  std::vector<float> rounded(std::vector<float> sums) const;
  float weight_at_combine(int rank, std::int64_t token, int k) const;
  std::vector<float> rank_sum(int source, std::int64_t token, int rank) const;
  std::vector<float> bias(int rank, std::int64_t token) const;

  Case case_;
  int round_;
  std::vector<std::vector<Place>> places_;
  std::vector<int> num_local_;
  std::vector<RankInputs> inputs_;
  std::vector<std::vector<Choice>> choices_;  // by rank [T * K]
};

}  // namespace ferry::test
