// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What a group tells about itself: the backend and network that were chosen, and the rows and bytes of every step, compared
// with counts taken straight from the ids.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <set>

#include "support/runner.h"

namespace ferry::test {
namespace {

constexpr int kRanks =
    3;  // nodes {0, 1} and {2}; the rail from rank 0 and 1 to the second node is rank 2, back it is rank 0
constexpr int kExpertsPerRank = 2;
constexpr std::int64_t kWidth = 20;  // bf16: 40 bytes, 48 on the wire
constexpr std::int64_t kWireBytes = 48, kReturnedBytes = 40;

int node_of(int rank) {
  return rank < 2 ? 0 : 1;
}

/// Ranks of a token's choices, one entry per choice.
std::vector<int> owners(const RankInputs& inputs, std::int64_t token, int top_k) {
  std::vector<int> ranks;
  for (int k = 0; k < top_k; ++k) {
    const std::int64_t id = inputs.ids[static_cast<std::size_t>(token * top_k + k)];
    if (id >= 0) ranks.push_back(static_cast<int>(id) / kExpertsPerRank);
  }
  return ranks;
}

/// Calls visit(source, owners) for every token of every rank.
void for_each_token(const Reference& reference, const std::function<void(int, const std::vector<int>&)>& visit) {
  for (int source = 0; source < kRanks; ++source) {
    const RankInputs& inputs = reference.inputs(source);
    for (std::int64_t t = 0; t < inputs.tokens; ++t) visit(source, owners(inputs, t, reference.test_case().top_k));
  }
}

using Rows = std::map<std::string, std::int64_t>;

Rows expected_dispatch(const Reference& reference, int rank, Mode mode, Layout layout) {
  Rows rows{{"route", reference.inputs(rank).tokens}};
  for_each_token(reference, [&](int source, const std::vector<int>& ranks) {
    const std::set<int> distinct(ranks.begin(), ranks.end());
    std::set<int> other_nodes;
    for (int owner : distinct) {
      const bool in_node = node_of(owner) == node_of(source);
      if (!in_node) other_nodes.insert(node_of(owner));
      // Whole calls: a rank's own rows of latency mode are laid out straight from its tensor.
      if (source == rank && (mode == Mode::kLatency ? owner != rank : in_node)) ++rows["dispatch_send"];
      const int rail = source == 2 ? 0 : 2;
      if (mode == Mode::kThroughput && !in_node && rank == rail) ++rows["dispatch_forward"];
    }
    if (source == rank && mode == Mode::kThroughput)
      rows["dispatch_send"] += static_cast<std::int64_t>(other_nodes.size());
    const std::int64_t mine = std::count(ranks.begin(), ranks.end(), rank);
    if (mine == 0) return;
    const std::int64_t placed = layout == Layout::kRankMajor ? 1 : mine;
    rows["dispatch_recv"] += mode == Mode::kLatency ? placed : placed - 1;
  });
  return rows;
}

Rows expected_combine(const Reference& reference, int rank, Mode mode, Layout layout) {
  const Reduction::Group group = reference.test_case().reduction.group;
  Rows rows{{"combine_recv", reference.inputs(rank).tokens}};
  for_each_token(reference, [&](int source, const std::vector<int>& ranks) {
    const std::set<int> distinct(ranks.begin(), ranks.end());
    const auto rows_of = [&](int owner) {
      return group == Reduction::Group::kChoice ? std::count(ranks.begin(), ranks.end(), owner)
                                                : static_cast<std::ptrdiff_t>(distinct.count(owner));
    };
    const bool in_place = layout == Layout::kRankMajor && source == rank;
    if (!in_place) rows["combine_send"] += rows_of(rank);
    const int rail = source == 2 ? 0 : 2;
    if (mode == Mode::kLatency || rank != rail || node_of(rank) == node_of(source)) return;
    std::int64_t forwarded = 0;
    for (int owner : distinct) {
      if (node_of(owner) == node_of(rank)) forwarded += rows_of(owner);
    }
    rows["combine_forward"] += group == Reduction::Group::kNode ? std::min<std::int64_t>(forwarded, 1) : forwarded;
  });
  return rows;
}

void check_trace(const Group& group, Rows expected, std::int64_t row_bytes) {
  for (const StepTrace& step : group.last_trace()) {
    require(step.rows == expected[step.step], fmt::format("rank {}: {} has {} rows, expected {}", group.rank(),
                                                          step.step, step.rows, expected[step.step]));
    require(step.seconds >= 0, step.step + " took less than no time");
    if (step.step != "route") {
      require(step.bytes == step.rows * row_bytes,
              fmt::format("rank {}: {} has {} bytes for {} rows of {}", group.rank(), step.step, step.bytes, step.rows,
                          row_bytes));
    }
    expected.erase(step.step);
  }
  for (const auto& [step, rows] : expected)
    require(rows == 0, fmt::format("rank {}: {} is missing, expected {} rows", group.rank(), step, rows));
}

void run(Mode mode, Layout layout, Reduction reduction) {
  Case c;
  c.nodes = {2, 1};
  c.num_experts = kRanks * kExpertsPerRank;
  c.top_k = 4;
  c.tokens = {7, 0, 9};
  c.traffic = Traffic::kRepeated;
  c.dropped = 0.2;
  c.mode = mode;
  c.layout = layout;
  c.reduction = reduction;
  c.blocks = {{DType::kBf16, kWidth}};
  c.combine_width = kWidth;
  c.seed = 77;
  SCOPED_TRACE(describe(c));
  const Reference reference(c, 0);
  try {
    run_ranks(kRanks, RanksAs::kThreads, [&](Rank rank) {
      Group group = make_group(c, rank);
      Round round(reference, rank.rank);
      const DispatchResult result = group.dispatch(round.dispatch_args());
      check_trace(group, expected_dispatch(reference, rank.rank, mode, layout), kWireBytes);
      round.check(group.combine(round.combine_args(result)));
      check_trace(group, expected_combine(reference, rank.rank, mode, layout), kReturnedBytes);
    });
  } catch (const Failure& failure) {
    ADD_FAILURE() << failure.what();
  }
}

TEST(Trace, RowsAndBytesOfEveryStepInThroughputMode) {
  for (const Reduction reduction : {Reduction::flat(), Reduction::per_rank(), Reduction::per_node()}) {
    run(Mode::kThroughput, Layout::kExpertMajor, reduction);
    run(Mode::kThroughput, Layout::kExpertPadded, reduction);
    if (reduction != Reduction::flat()) run(Mode::kThroughput, Layout::kRankMajor, reduction);
  }
}

TEST(Trace, RowsAndBytesOfEveryStepInLatencyMode) {
  run(Mode::kLatency, Layout::kRankMajor, Reduction::per_rank());
  run(Mode::kLatency, Layout::kExpertPadded, Reduction::per_node());
}

/// Rows of two chunks of channels: 1536 bytes or 1920, and 48 for the words of twelve groups; what does not fit stays as it is.
TEST(Trace, CodedRowsOfCombineAreSmaller) {
  for (const Codec codec : {Codec::kFp8F32, Codec::kLogfmt10}) {
    Case c;
    c.nodes = {2};
    c.mode = Mode::kLatency;
    c.combine_codec = codec;
    c.combine_width = 1536;
    c.tokens = {9, 12};
    SCOPED_TRACE(describe(c));
    const Reference reference(c, 0);
    try {
      run_ranks(2, RanksAs::kThreads, [&](Rank rank) {
        Group group = make_group(c, rank);
        Round round(reference, rank.rank);
        const DispatchResult result = group.dispatch(round.dispatch_args());
        round.check(group.combine(round.combine_args(result)));
        const auto steps = group.last_trace();
        const auto send =
            std::find_if(steps.begin(), steps.end(), [](const StepTrace& s) { return s.step == "combine_send"; });
        require(send != steps.end() && send->rows == result.handle.num_rows(), "combine_send has other rows");
        const std::int64_t least = send->rows * ((codec == Codec::kFp8F32 ? 1536 : 1920) + 48);
        const std::int64_t most = codec == Codec::kFp8F32 ? least : send->rows * 3072 * 9 / 10;
        require(least <= send->bytes && send->bytes <= most,
                fmt::format("{} bytes for {} rows, expected {} to {}", send->bytes, send->rows, least, most));
      });
    } catch (const Failure& failure) {
      ADD_FAILURE() << failure.what();
    }
  }
}

TEST(Trace, NamesOfWhatWasChosen) {
  for (const auto& [nodes, network] : {std::pair{std::vector{2}, "none"}, {std::vector{1, 1}, "loopback"}}) {
    Case c;
    c.nodes = nodes;
    try {
      run_ranks(2, RanksAs::kThreads, [&, expected = network](Rank rank) {
        const Group group = make_group(c, rank);
        require(group.backend_name() == "host", "the backend is " + group.backend_name());
        require(group.network_name() == expected, "the network is " + group.network_name());
      });
    } catch (const Failure& failure) {
      ADD_FAILURE() << failure.what();
    }
  }
}

}  // namespace
}  // namespace ferry::test
