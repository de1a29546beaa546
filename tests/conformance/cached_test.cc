// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Handles: kept, copied, in lent memory, used for other rows and weights; the backward passes they are for.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>

#include "support/runner.h"

namespace ferry::test {
namespace {

struct Setup {
  Mode mode;
  Layout layout;
};
std::ostream& operator<<(std::ostream& out, const Setup& setup) {
  return out << name(setup.mode) << "_" << name(setup.layout);
}

Case base(const Setup& setup, std::vector<int> nodes) {
  Case c;
  c.mode = setup.mode;
  c.layout = setup.layout;
  c.nodes = std::move(nodes);
  c.num_experts = 10;
  c.top_k = 4;
  c.tokens = {5, 8, 0, 6, 2, 7};
  c.dropped = 0.2;
  c.seed = 71;
  return c;
}

class Cached : public testing::TestWithParam<Setup> {
 protected:
  void everywhere(const std::function<void(Case&)>& change,
                  const std::function<void(Group&, const Reference&, int)>& body) {
    for (const auto& nodes : {std::vector<int>{3}, {3, 2, 1}}) {
      Case c = base(GetParam(), nodes);
      change(c);
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
  }
};

TEST_P(Cached, HandleOutlivesItsWindowAndResult) {
  everywhere([](Case&) {},
             [](Group& group, const Reference& reference, int rank) {
               Round round(reference, rank);
               Handle kept;
               std::vector<std::byte> before;
               {
                 const DispatchResult result = group.dispatch(round.dispatch_args());
                 kept = result.handle;
                 before.assign(kept.bytes().begin(), kept.bytes().end());
               }
               for (int i = 0; i < 3; ++i) {  // the windows are used again
                 Round other(reference, rank);
                 other.check(group.dispatch(other.dispatch_args()));
               }
               Round again(reference, rank);
               const DispatchResult result = group.dispatch(again.cached_args(kept));
               again.check(result, true);
               CombineArgs args = again.combine_args(result);
               args.handle = &kept;
               again.check(group.combine(args));
               require(std::equal(before.begin(), before.end(), kept.bytes().begin(), kept.bytes().end()),
                       "the handle's bytes have changed");
             });
}

TEST_P(Cached, OtherWeightsTravelAndLeaveTheOldHandleAlone) {
  if (GetParam().layout == Layout::kRankMajor) GTEST_SKIP() << "rank_major rows are not weighted in combine";
  for (const Reduction reduction : {Reduction::flat(), Reduction::per_rank()}) {
    everywhere(
        [&](Case& c) {
          c.weighting = CombineArgs::Weighting::kFromDispatch;
          c.reduction = reduction;
        },
        [](Group& group, const Reference& reference, int rank) {
          Round round(reference, rank);
          const DispatchResult first = group.dispatch(round.dispatch_args());
          round.check(first);
          Reference changed = reference;
          for (int r = 0; r < reference.test_case().num_ranks(); ++r)
            changed.set_weights(r, reference.inputs(r).late_weights);
          Round other(changed, rank);
          const DispatchResult second = group.dispatch(other.cached_args(first.handle));
          other.check(second, true);
          other.check(group.combine(other.combine_args(second)));
          // The first handle still means the first weights.
          try {
            round.check(group.combine(round.combine_args(first)));
          } catch (const Failure& failure) {
            throw Failure(std::string("with the first handle: ") + failure.what());
          }
        });
  }
}

TEST_P(Cached, HandleInLentMemory) {
  everywhere([](Case&) {},
             [](Group& group, const Reference& reference, int rank) {
               Round round(reference, rank);
               DispatchArgs args = round.dispatch_args();
               const std::size_t bytes = group.handle_bytes(args);
               std::vector<std::byte> lent(bytes + 64, std::byte{0x5a});
               args.handle_memory = {lent.data(), bytes};
               const DispatchResult result = group.dispatch(args);
               round.check(result);
               require(result.handle.bytes().data() == lent.data(), "the handle does not lie in the memory given");
               require(result.handle.bytes().size() <= bytes, "the handle is larger than handle_bytes said");
               for (std::size_t i = bytes; i < lent.size(); ++i)
                 require(lent[i] == std::byte{0x5a}, "written beyond the memory given");
               round.check(group.combine(round.combine_args(result)));
             });
}

TEST_P(Cached, BackwardOfCombineIsDispatchByTheHandle) {
  // out = sum of rows: the gradient of each row is the gradient of its token, that is, a dispatch of the gradients.
  everywhere([](Case& c) { c.weights = false; },
             [](Group& group, const Reference& reference, int rank) {
               Round forward(reference, rank);
               const DispatchResult result = group.dispatch(forward.dispatch_args());
               forward.check(result);
               forward.check(group.combine(forward.combine_args(result)));
               // Gradients of another width than the rows were.
               const std::int64_t tokens = reference.inputs(rank).tokens, width = 8;
               std::vector<float> gradient(static_cast<std::size_t>(tokens * width) + 1);
               for (std::int64_t i = 0; i < tokens * width; ++i)
                 gradient[static_cast<std::size_t>(i)] = static_cast<float>(rank * 100000 + i);
               DispatchArgs args;
               args.payload = {Tensor::contiguous(gradient.data(), DType::kFp32, {tokens, width})};
               args.handle = &result.handle;
               args.mode = reference.test_case().mode;
               args.layout = reference.test_case().layout;
               args.expert_capacity = reference.test_case().layout == Layout::kExpertPadded ? forward.capacity() : 0;
               args.output = Output::kOwned;
               const DispatchResult back = group.dispatch(args);
               const Tensor& rows = back.payload.at(0);
               const auto& expected = forward.expected().rows;
               for (std::size_t i = 0; i < expected.size(); ++i) {
                 if (expected[i].source < 0) continue;
                 const auto* row = static_cast<const float*>(rows.data) +
                                   static_cast<std::int64_t>(i) * rows.strides[rows.ndim == 3 ? 1 : 0];
                 for (std::int64_t k = 0; k < width; ++k) {
                   const auto value = static_cast<float>(expected[i].source * 100000 + expected[i].token * width + k);
                   require(row[k] == value,
                           fmt::format("gradient row {} element {} is {}, expected {}", i, k, row[k], value));
                 }
               }
             });
}

TEST_P(Cached, ForeignAndEmptyHandlesAreRefused) {
  everywhere([](Case&) {},
             [](Group& group, const Reference& reference, int rank) {
               Round round(reference, rank);
               const Handle empty;
               const auto expect_refusal = [&](const DispatchArgs& args, const char* what) {
                 try {
                   group.dispatch(args);
                 } catch (const Error& error) {
                   require(error.code() == ErrorCode::kInvalidArgument, fmt::format("{}: {}", what, error.what()));
                   return;
                 }
                 throw Failure(fmt::format("{} was accepted", what));
               };
               expect_refusal(round.cached_args(empty), "an empty handle");
               std::vector<std::byte> noise(4096, std::byte{0x77});
               const Handle foreign(nullptr, noise);
               expect_refusal(round.cached_args(foreign), "a handle of noise");
               const DispatchResult result = group.dispatch(round.dispatch_args());
               DispatchArgs both = round.dispatch_args();
               both.handle = &result.handle;
               expect_refusal(both, "ids together with a handle");
               round.check(group.combine(round.combine_args(result)));
             });
}

INSTANTIATE_TEST_SUITE_P(
    Setups, Cached,
    testing::Values(Setup{Mode::kThroughput, Layout::kRankMajor}, Setup{Mode::kThroughput, Layout::kExpertMajor},
                    Setup{Mode::kThroughput, Layout::kExpertPadded}, Setup{Mode::kLatency, Layout::kRankMajor},
                    Setup{Mode::kLatency, Layout::kExpertPadded}),
    [](const auto& setup) { return std::string(name(setup.param.mode)) + "_" + name(setup.param.layout); });

}  // namespace
}  // namespace ferry::test
