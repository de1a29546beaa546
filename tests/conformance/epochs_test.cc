// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Calls are counted in 64 bits; on GPUs, packets of latency mode carry the lower half. Nothing shows where that begins anew.
#include <gtest/gtest.h>

#include "support/runner.h"

namespace ferry::test {
namespace {

/// Every few calls other tokens, so that slots of many ages lie in the window when tags begin anew; the group is opened `before` calls
/// before that.
void count_on(Case c, std::uint64_t before, int calls) {
  c.layout = Layout::kExpertPadded;
  c.nodes = {3};
  c.tokens = {6, 0, 9};
  c.rounds = 4;
  c = adapted(c);
  const auto references = make_references(c);
  SCOPED_TRACE(describe(c));
  try {
    run_ranks(c.num_ranks(), c.ranks_as, [&](Rank rank) {
      GroupConfig config = group_config(c);
      config.test.first_epoch = (std::uint64_t{1} << 32) - before;
      Group group = make_group(c, rank, config);
      for (int i = 0; i < calls; ++i) {
        Round round(*references[static_cast<std::size_t>(i) % references.size()], rank.rank);
        const DispatchResult arrived = group.dispatch(round.dispatch_args());
        round.check(arrived);
        round.check(group.combine(round.combine_args(arrived)));
      }
      require(group.statistics().epoch == config.test.first_epoch + 2 * static_cast<std::uint64_t>(calls),
              "calls were not counted from the first epoch on");
      if (c.backend == "cuda") rank.meeting->all_gather({}, c.timeout);
    });
  } catch (const Failure& failure) {
    ADD_FAILURE() << failure.what();
  }
}

class Epochs : public testing::TestWithParam<Mode> {};

TEST_P(Epochs, TheLowerHalfBeginsAnew) {
  Case c;
  c.mode = GetParam();
  c.num_experts = 6;
  c.top_k = 3;
  c.weighting = CombineArgs::Weighting::kGiven;
  c.combine_weights = true;
  for (const std::uint64_t before : {1, 2, 3, 9}) count_on(c, before, 12);
}

/// Those have kernels of their own on GPUs.
TEST(EpochsOfUsualCalls, TheLowerHalfBeginsAnew) {
  Case c;
  c.mode = Mode::kLatency;
  c.num_experts = 24;
  c.top_k = 8;
  c.host_counts = false;
  c.weighting = CombineArgs::Weighting::kFromDispatch;
  for (const std::uint64_t before : {1, 2, 3, 9}) count_on(c, before, 12);
}

INSTANTIATE_TEST_SUITE_P(Modes, Epochs, testing::Values(Mode::kThroughput, Mode::kLatency),
                         [](const auto& mode) { return std::string(name(mode.param)); });

/// What calls add to tensors of the caller.
class Statistics : public testing::TestWithParam<Mode> {};

TEST_P(Statistics, AreAddedUp) {
  Case c;
  c.mode = GetParam();
  c.layout = Layout::kExpertPadded;
  c.nodes = {3};
  c.num_experts = 6;
  c.top_k = 3;
  c.tokens = {6, 0, 9};
  c.weighting = CombineArgs::Weighting::kFromDispatch;
  c = adapted(c);
  const Reference reference(c, 0);
  try {
    run_ranks(c.num_ranks(), c.ranks_as, [&](Rank rank) {
      Group group = make_group(c, rank);
      DeviceCopies device;
      const bool on_device = c.backend == "cuda";
      std::vector<std::int32_t> counts(2, 5);
      std::vector<std::int64_t> waits(3, 7);
      const auto placed = [&](void* data, DType dtype, std::int64_t size) {
        const Tensor host = Tensor::contiguous(data, dtype, {size});
        return on_device ? device.to_device(host) : host;
      };
      const Tensor total = placed(counts.data(), DType::kInt32, 2), waited = placed(waits.data(), DType::kInt64, 3);
      constexpr int kCalls = 4;
      Round round(reference, rank.rank);
      for (int i = 0; i < kCalls; ++i) {
        if (rank.rank == 2) round.hold_up(std::chrono::milliseconds(5));
        DispatchArgs args = round.dispatch_args();
        args.recv_counts = total;
        args.wait_ns = waited;
        const DispatchResult arrived = group.dispatch(args);
        round.check(arrived);
        CombineArgs back = round.combine_args(arrived);
        back.wait_ns = waited;
        round.check(group.combine(back));
      }
      const Tensor counted = on_device ? device.to_host(total) : total,
                   slept = on_device ? device.to_host(waited) : waited;
      for (std::size_t e = 0; e < counts.size(); ++e)
        require(static_cast<const std::int32_t*>(counted.data)[e] == 5 + kCalls * round.expected().expert_counts[e],
                "rows per expert were not added up");
      const auto* ns = static_cast<const std::int64_t*>(slept.data);
      for (int r = 0; r < 3; ++r) require(ns[r] >= 7 && ns[r] < 60'000'000'000, "time waited makes no sense");
      if (rank.rank == 0 && !on_device) require(ns[2] > 10'000'000, "time waited for the slow rank is missing");
      if (on_device) rank.meeting->all_gather({}, c.timeout);
    });
  } catch (const Failure& failure) {
    ADD_FAILURE() << failure.what();
  }
}

INSTANTIATE_TEST_SUITE_P(Modes, Statistics, testing::Values(Mode::kThroughput, Mode::kLatency),
                         [](const auto& mode) { return std::string(name(mode.param)); });

}  // namespace
}  // namespace ferry::test
