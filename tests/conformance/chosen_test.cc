// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Chosen cases: each turns one or two knobs through their values. Every case dispatches, combines, dispatches again by the
// handle and combines again, all compared with the reference.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cctype>

#include "support/runner.h"

namespace ferry::test {
namespace {

using Weighting = CombineArgs::Weighting;

struct Named {
  std::string name;
  Case value;
};
std::ostream& operator<<(std::ostream& out, const Named& named) {
  return out << describe(named.value);
}

struct Legal {
  Mode mode;
  Layout layout;
};
constexpr Legal kLegal[] = {{Mode::kThroughput, Layout::kRankMajor},
                            {Mode::kThroughput, Layout::kExpertMajor},
                            {Mode::kThroughput, Layout::kExpertPadded},
                            {Mode::kLatency, Layout::kRankMajor},
                            {Mode::kLatency, Layout::kExpertPadded}};

std::string text(const Legal& legal) {
  return fmt::format("{}_{}", name(legal.mode), name(legal.layout));
}
std::string text(const std::vector<int>& nodes) {
  std::string all;
  for (const int size : nodes) all += fmt::format("{}{}", all.empty() ? "" : "p", size);
  return all;
}

Case base(const Legal& legal, std::vector<int> nodes) {
  Case c;
  c.mode = legal.mode;
  c.layout = legal.layout;
  c.nodes = std::move(nodes);
  c.num_experts = 11;
  c.top_k = 4;
  c.tokens = {6, 0, 9, 1, 3, 12, 2, 5};
  if (legal.layout == Layout::kExpertMajor) c.alignment = 8;
  return c;
}

class List {
 public:
  void add(std::string label, const Case& c) {
    for (char& letter : label) {
      if (std::isalnum(static_cast<unsigned char>(letter)) == 0) letter = '_';
    }
    all.push_back({std::move(label), c});
  }
  std::vector<Named> all;
};

std::vector<Named> topologies() {
  List list;
  const std::vector<int> shapes[] = {{1},    {2},    {3},       {5},    {7},       {8},
                                     {1, 1}, {2, 2}, {3, 2, 1}, {1, 3}, {1, 1, 1}, {4, 4}};
  std::uint64_t seed = 100;
  for (const auto& nodes : shapes) {
    for (const Legal& legal : kLegal) {
      Case c = base(legal, nodes);
      c.seed = ++seed;
      c.bias0 = DType::kFp32;
      if (seed % 3 == 0) c.reduction = Reduction::per_node();
      list.add(text(nodes) + "_" + text(legal), c);
    }
  }
  return list.all;
}

std::vector<Named> processes() {
  List list;
  std::uint64_t seed = 200;
  for (const auto& nodes : {std::vector<int>{1}, {2}, {3}, {2, 1}, {3, 2, 1}, {4, 4}}) {
    for (const Legal& legal : kLegal) {
      if (nodes.size() == 1 && nodes[0] != 3 && legal.layout != Layout::kExpertPadded) continue;
      Case c = base(legal, nodes);
      c.seed = ++seed;
      c.ranks_as = RanksAs::kProcesses;
      c.reduction = seed % 2 ? Reduction::per_node() : Reduction::per_rank();
      c.rounds = 2;
      list.add(text(nodes) + "_" + text(legal), c);
    }
  }
  return list.all;
}

std::vector<Named> reductions() {
  List list;
  std::uint64_t seed = 300;
  for (const auto& nodes : {std::vector<int>{4}, {3, 2, 1}}) {
    for (const Legal& legal : kLegal) {
      for (const auto group : {Reduction::Group::kChoice, Reduction::Group::kRank, Reduction::Group::kNode}) {
        for (const auto order : {Reduction::Order::kAscending, Reduction::Order::kLastChoice}) {
          for (const auto weighting : {Weighting::kNone, Weighting::kFromDispatch, Weighting::kGiven}) {
            Case c = base(legal, nodes);
            c.seed = ++seed;
            c.reduction = {group, order};
            c.weighting = weighting;
            c.top_k = 6;
            c.special_values = seed % 4 == 0;
            constexpr DType kDtypes[] = {DType::kBf16, DType::kFp16, DType::kFp32};
            c.combine_dtype = kDtypes[seed % 3];
            if (group == Reduction::Group::kChoice && order == Reduction::Order::kLastChoice) continue;
            if (!c.why_not().empty()) continue;
            constexpr const char* kGroups[] = {"choice", "rank", "node"};
            list.add(
                fmt::format("{}_{}_{}_{}_w{}", text(nodes), text(legal), kGroups[static_cast<int>(group)],
                            order == Reduction::Order::kAscending ? "ascending" : "last", static_cast<int>(weighting)),
                c);
          }
        }
      }
    }
  }
  return list.all;
}

std::vector<Named> codecs() {
  List list;
  std::uint64_t seed = 400;
  for (const Codec codec : {Codec::kFp8F32, Codec::kFp8Ue8m0}) {
    for (const int block : {128, 32}) {
      for (const std::int64_t width : {8, 24, 128, 136, 520}) {
        Case c = base(kLegal[seed % 5], {2, 2});
        c.seed = ++seed;
        c.codec = codec;
        c.scale_block = block;
        c.blocks = {{DType::kBf16, width}};
        c.special_values = seed % 2 == 0;
        c.strided = seed % 3 == 0;
        list.add(fmt::format("{}_{}_width{}", name(codec), block, width), c);
      }
    }
  }
  return list.all;
}

/// Rows of one chunk of channels and of several, whole and short ones, under every kind of sum.
std::vector<Named> combine_codecs() {
  List list;
  std::uint64_t seed = 450;
  for (const Codec codec : {Codec::kFp8F32, Codec::kLogfmt10}) {
    for (const std::int64_t width : {8, 13, 128, 136, 264, 512, 768, 776, 1288, 2304}) {
      for (const Legal& legal : {kLegal[3], kLegal[4]}) {
        Case c = base(legal, {2, 2});
        const bool rank_major = c.layout == Layout::kRankMajor;
        constexpr Reduction kReductions[] = {Reduction::per_rank(), Reduction::flat(), Reduction::per_node()};
        constexpr Weighting kWeightings[] = {Weighting::kFromDispatch, Weighting::kGiven, Weighting::kNone};
        c.seed = ++seed;
        c.combine_codec = codec;
        c.combine_width = width;
        c.tokens = {3, 0, 5, 1};
        c.reduction = kReductions[rank_major ? seed / 2 % 2 * 2 : seed / 2 % 3];
        if (!rank_major) c.weighting = kWeightings[seed / 4 % 3];
        c.special_values = seed % 4 < 2;
        c.strided = seed % 3 == 0;
        if (seed % 5 == 0) c.bias0 = DType::kFp32;
        c.combine_weights = seed % 3 == 1;
        c.rounds = 2;
        list.add(fmt::format("{}_width{}_{}", name(codec), width, name(c.layout)), c);
      }
    }
  }
  return list.all;
}

std::vector<Named> payloads() {
  List list;
  std::uint64_t seed = 500;
  const std::pair<const char*, std::vector<Block>> lists[] = {
      {"fp16", {{DType::kFp16, 40}}},
      {"fp32", {{DType::kFp32, 12}}},
      {"fp8_with_scales", {{DType::kFp8E4m3, 256}, {DType::kFp32, 2}}},
      {"fp8_with_short_block", {{DType::kFp8E4m3, 144}, {DType::kFp32, 2}}},
      {"fp8_with_ue8m0", {{DType::kFp8E4m3, 160}, {DType::kUe8m0, 5}}},
      {"four_bit", {{DType::kUint8, 80}, {DType::kFp8E4m3, 10}, {DType::kFp32, 1}}},
      {"many", {{DType::kBf16, 8}, {DType::kInt64, 3}, {DType::kInt32, 1}, {DType::kUint8, 1}, {DType::kUint8, 17}}},
  };
  for (const auto& [label, blocks] : lists) {
    for (const Legal& legal : kLegal) {
      Case c = base(legal, {2, 1});
      c.seed = ++seed;
      c.blocks = blocks;
      c.strided = seed % 2 == 0;
      c.zero_padding = true;
      list.add(fmt::format("{}_{}", label, text(legal)), c);
    }
  }
  Case c = base(kLegal[0], {3});
  c.codec = Codec::kFp8F32;
  c.blocks = {{DType::kBf16, 40}, {DType::kUint8, 5}, {DType::kFp32, 3}};
  list.add("coded_row_before_others", c);
  return list.all;
}

std::vector<Named> traffics() {
  List list;
  std::uint64_t seed = 600;
  constexpr std::pair<Traffic, const char*> kAll[] = {
      {Traffic::kBalanced, "balanced"},    {Traffic::kZipf, "zipf"},
      {Traffic::kAllToOne, "all_to_one"},  {Traffic::kRepeated, "repeated"},
      {Traffic::kOneExpert, "one_expert"}, {Traffic::kNowhere, "nowhere"}};
  for (const auto& [traffic, label] : kAll) {
    for (const Legal& legal : kLegal) {
      Case c = base(legal, seed % 2 ? std::vector<int>{3, 2, 1} : std::vector<int>{5});
      c.seed = ++seed;
      c.traffic = traffic;
      c.dropped = traffic == Traffic::kZipf ? 0.3 : 0;
      c.bias0 = c.bias1 = DType::kBf16;
      c.combine_weights = true;
      list.add(fmt::format("{}_{}", label, text(legal)), c);
    }
  }
  return list.all;
}

std::vector<Named> shapes() {
  List list;
  std::uint64_t seed = 700;
  const auto add = [&](const std::string& label, auto change) {
    for (const Legal& legal : kLegal) {
      Case c = base(legal, {2, 2});
      c.seed = ++seed;
      change(c);
      list.add(fmt::format("{}_{}", label, text(legal)), c);
    }
  };
  add("top_k_1", [](Case& c) { c.top_k = 1; });
  add("top_k_32", [](Case& c) {
    c.top_k = 32;
    c.num_experts = 40;
    c.weighting = c.layout == Layout::kRankMajor ? Weighting::kNone : Weighting::kFromDispatch;
  });
  add("one_token", [](Case& c) { c.tokens = {0, 0, 1, 0}; });
  add("no_token", [](Case& c) { c.tokens = {0, 0, 0, 0}; });
  add("maximum_tokens", [](Case& c) { c.tokens = {33, 33, 33, 33}; });
  add("fewer_experts_than_ranks", [](Case& c) {
    c.num_experts = 3;
    c.top_k = 2;
  });
  add("one_expert", [](Case& c) {
    c.num_experts = 1;
    c.top_k = 1;
  });
  add("int64_strided", [](Case& c) { c.int64_ids = c.strided = true; });
  add("no_weights", [](Case& c) { c.weights = false; });
  add("replicas", [](Case& c) {
    c.num_experts = 5;
    c.places = {
        {{0, 0}, {3, 1}}, {{1, 0}}, {{3, 0}, {1, 1}, {0, 1}}, {{1, 2}}, {{0, 2}, {1, 3}}};  // rank 2 owns nothing
  });
  add("shuffled_placement", [](Case& c) {
    c.num_experts = 6;
    c.places = {{{3, 1}}, {{0, 0}}, {{2, 0}}, {{3, 0}}, {{1, 0}}, {{2, 1}}};
  });
  add("owned_output", [](Case& c) {
    c.output = Output::kOwned;
    c.out_given = true;
    c.zero_padding = true;
  });
  add("no_host_counts", [](Case& c) { c.host_counts = false; });
  add("one_flight", [](Case& c) {
    c.num_flights = 1;
    c.rounds = 3;
  });
  add("default_capacity", [](Case& c) { c.default_capacity = true; });
  add("combine_wider_than_dispatch", [](Case& c) {
    c.combine_dtype = DType::kFp32;
    c.combine_width = 264;
    c.bias0 = DType::kFp32;
    c.bias_on_even_ranks_only = true;
  });
  add("signal_delays", [](Case& c) {
    c.max_signal_delay_ns = 1'000'000;
    c.rounds = 4;
  });
  for (const int alignment : {1, 3, 16, 128}) {
    Case c = base(kLegal[1], {3});
    c.alignment = alignment;
    c.zero_padding = true;
    list.add(fmt::format("alignment_{}", alignment), c);
  }
  return list.all;
}

/// More choices than a warp has lanes; every case another reduction, some with several choices of a token at one expert.
std::vector<Named> wide_tokens() {
  List list;
  std::uint64_t seed = 800;
  for (const int top_k : {33, 64, 65, 100, 128}) {
    for (const Legal& legal : kLegal) {
      Case c = base(legal, {2, 2});
      const bool rank_major = c.layout == Layout::kRankMajor;
      constexpr Reduction::Group kGroups[] = {Reduction::Group::kRank, Reduction::Group::kChoice,
                                              Reduction::Group::kNode};
      constexpr DType kDtypes[] = {DType::kFp32, DType::kBf16};
      c.seed = ++seed;
      c.top_k = top_k;
      c.num_experts = top_k + 3;
      c.traffic = seed % 3 == 0 ? Traffic::kRepeated : Traffic::kUniform;
      c.dropped = 0.1;
      c.combine_dtype = kDtypes[seed % 2];
      c.combine_weights = true;
      c.bias0 = DType::kFp32;
      c.reduction.group = rank_major ? Reduction::Group::kRank : kGroups[seed / 5 % 3];
      if (c.reduction.group != Reduction::Group::kChoice && seed % 2 == 0)
        c.reduction.order = Reduction::Order::kLastChoice;
      if (!rank_major) c.weighting = seed % 2 == 0 ? Weighting::kGiven : Weighting::kFromDispatch;
      list.add(fmt::format("top_k_{}_{}", top_k, text(legal)), c);
    }
  }
  return list.all;
}

/// Tokens enough for several chunks, in which GPUs copy rows of expert layouts while others arrive.
std::vector<Named> many_tokens() {
  List list;
  std::uint64_t seed = 900;
  for (const int ranks : {2, 3, 4}) {
    for (const Layout layout : {Layout::kExpertMajor, Layout::kExpertPadded}) {
      for (const std::int64_t delay_ns : {0, 50'000}) {
        Case c = base({Mode::kThroughput, layout}, {ranks});
        c.seed = ++seed;
        c.tokens = {700, 391, 833, 0};
        c.traffic = seed % 2 == 0 ? Traffic::kZipf : Traffic::kUniform;
        c.dropped = seed % 3 == 0 ? 0.4 : 0;
        c.top_k = 6;
        c.weighting = seed % 4 == 0 ? Weighting::kFromDispatch : Weighting::kNone;
        c.max_signal_delay_ns = delay_ns;
        c.blocks = {{DType::kBf16, 136}, {DType::kFp32, 2}};
        c.rounds = 3;
        list.add(fmt::format("{}_{}_delay_{}", ranks, name(layout), delay_ns), c);
      }
    }
  }
  return list.all;
}

/// What inference engines decode with, for which the cuda backend has kernels of its own; with a little that is not so usual.
std::vector<Named> usual() {
  List list;
  std::uint64_t seed = 1000;
  for (const int ranks : {1, 2, 4, 8}) {
    for (const Codec codec : {Codec::kNone, Codec::kFp8F32}) {
      for (const Traffic traffic : {Traffic::kUniform, Traffic::kRepeated, Traffic::kZipf, Traffic::kOneExpert}) {
        for (const std::int64_t width : {16, 1536, 3200}) {
          Case c = base({Mode::kLatency, Layout::kExpertPadded}, {ranks});
          c.seed = ++seed;
          c.num_experts = 8 * ranks;
          c.top_k = 8;
          c.tokens = seed % 2 == 0 ? std::vector<std::int64_t>{1, 3, 0, 2} : std::vector<std::int64_t>{70, 33, 0, 5};
          c.traffic = traffic;
          c.dropped = seed % 3 == 0 ? 0.3 : 0;
          c.int64_ids = seed % 5 < 3;
          c.codec = codec;
          c.blocks = {{DType::kBf16, width}};
          c.host_counts = false;
          c.weighting = Weighting::kFromDispatch;
          c.combine_width = width;
          c.max_signal_delay_ns = seed % 7 == 0 ? 20'000 : 0;
          c.rounds = 2;
          list.add(fmt::format("{}_{}_traffic{}_width{}", ranks, name(codec), static_cast<int>(traffic), width), c);
        }
      }
    }
  }
  return list.all;
}

/// The same between nodes: streams of several chunks both ways.
std::vector<Named> many_tokens_across() {
  List list;
  std::uint64_t seed = 950;
  for (const auto& nodes : {std::vector<int>{1, 1}, {2, 2}, {1, 2}, {1, 1, 1}}) {
    for (const auto group : {Reduction::Group::kChoice, Reduction::Group::kRank, Reduction::Group::kNode}) {
      for (const std::int64_t delay_ns : {0, 50'000}) {
        Case c = base({Mode::kThroughput, ++seed % 2 == 0 ? Layout::kRankMajor : Layout::kExpertMajor}, nodes);
        if (group == Reduction::Group::kChoice) c.layout = Layout::kExpertPadded;
        c.seed = seed;
        c.reduction = {group, seed % 3 == 0 && group != Reduction::Group::kChoice ? Reduction::Order::kLastChoice
                                                                                  : Reduction::Order::kAscending};
        c.tokens = {700, 391, 833, 0};
        c.traffic = seed % 4 == 0 ? Traffic::kZipf : Traffic::kUniform;
        c.dropped = seed % 3 == 0 ? 0.4 : 0;
        c.top_k = 6;
        c.combine_weights = seed % 5 == 0;
        c.max_signal_delay_ns = delay_ns;
        c.blocks = {{DType::kBf16, 136}, {DType::kFp32, 2}};
        c.combine_width = 136;
        c.rounds = 3;
        constexpr const char* kGroups[] = {"choice", "rank", "node"};
        list.add(fmt::format("{}_{}_delay_{}", text(nodes), kGroups[static_cast<int>(group)], delay_ns), c);
      }
    }
  }
  return list.all;
}

class Chosen : public testing::TestWithParam<Named> {};

TEST_P(Chosen, MatchesTheReference) {
  try {
    run_case(GetParam().value);
  } catch (const Failure& failure) {
    FAIL() << failure.what();
  }
}

std::string label(const testing::TestParamInfo<Named>& info) {
  return info.param.name;
}

INSTANTIATE_TEST_SUITE_P(Topologies, Chosen, testing::ValuesIn(topologies()), label);
INSTANTIATE_TEST_SUITE_P(Processes, Chosen, testing::ValuesIn(processes()), label);
INSTANTIATE_TEST_SUITE_P(Reductions, Chosen, testing::ValuesIn(reductions()), label);
INSTANTIATE_TEST_SUITE_P(Codecs, Chosen, testing::ValuesIn(codecs()), label);
INSTANTIATE_TEST_SUITE_P(CombineCodecs, Chosen, testing::ValuesIn(combine_codecs()), label);
INSTANTIATE_TEST_SUITE_P(Payloads, Chosen, testing::ValuesIn(payloads()), label);
INSTANTIATE_TEST_SUITE_P(Traffics, Chosen, testing::ValuesIn(traffics()), label);
INSTANTIATE_TEST_SUITE_P(Shapes, Chosen, testing::ValuesIn(shapes()), label);
INSTANTIATE_TEST_SUITE_P(ManyTokens, Chosen, testing::ValuesIn(many_tokens()), label);
INSTANTIATE_TEST_SUITE_P(Usual, Chosen, testing::ValuesIn(usual()), label);
INSTANTIATE_TEST_SUITE_P(ManyTokensAcross, Chosen, testing::ValuesIn(many_tokens_across()), label);
INSTANTIATE_TEST_SUITE_P(WideTokens, Chosen, testing::ValuesIn(wide_tokens()), label);

}  // namespace
}  // namespace ferry::test
