// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What host steps need around them: write to a peer's window, post a signal, wait for signals. Every wait of the host backend
// goes through Runtime::wait, every store to a peer through Runtime::write and Runtime::post.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/call.h"
#include "backend/windows.h"
#include "bootstrap/mesh.h"
#include "ferry/error.h"
#include "net/engine.h"

namespace ferry {

/// One condition of a wait: the signal that `peer` writes into this rank's window reaches `wanted` (epoch << 24 | count).
struct Wait {
  int peer = 0;
  Signal kind = Signal::kActivity;
  std::uint64_t wanted = 0;
};

class Runtime {
 public:
  Runtime(int my_rank, Topology ranks_and_nodes, std::unique_ptr<Mesh> links, std::shared_ptr<net::Engine> network,
          TestOptions test);

  const int rank;
  std::uint64_t group = 0;  ///< random number that all ranks of the group share; handles carry it
  const Topology topology;
  std::unique_ptr<Mesh> mesh;                       ///< null after leave()
  std::shared_ptr<net::Engine> engine;              ///< null on a single node
  std::vector<std::int64_t> wait_ns;                ///< [R] time spent waiting for each rank
  std::unique_ptr<DeviceMemories> device_memories;  ///< null: rows lie in host memory
  DeviceLayout device_layout;
  /// Forwards whatever has arrived for any call in flight; called while this rank waits, so that no receive order can make
  /// ranks wait for each other in a circle.
  std::function<void()> progress;
  std::vector<std::uint8_t> masked_now;  ///< [R] masks as they are now: ranks that waits of older calls skip
  /// [R] of them, ranks that this rank masked by itself in these windows: 0, or the call that they missed.
  std::vector<std::uint64_t> late;

  /// Opens the windows of a membership; collective over its members. `unites`: where members leave out others, all leave out all of
  /// them, and whoever does not come within twice the timeout: throws MembershipGrew, until they agree.
  std::shared_ptr<Windows> open_windows(const Membership& membership, const WindowLayout& layout,
                                        const CallCounters& counters, std::uint64_t config_digest,
                                        std::chrono::nanoseconds timeout, const Windows* before, bool unites);
  /// The newest membership that a member has gone on to and that has this rank in it, if it is newer than that of `windows`.
  std::optional<Membership> newer_membership(const Windows& windows);
  /// Device memory: until every member of the node has mapped everybody's and made ready to use it. Mapping and copying may wait for
  /// kernels of other ranks on the same device, and those for this rank: nobody launches one before. `before`: the windows whose
  /// abort word is looked at meanwhile; null: none.
  void wait_until_mapped(const Windows& windows, std::chrono::nanoseconds timeout, const Windows* before);
  /// The number under which a member has opened windows of the same membership anew, if one has (its first try failed).
  std::optional<std::uint32_t> reopened_as(const Windows& windows) const;
  struct Rejoin {
    Membership membership;
    CallCounters counters;
  };
  /// Waits for a member's notice that takes this rank back.
  Rejoin wait_for_rejoin(std::chrono::nanoseconds timeout);

  /// Stores bytes in a peer's window (its own too): a copy inside the node, a put through the engine otherwise (`src` then
  /// must lie in this rank's window and stay until the engine has completed it).
  void write(const Call& call, int peer, std::int64_t offset, const void* src, std::int64_t bytes);
  /// Makes the signal at the peer become `total` after all earlier writes to it.
  void post(const Call& call, int peer, Signal kind, std::uint64_t total);
  /// Writes this rank's note of a call into the windows of `peers`; posts that follow order it.
  void send_note(const Call& call, bool combine, CallNote note, std::span<const int> peers);
  const CallNote& note_of(const Call& call, bool combine, int writer) const;
  /// Waits until every condition holds, forwarding for others meanwhile. Throws Error(timeout | peer_lost | mismatch |
  /// aborted). Conditions on masked ranks are skipped.
  void wait(const Call& call, const char* step, std::span<const Wait> waits);
  /// Tells every member that this rank reads nothing of the call any more; `count` is a ReadCount.
  void report_read(const Call& call, std::int64_t count);
  /// The same for a call that failed with `error`.
  void report_failed(const Call& call, const Error& error);
  /// Waits until the engine has completed everything up to `submitted`.
  void wait_completed(const Call& call, const char* step, std::uint64_t submitted);
  /// Waits until `done()` returns true; `done` may throw.
  void wait_until(const Call& call, const char* step, const std::function<bool()>& done);

  std::uint64_t signal(const Windows& windows, Signal kind, int flight, int writer) const;
  std::uint64_t submitted() const { return engine ? engine->channel(0).submitted() : 0; }

  /// True if a peer has begun a call of another kind under this call's epoch.
  bool ranks_make_other_calls(const Call& call) const;
  /// Says what this rank is doing, for the messages of others.
  void announce(const Call& call);
  /// Raises the abort flag; may be called from any thread. This rank's waits end; the first that does tells the peers that
  /// only the network reaches.
  void abort() { aborted_.store(true, std::memory_order_release); }
  bool aborted() const { return aborted_.load(std::memory_order_acquire); }
  bool abort_seen(const Windows& windows) const;
  void check_aborted(const Call& call, const char* step, const Windows& windows);
  /// Tells the peers of this node; may be called from any thread.
  /// Why a wait that a device gave up may have been in vain: throws if the membership has changed or the peer is gone; says
  /// otherwise what the peer is in.
  std::string explain_silence(const Call& call, const char* step, int peer);
  void spread_abort_in_node(const Windows& windows) const;
  /// Lets go of the links to the peers: they see that this rank is gone.
  void leave() {
    mesh = nullptr;
    engine = nullptr;
    drives_network_ = false;
  }
  /// Before this rank lets go of its links: waits, for at most `limit`, until the peers have acknowledged everything.
  void finish(const Windows& windows, std::chrono::nanoseconds limit);
  /// New windows: what went wrong with old ones is over, and nothing more goes to masked ranks.
  void forget_failures(std::span<const std::uint8_t> masked);
  /// Carries out what is left for the network, for at most `limit`.
  void drain(std::chrono::nanoseconds limit);

 private:
  struct Idle;
  /// How the network is with one rank.
  struct NetworkState {
    bool given_up = false;  ///< it is gone: the engine carries nothing to it any more
    std::string failure;    ///< what the engine reported
    std::chrono::steady_clock::time_point failed_at;
  };
  /// While this rank waits it may as well drive the network. Not the loopback, whose copies are better made by another core.
  void drive_network() {
    if (drives_network_) engine->help();
  }
  bool mask_late(const Call& call, std::span<const int> ranks);
  void show_waiting(const Call& call, std::int64_t waited_ns);
  bool is_waiting_itself(int peer, std::chrono::nanoseconds limit) const;
  void give_up_the_gone();
  void check_network(const Call& call, const char* step, std::span<const Wait> waits);
  void check_slow(const Call& call, const char* step, std::span<const Wait> waits, std::int64_t waited_ns,
                  std::chrono::nanoseconds limit);
  void check_notices(const Call& call, const char* step, std::span<const Wait> waits);
  void collect_notices();
  bool has_finished(const Call& call, int peer) const;
  std::string describe_disagreement(const Call& call, int peer) const;
  void check_refusals(const Call& call, const char* step, std::span<const Wait> waits) const;
  Error failure(ErrorCode code, const Call& call, const char* step, std::span<const Wait> waits,
                const std::string& why) const;
  std::uint64_t activity_of(const Windows& windows, int peer) const;
  bool reached(const Call& call, const Wait& wait, std::uint64_t& seen) const;
  void spread_abort_by_network(const Windows& windows, std::uint64_t who);
  void delay_signal();
  std::optional<Notice> next_notice(int peer);

  friend class WindowOpener;
  std::atomic<bool> aborted_{false};
  /// What a peer's kWaiting word was when it was last looked at, and when it was last seen to grow.
  struct Beat {
    std::uint64_t seen = 0;
    std::chrono::steady_clock::time_point grew_at;
  };
  std::vector<Beat> beats_;  // by rank
  std::uint64_t own_beat_ = 0;
  std::chrono::steady_clock::time_point beat_posted_;
  bool abort_spread_ = false;
  std::uint64_t announced_epoch_ = 0;
  std::uint64_t announced_kinds_ = 0;  ///< of this rank's last calls, two bits each, the latest lowest
  TestOptions test_;
  std::uint64_t random_ = 0;
  bool oversubscribed_ = false;
  bool drives_network_ = false;
  std::vector<NetworkState> network_;  // by rank
  std::string engine_failure_;
  std::vector<std::vector<Notice>>
      early_notices_;  // by rank: notices of memberships that this rank has not reached yet
};

/// How long a wait lasted and what it was waiting for, to give the CPU away sensibly in between.
const char* name(Signal kind) noexcept;

}  // namespace ferry
