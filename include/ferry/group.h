// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// A group: the ranks that dispatch and combine together. Everything hangs on it; there are no globals.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ferry/combine.h"
#include "ferry/dispatch.h"
#include "ferry/error.h"
#include "ferry/meeting.h"
#include "ferry/placement.h"
#include "ferry/topology.h"
#include "ferry/types.h"

namespace ferry {

/// The largest calls a group must carry; they fix its memory. Equal on all ranks. See memory_plan().
struct GroupLimits {
  int num_experts = 0;                    ///< global experts of the default placement
  std::int64_t max_tokens = 4096;         ///< per rank and call, throughput mode
  std::int64_t max_latency_tokens = 128;  ///< per rank and call, latency mode; 0 = no latency mode
  int max_top_k = 8;                      ///< choices per token, up to 1024; a call of the cuda backend takes up to 128
  std::int64_t hidden = 7168;             ///< widest row, in elements of the widest payload dtype below
  DType dtype = DType::kBf16;             ///< widest payload and combine dtype
  std::int64_t extra_bytes = 0;           ///< per token, for payload blocks beyond the row and its fp8 scales
  std::int64_t recv_rows =
      0;  ///< rows of the receive window, throughput mode; 0 = worst case (for alignments up to 128)
  /// cuda backend: widest rows that owned dispatch results may hold together in memory that peers write into; a result that finds
  /// no room there is copied out of the window. -1 = those of one rank-major dispatch.
  std::int64_t owned_rows = -1;
  int max_slots = 0;    ///< places of experts over all ranks; 0 = those of the default placement
  int num_flights = 2;  ///< calls in flight of each kind, at least 1
};

/// Switches for tests: they change timing, never results.
struct TestOptions {
  std::uint64_t seed = 0;
  std::int64_t max_signal_delay_ns = 0;  ///< a random delay up to this before every signal
  std::uint64_t first_epoch = 0;         ///< calls are counted from here; equal on all ranks
};

/// How a group uses network cards. A provider that cannot honour an option refuses it with Error(unsupported). May differ between
/// ranks, but for the counts.
struct NetworkOptions {
  /// Network cards by the provider's names ("eth0", "mlx5_0"), all used by this rank; empty: the `num_nics` nearest to `near_pci`.
  std::vector<std::string> nics{};
  int num_nics = 1;
  /// PCIe address of the device whose data travels, "0000:3b:00.0": distances are counted on the PCIe tree, and ranks that find
  /// several cards equally near spread over them. Empty: the provider's first card.
  std::string near_pci{};
  /// Of the group's packets, to keep throughput and latency groups apart: best_effort, low_latency, dedicated_access, bulk_data,
  /// scavenger, network_ctrl, or dscp:0 to dscp:63; empty: the provider's own. docs/network.md says what becomes of it.
  std::string traffic_class{};
  /// Signals wait until the rows before them are acknowledged, also where the provider promises the order of writes: for fabrics
  /// that reorder packets (adaptive routing). Costs a round trip per signal.
  bool gated_posts = false;
  int proxy_threads = 1;           ///< that drive the network for this rank; equal on all ranks
  std::vector<int> proxy_cores{};  ///< CPUs that these threads are bound to, in turn; empty: any
  /// network loopback: this rank seems to send over a link of so many bytes per second (signals arrive when such a link would have
  /// carried the rows before them); 0: as fast as it goes. To see on one machine what a slower network would do.
  std::int64_t link_bytes_per_second = 0;
};

struct GroupConfig {
  GroupLimits limits;
  /// Empty: nodes of FERRY_NODE_SIZE ranks if that is set (pretend nodes), else one node per machine, whose ranks must be numbered
  /// one after the other. A network namespace counts as a machine.
  std::optional<Topology> topology{};
  std::optional<Placement> placement{};  ///< empty: contiguous over limits.num_experts
  std::string backend = "auto";          ///< "host" (tensors in host memory), "cuda" (on a GPU); "auto" is "host"
  int device = -1;                       ///< cuda backend: this rank's GPU; -1: the thread's current device
  /// Between nodes: "loopback" or "shm" (ranks of one machine), "tcp", "verbs" (InfiniBand, RoCE), "efa". "auto": loopback on one
  /// machine, else the first of efa, verbs and tcp that all ranks can use. "shuffle+" in front delays and reorders everything that
  /// the network's contract lets it (tests).
  std::string network = "auto";
  NetworkOptions network_options{};
  std::chrono::nanoseconds timeout = std::chrono::seconds(100);  ///< of every wait
  /// How often this group masks by itself who misses a deadline (or dies) and completes the call without it, until mask() or
  /// unmask() open new windows; 0 = never: such calls end in Error(timeout | peer_lost). Equal on all ranks. Latency mode keeps as
  /// many more sets of return slots. See Group about what is agreed then.
  int auto_masks = 0;
  TestOptions test{};
};

struct RegionPlan {
  std::string name;
  /// In its allocation. cuda backend: regions of device memory come last and count from 0 again; the last, "device results", is
  /// an allocation of its own.
  std::int64_t offset_bytes = 0;
  std::int64_t bytes = 0;
};
/// What one rank's windows will hold, and on the cuda backend what it reserves for results; known before anything is allocated.
/// Results on the host, and those on a device for which the reserve is too small because the caller keeps many, are extra.
struct MemoryPlan {
  std::vector<RegionPlan> regions;
  std::int64_t total_bytes = 0;
  std::int64_t recv_rows = 0;  ///< rows of the receive window of one flight
};
/// The same numbers that Group uses. Throws Error(invalid_argument) for limits that make no sense.
MemoryPlan memory_plan(const GroupConfig& config, const Topology& topology, int rank);

/// Bytes that cross links in one dispatch and one combine: the mean over ranks of what a rank sends, expected for T tokens per
/// rank with K distinct experts drawn uniformly. The row is hidden x dtype of the limits. Throughput mode.
struct TrafficPlan {
  double dispatch_node_bytes = 0;     ///< to other ranks of the node, rows handed on for other nodes included
  double dispatch_network_bytes = 0;  ///< to other nodes: one row per (token, node)
  double combine_node_bytes = 0;
  double combine_network_bytes =
      0;  ///< per_node: one row per (token, node); per_rank: per (token, rank); flat: per choice
};
TrafficPlan traffic_plan(const GroupConfig& config, const Topology& topology, Reduction reduction, std::int64_t tokens,
                         int top_k);

struct GroupStatistics {
  std::uint64_t epoch = 0;            ///< calls begun
  std::uint32_t membership = 0;       ///< changes of membership
  std::int64_t window_bytes = 0;      ///< of this rank
  std::string device_memory;          ///< how ranks map each other's device memory; empty on the host backend
  std::vector<std::int64_t> wait_ns;  ///< [R] time the host spent waiting for each rank
  std::uint64_t network_commands = 0;
  std::uint64_t network_bytes = 0;
};

/// What a step of the last call did on this rank, for benchmarks and the demo. `seconds` holds its waits, too. `rows` are those
/// that the step itself stored or sent off, `bytes` theirs: the blocks of a wire row, each padded to 16 bytes (dispatch), or the
/// row of x (combine). Records, weights and signals do not count, nor does the copy that Output::kOwned asks for.
///
/// route             rows: tokens routed; bytes: counts sent to the ranks (0 in latency mode)
/// dispatch_send     throughput: one row per (token, rank of this node) and per (token, other node); latency: per (token, rank),
///                   also where ranks of this node fetch a row that lies ready once
/// dispatch_forward  one row per (token of another node, rank of this node)
/// dispatch_recv     rows copied into the result. Throughput: 0 for rank_major, whose rows lie where they belong, else the rows
///                   of a token beyond its first one on this rank. Latency: all
/// combine_send      flat: one row per choice, else one per (token, this rank); with a codec the bytes are those of the coded rows
/// combine_forward   per_node: one row per (token, this node), per_rank: per (token, rank of this node), flat: per choice
/// combine_recv      rows: tokens of this rank
///
/// Rows to this rank itself that are read where the caller has them (latency mode and rank_major, when send and receive are one
/// call) are counted by the receiving step only.
struct StepTrace {
  std::string step;
  std::int64_t rows = 0;
  std::int64_t bytes = 0;
  double seconds = 0;  ///< cuda backend: of the host, which launches; rows and bytes stay 0 but for route's rows
};

/// One rank's end of a group. Move-only.
///
/// Every rank makes the same sequence of dispatch and combine calls (sends, when phases are split); receives may come in any
/// order. One thread at a time may use a group, except abort(), which any thread may call.
///
/// Over several nodes a rank hands on rows of others while it is inside a call of that group. So ranks that have calls of two
/// groups in flight must receive them in the same order: if rank 0 receives group A first and rank 1 group B first, each may wait
/// for rows that the other would hand on, until the deadline. The same holds for a rank that sends and then makes no call of the
/// group for a long time: rows of others that pass through it wait as long.
///
/// A result with Output::kWindow stays valid until this rank starts the dispatch `num_flights` later. Results own a share of
/// the memory, so using one for longer reads stale rows but never unmapped memory.
///
/// After an Error(timeout | peer_lost | mismatch | overflow) the call it came from is over on this rank and the group goes on
/// with the next call; invalid_argument found before the call leaves the group as it was. If only some ranks made or failed a
/// call, they may be out of step: their next calls end in named errors until the membership changes or another group is made.
///
/// GroupConfig::auto_masks: a rank that misses a deadline, or dies, is masked by whoever waits for it; the call completes without its
/// part. A rank that itself waits for another one is given up to four deadlines: the culprit is to be found, not who it holds up.
/// Latency mode: each rank finds out for itself. Of one call, one may have the late rank's part while another has not, and results
/// of the call and the next ones say nothing about others; nobody has a piece of it (all rows of its tokens in a dispatch, all
/// returned rows in a combine, or none). No agreement is made on the way, calls and replays of graphs go on in the same windows, and
/// what the late rank still writes is read by nobody. From the next dispatch on, tokens go to replicas elsewhere, and weights are
/// renormalised if asked. The late rank hears of it: its calls that wait for somebody who has masked it end in Error(mismatch).
/// masked() names who was masked so far (cuda: as far as the device has come), the result whom the call itself masked.
/// Throughput mode, where the place of every row follows from everybody's counts: who has left somebody out opens new windows with
/// the next call, all members join, and leave out whom any of them leaves out. A call whose counts did not come is made again like
/// that before it returns. One whose rows did not come (host backend, one node) completes: rows of the late rank keep their places,
/// hold anything and have ids -1. On the cuda backend, and over several nodes, such a call and calls without host counts end in the
/// error; the next one goes on without the rank. A call of two halves on both sides of such a change ends in Error(mismatch).
/// mask() by all remaining ranks makes the opinions of some the group's; unmask() by all and by the rank itself takes it back. Both
/// open new windows, and auto_masks counts anew.
class Group {
 public:
  /// Collective over the meeting.
  static Group create(const GroupConfig& config, Meeting& meeting);

  /// Any use of a group that was moved from is Error(invalid_argument).
  Group(Group&&) noexcept;
  Group& operator=(Group&&) noexcept;
  ~Group();  ///< as close()

  int rank() const;
  int size() const;
  const Topology& topology() const;
  const Placement& placement() const;
  const GroupConfig& config() const;
  /// The backend that was chosen: "host" or "cuda".
  std::string backend_name() const;
  /// The network that was chosen, "loopback" or "tcp" for example; "none" if all ranks are in one node.
  std::string network_name() const;

  DispatchResult dispatch(const DispatchArgs& args);
  PendingDispatch dispatch_send(const DispatchArgs& args);
  CombineResult combine(const CombineArgs& args);
  PendingCombine combine_send(const CombineArgs& args);

  /// Empty if a call with these arguments can be made, else the reason and what would work. Looks at values only, never at data.
  std::string why_not(const DispatchArgs& args) const;
  std::string why_not(const CombineArgs& args) const;
  /// The mode that dispatch() takes with these arguments, which is theirs unless it is Mode::kAuto. Throws what dispatch() would.
  Mode mode_of(const DispatchArgs& args) const;
  /// Largest handle that a dispatch of this shape can make.
  std::size_t handle_bytes(const DispatchArgs& args) const;

  /// cuda backend: where the experts may write their results, so that combine reads them where they are and copies nothing:
  /// [rows, elements] of `dtype` for the layout of the handle's dispatch (expert_padded: [E_local, capacity, elements]); rows lie
  /// side by side, each padded to 16 bytes. Valid until this rank starts the dispatch `num_flights` after the handle's. Throws
  /// Error(unsupported) on the host backend and in latency mode, which copy nothing anyway. The memory is mapped as long as the group has these
  /// windows, and as long as `owner`, if given, is kept.
  Tensor combine_input(const Handle& handle, DType dtype, std::int64_t elements,
                       std::shared_ptr<const void>* owner = nullptr) const;

  /// Leaves `rank` out from the next call on: nothing is sent to it, nothing awaited, its part is left out. All remaining ranks
  /// must make the same changes before the same call. A rank left out that goes on by itself gets errors and harms nobody.
  void mask(int rank);
  /// Takes `rank` back from the next call on; the rank itself calls unmask(rank()) too and joins the others' count of calls.
  void unmask(int rank);
  std::vector<bool> masked() const;

  /// Throws the fault of an earlier call that was not raised yet, or Error(aborted).
  void check();
  /// Ends every wait here and on the peers with Error(aborted). Local, may be called from any thread.
  void abort();
  /// cuda backend: calls that are queued get a second to end, those that then still wait are given up; synchronise before it.
  /// Gives the memory back as soon as nobody uses it. Local and idempotent; what follows is Error(invalid_argument).
  void close();

  GroupStatistics statistics() const;
  const std::vector<StepTrace>& last_trace() const;

 private:
  explicit Group(std::shared_ptr<GroupState> state);
  GroupState& state(const char* function) const;
  std::shared_ptr<GroupState> state_;
};

}  // namespace ferry
