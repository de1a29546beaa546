// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Mode::kAuto: all ranks come to the same mode whatever their own number of tokens, and the results are those of that mode.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <functional>

#include "support/runner.h"

namespace ferry::test {
namespace {

constexpr std::int64_t kMaxTokens = 16, kMaxLatencyTokens = 8;

/// What a call gives beside its rows, and the mode that must come of it.
struct Choice {
  const char* name;
  Mode wanted;
  std::int64_t max_tokens;
  Layout layout = Layout::kRankMajor;
  std::int64_t group_max_tokens = kMaxTokens;
  std::int64_t expert_capacity = 0;
  int top_k = 2;
};

/// Ranks with very different numbers of tokens, one of them with none.
Case case_of(const Choice& choice) {
  Case c;
  c.mode = choice.wanted;
  c.layout = choice.layout;
  c.nodes = {2, 1};
  if (choice.top_k > 32) c.nodes = {3};  // adapted() would make it a case of fewer choices
  c.num_experts = 40;
  c.top_k = choice.top_k;
  c.tokens = {kMaxLatencyTokens, 0, 1};
  c.default_capacity = true;
  c.seed = 71;
  c.timeout = std::chrono::seconds(20);
  return adapted(c);
}

GroupConfig config_of(const Case& c, const Choice& choice) {
  GroupConfig config = group_config(c);
  config.limits.max_tokens = choice.group_max_tokens;
  config.limits.max_latency_tokens = kMaxLatencyTokens;
  return config;
}

DispatchArgs automatic(Round& round, const Choice& choice) {
  DispatchArgs args = round.dispatch_args();
  args.mode = Mode::kAuto;
  args.max_tokens = choice.max_tokens;
  args.expert_capacity = choice.expert_capacity;
  return args;
}

using Body = std::function<void(Group&, const Reference&, int rank)>;

void on_ranks(const Choice& choice, const Body& body) {
  const Case c = case_of(choice);
  SCOPED_TRACE(describe(c));
  const Reference reference(c, 0);
  try {
    run_ranks(c.num_ranks(), c.ranks_as, [&](Rank rank) {
      Group group = make_group(c, rank, config_of(c, choice));
      body(group, reference, rank.rank);
    });
  } catch (const Failure& failure) {
    ADD_FAILURE() << failure.what();
  }
}

void require_mode(const char* what, Mode seen, Mode wanted) {
  require(seen == wanted, fmt::format("{}: {}, expected {}", what, name(seen), name(wanted)));
}

void require_refusal(const Group& group, const DispatchArgs& args, const std::string& words) {
  const std::string reason = group.why_not(args);
  require(reason.find(words) != std::string::npos, fmt::format("no '{}' in: {}", words, reason));
}

class AutoMode : public testing::TestWithParam<Choice> {};

TEST_P(AutoMode, IsTheSameOnAllRanks) {
  const Choice& choice = GetParam();
  on_ranks(choice, [&](Group& group, const Reference& reference, int rank) {
    Round round(reference, rank);
    const DispatchArgs args = automatic(round, choice);
    require_mode("mode_of", group.mode_of(args), choice.wanted);
    const DispatchResult result = group.dispatch(args);
    require_mode("the handle", result.handle.mode(), choice.wanted);
    round.check(result);
    round.check(group.combine(round.combine_args(result)));
    // A cached dispatch takes the mode of its handle, whatever its own size would say.
    DispatchArgs cached = round.cached_args(result.handle);
    cached.mode = Mode::kAuto;
    cached.expert_capacity = 0;
    const DispatchResult again = group.dispatch(cached);
    require_mode("the cached call", again.handle.mode(), choice.wanted);
    round.check(again, true);
    round.check(group.combine(round.combine_args(again)));
    round.wait();
  });
}

INSTANTIATE_TEST_SUITE_P(
    Sizes, AutoMode,
    testing::Values(
        Choice{.name = "fits", .wanted = Mode::kLatency, .max_tokens = kMaxLatencyTokens},
        Choice{.name = "too_large", .wanted = Mode::kThroughput, .max_tokens = kMaxLatencyTokens + 1},
        Choice{.name = "group_may_send_more", .wanted = Mode::kThroughput, .max_tokens = 0},
        Choice{.name = "group_sends_no_more", .wanted = Mode::kLatency, .max_tokens = 0, .group_max_tokens = 8},
        Choice{.name = "padded", .wanted = Mode::kLatency, .max_tokens = 8, .layout = Layout::kExpertPadded},
        Choice{.name = "larger_capacity",
               .wanted = Mode::kThroughput,
               .max_tokens = 8,
               .layout = Layout::kExpertPadded,
               .expert_capacity = 3 * kMaxLatencyTokens + 1},
        Choice{.name = "by_expert", .wanted = Mode::kThroughput, .max_tokens = 8, .layout = Layout::kExpertMajor}),
    [](const auto& instance) { return instance.param.name; });

TEST(AutoModes, OnGpusManyChoicesTakeThroughputMode) {
  Choice choice{.name = "", .wanted = Mode::kThroughput, .max_tokens = 8, .top_k = 33};
  if (case_of(choice).backend != "cuda") choice.wanted = Mode::kLatency;
  on_ranks(choice, [&](Group& group, const Reference& reference, int rank) {
    Round round(reference, rank);
    DispatchArgs args = automatic(round, choice);
    require_mode("mode_of", group.mode_of(args), choice.wanted);
    args.mode = Mode::kLatency;
    if (choice.wanted == Mode::kThroughput) require_refusal(group, args, "top-k up to 32, not 33");
  });
}

TEST(AutoModes, RefusalsSayWhatFits) {
  const Choice choice{.name = "", .wanted = Mode::kLatency, .max_tokens = kMaxLatencyTokens};
  on_ranks(choice, [&](Group& group, const Reference& reference, int rank) {
    Round round(reference, rank);
    DispatchArgs args = automatic(round, choice);
    require(group.why_not(args).empty(), group.why_not(args));
    args.max_tokens = -1;
    require_refusal(group, args, "max_tokens");
    args.max_tokens = kMaxTokens + 1;
    require_refusal(group, args, "17, expected at most 16 in throughput mode (limits.max_tokens)");
    args.mode = Mode::kLatency;
    args.max_tokens = kMaxLatencyTokens + 1;
    require_refusal(group, args, "9, expected at most 8 in latency mode (limits.max_latency_tokens)");
    args.mode = Mode::kAuto;
    args.max_tokens = kMaxLatencyTokens - 1;
    if (rank == 0) require_refusal(group, args, "8 tokens, expected at most max_tokens = 7");
    if (rank != 0) require(group.why_not(args).empty(), group.why_not(args));
    // What throughput mode has and latency mode has not is no mistake here; asked for by name it is.
    args.max_tokens = kMaxLatencyTokens;
    args.layout = Layout::kExpertMajor;
    require(group.why_not(args).empty(), group.why_not(args));
    args.mode = Mode::kLatency;
    require_refusal(group, args, "latency mode has no expert_major layout");
  });
}

/// Ranks that differ in max_tokens are told, also where both would choose the same mode.
TEST(AutoModes, RanksThatDisagreeAreTold) {
  const Choice choice{.name = "", .wanted = Mode::kThroughput, .max_tokens = kMaxLatencyTokens + 1};
  on_ranks(choice, [&](Group& group, const Reference& reference, int rank) {
    Round round(reference, rank);
    DispatchArgs args = automatic(round, choice);
    if (rank == 2) args.max_tokens = kMaxTokens;
    try {
      group.dispatch(args);
    } catch (const Error& error) {
      require(error.code() == ErrorCode::kMismatch, error.what());
      return;
    }
    throw Failure("ranks with different max_tokens went on");
  });
}

}  // namespace
}  // namespace ferry::test
