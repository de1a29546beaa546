// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
#include "backend/runtime.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <cstring>
#include <thread>

#include "core/check.h"
#include "wire/rows.h"

namespace ferry {
namespace {

using Clock = std::chrono::steady_clock;

// Pauses before the CPU is given away, where every rank has a core: about 0.1 ms, longer than the copies of a small call.
constexpr int kSpins = 400;
// Between looks at peers, notices and the clock.
constexpr std::chrono::nanoseconds kSlowCheckEvery = std::chrono::milliseconds(1);
// A wait that has lasted this long sleeps between looks instead of yielding: a rank that waits for a human costs no core.
constexpr std::chrono::nanoseconds kSleepAfter = std::chrono::milliseconds(20);

// How often ranks on other nodes hear that this one waits.
constexpr std::chrono::nanoseconds kBeatEvery = std::chrono::milliseconds(10);
// Deadlines that a rank may be late because it waits for another one.
constexpr std::int64_t kMostDeadlines = 4;

constexpr std::uint64_t kEpochShift = 24;

std::atomic_ref<std::uint64_t> word_at(std::byte* address) {
  return std::atomic_ref<std::uint64_t>(*reinterpret_cast<std::uint64_t*>(address));
}

// An activity word: epoch << 24 | kinds of the last twelve calls, two bits each, the latest lowest.
constexpr std::uint64_t kKindBits = 2;
constexpr std::uint64_t kKindsMask = (std::uint64_t{1} << kEpochShift) - 1;

std::string describe_activity(std::uint64_t word) {
  if (word == 0) return "no call yet";
  return fmt::format("call {} {}", word >> kEpochShift, name(static_cast<CallKind>(word & 3)));
}

/// True if the peer made (or is making) a call of another kind under this call's epoch. It may be some calls ahead.
bool is_other_kind(std::uint64_t activity, const Call& call) {
  const std::uint64_t epoch = activity >> kEpochShift;
  if (epoch < call.epoch || (epoch - call.epoch + 1) * kKindBits > kEpochShift) return false;
  const auto kind = static_cast<CallKind>(activity >> ((epoch - call.epoch) * kKindBits) & 3);
  return kind != CallKind::kNone && kind != call.kind;
}

}  // namespace

/// Gives the CPU away while a wait lasts: a few pauses where every rank has a core, then yields, in the end sleeps.
struct Runtime::Idle {
  explicit Idle(bool oversubscribed) : spins_left(oversubscribed ? 0 : kSpins) {}

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
      late(static_cast<std::size_t>(topology.num_ranks()), 0),
      beats_(static_cast<std::size_t>(topology.num_ranks())),
      test_(test),
      random_(test.seed * 0x9e3779b97f4a7c15u + static_cast<std::uint64_t>(my_rank) + 1),
      oversubscribed_(static_cast<unsigned>(topology.num_ranks()) > std::thread::hardware_concurrency()),
      drives_network_(engine && !engine->provider().maps_windows),
      network_(static_cast<std::size_t>(topology.num_ranks())),
      early_notices_(static_cast<std::size_t>(topology.num_ranks())) {}

std::uint64_t Runtime::signal(const Windows& windows, Signal kind, int flight, int writer) const {
  return word_at(windows.own(windows.layout.signal(kind, flight, writer))).load(std::memory_order_acquire);
}

void Runtime::write(const Call& call, int peer, std::int64_t offset, const void* src, std::int64_t bytes) {
  if (bytes == 0 || late[static_cast<std::size_t>(peer)] != 0) return;
  if (std::byte* mapped = call.windows->peer(peer, offset)) {
    if (mapped != src) wire::copy_row(mapped, src, bytes);
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
  // Who was masked on the way and may still write into return slots shall not hear which ones are used next, nor take what comes
  // without credits for its call's.
  if (late[static_cast<std::size_t>(peer)] != 0) return;
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

void Runtime::report_read(const Call& call, std::int64_t count) {
  const Signal kind = call.kind == CallKind::kCombine ? Signal::kCombineRead : Signal::kDispatchRead;
  Windows& windows = *call.windows;
  if (call.kind == CallKind::kCombine) {
    windows.return_bank[static_cast<std::size_t>(call.flight)] = windows.bank;
    count |= static_cast<std::int64_t>(windows.bank) << kReadBankShift;
  }
  for (int peer : windows.live) post(call, peer, kind, call.total(count));
}

void Runtime::report_failed(const Call& call, const Error& error) {
  report_read(call, error.code() == ErrorCode::kMismatch ? kReadDisagreed : kReadGivenUp);
}

void Runtime::announce(const Call& call) {
  const auto kind = static_cast<std::uint64_t>(call.kind);
  // A call may have been taken back, or calls been skipped while this rank was left out.
  if (call.epoch > announced_epoch_ + 1) announced_kinds_ = 0;
  for (; announced_epoch_ >= call.epoch; --announced_epoch_) announced_kinds_ >>= kKindBits;
  announced_epoch_ = call.epoch;
  announced_kinds_ = (announced_kinds_ << kKindBits | kind) & kKindsMask;
  const std::uint64_t what = call.epoch << kEpochShift | announced_kinds_;
  const std::int64_t offset = call.windows->layout.signal(Signal::kActivity, 0, rank);
  // Release: the signals of this rank's earlier calls come first, for the second look of check_slow. No test can show it: x86
  // keeps the order of stores, and ThreadSanitizer looks for plain data, of which there is none.
  word_at(call.windows->own(offset)).store(what, std::memory_order_release);
  for (int peer : call.windows->live) {
    if (topology.node_of(peer) == topology.node_of(rank)) continue;  // they read it here
    wait_until(call, "network post", [&] {
      return engine->channel(0).try_post(call.windows->remote(peer), static_cast<std::uint64_t>(offset), what);
    });
  }
}

std::uint64_t Runtime::activity_of(const Windows& windows, int peer) const {
  const std::int64_t offset = windows.layout.signal(Signal::kActivity, 0, peer);
  std::byte* address = windows.peer(peer, offset);
  // Acquire: the other side of announce(), and as invisible to a test: x86 keeps the order of loads.
  return word_at(address != nullptr ? address : windows.own(offset)).load(std::memory_order_acquire);
}

/// Why a peer that is done with this call will not send what this rank waits for.
std::string Runtime::describe_disagreement(const Call& call, int peer) const {
  for (int other : call.windows->live) {
    const std::uint64_t activity = activity_of(*call.windows, other);
    if (!is_other_kind(activity, call)) continue;
    return fmt::format("ranks are in different calls: rank {} is in {}", other, describe_activity(activity));
  }
  return fmt::format("rank {} is done with this call: ranks are in different calls or gave different arguments", peer);
}

bool Runtime::ranks_make_other_calls(const Call& call) const {
  return std::any_of(call.windows->live.begin(), call.windows->live.end(),
                     [&](int peer) { return is_other_kind(activity_of(*call.windows, peer), call); });
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
      drive_network();
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
    drive_network();
    if (!idle.pause()) continue;
    check_aborted(call, step, *call.windows);
    check_slow(call, step, {}, idle.waited().count(), call.timeout);
  }
}

void Runtime::wait_completed(const Call& call, const char* step, std::uint64_t submitted_total) {
  if (!engine) return;
  wait_until(call, step, [&] { return engine->channel(0).completed() >= submitted_total; });
}

bool Runtime::abort_seen(const Windows& windows) const {
  return word_at(windows.own(windows.layout.abort_word())).load(std::memory_order_acquire) != 0;
}

void Runtime::check_aborted(const Call& call, const char* step, const Windows& windows) {
  const std::uint64_t who = word_at(windows.own(windows.layout.abort_word())).load(std::memory_order_acquire);
  if (who == 0 && !aborted()) return;
  if (!abort_spread_) {
    if (who == 0) spread_abort_in_node(windows);  // abort() came while these windows were opened
    spread_abort_by_network(windows, who == 0 ? static_cast<std::uint64_t>(rank) + 1 : who);
  }
  abort_spread_ = true;
  throw call_error(ErrorCode::kAborted, step, call.epoch,
                   fmt::format("{}: the group was aborted by rank {} (call {} {})", step,
                               who == 0 ? rank : static_cast<int>(who) - 1, call.epoch, name(call.kind)));
}

void Runtime::check_slow(const Call& call, const char* step, std::span<const Wait> waits, std::int64_t waited_ns,
                         std::chrono::nanoseconds limit) {
  if (call.masks_late) show_waiting(call, waited_ns);
  check_notices(call, step, waits);
  check_network(call, step, waits);
  check_refusals(call, step, waits);
  std::vector<int> lost, missing;
  for (const Wait& one : waits) {
    std::uint64_t seen = 0;
    if (reached(call, one, seen)) continue;
    missing.push_back(one.peer);
    if (signal(*call.windows, Signal::kLeftOut, 0, one.peer) != 0) {
      throw failure(
          ErrorCode::kMismatch, call, step, waits,
          fmt::format("rank {} has left this rank ({}) out; unmask({}) here and there", one.peer, rank, rank));
    }
    if (call.masks_late && mesh->gone(one.peer)) {
      if (!reached(call, one, seen)) lost.push_back(one.peer);
      continue;
    }
    // Both are looked at before a second look at the signal: a peer that posted and then went on or went away did its part. No
    // test shows it: the peer would have to do that between two neighbouring loads.
    const std::uint64_t activity = activity_of(*call.windows, one.peer);
    const bool other_kind = is_other_kind(activity, call);
    const bool finished = has_finished(call, one.peer);
    const bool gone = mesh->gone(one.peer);
    if ((!other_kind && !finished && !gone) || reached(call, one, seen)) continue;
    if (finished) throw failure(ErrorCode::kMismatch, call, step, waits, describe_disagreement(call, one.peer));
    if (other_kind) throw failure(ErrorCode::kMismatch, call, step, waits, "ranks are in different calls");
    throw failure(ErrorCode::kPeerLost, call, step, waits, fmt::format("rank {} is gone", one.peer));
  }
  if (!lost.empty() && !mask_late(call, lost))
    throw failure(ErrorCode::kPeerLost, call, step, waits, fmt::format("rank {} is gone", lost.front()));
  if (waited_ns <= limit.count()) return;
  // Who waits itself is late because of somebody else: it is given time to find that out, but not for ever.
  if (call.masks_late && waited_ns <= kMostDeadlines * limit.count()) {
    std::erase_if(missing, [&](int peer) { return is_waiting_itself(peer, limit); });
    if (missing.empty()) return;
  }
  if (!mask_late(call, missing))
    throw failure(ErrorCode::kTimeout, call, step, waits,
                  fmt::format("nothing came for {:.3f} s", static_cast<double>(waited_ns) * 1e-9));
}

/// Tells the peers that this rank waits, and looks who else does.
void Runtime::show_waiting(const Call& call, std::int64_t waited_ns) {
  const Windows& windows = *call.windows;
  const auto now = Clock::now();
  const std::int64_t word = windows.layout.signal(Signal::kWaiting, 0, rank);
  word_at(windows.own(word)).store(++own_beat_, std::memory_order_relaxed);  // a sign of life: orders nothing
  const bool post = waited_ns > kSlowCheckEvery.count() && now - beat_posted_ > kBeatEvery;
  if (post) beat_posted_ = now;
  for (int peer : windows.live) {
    const std::int64_t theirs = windows.layout.signal(Signal::kWaiting, 0, peer);
    std::byte* mapped = windows.peer(peer, theirs);
    const std::uint64_t seen =
        word_at(mapped != nullptr ? mapped : windows.own(theirs)).load(std::memory_order_relaxed);
    Beat& beat = beats_[static_cast<std::size_t>(peer)];
    if (seen != beat.seen) beat = {seen, now};
    if (mapped != nullptr || !post || late[static_cast<std::size_t>(peer)] != 0) continue;
    static_cast<void>(engine->channel(0).try_post(windows.remote(peer), static_cast<std::uint64_t>(word), own_beat_));
  }
}

bool Runtime::is_waiting_itself(int peer, std::chrono::nanoseconds limit) const {
  return Clock::now() - beats_[static_cast<std::size_t>(peer)].grew_at < std::max(limit / 4, 4 * kBeatEvery);
}

/// Goes on without `ranks`, if the call and the windows allow it. What they may still write goes where this rank reads nothing
/// any more: into regions of their own, and into return slots that are given up when the calls that they know of are over.
bool Runtime::mask_late(const Call& call, std::span<const int> ranks) {
  Windows& windows = *call.windows;
  if (!call.masks_late || ranks.empty()) return false;
  if (windows.bank_epoch != call.epoch) {  // one call takes one set, however many are late
    if (windows.bank + 1 >= windows.layout.return_banks()) return false;
    ++windows.bank;
    windows.bank_epoch = call.epoch;
  }
  for (int peer : ranks) {
    const auto index = static_cast<std::size_t>(peer);
    if (masked_now[index] != 0) continue;
    masked_now[index] = 1;
    late[index] = call.epoch;
    const std::int64_t word = windows.layout.signal(Signal::kLeftOut, 0, rank);
    if (std::byte* mapped = windows.peer(peer, word)) {
      word_at(mapped).store(1, std::memory_order_release);
      continue;
    }
    static_cast<void>(engine->channel(0).try_post(windows.remote(peer), static_cast<std::uint64_t>(word), 1));
    if (!engine->provider().maps_windows) engine->give_up(peer);
  }
  return true;
}

std::string Runtime::explain_silence(const Call& call, const char* step, int peer) {
  check_notices(call, step, {});
  const std::uint64_t activity = activity_of(*call.windows, peer);
  // Who made another call has not died in this one, and may have closed its group since.
  if (!is_other_kind(activity, call) && mesh->gone(peer)) {
    throw peer_error(
        ErrorCode::kPeerLost, step, call.epoch, peer,
        fmt::format("{}: rank {} in call {} waits for rank {}, which is gone", step, rank, call.epoch, peer));
  }
  return describe_activity(activity);
}

/// A peer whose part of the call went well, or that found a disagreement, will send nothing more.
bool Runtime::has_finished(const Call& call, int peer) const {
  if (call.kind == CallKind::kDispatch) return false;  // route has compared the arguments
  const Signal read = call.kind == CallKind::kCombine ? Signal::kCombineRead : Signal::kDispatchRead;
  std::uint64_t seen = signal(*call.windows, read, call.flight, peer);
  if (call.kind == CallKind::kCombine) seen &= ~(kReadBankMask << kReadBankShift);
  return seen == call.total(kReadWell) || seen == call.total(kReadDisagreed);
}

/// A peer that could not take the rows of the latency dispatch (overflow) has said so with its read signal, and will not take
/// part in the combine that belongs to it.
void Runtime::check_refusals(const Call& call, const char* step, std::span<const Wait> waits) const {
  if (call.kind != CallKind::kCombine) return;
  for (const Wait& one : waits) {
    std::uint64_t seen = 0;
    if (reached(call, one, seen)) continue;
    for (int flight = 0; flight < call.windows->layout.num_flights(); ++flight) {
      const std::uint64_t read = signal(*call.windows, Signal::kDispatchRead, flight, one.peer);
      if (read >> kEpochShift != call.handle_epoch || (read & kReadRefused) == 0) continue;
      Error error =
          failure(ErrorCode::kOverflow, call, step, waits,
                  fmt::format("rank {} got more rows than expert_capacity in call {}", one.peer, call.handle_epoch));
      error.needed_rows = static_cast<std::int64_t>(read & kReadRowsMask);
      throw error;
    }
  }
}

Error Runtime::failure(ErrorCode code, const Call& call, const char* step, std::span<const Wait> waits,
                       const std::string& why) const {
  std::vector<PeerWait> peers;
  std::string list;
  for (const Wait& one : waits) {
    std::uint64_t seen = 0;
    if (reached(call, one, seen)) continue;
    peers.push_back({.rank = one.peer,
                     .seen = seen,
                     .wanted = one.wanted,
                     .activity = describe_activity(activity_of(*call.windows, one.peer))});
    const PeerWait& peer = peers.back();
    list += fmt::format("{}rank {} ({}: seen call {} count {}, wanted call {} count {}; it is in {})",
                        list.empty() ? "" : ", ", peer.rank, name(one.kind), peer.seen >> kEpochShift,
                        peer.seen & 0xffffff, peer.wanted >> kEpochShift, peer.wanted & 0xffffff, peer.activity);
  }
  Error error = call_error(code, step, call.epoch,
                           fmt::format("{}: rank {} in call {} {} {}{}: {}", step, rank, call.epoch, name(call.kind),
                                       list.empty() ? "failed" : "waits for ", list, why));
  error.peers = std::move(peers);
  return error;
}

void Runtime::spread_abort_in_node(const Windows& windows) const {
  // The word alone is the message: nothing else has to be visible with it.
  for (int peer : windows.node_peers) {
    word_at(windows.peer(peer, windows.layout.abort_word()))
        .store(static_cast<std::uint64_t>(rank) + 1, std::memory_order_release);
  }
}

/// A full ring is no reason to wait: the peers will also see that this rank is gone.
void Runtime::spread_abort_by_network(const Windows& windows, std::uint64_t who) {
  const auto offset = static_cast<std::uint64_t>(windows.layout.abort_word());
  for (int peer : windows.live) {
    if (windows.peer(peer, 0) != nullptr) continue;
    static_cast<void>(engine->channel(0).try_post(windows.remote(peer), offset, who));
  }
}

void Runtime::drain(std::chrono::nanoseconds limit) {
  if (!engine) return;
  const std::uint64_t submitted_total = engine->channel(0).submitted();
  // Acknowledgements are a peer's work: one that stands still shall not hold up for long whoever needs nothing more of it.
  constexpr std::chrono::nanoseconds kMostForPeers = std::chrono::seconds(1);
  if (!engine->provider().maps_windows) limit = std::min(limit, kMostForPeers);
  Idle idle(oversubscribed_);
  while (engine->channel(0).completed() < submitted_total && idle.waited() < limit) {
    drive_network();
    if (idle.pause()) give_up_the_gone();
  }
}

void Runtime::finish(const Windows& windows, std::chrono::nanoseconds limit) {
  if (!engine) return;
  give_up_the_gone();
  engine->acknowledge_posts();
  // The activity word once more: it changes nothing, and whoever acknowledges it has all that came before. A full ring needs no
  // more: what is in it will be acknowledged.
  const auto offset = static_cast<std::uint64_t>(windows.layout.signal(Signal::kActivity, 0, rank));
  const std::uint64_t word = word_at(windows.own(static_cast<std::int64_t>(offset))).load(std::memory_order_relaxed);
  for (int peer : windows.live) {
    const NetworkState& state = network_[static_cast<std::size_t>(peer)];
    if (topology.node_of(peer) == topology.node_of(rank) || state.given_up ||
        masked_now[static_cast<std::size_t>(peer)] != 0)
      continue;
    static_cast<void>(engine->channel(0).try_post(windows.remote(peer), offset, word));
  }
  drain(limit);
}

/// A provider may never learn that a process has died. The mesh does, and what was meant for the dead must not hold back the
/// completion of what went to others.
void Runtime::give_up_the_gone() {
  if (!engine || !mesh) return;
  collect_notices();
  for (int peer = 0; peer < topology.num_ranks(); ++peer) {
    NetworkState& state = network_[static_cast<std::size_t>(peer)];
    if (state.given_up || topology.node_of(peer) == topology.node_of(rank) || !mesh->gone(peer)) continue;
    state.given_up = true;
    engine->give_up(peer);
  }
}

void Runtime::forget_failures(std::span<const std::uint8_t> masked) {
  if (!engine) return;
  while (engine->poll_error()) {
  }
  for (int peer = 0; peer < topology.num_ranks(); ++peer) {
    network_[static_cast<std::size_t>(peer)].failure.clear();
    const bool in_node = topology.node_of(peer) == topology.node_of(rank);
    // A loopback copies into memory that is always there; whoever was left out may still want what was sent to it.
    if (masked[static_cast<std::size_t>(peer)] == 0 || in_node || engine->provider().maps_windows) continue;
    engine->give_up(peer);
  }
}

/// Throws what the engine has reported. A peer that left after its part of the call makes our last signals to it fail, too, and
/// that is no concern of this call: so the mesh gets a moment to say that it is gone.
void Runtime::check_network(const Call& call, const char* step, std::span<const Wait> waits) {
  if (!engine) return;
  constexpr auto kMomentToBeSeenGone = std::chrono::milliseconds(250);
  while (const auto broken = engine->poll_error()) {
    if (broken->peer < 0) {
      engine_failure_ = broken->what;
      continue;
    }
    NetworkState& state = network_[static_cast<std::size_t>(broken->peer)];
    if (!state.failure.empty()) continue;
    state.failure = broken->what;
    state.failed_at = Clock::now();
  }
  give_up_the_gone();
  const auto fail = [&](const std::string& what) {
    throw failure(ErrorCode::kPeerLost, call, step, waits, "the network engine reports: " + what);
  };
  if (!engine_failure_.empty()) fail(engine_failure_);
  for (std::size_t peer = 0; peer < network_.size(); ++peer) {
    const NetworkState& state = network_[peer];
    if (state.failure.empty() || state.given_up || masked_now[peer] != 0) continue;
    if (Clock::now() - state.failed_at > kMomentToBeSeenGone) fail(state.failure);
  }
}

const char* name(CallKind kind) noexcept {
  switch (kind) {
    case CallKind::kNone:
      return "call";
    case CallKind::kDispatch:
      return "dispatch";
    case CallKind::kCombine:
      return "combine";
    case CallKind::kLatencyDispatch:
      return "latency dispatch";
  }
  return "?";
}

const char* name(Signal kind) noexcept {
  switch (kind) {
    case Signal::kActivity:
      return "activity";
    case Signal::kCountsEven:
    case Signal::kCountsOdd:
      return "counts";
    case Signal::kMapped:
      return "mapped windows";
    case Signal::kLeftOut:
      return "left out";
    case Signal::kWaiting:
      return "waiting";
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
