// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// A case: everything that defines one dispatch and combine over all ranks, as plain values. Inputs follow from the case and
// the round by a hash, so that every rank and the reference know all of them.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "ferry/ferry.h"
#include "support/spawn.h"

namespace ferry::test {

/// How choices spread over experts.
enum class Traffic {
  kUniform,    ///< distinct experts at random
  kBalanced,   ///< every expert as often as the others
  kZipf,       ///< a few experts get most
  kAllToOne,   ///< every choice goes to experts of one rank
  kRepeated,   ///< at random with repetition: experts occur twice in a row
  kOneExpert,  ///< every choice of every token is the same expert
  kNowhere,    ///< every choice dropped
};

struct Block {
  DType dtype = DType::kBf16;
  std::int64_t width = 8;
  std::int64_t row_bytes() const { return width * static_cast<std::int64_t>(dtype_bytes(dtype)); }
};

struct Case {
  std::uint64_t seed = 1;
  std::string backend = "host";
  RanksAs ranks_as = RanksAs::kThreads;
  std::vector<int> nodes{1};
  std::string network = "auto";  ///< between them
  int num_experts = 8;
  std::vector<std::vector<Place>> places{};  ///< empty: contiguous
  std::vector<int> masked{};

  int top_k = 2;
  std::vector<std::int64_t> tokens{};  ///< by rank; missing ones: 5
  Traffic traffic = Traffic::kUniform;
  double dropped = 0;  ///< share of choices that become negative
  bool int64_ids = false;
  bool strided = false;
  bool weights = true;
  bool special_values = false;  ///< infinities, NaN, denormals among the values

  Mode mode = Mode::kThroughput;
  Layout layout = Layout::kRankMajor;
  Codec codec = Codec::kNone;
  int scale_block = 128;
  std::vector<Block> blocks{{DType::kBf16, 24}};
  int alignment = 1;
  bool default_capacity =
      false;  ///< expert_padded: leave it to the library; else what the fullest expert needs, and one
  bool zero_padding = false;
  bool renormalise = false;
  bool host_counts = true;
  Output output = Output::kWindow;

  DType combine_dtype = DType::kBf16;
  Codec combine_codec = Codec::kNone;
  std::int64_t combine_width = 24;
  Reduction reduction = Reduction::per_rank();
  CombineArgs::Weighting weighting = CombineArgs::Weighting::kNone;
  std::optional<DType> bias0{}, bias1{};
  bool bias_on_even_ranks_only = false;
  bool combine_weights = false;
  bool out_given = false;

  int rounds = 1;
  int num_flights = 2;
  std::int64_t max_signal_delay_ns = 0;
  std::int64_t recv_rows = 0;
  std::chrono::seconds timeout{60};

  int num_ranks() const;
  std::int64_t tokens_of(int rank, int round) const;
  std::int64_t max_tokens() const;
  /// Latency mode holds ranks x this many rows per expert. Experts that occur twice in a row need more than one per token.
  std::int64_t max_latency_tokens() const;
  bool is_masked(int rank) const;
  std::vector<std::vector<Place>> all_places() const;
  std::vector<Block> blocks_on_arrival() const;  ///< after the codec
  /// Empty if such a call is legal.
  std::string why_not() const;
};

/// The case for the backend that FERRY_TEST_BACKEND names (host if unset): what the cuda backend does not offer yet becomes what
/// it does (between nodes top-k up to 32, and latency mode without sums per node and weights sent ahead).
Case adapted(Case c);

/// Why such a case has no place in a run for the backend that FERRY_TEST_BACKEND names: adapted() would make it the twin of
/// another one. Empty if it has.
std::string why_not_here(const Case& c);
/// Why groups over this network cannot be made on this machine; empty if they can.
std::string why_no_network(const std::string& network);
/// Ranks as threads and as processes; on GPUs only what the run is for (FERRY_TEST_PROCESSES).
std::vector<RanksAs> ways();

/// One line with everything that is not as usual.
std::string describe(const Case& c);

/// A case drawn at random; always legal. The same seed draws the same case.
Case draw_case(std::uint64_t seed);

/// The same for a network between nodes: ranks are processes, nodes at least two.
Case draw_network_case(std::uint64_t seed, const std::string& network);

/// Limits and settings of a group that carries the case, no larger than needed.
GroupConfig group_config(const Case& c);

/// Bits from numbers; the source of all input values.
std::uint64_t hash(std::uint64_t seed, std::uint64_t a, std::uint64_t b = 0, std::uint64_t c = 0, std::uint64_t d = 0);

/// What one rank brings to one round.
struct RankInputs {
  std::int64_t tokens = 0;
  std::vector<std::int64_t> ids;                ///< [T * K]
  std::vector<float> weights;                   ///< [T * K] given at dispatch
  std::vector<float> late_weights;              ///< [T * K] given at combine
  std::vector<std::vector<std::byte>> payload;  ///< per block [T * row_bytes]
  std::vector<std::byte> bias0, bias1;          ///< [T * width] of their dtypes; empty if this rank gives none
};
std::vector<RankInputs> make_inputs(const Case& c, int round);

/// The row that an expert (local >= 0) or a rank (local -1) returns for a token; the same whoever asks.
std::vector<std::byte> returned_row(const Case& c, int round, int rank, int local, int source, std::int64_t token,
                                    int choice);
float returned_weight(const Case& c, int round, int rank, int source, std::int64_t token, int choice);

}  // namespace ferry::test
