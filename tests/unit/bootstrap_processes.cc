// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Ranks as processes: shared memory with a fixed size, the mesh of Unix sockets, peers that are killed, nothing left
// behind.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <thread>

#include "bootstrap/bytes.h"
#include "bootstrap/far_linking.h"
#include "bootstrap/link.h"
#include "bootstrap/linking.h"
#include "bootstrap/packet_socket.h"
#include "bootstrap/tcp_stream.h"
#include "bootstrap_support.h"
#include "ferry/meeting.h"

namespace ferry {
namespace {

using namespace std::chrono_literals;
using bootstrap_test::as_bytes;
using bootstrap_test::end_of;
using bootstrap_test::expect_error;
using bootstrap_test::free_port;
using bootstrap_test::on_threads;
using bootstrap_test::start_process;
using bootstrap_test::text;
using bootstrap_test::wait_for_notice;
using bootstrap_test::wait_until_gone;

std::unique_ptr<Meeting> meet(int rank, int size, std::uint16_t port) {
  return meet_over_tcp({.rank = rank, .size = size, .port = port, .token = "job", .timeout = 20s});
}

/// Runs `body(rank)` as processes, all ended before this returns; every one must end well.
void on_processes(int size, const std::function<bool(int)>& body) {
  std::vector<pid_t> children;
  for (int rank = 0; rank < size; ++rank) children.push_back(start_process([&] { return body(rank); }));
  for (int rank = 0; rank < size; ++rank)
    EXPECT_EQ(end_of(children[static_cast<std::size_t>(rank)]), 0) << "rank " << rank;
}

bool name_in_use(const std::string& name) {
  std::ifstream file("/proc/net/unix");
  for (std::string line; std::getline(file, line);) {
    if (line.ends_with("@" + name)) return true;
  }
  return false;
}

TEST(BootstrapMemory, SizesAndZeros) {
  for (const auto& memory : {Memory::anonymous(0), Memory::shareable(0)}) {
    EXPECT_GT(memory->size(), 0u);
    EXPECT_EQ(memory->data()[0], std::byte{0});
  }
  // Far more than there is: only what is touched counts.
  const auto sparse = Memory::shareable(std::size_t{1} << 36);
  sparse->data()[(std::size_t{1} << 36) - 1] = std::byte{7};
  struct stat file {};
  ASSERT_EQ(fstat(sparse->fd(), &file), 0);
  EXPECT_LE(file.st_blocks * 512, std::int64_t{4} << 20);
  EXPECT_EQ(Memory::anonymous(100)->size(), 100u);
  EXPECT_EQ(Memory::anonymous(100)->fd(), -1);
  expect_error(ErrorCode::kInvalidArgument, [] { Memory::anonymous(~std::size_t{0}); });
  expect_error(ErrorCode::kInternal, [] { Memory::anonymous(std::size_t{1} << 62); });
}

TEST(BootstrapMemory, MapChecksWhatItIsGiven) {
  const auto memory = Memory::shareable(10000);
  memory->data()[9999] = std::byte{42};
  const auto again = Memory::map(dup(memory->fd()), 10000);
  EXPECT_EQ(again->data()[9999], std::byte{42});
  EXPECT_NE(ftruncate(memory->fd(), 0), 0) << "a peer could make us fault";
  EXPECT_NE(ftruncate(memory->fd(), 1 << 20), 0);
  EXPECT_NE(fcntl(memory->fd(), F_ADD_SEALS, F_SEAL_WRITE), 0);

  const auto wrong_size = expect_error(ErrorCode::kInvalidArgument, [&] { Memory::map(dup(memory->fd()), 100000); });
  EXPECT_NE(wrong_size.find("12288"), std::string::npos) << wrong_size;
  expect_error(ErrorCode::kInvalidArgument, [&] { Memory::map(dup(memory->fd()), 0); });
  expect_error(ErrorCode::kInvalidArgument, [&] { Memory::map(-1, 10000); });
  expect_error(ErrorCode::kInvalidArgument, [&] { Memory::map(open("/dev/zero", O_RDWR | O_CLOEXEC), 4096); });
  const bootstrap::Fd unsealed(memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(ftruncate(unsealed.get(), 4096), 0);
  expect_error(ErrorCode::kInvalidArgument, [&] { Memory::map(dup(unsealed.get()), 4096); });
}

TEST(BootstrapProcesses, EveryPairSharesMemory) {
  constexpr int kSize = 5;
  const std::uint16_t port = free_port();
  on_processes(kSize, [&](int rank) {
    const auto meeting = meet(rank, kSize, port);
    const auto mesh = make_mesh(*meeting, 20s);
    const auto mine = mesh->allocate(std::size_t{1} << 33);
    for (int peer = 0; peer < kSize; ++peer) mesh->send(peer, {as_bytes("window " + std::to_string(rank)), mine});
    bool well = true;
    for (int peer = 0; peer < kSize; ++peer) {
      const Notice notice = wait_for_notice(*mesh, peer);
      well = well && text(notice.bytes) == "window " + std::to_string(peer) &&
             notice.memory->size() == std::size_t{1} << 33;
      notice.memory->data()[std::size_t{1} << 32 | static_cast<std::size_t>(rank)] =
          static_cast<std::byte>(10 * peer + rank);
    }
    meeting->all_gather({}, 20s);
    for (int peer = 0; peer < kSize; ++peer) {
      well = well && mine->data()[std::size_t{1} << 32 | static_cast<std::size_t>(peer)] ==
                         static_cast<std::byte>(10 * rank + peer);
    }
    return well;
  });
}

TEST(BootstrapProcesses, LongNoticesAndManyOfThemArriveInOrder) {
  const std::uint16_t port = free_port();
  const auto body_of = [](int i) {
    return std::string(static_cast<std::size_t>(i) * 20011 % 300000, static_cast<char>('a' + i % 26));
  };
  on_processes(2, [&](int rank) {
    const auto meeting = meet(rank, 2, port);
    const auto mesh = make_mesh(*meeting, 20s);
    constexpr int kCount = 60;
    for (int i = 0; i < kCount; ++i)
      mesh->send(1 - rank, {as_bytes(body_of(i)), i % 7 == 0 ? mesh->allocate(64) : nullptr});
    bool well = true;
    for (int i = 0; i < kCount; ++i) {
      const Notice notice = wait_for_notice(*mesh, 1 - rank);
      well = well && text(notice.bytes) == body_of(i) && (notice.memory != nullptr) == (i % 7 == 0);
    }
    mesh->send(1 - rank, {as_bytes("done"), nullptr});  // whoever hears this has nothing queued any more
    return well && text(wait_for_notice(*mesh, 1 - rank).bytes) == "done";
  });
}

TEST(BootstrapProcesses, KilledPeerIsGoneAfterItsLastNotice) {
  const std::uint16_t port = free_port();
  int pipe_ends[2];
  ASSERT_EQ(pipe2(pipe_ends, O_CLOEXEC), 0);
  bootstrap::Fd until_closed(pipe_ends[0]);
  bootstrap::Fd open_end(pipe_ends[1]);
  const pid_t victim = start_process([&] {
    open_end.reset();
    const auto meeting = meet(1, 2, port);
    const auto mesh = make_mesh(*meeting, 20s);
    mesh->send(0, {as_bytes("last words"), mesh->allocate(4096)});
    if (fork() == 0) {  // a child that inherits the sockets does not keep the peer alive
      char nothing = 0;
      _exit(static_cast<int>(read(until_closed.get(), &nothing, 1)));
    }
    raise(SIGKILL);
    return true;
  });
  const auto meeting = meet(0, 2, port);
  const auto mesh = make_mesh(*meeting, 20s);
  EXPECT_EQ(end_of(victim), -SIGKILL);
  EXPECT_FALSE(mesh->gone(1)) << "its last notice is waiting";
  EXPECT_EQ(text(wait_for_notice(*mesh, 1).bytes), "last words");
  EXPECT_TRUE(wait_until_gone(*mesh, 1));
  mesh->send(1, {as_bytes("nobody"), nullptr});
  EXPECT_FALSE(mesh->poll(1));
  EXPECT_FALSE(mesh->gone(0));
}

TEST(BootstrapProcesses, StoppedPeerIsNotGone) {
  const std::uint16_t port = free_port();
  const pid_t sleeper = start_process([&] {
    const auto meeting = meet(1, 2, port);
    const auto mesh = make_mesh(*meeting, 20s);
    mesh->send(0, {as_bytes("good night"), nullptr});
    raise(SIGSTOP);
    mesh->send(0, {as_bytes("good morning"), nullptr});
    return text(wait_for_notice(*mesh, 0).bytes) == "bye" && wait_until_gone(*mesh, 0);
  });
  const auto meeting = meet(0, 2, port);
  auto mesh = make_mesh(*meeting, 20s);
  EXPECT_EQ(text(wait_for_notice(*mesh, 1).bytes), "good night");
  int status = 0;
  ASSERT_EQ(waitpid(sleeper, &status, WUNTRACED), sleeper);
  ASSERT_TRUE(WIFSTOPPED(status));
  EXPECT_FALSE(mesh->gone(1));
  EXPECT_FALSE(mesh->poll(1));
  kill(sleeper, SIGCONT);
  EXPECT_EQ(text(wait_for_notice(*mesh, 1).bytes), "good morning");
  mesh->send(1, {as_bytes("bye"), nullptr});
  mesh.reset();
  EXPECT_EQ(end_of(sleeper), 0);
}

TEST(BootstrapProcesses, RankThatDiesWhileMeetingIsNamed) {
  const std::uint16_t port = free_port();
  std::vector<pid_t> children;
  children.push_back(start_process([&] {
    const auto meeting = meet(1, 3, port);
    expect_error(ErrorCode::kBootstrap, [&] { make_mesh(*meeting, 10s); });
    return !testing::Test::HasFailure();
  }));
  children.push_back(start_process([&] {
    const auto meeting = meet(2, 3, port);
    return true;
  }));
  const auto meeting = meet(0, 3, port);
  const auto error = expect_error(ErrorCode::kBootstrap, [&] { make_mesh(*meeting, 10s); });
  EXPECT_NE(error.find("rank 2 left"), std::string::npos) << error;
  for (const pid_t child : children) EXPECT_EQ(end_of(child), 0);
}

TEST(BootstrapProcesses, ManyRanksAndSeveralGroups) {
  constexpr int kSize = 24;
  const std::uint16_t port = free_port();
  on_processes(kSize, [&](int rank) {
    const auto meeting = meet(rank, kSize, port);
    const auto first = make_mesh(*meeting, 20s);
    const auto second = make_mesh(*meeting, 20s);
    const int next = (rank + 1) % kSize;
    const int previous = (rank + kSize - 1) % kSize;
    second->send(next, {as_bytes("second"), nullptr});
    first->send(next, {as_bytes("first"), nullptr});
    return text(wait_for_notice(*first, previous).bytes) == "first" &&
           text(wait_for_notice(*second, previous).bytes) == "second";
  });
}

TEST(BootstrapProcesses, RanksAsThreadsCanUseSocketsToo) {
  constexpr int kSize = 4;
  const std::uint16_t port = free_port();
  on_threads(kSize, [&](int rank) {
    const auto meeting = meet(rank, kSize, port);
    auto mesh = make_mesh(*meeting, 20s);
    expect_error(ErrorCode::kInvalidArgument, [&] { mesh->send(0, {{}, Memory::anonymous(1)}); });
    expect_error(ErrorCode::kInvalidArgument, [&] { mesh->send(kSize, {}); });
    const int next = (rank + 1) % kSize;
    mesh->send(next, {{}, mesh->allocate(0)});
    const Notice notice = wait_for_notice(*mesh, (rank + kSize - 1) % kSize);
    EXPECT_TRUE(notice.bytes.empty());
    EXPECT_NE(notice.memory, nullptr);
    meeting->all_gather({}, 20s);
    if (rank == 0) mesh.reset();
    EXPECT_EQ(mesh && wait_until_gone(*mesh, 0), rank != 0);
    meeting->all_gather({}, 20s);
  });
}

TEST(BootstrapProcesses, AnotherUserIsRefusedByNameAndAnotherMachineIsFar) {
  const bootstrap::Card mine = bootstrap::Card::of_this_process();
  EXPECT_EQ(bootstrap::Card::decode(0, mine.encode()).name, mine.name);
  bootstrap::check_cards({mine, mine}, 1);
  bootstrap::Card far = mine;
  far.boot_id += "x";
  bootstrap::Card walled = mine;
  walled.network += 1;
  EXPECT_TRUE(mine.is_near(mine));
  EXPECT_FALSE(mine.is_near(far));
  EXPECT_FALSE(mine.is_near(walled));
  bootstrap::Card foreign = mine;
  foreign.uid += 1;
  bootstrap::Card foreign_and_far = far;
  foreign_and_far.uid += 1;
  bootstrap::check_cards({mine, foreign_and_far, walled}, 0);
  const auto user = expect_error(ErrorCode::kBootstrap, [&] { bootstrap::check_cards({mine, foreign}, 0); });
  EXPECT_NE(user.find("rank 1 belongs to user"), std::string::npos) << user;
  expect_error(ErrorCode::kBootstrap, [&] { bootstrap::Card::decode(3, as_bytes("something else")); });
  expect_error(ErrorCode::kBootstrap, [&] { bootstrap::Card::decode(3, {}); });
}

/// Two ranks link while a program of the same user, that was not at the meeting, knocks at their door in every way it
/// can.
TEST(BootstrapProcesses, StrangersOfTheSameUserGetNoSeat) {
  std::vector<bootstrap::Card> cards = {bootstrap::Card::of_this_process(), bootstrap::Card::of_this_process()};
  bootstrap::Linker low(0, 2, cards[0]);
  bootstrap::Linker high(1, 2, cards[1]);
  std::vector<bootstrap::Fd> strangers;
  const auto knock = [&](std::span<const std::byte> packet, std::span<const int> fds = {}) {
    strangers.push_back(bootstrap::connect_to(cards[0].name));
    ASSERT_TRUE(strangers.back());
    if (!packet.empty()) bootstrap::send_packet(strangers.back(), packet, fds);
  };
  knock({});
  knock(as_bytes("garbage"));
  knock(as_bytes("garbage with a descriptor"), std::array{0});
  bootstrap::PacketHeader hello;
  hello.kind = bootstrap::PacketHeader::Kind::kHello;
  knock(hello.packet({}));
  const auto lie =
      as_bytes(std::string("\1\0\1\0\0\0", 6) + std::string(32, 'x'));  // version 1, rank 1, a guessed nonce
  knock(hello.packet(lie));
  knock(hello.packet(std::vector<std::byte>(2000)));
  on_threads(2, [&](int rank) {
    std::vector<bootstrap::Peer> peers = (rank == 0 ? low : high).link(cards, bootstrap::Deadline::after(10s));
    const auto& peer = peers[static_cast<std::size_t>(1 - rank)];
    ASSERT_TRUE(peer.socket);
    bootstrap::send_packet(peer.socket, as_bytes(rank == 0 ? "low" : "high"));
    std::array<std::byte, 16> buffer;
    bootstrap::Received received;
    while ((received = bootstrap::receive_packet(peer.socket, buffer)).status ==
           bootstrap::Received::Status::kNothing) {
      std::this_thread::yield();
    }
    EXPECT_EQ(text({buffer.begin(), buffer.begin() + static_cast<std::ptrdiff_t>(received.num_bytes)}),
              rank == 0 ? "high" : "low");
  });
}

TEST(BootstrapProcesses, MissingPeerIsNamedWhenLinking) {
  std::vector<bootstrap::Card> cards;
  for (int i = 0; i < 3; ++i) cards.push_back(bootstrap::Card::of_this_process());
  bootstrap::Linker linker(1, 3, cards[1]);
  const bootstrap::Fd silent = bootstrap::listen_at(cards[0].name, 4);
  const auto error = expect_error(ErrorCode::kTimeout, [&] { linker.link(cards, bootstrap::Deadline::after(50ms)); });
  EXPECT_NE(error.find("ranks 0 and 2"), std::string::npos) << error;
  bootstrap::Linker last(2, 3, cards[2]);
  const auto refused = expect_error(ErrorCode::kBootstrap, [&] {
    cards[1].name += "-nobody";
    last.link(cards, bootstrap::Deadline::after(10s));
  });
  EXPECT_NE(refused.find("rank 1"), std::string::npos) << refused;
}

/// Cards that differ in the network namespace, on one machine: the doors of its own addresses are used.
std::vector<bootstrap::Card> far_cards(int count) {
  std::vector<bootstrap::Card> cards;
  for (int i = 0; i < count; ++i) {
    cards.push_back(bootstrap::Card::of_this_process());
    cards.back().network += static_cast<std::uint64_t>(i);
  }
  return cards;
}

/// Null where this machine has no address but the loopback's.
std::unique_ptr<bootstrap::FarLinker> far_linker(int rank, const std::vector<bootstrap::Card>& cards) {
  try {
    return std::make_unique<bootstrap::FarLinker>(rank, cards);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kBootstrap);
    return nullptr;
  }
}

TEST(BootstrapProcesses, RanksOfSeveralMachinesLinkByTcpAndStrangersDoNot) {
  const auto cards = far_cards(3);
  std::vector<std::unique_ptr<bootstrap::FarLinker>> linkers;
  std::vector<std::vector<std::byte>> doors;
  for (int rank = 0; rank < 3; ++rank) {
    linkers.push_back(far_linker(rank, cards));
    if (!linkers.back()) GTEST_SKIP() << "no interface but the loopback";
    doors.push_back(linkers.back()->doors());
  }
  // Door of rank 0: number of doors, length of the address, address, port.
  bootstrap::ByteReader reader(doors[0]);
  reader.get<std::uint32_t>();
  const std::string address = reader.get_text();
  const auto port = reader.get<std::uint16_t>();
  std::vector<bootstrap::Fd> strangers;
  for (const char* says : {"", "garbage", "\xff\xff\xff\xff too long"}) {
    strangers.push_back(bootstrap::begin_connect(bootstrap::resolve(address, port).addresses.front()));
    std::this_thread::sleep_for(20ms);
    ::send(strangers.back().get(), says, std::strlen(says), MSG_NOSIGNAL);
  }
  on_threads(3, [&](int rank) {
    auto sockets = linkers[static_cast<std::size_t>(rank)]->link(doors, bootstrap::Deadline::after(10s));
    const int peer = (rank + 1) % 3, other = (rank + 2) % 3;
    bootstrap::Link to(peer, std::move(sockets[static_cast<std::size_t>(peer)]), bootstrap::Fd());
    bootstrap::Link from(other, std::move(sockets[static_cast<std::size_t>(other)]), bootstrap::Fd());
    Notice notice;
    notice.bytes.assign(300'000, static_cast<std::byte>(rank));
    to.send(notice);
    std::optional<Notice> got;
    const auto end = std::chrono::steady_clock::now() + 10s;
    while (!got && std::chrono::steady_clock::now() < end) {
      to.flush();
      got = from.poll();
    }
    ASSERT_TRUE(got);
    EXPECT_EQ(got->bytes, std::vector<std::byte>(300'000, static_cast<std::byte>(other)));
    while (!to.flush()) std::this_thread::yield();
    notice.memory = Memory::shareable(4096);
    expect_error(ErrorCode::kInternal, [&] { to.send(notice); });
    to.shut_down();
    while (!from.gone() && std::chrono::steady_clock::now() < end) std::this_thread::yield();
    EXPECT_TRUE(from.gone());
  });
}

TEST(BootstrapProcesses, AMissingFarPeerIsNamed) {
  const auto cards = far_cards(2);
  const auto low = far_linker(0, cards), high = far_linker(1, cards);
  if (!low || !high) GTEST_SKIP() << "no interface but the loopback";
  const auto error = expect_error(ErrorCode::kTimeout, [&] {
    high->link({low->doors(), high->doors()}, bootstrap::Deadline::after(100ms));
  });
  EXPECT_NE(error.find("rank 0"), std::string::npos) << error;
  EXPECT_NE(error.find("firewalls"), std::string::npos) << error;
}

TEST(BootstrapProcesses, NothingIsLeftBehindAfterACrash) {
  const bootstrap::Card card = bootstrap::Card::of_this_process();
  const auto memory_files = [] {
    std::set<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator("/dev/shm")) {
      if (entry.path().filename().string().find("ferry") != std::string::npos) names.insert(entry.path());
    }
    return names;
  };
  const auto before = memory_files();
  const pid_t child = start_process([&] {
    const bootstrap::Linker linker(0, 2, card);
    const auto memory = Memory::shareable(1 << 20);
    if (!name_in_use(card.name)) return false;
    raise(SIGKILL);
    return true;
  });
  EXPECT_EQ(end_of(child), -SIGKILL);
  EXPECT_FALSE(name_in_use(card.name));
  EXPECT_EQ(memory_files(), before);
}

/// What a link receives when its peer speaks nonsense: the link ends, and descriptors do not pile up.
TEST(BootstrapProcesses, LinkEndsOnNonsense) {
  using bootstrap::PacketHeader;
  const auto memory = Memory::shareable(4096);
  PacketHeader lies;
  lies.has_memory = true;
  lies.memory_bytes = 1 << 20;
  PacketHeader without = lies;
  PacketHeader both = lies;
  both.has_device = true;
  PacketHeader more;
  more.kind = PacketHeader::Kind::kMore;
  PacketHeader small;
  small.total_bytes = 1;
  PacketHeader huge;
  huge.total_bytes = ~std::uint64_t{0};
  const int fd = memory->fd();
  const std::vector<std::pair<std::vector<std::byte>, std::vector<int>>> nonsense = {
      {as_bytes("garbage"), {}},
      {without.packet({}), {}},
      {more.packet({}), {}},
      {small.packet(as_bytes("longer than announced")), {}},
      {huge.packet({}), {}},
      {small.packet(as_bytes("x")), {fd}},
      {small.packet(as_bytes("x")), {fd, fd, fd}},
      {both.packet({}), {fd}},
      {std::vector<std::byte>(bootstrap::kMaxPacketBytes + 1), {}}};
  const auto linked = [] {
    int ends[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends), 0);
    return std::pair(bootstrap::Fd(ends[0]), bootstrap::Fd(ends[1]));
  };
  for (std::size_t i = 0; i < nonsense.size(); ++i) {
    auto [mine, theirs] = linked();
    bootstrap::Link link(1, std::move(mine), bootstrap::Fd());
    EXPECT_EQ(bootstrap::send_packet(theirs, nonsense[i].first, nonsense[i].second), bootstrap::SendStatus::kSent);
    EXPECT_FALSE(link.poll()) << i;
    EXPECT_TRUE(link.gone()) << i;
  }
  auto [mine, theirs] = linked();
  bootstrap::Link link(1, std::move(mine), bootstrap::Fd());
  bootstrap::send_packet(theirs, lies.packet({}), std::array{fd});
  const auto error = expect_error(ErrorCode::kBootstrap, [&] { link.poll(); });
  EXPECT_NE(error.find("rank 1"), std::string::npos) << error;
  EXPECT_TRUE(link.gone());
}

}  // namespace
}  // namespace ferry
