// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// How windows on different nodes reach each other. The engine knows windows, offsets, bytes and signals; never tokens
// or experts. Steps speak to it through Channel; a proxy thread per rank carries the commands out.
//
// The contract that every provider keeps: puts of one (channel, peer) are unordered among themselves and may overtake
// an earlier post; a post makes the signal at the peer become `total` after all earlier puts of the same (channel,
// peer) are visible there, whichever of the peer's windows they went to. Totals are absolute and only grow, so a post
// may be merged with a newer one and may be repeated. docs/network_engine.md has the whole of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bootstrap/memory.h"
#include "net/copy_engines.h"
#include "net/device_ring.h"

namespace ferry::net {

/// A peer's window as this engine knows it.
using WindowId = std::uint32_t;

struct Statistics {
  std::uint64_t commands = 0;  ///< puts and posts taken
  std::uint64_t bytes = 0;     ///< payload bytes of puts
  std::uint64_t stalls = 0;    ///< try_put/try_post refused because the ring was full
  std::uint64_t merged = 0;    ///< puts carried out together with their neighbour

  Statistics& operator+=(const Statistics& other) {
    commands += other.commands, bytes += other.bytes, stalls += other.stalls, merged += other.merged;
    return *this;
  }
};

/// What a provider can and cannot do; `why_not` empty means usable.
struct Provider {
  std::string name;  ///< "loopback", "tcp", "shm", "verbs", "efa"
  std::string why_not;
  bool ordered = false;       ///< a post needs no completion of earlier puts
  bool maps_windows = false;  ///< open() wants the peer's memory mapped on this machine
  std::string detail{};       ///< for people: network cards, kind of posts, registration
};

/// What went wrong. `peer` -1: not with one rank in particular.
struct Failure {
  int peer = -1;
  std::string what;
};

/// One stream of commands. One thread at a time may use a channel.
class Channel {
 public:
  virtual ~Channel() = default;
  /// Orders `bytes` at `src` to be written to `offset` of the window. False: the ring is full, try again later.
  /// `src` must stay unchanged until completed() has reached the value that submitted() has after this call.
  [[nodiscard]] virtual bool try_put(WindowId window, std::uint64_t offset, const void* src, std::size_t bytes) = 0;
  /// Orders the 64-bit signal at `offset` of the window to become `total` after all earlier puts of this channel to
  /// that peer. Both throw Error(invalid_argument) for a window that is not open, a null source and what no command
  /// can hold (offsets from 1 TiB on, signals off 8 bytes). A command that reaches beyond its window is carried out by
  /// nobody: poll_error().
  [[nodiscard]] virtual bool try_post(WindowId window, std::uint64_t offset, std::uint64_t total) = 0;
  /// Commands taken so far; a put counts one per 16 MiB, an empty put none.
  virtual std::uint64_t submitted() const = 0;
  /// Commands whose source memory may be reused (a prefix of those taken).
  virtual std::uint64_t completed() const = 0;
};

class Engine {
 public:
  virtual ~Engine() = default;  ///< stops the proxy without waiting for peers; commands not yet carried out are dropped
  virtual const Provider& provider() const = 0;
  /// Opens this memory to peers, and gives the bytes by which they find it; they travel in a notice. The engine keeps a share
  /// of the memory for as long as a peer may write there.
  virtual std::vector<std::byte> describe(const std::shared_ptr<Memory>& memory) = 0;
  /// Opens a peer's window. `memory`: the peer's memory as mapped here, for a provider that maps_windows; else null.
  virtual WindowId open(int peer, std::span<const std::byte> description, std::shared_ptr<Memory> memory) = 0;
  /// Commands already taken for it may still be carried out; its memory is kept until they are, and so is `sources`, the
  /// memory that its puts read (may be null, if that lives longer than the engine).
  virtual void close(WindowId window, std::shared_ptr<const void> sources) = 0;
  /// Nothing more goes to this peer: what is on its way to it is dropped and counts as completed, its windows are dead.
  /// Windows opened afterwards work. For peers that are gone or masked; any thread.
  virtual void give_up(int peer) = 0;
  /// From now on a post completes only when it is delivered, not when it is on its way for certain: for the last ones before
  /// the engine goes. Any thread.
  virtual void acknowledge_posts() {}
  /// For a thread that waits for what the network brings: does a piece of the proxy's work, if the proxy is not at it. True:
  /// something moved. On a machine with fewer cores than threads this saves handing the core over and back.
  virtual bool help() { return false; }
  virtual Channel& channel(int index) = 0;
  virtual int num_channels() const = 0;
  /// The ring through which kernels command the engine; only where EngineConfig has copy engines. Its channel is the last one.
  virtual DeviceRing device_ring() const { return {}; }
  /// A failure of the provider or the proxy, each once, the oldest first; empty if all is well. After a failure
  /// towards a peer its windows of that time are dead: no later post goes out. Any thread.
  virtual std::optional<Failure> poll_error() = 0;
  virtual Statistics statistics() const = 0;
};

struct EngineConfig {
  std::string network = "loopback";  ///< also tcp, shm, verbs, efa; "shuffle+" in front: with shuffle_seed (tests)
  int rank = 0;                      ///< of this engine: spreads ranks over network cards and proxies
  /// Network cards by the provider's names ("eth0", "mlx5_0"); empty: the `num_nics` nearest to `near_pci`.
  std::vector<std::string> nics{};
  int num_nics = 1;        ///< used together by this rank
  std::string near_pci{};  ///< "0000:3b:00.0"; empty: no card is nearer than another
  std::string
      traffic_class{};        ///< empty, or a word or "dscp:0".."dscp:63"; Error(unsupported) where it is not honoured
  bool gated_posts = false;   ///< posts wait for completions, whatever the provider promises
  bool same_machine = false;  ///< all ranks are on this machine: addresses of the loopback interface will do
  int num_proxies = 1;        ///< proxy threads; peers are spread over them
  std::vector<int> proxy_cores{};  ///< CPUs that they are bound to, in turn; empty: any
  int num_channels = 1;
  /// Windows may lie on GPUs, and there is one more channel, for kernels; null: host memory alone.
  std::shared_ptr<CopyEngines> copy_engines{};
  std::uint64_t link_bytes_per_second = 0;  ///< loopback: how much this rank sends at most; 0: no limit
  std::uint32_t ring_slots = 1024;          ///< commands that a channel holds, a power of two
  std::uint64_t first_index = 0;            ///< tests start ring indices near 2^32 and 2^63
  std::uint64_t shuffle_seed = 0;           ///< not 0: puts between posts are delayed and reordered (tests)
  std::int64_t max_post_delay_ns = 0;       ///< random delay before every post (tests)
};

/// Writes into windows of this machine with plain copies by the proxy thread: pretend nodes.
std::unique_ptr<Engine> make_loopback(const EngineConfig& config);

/// The engine that `config.network` names. Throws Error(invalid_argument) for what makes no sense, Error(unsupported) for what
/// this build, this machine or the provider cannot do, with the reason.
std::unique_ptr<Engine> make_engine(const EngineConfig& config);

/// What make_engine() would find here: one entry per network, `why_not` empty where it can be used. Starts nothing.
std::vector<Provider> find_networks();
/// Version of the network library at run time, "1.17"; empty with `why_not` set if there is none.
std::string network_library(std::string& why_not);

}  // namespace ferry::net
