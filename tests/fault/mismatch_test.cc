// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Ranks that disagree, bad ids and windows that are too small: everybody concerned is told so, and the next call works.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <functional>
#include <tuple>

#include "fault_support.h"

namespace ferry::test {
namespace {

using Setup = std::tuple<Mode, std::vector<int>>;
constexpr Milliseconds kDeadline{1000};

class Mismatch : public testing::TestWithParam<Setup> {
 protected:
  void SetUp() override {
    const auto& [mode, nodes] = GetParam();
    if (const std::string why = why_no_setup(mode, nodes); !why.empty()) GTEST_SKIP() << why;
  }
  Case make_case() const { return all_to_all(std::get<0>(GetParam()), std::get<1>(GetParam())); }
};

/// Calls that must work, on all ranks, after whatever happened.
void go_on(Group& group, const Reference& reference, int rank, const std::string& after) {
  for (int i = 0; i < 3; ++i) {
    const Outcome outcome = outcome_of([&] { round_trip(group, reference, rank, Milliseconds(8000)); });
    require(!outcome.error, fmt::format("call {} after {}: {}", i, after, outcome.text()));
  }
}

TEST_P(Mismatch, DifferentCalls) {
  const Case c = make_case();
  const Reference reference(c, 0);
  Board board;
  run_and_report(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    Round round(reference, rank.rank);
    const DispatchResult arrived = group.dispatch(round.dispatch_args());
    const Outcome outcome = outcome_of([&] {
      if (rank.rank == 1) {
        DispatchArgs args = round.dispatch_args();
        args.timeout = kDeadline;
        dispatch(group, round, args);
      } else {
        CombineArgs args = round.combine_args(arrived);
        args.timeout = kDeadline;
        combine(group, round, args);
      }
    });
    if (on_cuda()) {
      require_error(outcome, {ErrorCode::kTimeout}, kDeadline, "different calls");
      return;  // kernels do not look at what their peers do, and the counts of calls are no longer the same
    }
    require_error(outcome, {ErrorCode::kMismatch}, kDeadline,
                  rank.rank == 1 ? "dispatch among combines" : "combine beside a dispatch");
    require(outcome.text().find("different calls") != std::string::npos,
            "it does not say different calls: " + outcome.text());
    // A rank of the other node may have heard it from the rail peer alone, which says no more than that it has given up.
    const bool told = c.nodes.size() > 1 && outcome.text().find("is done with this call") != std::string::npos;
    require(told || outcome.text().find(rank.rank == 1 ? "combine" : "dispatch") != std::string::npos,
            "it does not say which: " + outcome.text());
    board.meet(0, rank.size);
    go_on(group, reference, rank.rank, "different calls");
  });
}

struct Change {
  const char* what;
  std::function<void(DispatchArgs&)> change;
};

std::vector<Change> dispatch_changes() {
  return {{"layout",
           [](DispatchArgs& args) {
             args.layout = Layout::kRankMajor;
             args.expert_capacity = 0;
           }},
          {"codec", [](DispatchArgs& args) { args.codec = Codec::kFp8F32; }},
          {"scale block",
           [](DispatchArgs& args) {
             args.codec = Codec::kFp8F32;
             args.scale_block = 32;
           }},
          {"hidden", [](DispatchArgs& args) { args.payload[0].shape[1] -= 8; }},
          {"top-k",
           [](DispatchArgs& args) {
             --args.topk_ids.shape[1];
             --args.topk_weights.shape[1];
           }},
          {"capacity", [](DispatchArgs& args) { --args.expert_capacity; }},
          {"no weights", [](DispatchArgs& args) { args.topk_weights = Tensor{}; }}};
}

TEST_P(Mismatch, DispatchArguments) {
  const Case c = make_case();
  const Reference reference(c, 0);
  const auto changes = dispatch_changes();
  Board board;
  run_and_report(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    int gate = 0;
    for (const Change& change : changes) {
      Round round(reference, rank.rank);
      DispatchArgs args = round.dispatch_args();
      args.timeout = kDeadline;
      if (rank.rank == 1) change.change(args);
      const Outcome outcome = outcome_of([&] { dispatch(group, round, args); });
      require_error(outcome, {ErrorCode::kMismatch}, kDeadline, change.what);
      require(!outcome.error->peers.empty() && outcome.text().find("other arguments") != std::string::npos,
              outcome.text());
      board.meet(gate++, rank.size);
    }
    go_on(group, reference, rank.rank, "different arguments");
  });
}

TEST_P(Mismatch, CombineArguments) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "ranks that disagree share return slots until the notes are compared (docs/memory_model.md)";
#endif
  const Case c = make_case();
  const Reference reference(c, 0);
  const std::vector<std::pair<const char*, std::function<void(CombineArgs&)>>> changes = {
      {"reduction",
       [](CombineArgs& args) {
         args.reduction = args.reduction == Reduction::per_rank() ? Reduction::flat() : Reduction::per_rank();
       }},
      {"weighting",
       [](CombineArgs& args) {
         using Weighting = CombineArgs::Weighting;
         args.weighting = args.weighting == Weighting::kNone ? Weighting::kFromDispatch : Weighting::kNone;
       }},
      {"hidden", [](CombineArgs& args) { args.x.shape[2] -= 8; }},
      {"dtype", [](CombineArgs& args) { args.x.dtype = DType::kFp16; }}};
  Board board;
  run_and_report(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    int gate = 0;
    for (const auto& [what, change] : changes) {
      Round round(reference, rank.rank);
      const DispatchResult arrived = group.dispatch(round.dispatch_args());
      CombineArgs args = round.combine_args(arrived);
      args.timeout = kDeadline;
      if (rank.rank == 1) change(args);
      const Outcome outcome = outcome_of([&] { combine(group, round, args); });
      require_error(outcome, {ErrorCode::kMismatch}, kDeadline, what);
      board.meet(gate++, rank.size);
    }
    go_on(group, reference, rank.rank, "different arguments");
  });
}

TEST_P(Mismatch, ABadIdOnOneRank) {
  const Case c = make_case();
  const Reference reference(c, 0);
  run_and_report(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    for (int i = 0; i < 3; ++i) {
      Round round(reference, rank.rank);
      DispatchArgs args = round.dispatch_args();
      if (rank.rank == 1) round.set_id(args, 2, 0, 4711);
      const Outcome outcome = outcome_of([&] { group.dispatch(args); });
      require_error(outcome, {ErrorCode::kInvalidArgument}, kLong, "a bad id");
      require(outcome.error->argument == "topk_ids", "wrong argument: " + outcome.error->argument);
      for (const char* part : {"rank 1", "row 2", "4711"}) {
        require(outcome.text().find(part) != std::string::npos, fmt::format("no '{}' in: {}", part, outcome.text()));
      }
    }
    go_on(group, reference, rank.rank, "bad ids");
  });
}

TEST_P(Mismatch, ExpertCapacityOverflows) {
  const Case c = make_case();
  const Reference reference(c, 0);
  run_and_report(c, [&](Rank rank) {
    Group group = make_group(c, rank);
    for (int i = 0; i < 3; ++i) {
      Round round(reference, rank.rank);
      DispatchArgs args = round.dispatch_args();
      args.expert_capacity = 2;
      const Outcome outcome = outcome_of([&] { group.dispatch(args); });
      require_error(outcome, {ErrorCode::kOverflow}, kLong, "capacity 2");
      require(
          outcome.error->needed_rows > 2 && outcome.error->needed_rows <= reference.fullest_expert(),
          fmt::format("needs {} rows, expected at most {}", outcome.error->needed_rows, reference.fullest_expert()));
      if (c.mode == Mode::kThroughput)
        require(outcome.error->needed_rows == reference.fullest_expert(), "not the need of the fullest expert");
      if (c.mode == Mode::kThroughput)
        require(outcome.text().find(fmt::format("needs {} rows, expert_capacity is 2", reference.fullest_expert())) !=
                    std::string::npos,
                "other words than the host's: " + outcome.text());
    }
    go_on(group, reference, rank.rank, "an overflow");
  });
}

TEST_P(Mismatch, MasksThatDiffer) {
  const auto& [mode, nodes] = GetParam();
  const Case c = all_to_all(mode, nodes);
  const Reference reference(c, 0);
  const int size = c.num_ranks(), last = size - 1;
  Board board;
  run_and_report(c, [&](Rank rank) {
    GroupConfig config = group_config(c);
    config.timeout = kDeadline;
    Group group = make_group(c, rank, config);
    round_trip(group, reference, rank.rank);
    board.meet(0, rank.size);
    // Ranks 0 and 1 leave out different ranks, the others nobody.
    if (rank.rank == 0) group.mask(last);
    if (rank.rank == 1) group.mask(0);
    const Outcome outcome = outcome_of([&] { round_trip(group, reference, rank.rank, kDeadline); });
    board.meet(1, rank.size);
    // A rank that nobody but those it left out disagrees with only sees that the others do not come.
    require_error(outcome, {ErrorCode::kMismatch, ErrorCode::kTimeout}, 2 * kDeadline, "masks that differ");
    require(rank.rank != 2 || outcome.is(ErrorCode::kMismatch), "a rank that left out nobody: " + outcome.text());
    require(outcome.text().find("membership") != std::string::npos,
            "it does not name the membership: " + outcome.text());
  });
}

INSTANTIATE_TEST_SUITE_P(Setups, Mismatch,
                         testing::Combine(testing::Values(Mode::kThroughput, Mode::kLatency),
                                          testing::Values(std::vector<int>{3}, std::vector<int>{2, 2})),
                         [](const auto& setup) {
                           return std::string(name(std::get<0>(setup.param))) + "_" +
                                  nodes_name(std::get<1>(setup.param));
                         });

TEST(Membership, ACallWhoseWindowsWereMadeAnewIsNamed) {
  if (!on_cuda()) GTEST_SKIP() << "windows of the host live as long as the calls that use them";
  const Case c = all_to_all(Mode::kThroughput, {3});
  const Reference reference(c, 0);
  run_and_report(c, [&](Rank rank) {
    Group group = make_group(c, rank, group_config(c));
    Round early(reference, rank.rank), late(reference, rank.rank);
    PendingDispatch pending = group.dispatch_send(early.dispatch_args());
    if (rank.rank == 2) {
      early.check(pending.receive());
      return;
    }
    group.mask(2);
    const Outcome later = outcome_of([&] { dispatch(group, late, late.dispatch_args()); });
    require(!later.error, "a call of the new membership: " + later.text());
    const Outcome outcome = outcome_of([&] { pending.receive(); });
    require_error(outcome, {ErrorCode::kMismatch}, kShort, "a call of the old membership");
    require(outcome.text().find("membership") != std::string::npos, "it does not say why: " + outcome.text());
  });
}

TEST(Overflow, ReceiveWindowTooSmall) {
  for (const auto& nodes : {std::vector<int>{3}, {2, 2}}) {
    if (!why_no_setup(Mode::kThroughput, nodes).empty()) continue;
    Case c = all_to_all(Mode::kThroughput, nodes);
    c.layout = Layout::kRankMajor;
    c.weighting = CombineArgs::Weighting::kNone;
    c.tokens.assign(static_cast<std::size_t>(c.num_ranks()), 6);
    Case few = c;
    few.tokens.assign(static_cast<std::size_t>(c.num_ranks()), 2);
    const Reference too_many(c, 0), fitting(few, 0);
    run_and_report(c, [&](Rank rank) {
      GroupConfig config = group_config(c);
      config.limits.recv_rows = 2 * rank.size;
      Group group = make_group(c, rank, config);
      for (int i = 0; i < 3; ++i) {
        Round round(too_many, rank.rank);
        const Outcome outcome = outcome_of([&] { group.dispatch(round.dispatch_args()); });
        require_error(outcome, {ErrorCode::kOverflow}, kLong, "too many rows");
        require(outcome.error->needed_rows == 6 * rank.size,
                fmt::format("needs {} rows, expected {}", outcome.error->needed_rows, 6 * rank.size));
        round_trip(group, fitting, rank.rank);
      }
    });
  }
}

TEST(Creation, DifferentSettingsAreNamed) {
  const Case c = all_to_all(Mode::kThroughput, {3});
  const std::vector<std::pair<const char*, std::function<void(GroupConfig&)>>> changes = {
      {"limits.hidden", [](GroupConfig& config) { config.limits.hidden *= 2; }},
      {"limits.max_tokens", [](GroupConfig& config) { ++config.limits.max_tokens; }},
      {"limits.num_flights", [](GroupConfig& config) { ++config.limits.num_flights; }},
      {"topology", [](GroupConfig& config) {
         config.topology = Topology::nodes({2, 1});
       }}};
  for (const auto& [what, change] : changes) {
    if (on_cuda() && what == std::string_view("topology")) continue;  // one node only: refused on the rank itself
    run_and_report(c, [&, what = what, &change = change](Rank rank) {
      GroupConfig config = group_config(c);
      if (rank.rank == 1) change(config);
      const Outcome outcome = outcome_of([&] { make_group(c, rank, config); });
      require_error(outcome, {ErrorCode::kMismatch}, kLong, what);
      require(outcome.text().find(what) != std::string::npos, fmt::format("{} is not named: {}", what, outcome.text()));
    });
  }
}

TEST(Creation, ARankThatNeverComesIsNamed) {
  const Case c = all_to_all(Mode::kThroughput, {3});
  run_and_report(c, [&](Rank rank) {
    if (rank.rank == 2) return;
    GroupConfig config = group_config(c);
    config.timeout = kShort;
    const Outcome outcome = outcome_of([&] { make_group(c, rank, config); });
    require_error(outcome, {ErrorCode::kTimeout, ErrorCode::kBootstrap}, kShort, "a rank is missing");
    require(outcome.text().find('2') != std::string::npos, "rank 2 is not named: " + outcome.text());
  });
}

}  // namespace
}  // namespace ferry::test
