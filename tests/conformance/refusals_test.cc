// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What cannot be done: every rank gets an error that says why, and the group goes on with the next call.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "support/runner.h"

namespace ferry::test {
namespace {

Case base(Mode mode, Layout layout, std::vector<int> nodes = {2, 1}) {
  Case c;
  c.mode = mode;
  c.layout = layout;
  c.nodes = std::move(nodes);
  c.num_experts = 6;
  c.top_k = 2;
  c.tokens = {6, 6, 6};
  c.seed = 51;
  c.timeout = std::chrono::seconds(20);
  return c;
}

Error expect_error(const std::string& what, const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error;
  }
  throw Failure(what + ": no error");
}

void require_code(const std::string& what, const Error& error, ErrorCode code) {
  require(error.code() == code,
          fmt::format("{}: {} ({}), expected {}", what, error.what(), name(error.code()), name(code)));
}

void require_words(const Error& error, const std::string& words) {
  require(std::string(error.what()).find(words) != std::string::npos,
          fmt::format("no '{}' in: {}", words, error.what()));
}

using Body = std::function<void(Group&, const Reference&, int rank)>;

void on_ranks(const Case& c, const Body& body) {
  SCOPED_TRACE(describe(c));
  const Reference reference(c, 0);
  try {
    run_ranks(c.num_ranks(), c.ranks_as, [&](Rank rank) {
      Group group = make_group(c, rank);
      body(group, reference, rank.rank);
    });
  } catch (const Failure& failure) {
    ADD_FAILURE() << failure.what();
  }
}

/// A dispatch and combine that must work.
void go_on(Group& group, const Reference& reference, int rank) {
  Round round(reference, rank);
  const DispatchResult result = group.dispatch(round.dispatch_args());
  round.check(result);
  round.check(group.combine(round.combine_args(result)));
}

TEST(Refusals, OverflowOfTheReceiveWindow) {
  for (const Layout layout : {Layout::kRankMajor, Layout::kExpertMajor}) {
    Case c = base(Mode::kThroughput, layout);
    c.recv_rows = 14;
    Case crowded = c;
    crowded.traffic = Traffic::kOneExpert;  // 18 tokens, twice each in the expert layout
    Case fitting = c;
    fitting.traffic = Traffic::kBalanced;
    fitting.tokens = {2, 2, 2};
    const Reference too_many(crowded, 0), few(fitting, 0);
    const std::int64_t needed = too_many.needed_rows(2, 0);
    ASSERT_EQ(needed, layout == Layout::kRankMajor ? 18 : 36);
    on_ranks(c, [&](Group& group, const Reference&, int rank) {
      go_on(group, few, rank);
      for (int i = 0; i < 3; ++i) {
        Round round(too_many, rank);
        const Error error = expect_error("overflow", [&] { group.dispatch(round.dispatch_args()); });
        require_code("overflow", error, ErrorCode::kOverflow);
        require(error.needed_rows == needed, fmt::format("needed_rows is {}, expected {}", error.needed_rows, needed));
        require_words(error, fmt::format("rank 2 needs {} rows, its receive window holds 14", needed));
      }
      go_on(group, few, rank);
    });
  }
}

TEST(Refusals, MoreChoicesThanGpusTake) {
  Case c = adapted(base(Mode::kThroughput, Layout::kRankMajor));
  if (c.backend != "cuda") GTEST_SKIP() << "the host takes them";
  c.top_k = 129;
  Case fewer = c;
  fewer.top_k = 128;
  const Reference few(fewer, 0);
  on_ranks(c, [&](Group& group, const Reference& reference, int rank) {
    Round round(reference, rank);
    const Error error = expect_error("top-k", [&] { group.dispatch(round.dispatch_args()); });
    require_code("top-k", error, ErrorCode::kUnsupported);
    require_words(error, "takes top-k up to 128, not 129");
    go_on(group, few, rank);
  });
}

TEST(Refusals, OverflowOfAnExpertsCapacityInThroughputMode) {
  Case c = base(Mode::kThroughput, Layout::kExpertPadded);
  c.traffic = Traffic::kAllToOne;
  on_ranks(c, [](Group& group, const Reference& reference, int rank) {
    Round round(reference, rank);
    DispatchArgs args = round.dispatch_args();
    args.expert_capacity = 2;
    const Error error = expect_error("capacity", [&] { group.dispatch(args); });
    require_code("capacity", error, ErrorCode::kOverflow);
    require(error.needed_rows == reference.fullest_expert(),
            fmt::format("needed_rows is {}, expected {}", error.needed_rows, reference.fullest_expert()));
    require_words(error, " on rank 0 needs");
    require_words(error, fmt::format("needs {} rows, expert_capacity is 2", reference.fullest_expert()));
    go_on(group, reference, rank);
  });
}

TEST(Refusals, OverflowOfAnExpertsCapacityInLatencyMode) {
  Case c = base(Mode::kLatency, Layout::kExpertPadded);
  c.traffic = Traffic::kOneExpert;
  on_ranks(c, [](Group& group, const Reference& reference, int rank) {
    Round round(reference, rank);
    DispatchArgs args = round.dispatch_args();
    args.expert_capacity = 2;
    // The owner of the expert, rank 2, sees it at once; its peers learn it with the flight's next use at the latest.
    bool seen = false;
    const auto call = [&](const DispatchArgs& with) {
      try {
        group.dispatch(with);
      } catch (const Error& error) {
        require_code("capacity", error, ErrorCode::kOverflow);
        seen = true;
      }
    };
    call(args);
    require(seen || rank != 2, "rank 2 did not see its overflow");
    for (int i = 0; i < reference.test_case().num_flights + 1; ++i) {
      Round next(reference, rank);
      call(next.dispatch_args());
    }
    require(seen, "an overflow on rank 2 never reached this rank");
    go_on(group, reference, rank);
  });
}

class BadIds : public testing::TestWithParam<Mode> {};

TEST_P(BadIds, AreRefusedOnEveryRank) {
  for (const RanksAs ranks_as : {RanksAs::kThreads, RanksAs::kProcesses}) {
    Case c = base(GetParam(), Layout::kRankMajor);
    c.ranks_as = ranks_as;
    on_ranks(c, [](Group& group, const Reference& reference, int rank) {
      for (const std::int32_t bad : {6, 1000000, INT32_MAX}) {
        Round round(reference, rank);
        DispatchArgs args = round.dispatch_args();
        if (rank == 1) static_cast<std::int32_t*>(args.topk_ids.data)[7] = bad;  // token 3, choice 1
        const Error error = expect_error("bad id", [&] { group.dispatch(args); });
        require_code("bad id", error, ErrorCode::kInvalidArgument);
        require(error.argument == "topk_ids", "the argument is called " + error.argument);
        for (const std::string& word : {std::string("rank 1"), std::to_string(bad), std::string("3")}) {
          require(std::string(error.what()).find(word) != std::string::npos,
                  fmt::format("\"{}\" is missing in: {}", word, error.what()));
        }
        go_on(group, reference, rank);
      }
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Modes, BadIds, testing::Values(Mode::kThroughput, Mode::kLatency),
                         [](const auto& mode) { return std::string(name(mode.param)); });

TEST(Refusals, ArgumentsThatDifferBetweenRanks) {
  const std::pair<const char*, std::function<void(DispatchArgs&)>> changes[] = {
      {"layout", [](DispatchArgs& args) { args.layout = Layout::kRankMajor; }},
      {"alignment", [](DispatchArgs& args) { args.alignment = 4; }},
      {"codec", [](DispatchArgs& args) { args.codec = Codec::kFp8F32; }},
      {"weights", [](DispatchArgs& args) { args.topk_weights = Tensor{}; }},
      {"width", [](DispatchArgs& args) { args.payload[0].shape[1] = 16; }},
      {"dtype", [](DispatchArgs& args) { args.payload[0].dtype = DType::kFp16; }},
      {"top_k", [](DispatchArgs& args) { args.topk_ids.shape[1] = args.topk_weights.shape[1] = 1; }},
  };
  on_ranks(base(Mode::kThroughput, Layout::kExpertMajor), [&](Group& group, const Reference& reference, int rank) {
    for (const auto& [what, change] : changes) {
      Round round(reference, rank);
      DispatchArgs args = round.dispatch_args();
      if (rank == 2) change(args);
      const Error error = expect_error(what, [&] { group.dispatch(args); });
      require_code(what, error, ErrorCode::kMismatch);
      go_on(group, reference, rank);
    }
  });
}

TEST(Refusals, ArgumentsOfCombineThatDifferBetweenRanks) {
#if defined(__SANITIZE_THREAD__)
  // Ranks that disagree about widths or places write into each other's return slots. Nobody reads them, because notes are
  // compared first, but two writers of one address are a race all the same.
  GTEST_SKIP() << "ranks that disagree share return slots until the notes are compared";
#endif
  on_ranks(base(Mode::kThroughput, Layout::kExpertMajor), [](Group& group, const Reference& reference, int rank) {
    Round round(reference, rank);
    const DispatchResult result = group.dispatch(round.dispatch_args());
    CombineArgs args = round.combine_args(result);
    args.reduction = rank == 0 ? Reduction::flat() : Reduction::per_rank();
    const Error error = expect_error("reduction", [&] { group.combine(args); });
    require_code("reduction", error, ErrorCode::kMismatch);
    go_on(group, reference, rank);
  });
}

TEST(Refusals, DispatchMisuseIsRefusedHereAndLeavesTheGroupAsItWas) {
  const std::pair<const char*, std::function<void(DispatchArgs&)>> misuses[] = {
      {"payload", [](DispatchArgs& args) { args.payload.clear(); }},
      {"payload", [](DispatchArgs& args) { args.payload[0].data = nullptr; }},
      {"payload", [](DispatchArgs& args) { args.payload[0].ndim = 1; }},
      {"payload", [](DispatchArgs& args) { args.payload[0].shape[1] = 100000; }},
      {"payload", [](DispatchArgs& args) { args.payload[0].shape[1] = -1; }},
      {"payload", [](DispatchArgs& args) { args.payload[0].data = static_cast<char*>(args.payload[0].data) + 1; }},
      {"topk_ids", [](DispatchArgs& args) { args.topk_ids = Tensor{}; }},
      {"topk_ids", [](DispatchArgs& args) { args.topk_ids.dtype = DType::kFp32; }},
      {"topk_ids", [](DispatchArgs& args) { args.topk_ids.shape[0] -= 1; }},
      {"topk_ids", [](DispatchArgs& args) { args.topk_ids.shape[1] = 0; }},
      {"topk_ids", [](DispatchArgs& args) { args.topk_ids.data = nullptr; }},
      {"topk_weights", [](DispatchArgs& args) { args.topk_weights.dtype = DType::kBf16; }},
      {"topk_weights", [](DispatchArgs& args) { args.topk_weights.shape[1] = 1; }},
      {"scale_block",
       [](DispatchArgs& args) {
         args.codec = Codec::kFp8F32;
         args.scale_block = 48;
       }},
      {"alignment",
       [](DispatchArgs& args) {
         args.layout = Layout::kExpertMajor;
         args.alignment = 0;
       }},
      {"expert_capacity",
       [](DispatchArgs& args) {
         args.layout = Layout::kExpertPadded;
         args.expert_capacity = -3;
       }},
      {"handle_memory",
       [](DispatchArgs& args) {
         static std::byte little[8];
         args.handle_memory = little;
       }},
      {"timeout", [](DispatchArgs& args) { args.timeout = std::chrono::nanoseconds(-1); }},
  };
  on_ranks(base(Mode::kThroughput, Layout::kRankMajor), [&](Group& group, const Reference& reference, int rank) {
    int which = 0;
    for (const auto& [argument, change] : misuses) {
      const std::string what = fmt::format("misuse {} of {}", which++, argument);
      Round round(reference, rank);
      DispatchArgs args = round.dispatch_args();
      change(args);
      const std::string why = group.why_not(args);
      const Error error = expect_error(what, [&] { group.dispatch(args); });
      require_code(what, error, ErrorCode::kInvalidArgument);
      require(error.argument.find(argument) == 0,
              what + fmt::format(": argument is \"{}\", expected \"{}\": {}", error.argument, argument, error.what()));
      require(!why.empty(), what + fmt::format(": why_not has no reason where dispatch says: {}", error.what()));
    }
    go_on(group, reference, rank);
  });
}

TEST(Refusals, CombineMisuseIsRefusedHereAndLeavesTheGroupAsItWas) {
  const std::pair<const char*, std::function<void(CombineArgs&)>> misuses[] = {
      {"handle", [](CombineArgs& args) { args.handle = nullptr; }},
      {"x", [](CombineArgs& args) { args.x.dtype = DType::kInt32; }},
      {"x", [](CombineArgs& args) { args.x.data = nullptr; }},
      {"x", [](CombineArgs& args) { args.x.ndim = 1; }},
      {"x", [](CombineArgs& args) { args.x.shape[0] -= 1; }},
      {"x", [](CombineArgs& args) { args.x.shape[1] = 100000; }},
      {"x", [](CombineArgs& args) { args.x.strides[1] = 2; }},
      {"weights", [](CombineArgs& args) { args.weighting = CombineArgs::Weighting::kGiven; }},
      {"bias0",
       [](CombineArgs& args) {
         args.bias0 = Tensor::contiguous(args.x.data, DType::kFp32, {1, 2});
       }},
      {"bias1",
       [](CombineArgs& args) {
         args.bias1 = Tensor::contiguous(args.x.data, DType::kInt64, {6, 24});
       }},
      {"topk_weights",
       [](CombineArgs& args) {
         args.topk_weights = Tensor::contiguous(args.x.data, DType::kFp32, {1, 1});
       }},
      {"out",
       [](CombineArgs& args) {
         args.out = Tensor::contiguous(args.x.data, DType::kFp32, {6, 24});
       }},
      {"out",
       [](CombineArgs& args) {
         args.out = Tensor::contiguous(args.x.data, DType::kBf16, {6, 23});
       }},
      {"out",
       [](CombineArgs& args) {
         args.out = Tensor::contiguous(args.x.data, DType::kBf16, {6, 24});
         args.out.strides[0] = 0;
       }},
  };
  Case c = base(Mode::kThroughput, Layout::kExpertMajor);
  c.alignment = 8;
  c.traffic = Traffic::kBalanced;  // so that no rank's x is empty
  on_ranks(c, [&](Group& group, const Reference& reference, int rank) {
    Round round(reference, rank);
    const DispatchResult result = group.dispatch(round.dispatch_args());
    int which = 0;
    for (const auto& [argument, change] : misuses) {
      const std::string what = fmt::format("misuse {} of {}", which++, argument);
      CombineArgs args = round.combine_args(result);
      change(args);
      const Error error = expect_error(what, [&] { group.combine(args); });
      require_code(what, error, ErrorCode::kInvalidArgument);
      require(error.argument == argument,
              what + fmt::format(": argument is \"{}\", expected \"{}\": {}", error.argument, argument, error.what()));
    }
    round.check(group.combine(round.combine_args(result)));
  });
}

TEST(Refusals, IllegalCombinationsSayWhyNot) {
  on_ranks(base(Mode::kLatency, Layout::kRankMajor, {2}), [](Group& group, const Reference& reference, int rank) {
    Round round(reference, rank);
    DispatchArgs args = round.dispatch_args();
    require(group.why_not(args).empty(), "a legal call has a reason against it: " + group.why_not(args));
    args.layout = Layout::kExpertMajor;
    require(!group.why_not(args).empty(), "latency with expert_major has no reason against it");
    const Error error = expect_error("latency with expert_major", [&] { group.dispatch(args); });
    require_code("latency with expert_major", error, ErrorCode::kUnsupported);
    require(error.argument == "layout", "latency with expert_major names argument " + error.argument);
    const DispatchResult result = group.dispatch(round.dispatch_args());
    CombineArgs combine = round.combine_args(result);
    require(group.why_not(combine).empty(), "a legal combine has a reason against it: " + group.why_not(combine));
    combine.reduction = Reduction::flat();
    require(!group.why_not(combine).empty(), "flat with rank_major has no reason against it");
    const Error flat = expect_error("flat with rank_major", [&] { group.combine(combine); });
    require_code("flat with rank_major", flat, ErrorCode::kUnsupported);
    require(flat.argument == "reduction", "flat with rank_major names argument " + flat.argument);
    go_on(group, reference, rank);
  });
}

TEST(Refusals, CodecsOfCombineSayWhereTheyWork) {
  const auto refuse = [](Group& group, const CombineArgs& args, ErrorCode code, const char* argument,
                         const std::string& words) {
    const std::string why = group.why_not(args);
    const Error error = expect_error(words, [&] { group.combine(args); });
    require_code(words, error, code);
    require(error.argument == argument, fmt::format("{}: names argument {}", words, error.argument));
    require_words(error, words);
    require(!why.empty(), words + ": why_not has no reason");
  };
  for (const Mode mode : {Mode::kThroughput, Mode::kLatency}) {
    on_ranks(base(mode, Layout::kRankMajor), [&](Group& group, const Reference& reference, int rank) {
      Round round(reference, rank);
      DispatchArgs dispatch = round.dispatch_args();
      const DispatchResult result = group.dispatch(dispatch);
      dispatch.codec = Codec::kLogfmt10;
      require_words(expect_error("dispatch", [&] { group.dispatch(dispatch); }), "logfmt10 is a codec of combine");
      CombineArgs args = round.combine_args(result);
      args.codec = Codec::kFp8Ue8m0;
      refuse(group, args, ErrorCode::kUnsupported, "codec", "use fp8_f32, which is more exact, or logfmt10");
      args.codec = Codec::kLogfmt10;
      if (mode == Mode::kThroughput) {
        refuse(group, args, ErrorCode::kUnsupported, "codec", "logfmt10 needs a handle of latency mode");
      } else {
        args.x.dtype = DType::kFp16;
        refuse(group, args, ErrorCode::kInvalidArgument, "x", "expected bf16, which codec logfmt10 takes");
      }
      go_on(group, reference, rank);
    });
  }
}

TEST(Refusals, RanksThatDifferInTheCodecOfCombine) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "ranks that disagree share return slots until the notes are compared";
#endif
  Case c = base(Mode::kLatency, Layout::kExpertPadded);
  c.traffic = Traffic::kBalanced;
  on_ranks(c, [](Group& group, const Reference& reference, int rank) {
    Round round(reference, rank);
    const DispatchResult result = group.dispatch(round.dispatch_args());
    CombineArgs args = round.combine_args(result);
    if (rank == 0) args.codec = Codec::kLogfmt10;
    require_code("codec", expect_error("codec", [&] { group.combine(args); }), ErrorCode::kMismatch);
    go_on(group, reference, rank);
  });
}

TEST(Refusals, TooManyTokensOrChoices) {
  Case c = base(Mode::kThroughput, Layout::kRankMajor);
  Case more_tokens = c, more_choices = c;
  more_tokens.tokens = {7, 7, 7};
  more_choices.top_k = 3;
  const Reference tokens(more_tokens, 0), choices(more_choices, 0);
  on_ranks(c, [&](Group& group, const Reference& reference, int rank) {
    for (const Reference* larger : {&tokens, &choices}) {
      Round round(*larger, rank);
      require_code("too large", expect_error("too large", [&] { group.dispatch(round.dispatch_args()); }),
                   ErrorCode::kInvalidArgument);
    }
    go_on(group, reference, rank);
  });
}

TEST(Refusals, AGroupThatWasMovedFrom) {
  on_ranks(base(Mode::kThroughput, Layout::kRankMajor), [](Group& group, const Reference& reference, int rank) {
    Group moved = std::move(group);
    Round round(reference, rank);
    const DispatchArgs args = round.dispatch_args();
    const std::function<void()> uses[] = {[&] { group.rank(); },        [&] { group.dispatch(args); },
                                          [&] { group.why_not(args); }, [&] { group.mask(0); },
                                          [&] { group.abort(); },       [&] { group.last_trace(); }};
    for (const auto& use : uses) {
      const Error error = expect_error("moved from", use);
      require_code("moved from", error, ErrorCode::kInvalidArgument);
      require(error.argument == "group", std::string("moved from: ") + error.what());
    }
    go_on(moved, reference, rank);
  });
}

/// Strides that nobody takes, of one element or in an empty tensor, may be anything, also what cannot be counted in bytes.
TEST(Refusals, StridesOfNothingAreNotLookedAt) {
  constexpr std::int64_t kFar = std::int64_t{1} << 62;
  Case c = base(Mode::kThroughput, Layout::kRankMajor);
  c.tokens = {0, 1, 6};
  on_ranks(c, [](Group& group, const Reference& reference, int rank) {
    Round round(reference, rank);
    DispatchArgs args = round.dispatch_args();
    if (rank == 0) args.payload[0].strides = {kFar, -7, 0};
    if (rank == 1) args.payload[0].strides[0] = args.topk_ids.strides[0] = kFar;
    const DispatchResult result = group.dispatch(args);
    CombineArgs combine = round.combine_args(result);
    std::byte none{};
    if (rank == 0) {
      combine.out = Tensor::contiguous(&none, combine.x.dtype, {0, combine.x.shape[1]});
      combine.out.strides = {kFar, 5, 0};
    }
    if (combine.x.shape[0] == 0) combine.x.strides = {-kFar, 5, 0};
    if (combine.x.shape[0] == 1) combine.x.strides[0] = kFar;
    round.check(group.combine(combine));
  });
}

TEST(Refusals, StridesThatNoMemorySpans) {
  on_ranks(base(Mode::kThroughput, Layout::kRankMajor), [](Group& group, const Reference& reference, int rank) {
    Round round(reference, rank);
    DispatchArgs args = round.dispatch_args();
    args.payload[0].strides[0] = std::int64_t{1} << 61;
    const Error error = expect_error("strides", [&] { group.dispatch(args); });
    require_code("strides", error, ErrorCode::kInvalidArgument);
    require(error.argument == "payload[0]", error.what());
    go_on(group, reference, rank);
  });
}

/// "For ever" is no number of nanoseconds from now; ten years are.
TEST(Refusals, TimeoutsBeyondCounting) {
  using std::chrono::nanoseconds;
  Case c = base(Mode::kThroughput, Layout::kRankMajor);
  c.timeout = std::chrono::hours(24 * 3650);
  on_ranks(c, [](Group& group, const Reference& reference, int rank) {
    Round round(reference, rank);
    const DispatchResult result = group.dispatch(round.dispatch_args());
    for (const nanoseconds timeout : {nanoseconds::max(), nanoseconds(0), nanoseconds(-1)}) {
      DispatchArgs dispatch = round.dispatch_args();
      CombineArgs combine = round.combine_args(result);
      dispatch.timeout = combine.timeout = timeout;
      for (const Error& error : {expect_error("dispatch", [&] { group.dispatch(dispatch); }),
                                 expect_error("combine", [&] { group.combine(combine); })}) {
        require_code("timeout", error, ErrorCode::kInvalidArgument);
        require(error.argument == "timeout", error.what());
      }
    }
    go_on(group, reference, rank);
  });
}

TEST(Refusals, PlansBeyondCounting) {
  GroupConfig config;
  config.limits = {.num_experts = 4, .max_tokens = 8, .max_top_k = 1, .hidden = 16};
  const auto refused = [&](const std::string& what) {
    const Error error = expect_error(what, [&] { memory_plan(config, Topology::single_node(2), 0); });
    require_code(what, error, ErrorCode::kInvalidArgument);
  };
  memory_plan(config, Topology::single_node(2), 0);
  config.backend = "gpu";
  refused("an unknown backend");
  config.backend = "host";
  config.timeout = std::chrono::nanoseconds::max();
  refused("a timeout for ever");
  config.timeout = std::chrono::seconds(1);
  config.placement = Placement::contiguous(1 << 20, 2);
  config.limits = {.max_tokens = 1 << 20, .max_latency_tokens = 1 << 20, .max_top_k = 1, .hidden = 1 << 21};
  config.limits.num_flights = 2;
  refused("a placement of a million experts");
  expect_error("a topology of 2^30 ranks", [] { Topology::nodes({1 << 29, 1 << 29}); });
  expect_error("a topology of 2^31 ranks", [] { Topology::nodes({1 << 30, 1 << 30}); });
}

/// A tensor without rows needs no memory, so its width can be any number, also one whose bytes cannot be counted.
TEST(Refusals, WidthsOfNothingAreBounded) {
  Case c = base(Mode::kThroughput, Layout::kRankMajor);
  c.tokens = {0, 0, 0};
  on_ranks(c, [](Group& group, const Reference& reference, int rank) {
    Round round(reference, rank);
    const DispatchResult result = group.dispatch(round.dispatch_args());
    for (const std::int64_t width :
         {std::int64_t{1} << 20, std::int64_t{1} << 62, std::numeric_limits<std::int64_t>::max()}) {
      DispatchArgs dispatch = round.dispatch_args();
      dispatch.payload[0].shape[1] = width;
      CombineArgs combine = round.combine_args(result);
      combine.x.shape[1] = width;
      const Error of_dispatch = expect_error("dispatch", [&] { group.dispatch(dispatch); });
      const Error of_combine = expect_error("combine", [&] { group.combine(combine); });
      for (const Error& error : {of_dispatch, of_combine}) {
        require_code(fmt::format("width {}", width), error, ErrorCode::kInvalidArgument);
      }
      require(of_combine.argument == "x", of_combine.what());
      require(!group.why_not(dispatch).empty() && !group.why_not(combine).empty(), "why_not() says nothing");
    }
    go_on(group, reference, rank);
  });
}

/// A handle of far more rows than tokens, with more nodes than a row's record has bytes, is whole all the same.
TEST(Refusals, HandlesOfManyNodesAreNotTakenForDamaged) {
  for (const Mode mode : {Mode::kThroughput, Mode::kLatency}) {
    Case c = base(mode, Layout::kRankMajor, std::vector<int>(52, 1));
    c.num_experts = 52;
    c.top_k = 1;
    c.tokens.assign(52, 16);
    c.tokens.back() = 0;
    c.traffic = Traffic::kOneExpert;  // at the last rank
    on_ranks(c, [](Group& group, const Reference& reference, int rank) { go_on(group, reference, rank); });
  }
}

TEST(Refusals, AClosedGroup) {
  on_ranks(base(Mode::kThroughput, Layout::kRankMajor), [](Group& group, const Reference& reference, int rank) {
    go_on(group, reference, rank);
    group.close();
    group.close();
    Round round(reference, rank);
    require_code("closed", expect_error("closed", [&] { group.dispatch(round.dispatch_args()); }),
                 ErrorCode::kInvalidArgument);
  });
}

}  // namespace
}  // namespace ferry::test
