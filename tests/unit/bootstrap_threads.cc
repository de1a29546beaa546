// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Meetings and meshes of ranks that are threads of one process, the memory they share, and lent all-gathers.
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "bootstrap/mesh.h"
#include "bootstrap_support.h"
#include "ferry/meeting.h"

namespace ferry {
namespace {

using namespace std::chrono_literals;
using bootstrap_test::as_bytes;
using bootstrap_test::expect_error;
using bootstrap_test::on_threads;
using bootstrap_test::text;

TEST(BootstrapThreads, RepeatedGathersOfDifferentSizes) {
  for (const int size : {1, 2, 5, 16}) {
    auto meetings = meet_in_process(size);
    on_threads(size, [&](int rank) {
      Meeting& meeting = *meetings[static_cast<std::size_t>(rank)];
      EXPECT_EQ(meeting.rank(), rank);
      EXPECT_EQ(meeting.size(), size);
      for (int round = 0; round < 50; ++round) {
        const auto length = [&](int r) { return static_cast<std::size_t>((r * 7 + round) % 5); };
        const auto all = meeting.all_gather(as_bytes(std::string(length(rank), static_cast<char>('a' + rank))), 10s);
        ASSERT_EQ(all.size(), static_cast<std::size_t>(size));
        for (int r = 0; r < size; ++r) {
          EXPECT_EQ(text(all[static_cast<std::size_t>(r)]), std::string(length(r), static_cast<char>('a' + r)));
        }
      }
    });
  }
}

TEST(BootstrapThreads, TimeoutNamesTheMissingRanks) {
  auto meetings = meet_in_process(4);
  on_threads(2, [&](int rank) {
    const auto error =
        expect_error(ErrorCode::kTimeout, [&] { meetings[static_cast<std::size_t>(rank)]->all_gather({}, 50ms); });
    EXPECT_NE(error.find("ranks 2 and 3"), std::string::npos) << error;
  });
  // Who comes too late is told at once.
  expect_error(ErrorCode::kTimeout, [&] { meetings[2]->all_gather({}, 10s); });
}

TEST(BootstrapThreads, LeavingEarlyFailsTheOthersAtOnce) {
  auto meetings = meet_in_process(3);
  const auto begin = std::chrono::steady_clock::now();
  on_threads(3, [&](int rank) {
    auto& mine = meetings[static_cast<std::size_t>(rank)];
    mine->all_gather({}, 10s);
    if (rank == 1) {
      mine.reset();
      return;
    }
    const auto error = expect_error(ErrorCode::kBootstrap, [&] { mine->all_gather({}, 60s); });
    EXPECT_NE(error.find("rank 1 left"), std::string::npos) << error;
  });
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 20s);
}

TEST(BootstrapThreads, LeavingAfterTheLastRoundHarmsNobody) {
  for (int repeat = 0; repeat < 50; ++repeat) {
    auto meetings = meet_in_process(4);
    on_threads(4, [&](int rank) {
      auto mine = std::move(meetings[static_cast<std::size_t>(rank)]);
      EXPECT_EQ(mine->all_gather(as_bytes("x"), 10s).size(), 4u);
    });
  }
}

TEST(BootstrapThreads, BadSizesAreRefused) {
  expect_error(ErrorCode::kInvalidArgument, [] { meet_in_process(0); });
  const AllGather alone = [](std::span<const std::byte> mine) {
    return std::vector<std::vector<std::byte>>{{mine.begin(), mine.end()}};
  };
  expect_error(ErrorCode::kInvalidArgument, [&] { meet_through(0, 0, alone); });
  expect_error(ErrorCode::kInvalidArgument, [&] { meet_through(2, 2, alone); });
  expect_error(ErrorCode::kInvalidArgument, [&] { meet_through(-1, 2, alone); });
  expect_error(ErrorCode::kInvalidArgument, [&] { meet_through(0, 1, AllGather{}); });
  EXPECT_EQ(text(meet_through(0, 1, alone)->all_gather(as_bytes("me"), 1s)[0]), "me");
  const auto few = expect_error(ErrorCode::kBootstrap, [&] { meet_through(0, 2, alone)->all_gather({}, 1s); });
  EXPECT_NE(few.find("1 entries, expected 2"), std::string::npos) << few;
  const AllGather swapped = [](std::span<const std::byte> mine) {
    return std::vector<std::vector<std::byte>>{{}, {mine.begin(), mine.end()}};
  };
  expect_error(ErrorCode::kBootstrap, [&] { meet_through(0, 2, swapped)->all_gather(as_bytes("me"), 1s); });
}

TEST(BootstrapThreads, MeshPassesNoticesInOrderAndMemoryAsPointers) {
  constexpr int kSize = 4;
  auto meetings = meet_in_process(kSize);
  on_threads(kSize, [&](int rank) {
    auto mesh = make_mesh(*meetings[static_cast<std::size_t>(rank)], 10s);
    const auto memory = mesh->allocate(1 << 20);
    for (int peer = 0; peer < kSize; ++peer) {
      for (int i = 0; i < 10; ++i)
        mesh->send(peer, {as_bytes(std::to_string(rank * 100 + i)), i == 0 ? memory : nullptr});
    }
    for (int peer = 0; peer < kSize; ++peer) {
      for (int i = 0; i < 10; ++i) {
        const Notice notice = bootstrap_test::wait_for_notice(*mesh, peer);
        EXPECT_EQ(text(notice.bytes), std::to_string(peer * 100 + i));
        ASSERT_EQ(notice.memory != nullptr, i == 0);
        if (i == 0) notice.memory->data()[rank] = static_cast<std::byte>(peer + 1);
      }
    }
    EXPECT_EQ(memory->data()[rank], static_cast<std::byte>(rank + 1));
    meetings[static_cast<std::size_t>(rank)]->all_gather({}, 10s);
    for (int r = 0; r < kSize; ++r) EXPECT_EQ(memory->data()[r], static_cast<std::byte>(rank + 1));
  });
}

TEST(BootstrapThreads, GoneComesAfterTheLastNotice) {
  auto meetings = meet_in_process(2);
  on_threads(2, [&](int rank) {
    auto mesh = make_mesh(*meetings[static_cast<std::size_t>(rank)], 10s);
    if (rank == 1) {
      mesh->send(0, {as_bytes("last words"), mesh->allocate(16)});
      mesh.reset();
      meetings[1]->all_gather({}, 10s);
      return;
    }
    EXPECT_FALSE(mesh->gone(0));
    meetings[0]->all_gather({}, 10s);
    EXPECT_FALSE(mesh->gone(1)) << "a notice is waiting";
    EXPECT_EQ(text(mesh->poll(1)->bytes), "last words");
    EXPECT_TRUE(mesh->gone(1));
    mesh->send(1, {as_bytes("nobody"), nullptr});
    EXPECT_FALSE(mesh->poll(1));
    expect_error(ErrorCode::kInvalidArgument, [&] { mesh->gone(2); });
    expect_error(ErrorCode::kInvalidArgument, [&] { mesh->poll(-1); });
  });
}

TEST(BootstrapThreads, SeveralMeshesFromOneMeeting) {
  constexpr int kSize = 3;
  auto meetings = meet_in_process(kSize);
  on_threads(kSize, [&](int rank) {
    auto first = make_mesh(*meetings[static_cast<std::size_t>(rank)], 10s);
    auto second = make_mesh(*meetings[static_cast<std::size_t>(rank)], 10s);
    const int next = (rank + 1) % kSize;
    const int previous = (rank + kSize - 1) % kSize;
    second->send(next, {as_bytes("second"), nullptr});
    first->send(next, {as_bytes("first"), nullptr});
    EXPECT_EQ(text(bootstrap_test::wait_for_notice(*first, previous).bytes), "first");
    EXPECT_EQ(text(bootstrap_test::wait_for_notice(*second, previous).bytes), "second");
  });
}

}  // namespace
}  // namespace ferry
