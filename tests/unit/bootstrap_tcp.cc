// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The TCP meeting: ranks as threads and as processes, timeouts, peers that leave, and strangers of every kind.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <string>
#include <thread>

#include "bootstrap/frames.h"
#include "bootstrap/tcp_stream.h"
#include "bootstrap_support.h"
#include "ferry/meeting.h"

namespace ferry {
namespace {

using namespace std::chrono_literals;
using bootstrap::Bytes;
using bootstrap::Frame;
using bootstrap::FrameKind;
using bootstrap::Hello;
using bootstrap_test::as_bytes;
using bootstrap_test::end_of;
using bootstrap_test::expect_error;
using bootstrap_test::free_port;
using bootstrap_test::on_threads;
using bootstrap_test::start_process;
using bootstrap_test::text;

TcpMeeting place(int rank, int size, std::uint16_t port) {
  return {.rank = rank, .size = size, .port = port, .token = "job", .timeout = 20s};
}

bool gather_and_check(Meeting& meeting, int round) {
  const auto word = [&](int rank) {
    return std::string(static_cast<std::size_t>(rank * 3 + round % 4), static_cast<char>('a' + rank));
  };
  const auto all = meeting.all_gather(as_bytes(word(meeting.rank())), 20s);
  bool well = all.size() == static_cast<std::size_t>(meeting.size());
  for (int rank = 0; well && rank < meeting.size(); ++rank)
    well = text(all[static_cast<std::size_t>(rank)]) == word(rank);
  return well;
}

/// A connection of somebody who is no rank.
class Stranger {
 public:
  explicit Stranger(std::uint16_t port) {
    const auto resolution = bootstrap::resolve("127.0.0.1", port);
    const auto deadline = std::chrono::steady_clock::now() + 10s;
    while (std::chrono::steady_clock::now() < deadline) {
      bootstrap::Fd socket = bootstrap::begin_connect(resolution.addresses.at(0));
      pollfd watched{socket.get(), POLLOUT, 0};
      ::poll(&watched, 1, 1000);
      if (bootstrap::connect_outcome(socket) == 0) {
        stream_ = bootstrap::FrameStream(std::move(socket), 1 << 20);
        return;
      }
      std::this_thread::sleep_for(2ms);
    }
  }

  void say(Bytes bytes) { stream_.send(std::make_shared<const Bytes>(std::move(bytes))); }
  void say(const Hello& hello) { stream_.send(FrameKind::kHello, hello.encode()); }

  /// What the host answers before it ends the connection: a reason, "" for nothing, "?" for anything else.
  std::string answer() {
    const auto deadline = std::chrono::steady_clock::now() + 10s;
    while (std::chrono::steady_clock::now() < deadline) {
      const bool goes_on = stream_.fill();
      if (const auto frame = stream_.reader().next()) {
        const auto reason = bootstrap::Reason::decode(frame->payload);
        return frame->kind == FrameKind::kRefusal && reason ? reason->text : "?";
      }
      if (!goes_on) return "";
      pollfd watched{stream_.fd(), POLLIN, 0};
      ::poll(&watched, 1, 100);
    }
    return "?";
  }

 private:
  bootstrap::FrameStream stream_;
};

TEST(BootstrapTcp, RanksAsThreads) {
  for (const int size : {1, 2, 5}) {
    const std::uint16_t port = free_port();
    on_threads(size, [&](int rank) {
      const auto meeting = meet_over_tcp(place(rank, size, port));
      EXPECT_EQ(meeting->rank(), rank);
      EXPECT_EQ(meeting->size(), size);
      for (int round = 0; round < 20; ++round) EXPECT_TRUE(gather_and_check(*meeting, round));
    });
  }
}

TEST(BootstrapTcp, RanksAsProcessesWithLongContributions) {
  const std::uint16_t port = free_port();
  constexpr int kSize = 4;
  std::vector<pid_t> children;
  for (int rank = kSize - 1; rank >= 0; --rank) {
    children.push_back(start_process([&] {
      const auto meeting = meet_over_tcp(place(rank, kSize, port));
      const auto all = meeting->all_gather(Bytes(std::size_t{1} << 20, static_cast<std::byte>(rank)), 20s);
      bool well = gather_and_check(*meeting, 1);
      for (int peer = 0; peer < kSize; ++peer) {
        const Bytes& bytes = all[static_cast<std::size_t>(peer)];
        well = well && bytes.size() == std::size_t{1} << 20 && bytes.back() == static_cast<std::byte>(peer);
      }
      return well;
    }));
  }
  for (const pid_t child : children) EXPECT_EQ(end_of(child), 0);
}

TEST(BootstrapTcp, NamesAndIPv6) {
  for (const char* address : {"localhost", "::1", "0.0.0.0"}) {
    if (std::string(address) == "::1") {
      const auto probe = bootstrap::resolve(address, free_port());
      if (probe.addresses.empty() || !bootstrap::listen_on(probe.addresses[0], 1)) continue;  // a machine without IPv6
    }
    const std::uint16_t port = free_port();
    on_threads(2, [&](int rank) {
      TcpMeeting where = place(rank, 2, port);
      where.address = address;
      EXPECT_TRUE(gather_and_check(*meet_over_tcp(where), 0)) << address;
    });
  }
}

TEST(BootstrapTcp, BadArgumentsAreRefused) {
  const std::uint16_t port = free_port();
  for (const TcpMeeting& where : {place(0, 0, port), place(2, 2, port), place(-1, 2, port), place(0, 2, 0)}) {
    expect_error(ErrorCode::kInvalidArgument, [&] { meet_over_tcp(where); });
  }
  TcpMeeting where = place(0, 2, port);
  where.token = std::string(513, 'x');
  expect_error(ErrorCode::kInvalidArgument, [&] { meet_over_tcp(where); });
  where = place(0, 2, port);
  where.timeout = 0s;
  expect_error(ErrorCode::kInvalidArgument, [&] { meet_over_tcp(where); });
  where = place(0, 2, port);
  where.address = "not an address";
  expect_error(ErrorCode::kBootstrap, [&] { meet_over_tcp(where); });
  where.rank = 1;
  expect_error(ErrorCode::kBootstrap, [&] { meet_over_tcp(where); });
}

TEST(BootstrapTcp, PortThatIsTakenIsReported) {
  const std::uint16_t port = free_port();
  const bootstrap::Fd other = bootstrap::listen_on(bootstrap::resolve("127.0.0.1", port).addresses.at(0), 1);
  TcpMeeting where = place(0, 2, port);
  where.timeout = 60ms;
  const auto error = expect_error(ErrorCode::kBootstrap, [&] { meet_over_tcp(where); });
  EXPECT_NE(error.find(std::to_string(port)), std::string::npos) << error;
}

TEST(BootstrapTcp, MissingRanksAreNamedEverywhere) {
  const std::uint16_t port = free_port();
  const auto begin = std::chrono::steady_clock::now();
  on_threads(2, [&](int rank) {
    TcpMeeting where = place(rank, 4, port);
    where.timeout = 1s;
    const auto error = expect_error(ErrorCode::kTimeout, [&] { meet_over_tcp(where); });
    EXPECT_NE(error.find("ranks 2 and 3"), std::string::npos) << "rank " << rank << ": " << error;
  });
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 5s);
  TcpMeeting alone = place(1, 2, free_port());
  alone.timeout = 50ms;
  const auto error = expect_error(ErrorCode::kTimeout, [&] { meet_over_tcp(alone); });
  EXPECT_NE(error.find("did not reach rank 0"), std::string::npos) << error;
}

TEST(BootstrapTcp, LateRankIsNamedInAGather) {
  const std::uint16_t port = free_port();
  std::atomic<int> gave_up = 0;
  std::atomic<bool> over = false;
  on_threads(4, [&](int rank) {
    const auto meeting = meet_over_tcp(place(rank, 4, port));
    EXPECT_TRUE(gather_and_check(*meeting, 0));
    if (rank == 2) {
      while (gave_up < 3) std::this_thread::sleep_for(1ms);
      expect_error(ErrorCode::kTimeout, [&] { meeting->all_gather({}, 10s); });  // told that it is too late
      over = true;
      return;
    }
    const auto error = expect_error(ErrorCode::kTimeout, [&] { meeting->all_gather({}, 1s); });
    EXPECT_NE(error.find("rank 2 did not come"), std::string::npos) << "rank " << rank << ": " << error;
    expect_error(ErrorCode::kTimeout, [&] { meeting->all_gather({}, 10s); });  // and the meeting stays over
    ++gave_up;
    while (!over) std::this_thread::sleep_for(1ms);
  });
}

TEST(BootstrapTcp, RankThatLeavesIsNamed) {
  for (const int leaver : {0, 1}) {
    const std::uint16_t port = free_port();
    on_threads(3, [&](int rank) {
      const auto meeting = meet_over_tcp(place(rank, 3, port));
      EXPECT_TRUE(gather_and_check(*meeting, 0));
      if (rank == leaver) return;
      const auto error = expect_error(ErrorCode::kBootstrap, [&] { meeting->all_gather({}, 20s); });
      EXPECT_NE(error.find("rank " + std::to_string(leaver) + " left"), std::string::npos) << error;
    });
  }
}

TEST(BootstrapTcp, KilledRankIsNamed) {
  const std::uint16_t port = free_port();
  const pid_t victim = start_process([&] {
    const auto meeting = meet_over_tcp(place(1, 2, port));
    meeting->all_gather({}, 20s);
    raise(SIGKILL);
    return true;
  });
  const auto meeting = meet_over_tcp(place(0, 2, port));
  meeting->all_gather({}, 20s);
  const auto error = expect_error(ErrorCode::kBootstrap, [&] { meeting->all_gather({}, 20s); });
  EXPECT_NE(error.find("rank 1 left"), std::string::npos) << error;
  EXPECT_EQ(end_of(victim), -SIGKILL);
}

/// Takes a seat that somebody has just left: rank 0 may notice a moment later that it is free.
std::unique_ptr<Meeting> meet_patiently(const TcpMeeting& where) {
  for (int attempt = 0;; ++attempt) {
    try {
      return meet_over_tcp(where);
    } catch (const Error& error) {
      if (attempt == 400 || std::string(error.what()).find("here already") == std::string::npos) throw;
      std::this_thread::sleep_for(5ms);
    }
  }
}

TEST(BootstrapTcp, StrangersAreTurnedAwayAndTheGroupIsUnharmed) {
  const std::uint16_t port = free_port();
  constexpr int kSize = 4;
  std::thread ranks([&] {
    on_threads(2, [&](int rank) {  // ranks 2 and 3 come after the strangers
      const auto meeting = meet_over_tcp(place(rank, kSize, port));
      for (int round = 0; round < 5; ++round) EXPECT_TRUE(gather_and_check(*meeting, round));
    });
  });
  const auto answer_to = [&](auto&& words) {
    Stranger stranger(port);
    stranger.say(words);
    return stranger.answer();
  };
  const Hello good{.rank = 2, .size = kSize, .patience = 10s, .token = "job"};
  const auto changed = [&](auto change) {
    Hello hello = good;
    change(hello);
    return hello;
  };
  Stranger silent(port);
  Stranger slow(port);
  slow.say(Bytes(as_bytes("FRY")));
  EXPECT_EQ(answer_to(Bytes(as_bytes("GET / HTTP/1.1\r\n\r\n"))), "");
  EXPECT_EQ(answer_to(Bytes(100000, std::byte{0xff})), "");
  Bytes huge = bootstrap::encode_frame(FrameKind::kHello, {});
  std::fill(huge.begin() + 8, huge.end(), std::byte{0xff});
  EXPECT_EQ(answer_to(Bytes(huge)), "");
  EXPECT_EQ(answer_to(changed([](Hello& hello) { hello.token = "guess"; })), "the token is not the one of this job");
  EXPECT_EQ(answer_to(changed([](Hello& hello) { hello.token.clear(); })), "the token is not the one of this job");
  EXPECT_EQ(answer_to(changed([](Hello& hello) { hello.size = 3; })), "the group has 4 ranks, not 3");
  EXPECT_EQ(answer_to(changed([](Hello& hello) { hello.rank = 4; })), "rank 4 is not one of 0 to 3");
  EXPECT_EQ(answer_to(changed([](Hello& hello) { hello.rank = 0; })), "rank 0 is here already");
  EXPECT_EQ(answer_to(bootstrap::encode_frame(FrameKind::kContribute, {})), "it did not introduce itself");
  EXPECT_EQ(answer_to(bootstrap::encode_frame(FrameKind::kHello, as_bytes("short"))), "it did not introduce itself");
  Bytes other_version = bootstrap::encode_frame(FrameKind::kHello, good.encode());
  other_version[4] = std::byte{9};
  EXPECT_EQ(answer_to(Bytes(other_version)), "it speaks version 9 of Ferry's meeting protocol, expected version 1");
  // One that gives up before everybody is there leaves its seat to the next.
  {
    Stranger fleeting(port);
    fleeting.say(good);
    EXPECT_EQ(fleeting.answer(), "?") << "it is welcome";
  }
  std::thread third([&] {
    on_threads(1, [&](int) {
      const auto meeting = meet_patiently(place(2, kSize, port));
      for (int round = 0; round < 5; ++round) EXPECT_TRUE(gather_and_check(*meeting, round));
    });
  });
  on_threads(1, [&](int) {
    const auto last = meet_over_tcp(place(3, kSize, port));
    for (int round = 0; round < 4; ++round) EXPECT_TRUE(gather_and_check(*last, round));
    // While the others wait for the last gather, the door is still kept.
    const auto duplicate = expect_error(ErrorCode::kBootstrap, [&] { meet_over_tcp(place(1, kSize, port)); });
    EXPECT_NE(duplicate.find("rank 1 is here already"), std::string::npos) << duplicate;
    EXPECT_TRUE(gather_and_check(*last, 4));
  });
  third.join();
  ranks.join();
}

TEST(BootstrapTcp, RefusedRankLearnsWhy) {
  const std::uint16_t port = free_port();
  on_threads(2, [&](int rank) {
    if (rank == 0) {
      EXPECT_TRUE(gather_and_check(*meet_over_tcp(place(0, 2, port)), 0));
      return;
    }
    TcpMeeting wrong = place(1, 2, port);
    wrong.token = "another job";
    const auto token = expect_error(ErrorCode::kBootstrap, [&] { meet_over_tcp(wrong); });
    EXPECT_NE(token.find("turned rank 1 of 2 away: the token"), std::string::npos) << token;
    const auto size = expect_error(ErrorCode::kBootstrap, [&] { meet_over_tcp(place(1, 3, port)); });
    EXPECT_NE(size.find("the group has 2 ranks, not 3"), std::string::npos) << size;
    EXPECT_TRUE(gather_and_check(*meet_over_tcp(place(1, 2, port)), 0));
  });
}

TEST(BootstrapTcp, SomethingElseAtThePortIsReported) {
  const std::uint16_t port = free_port();
  const bootstrap::Fd listener = bootstrap::listen_on(bootstrap::resolve("127.0.0.1", port).addresses.at(0), 4);
  std::thread server([&] {
    pollfd watched{listener.get(), POLLIN, 0};
    ::poll(&watched, 1, 10000);
    bootstrap::FrameStream stream(bootstrap::accept_tcp(listener), 0);
    stream.send(std::make_shared<const Bytes>(as_bytes("220 mail.example ESMTP\r\n")));
    std::this_thread::sleep_for(100ms);
  });
  const auto error = expect_error(ErrorCode::kBootstrap, [&] { meet_over_tcp(place(1, 2, port)); });
  EXPECT_NE(error.find("does not speak Ferry's meeting protocol"), std::string::npos) << error;
  server.join();
}

TEST(BootstrapTcp, MemberThatSpeaksOutOfTurnFailsTheGroupCleanly) {
  const std::uint16_t port = free_port();
  std::thread impostor([&] {
    Stranger member(port);
    member.say(Hello{.rank = 1, .size = 2, .patience = 10s, .token = "job"});
    EXPECT_EQ(member.answer(), "?");
    member.say(bootstrap::encode_frame(FrameKind::kContribute, bootstrap::Contribution::encode(7, 1s, {})));
    while (member.answer() != "") continue;
  });
  // The frame may come while rank 0 is still in meet_over_tcp: either call may be the one that says so.
  const auto error =
      expect_error(ErrorCode::kBootstrap, [&] { meet_over_tcp(place(0, 2, port))->all_gather({}, 10s); });
  EXPECT_NE(error.find("rank 1 sent a frame out of turn"), std::string::npos) << error;
  impostor.join();
}

TEST(BootstrapTcp, FromTheEnvironment) {
  const std::uint16_t port = free_port();
  const auto rank_process = [&](int rank) {
    return start_process([&] {
      setenv("RANK", std::to_string(rank).c_str(), 1);
      setenv("WORLD_SIZE", "2", 1);
      setenv("MASTER_ADDR", "127.0.0.1", 1);
      setenv("MASTER_PORT", std::to_string(port - 1).c_str(), 1);
      setenv("FERRY_TOKEN", "job", 1);
      const auto meeting = meet_from_environment();
      return meeting->rank() == rank && meeting->size() == 2 && gather_and_check(*meeting, 0);
    });
  };
  const pid_t first = rank_process(0);
  const pid_t second = rank_process(1);
  const pid_t alone = start_process([] {
    unsetenv("RANK");
    unsetenv("WORLD_SIZE");
    return meet_from_environment()->size() == 1;
  });
  EXPECT_EQ(end_of(first), 0);
  EXPECT_EQ(end_of(second), 0);
  EXPECT_EQ(end_of(alone), 0);
}

TEST(BootstrapFrames, CutAnywhereAndJoinedAgain) {
  Bytes stream;
  for (int i = 0; i < 4; ++i) {
    const Bytes frame =
        bootstrap::encode_frame(FrameKind::kContribute, Bytes(static_cast<std::size_t>(i * 5), std::byte{7}));
    stream.insert(stream.end(), frame.begin(), frame.end());
  }
  for (std::size_t piece = 1; piece <= stream.size(); ++piece) {
    bootstrap::FrameReader reader(100);
    std::vector<std::size_t> lengths;
    for (std::size_t at = 0; at < stream.size(); at += piece) {
      reader.feed(std::span(stream).subspan(at, std::min(piece, stream.size() - at)));
      while (const auto frame = reader.next()) lengths.push_back(frame->payload.size());
    }
    EXPECT_EQ(lengths, (std::vector<std::size_t>{0, 5, 10, 15})) << piece;
    EXPECT_EQ(reader.complaint(), "");
    EXPECT_EQ(reader.kept_bytes(), 0u);
  }
}

TEST(BootstrapFrames, MessagesRoundTripAndTruncationsAreRefused) {
  const bootstrap::Reason reason{.code = ErrorCode::kTimeout, .missing = {1, 70, 3}, .text = "because"};
  const bootstrap::Result result{.round = 9, .all = {as_bytes("a"), {}, as_bytes("ccc")}};
  const Hello hello{.rank = 1, .size = 2, .patience = 3s, .token = "t"};
  EXPECT_EQ(bootstrap::Reason::decode(reason.encode())->missing, reason.missing);
  EXPECT_EQ(bootstrap::Reason::decode(reason.encode())->text, "because");
  EXPECT_EQ(bootstrap::Result::decode(result.encode())->all, result.all);
  EXPECT_EQ(Hello::decode(hello.encode())->patience, hello.patience);
  for (const Bytes& whole : {reason.encode(), result.encode(), hello.encode()}) {
    for (std::size_t length = 0; length < whole.size(); ++length) {
      const auto cut = std::span(whole).first(length);
      EXPECT_FALSE(bootstrap::Reason::decode(cut) && bootstrap::Result::decode(cut) && Hello::decode(cut)) << length;
    }
  }
  EXPECT_FALSE(bootstrap::Result::decode(Bytes(12, std::byte{0xff})));
}

}  // namespace
}  // namespace ferry
