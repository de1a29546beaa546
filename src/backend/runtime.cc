// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
#include "backend/runtime.h"

#include <fmt/format.h>
#include <sched.h>

#include <cstring>
#include <thread>

namespace ferry {
namespace {

using Clock = std::chrono::steady_clock;

// Between looks at peers, notices and the clock.
constexpr std::chrono::nanoseconds kSlowCheckEvery = std::chrono::milliseconds(1);
// A wait that has lasted this long sleeps between looks instead of yielding: a rank that waits for a human costs no core.
constexpr std::chrono::nanoseconds kSleepAfter = std::chrono::milliseconds(20);

constexpr std::uint64_t kEpochShift = 24;

std::atomic_ref<std::uint64_t> word_at(std::byte* address) {
  return std::atomic_ref<std::uint64_t>(*reinterpret_cast<std::uint64_t*>(address));
}

enum Activity : std::uint64_t { kActivityDispatch = 1, kActivityCombine = 2 };

}  // namespace

/// Gives the CPU away while a wait lasts: a few pauses where every rank has a core, then yields, in the end sleeps.
struct Runtime::Idle {
  explicit Idle(bool oversubscribed) : spins_left(oversubscribed ? 0 : 256) {}

  /// True when it is time for a slow check.
  bool pause() {
    if (spins_left > 0) {
      --spins_left;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
      return false;
    }
    if (now - start > kSleepAfter) {
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    } else {
      sched_yield();
    }
    now = Clock::now();
    if (now - last_check < kSlowCheckEvery) return false;
    last_check = now;
    return true;
  }
  std::chrono::nanoseconds waited() const {
    return now - start;
  }

  int spins_left;
  Clock::time_point start = Clock::now(), now = start, last_check = start;
};

Runtime::Runtime(int my_rank, Topology ranks_and_nodes, std::unique_ptr<Mesh> links,
                 std::shared_ptr<net::Engine> network, TestOptions test)
    : rank(my_rank),
      topology(std::move(ranks_and_nodes)),
      mesh(std::move(links)),
      engine(std::move(network)),
      wait_ns(static_cast<std::size_t>(topology.num_ranks()), 0),
      masked_now(static_cast<std::size_t>(topology.num_ranks()), 0),
      test_(test),
      random_(test.seed * 0x9e3779b97f4a7c15u + static_cast<std::uint64_t>(my_rank) + 1),
      oversubscribed_(static_cast<unsigned>(topology.num_ranks()) > std::thread::hardware_concurrency()),
      early_notices_(static_cast<std::size_t>(topology.num_ranks())) {}

std::uint64_t Runtime::signal(const Windows& windows, Signal kind, int flight, int writer) const {
  return word_at(windows.own(windows.layout.signal(kind, flight, writer))).load(std::memory_order_acquire);
}

void Runtime::write(const Call& call, int peer, std::int64_t offset, const void* src, std::int64_t bytes) {
  if (bytes == 0) return;
  if (std::byte* mapped = call.windows->peer(peer, offset)) {
    if (mapped != src) std::memcpy(mapped, src, static_cast<std::size_t>(bytes));
    return;
  }
  wait_until(call, "network put", [&] {
    return engine->channel(0).try_put(call.windows->remote(peer), static_cast<std::uint64_t>(offset), src,
                                      static_cast<std::size_t>(bytes));
  });
}

void Runtime::delay_signal() {
  if (test_.max_signal_delay_ns <= 0) return;
  random_ ^= random_ << 13;
  random_ ^= random_ >> 7;
  random_ ^= random_ << 17;
  std::this_thread::sleep_for(std::chrono::nanoseconds(
      static_cast<std::int64_t>(random_ % static_cast<std::uint64_t>(test_.max_signal_delay_ns))));
}

void Runtime::post(const Call& call, int peer, Signal kind, std::uint64_t total) {
  delay_signal();
  const std::int64_t offset = call.windows->layout.signal(kind, call.flight, rank);
  if (std::byte* mapped = call.windows->peer(peer, offset)) {
    // Release: whoever acquires this total sees every store that this thread made to the window before.
    word_at(mapped).store(total, std::memory_order_release);
    return;
  }
  wait_until(call, "network post", [&] {
    return engine->channel(0).try_post(call.windows->remote(peer), static_cast<std::uint64_t>(offset), total);
  });
}

void Runtime::send_note(const Call& call, bool combine, CallNote note, std::span<const int> peers) {
  note.epoch = call.epoch;
  note.digest = call.digest;
  const std::int64_t offset = call.windows->layout.note(call.flight, combine, rank);
  std::memcpy(call.windows->own(offset), &note, sizeof(note));
  for (int peer : peers) write(call, peer, offset, call.windows->own(offset), sizeof(note));
}

const CallNote& Runtime::note_of(const Call& call, bool combine, int writer) const {
  return *reinterpret_cast<const CallNote*>(call.windows->own(call.windows->layout.note(call.flight, combine, writer)));
}

void Runtime::announce(const Call& call) {
  const std::uint64_t what =
      call.epoch << kEpochShift | (call.operation == "dispatch" ? kActivityDispatch : kActivityCombine);
  const std::int64_t offset = call.windows->layout.signal(Signal::kActivity, 0, rank);
  word_at(call.windows->own(offset)).store(what, std::memory_order_release);
  for (int peer : call.windows->live) {
    if (topology.node_of(peer) == topology.node_of(rank)) continue;  // they read it here
    wait_until(call, "network post", [&] {
      return engine->channel(0).try_post(call.windows->remote(peer), static_cast<std::uint64_t>(offset), what);
    });
  }
}

std::string Runtime::activity_of(const Windows& windows, int peer) const {
  const std::int64_t offset = windows.layout.signal(Signal::kActivity, 0, peer);
  std::byte* address = windows.peer(peer, offset);
  const std::uint64_t what =
      word_at(address != nullptr ? address : windows.own(offset)).load(std::memory_order_acquire);
  if (what == 0) return "no call yet";
  return fmt::format("call {} {}", what >> kEpochShift, (what & 0xff) == kActivityDispatch ? "dispatch" : "combine");
}

bool Runtime::reached(const Call& call, const Wait& wait, std::uint64_t& seen) const {
  if (masked_now[static_cast<std::size_t>(wait.peer)] != 0 || call.windows->membership.is_masked(wait.peer))
    return true;
  seen = signal(*call.windows, wait.kind, call.flight, wait.peer);
  return seen >= wait.wanted;
}

void Runtime::wait(const Call& call, const char* step, std::span<const Wait> waits) {
  for (const Wait& one : waits) {
    std::uint64_t seen = 0;
    if (reached(call, one, seen)) continue;
    Idle idle(oversubscribed_);
    while (!reached(call, one, seen)) {
      if (progress) progress();
      if (idle.pause()) {
        check_aborted(call, step, *call.windows);
        if (reached(call, one, seen)) break;
        check_slow(call, step, waits, idle.waited().count(), call.timeout);
      }
    }
    wait_ns[static_cast<std::size_t>(one.peer)] += (Clock::now() - idle.start).count();
  }
}

void Runtime::wait_until(const Call& call, const char* step, const std::function<bool()>& done) {
  if (done()) return;
  Idle idle(oversubscribed_);
  while (!done()) {
    if (!idle.pause()) continue;
    check_aborted(call, step, *call.windows);
    check_slow(call, step, {}, idle.waited().count(), call.timeout);
  }
}

void Runtime::wait_completed(const Call& call, const char* step, std::uint64_t submitted_total) {
  if (!engine) return;
  wait_until(call, step, [&] { return engine->channel(0).completed() >= submitted_total; });
}

void Runtime::check_aborted(const Call& call, const char* step, const Windows& windows) {
  const std::uint64_t who = word_at(windows.own(windows.layout.abort_word())).load(std::memory_order_acquire);
  if (who == 0 && !aborted()) return;
  if (who == 0 || who == static_cast<std::uint64_t>(rank) + 1) spread_abort_by_network(windows);
  Error error(ErrorCode::kAborted,
              fmt::format("{}: the group was aborted by rank {} (call {} {})", step,
                          who == 0 ? rank : static_cast<int>(who) - 1, call.epoch, call.operation));
  error.step = step;
  error.epoch = call.epoch;
  throw error;
}

void Runtime::check_slow(const Call& call, const char* step, std::span<const Wait> waits, std::int64_t waited_ns,
                         std::chrono::nanoseconds limit) {
  check_notices(call, step);
  if (engine) {
    if (const auto broken = engine->poll_error())
      throw failure(ErrorCode::kPeerLost, call, step, waits, "the network engine reports: " + *broken);
  }
  for (const Wait& one : waits) {
    std::uint64_t seen = 0;
    if (reached(call, one, seen)) continue;
    // A peer posts what it owes to one call before it announces the next, so an announcement that is ahead, read before a
    // second look at the signal, shows that the signal will not come.
    const std::string doing = activity_of(*call.windows, one.peer);
    const std::uint64_t ahead = word_at([&] {
                                  const std::int64_t offset =
                                      call.windows->layout.signal(Signal::kActivity, 0, one.peer);
                                  std::byte* address = call.windows->peer(one.peer, offset);
                                  return address != nullptr ? address : call.windows->own(offset);
                                }())
                                    .load(std::memory_order_acquire);
    const std::uint64_t mine =
        call.epoch << kEpochShift | (call.operation == "dispatch" ? kActivityDispatch : kActivityCombine);
    const bool other_kind = ahead >> kEpochShift == call.epoch && ahead != mine;
    if (other_kind && !reached(call, one, seen))
      throw failure(ErrorCode::kMismatch, call, step, waits, "ranks are in different calls");
    if (mesh->gone(one.peer) && !reached(call, one, seen))
      throw failure(ErrorCode::kPeerLost, call, step, waits, fmt::format("rank {} is gone", one.peer));
  }
  if (waited_ns > limit.count())
    throw failure(ErrorCode::kTimeout, call, step, waits,
                  fmt::format("nothing came for {:.3f} s", static_cast<double>(waited_ns) * 1e-9));
}

Error Runtime::failure(ErrorCode code, const Call& call, const char* step, std::span<const Wait> waits,
                       const std::string& why) const {
  std::vector<PeerWait> peers;
  std::string list;
  for (const Wait& one : waits) {
    std::uint64_t seen = 0;
    if (reached(call, one, seen)) continue;
    peers.push_back(
        {.rank = one.peer, .seen = seen, .wanted = one.wanted, .activity = activity_of(*call.windows, one.peer)});
    const PeerWait& peer = peers.back();
    list += fmt::format("{}rank {} ({}: seen call {} count {}, wanted call {} count {}; it is in {})",
                        list.empty() ? "" : ", ", peer.rank, name(one.kind), peer.seen >> kEpochShift,
                        peer.seen & 0xffffff, peer.wanted >> kEpochShift, peer.wanted & 0xffffff, peer.activity);
  }
  Error error(code, fmt::format("{}: rank {} in call {} {} {}{}: {}", step, rank, call.epoch, call.operation,
                                list.empty() ? "failed" : "waits for ", list, why));
  error.step = step;
  error.epoch = call.epoch;
  error.peers = std::move(peers);
  return error;
}

void Runtime::spread_abort_in_node(const Windows& windows) const {
  for (int peer : windows.node_peers) {
    word_at(windows.peer(peer, windows.layout.abort_word()))
        .store(static_cast<std::uint64_t>(rank) + 1, std::memory_order_release);
  }
}

/// A full ring is no reason to wait: the peers will also see that this rank is gone.
void Runtime::spread_abort_by_network(const Windows& windows) {
  const auto offset = static_cast<std::uint64_t>(windows.layout.abort_word());
  for (int peer : windows.live) {
    if (windows.peer(peer, 0) != nullptr) continue;
    static_cast<void>(engine->channel(0).try_post(windows.remote(peer), offset, static_cast<std::uint64_t>(rank) + 1));
  }
}

void Runtime::drain(std::chrono::nanoseconds limit) {
  if (!engine) return;
  const auto deadline = Clock::now() + limit;
  while (engine->channel(0).completed() < engine->channel(0).submitted() && Clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
}

const char* name(Signal kind) noexcept {
  switch (kind) {
    case Signal::kActivity:
      return "activity";
    case Signal::kCountsEven:
    case Signal::kCountsOdd:
      return "counts";
    case Signal::kDispatchRows:
      return "dispatch rows";
    case Signal::kDispatchNetwork:
      return "dispatch network rows";
    case Signal::kDispatchForwarded:
      return "dispatch forwarded rows";
    case Signal::kDispatchRead:
      return "dispatch slots read";
    case Signal::kCombineWeights:
      return "combine weights";
    case Signal::kCombineRows:
      return "combine rows";
    case Signal::kCombineForward:
      return "combine rows to forward";
    case Signal::kCombineNetwork:
      return "combine network rows";
    case Signal::kCombineRead:
      return "combine slots read";
    case Signal::kNumSignals:
      break;
  }
  return "?";
}

}  // namespace ferry
