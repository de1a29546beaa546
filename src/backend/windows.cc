// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Opening windows: every member sends every other a notice with its memory and its count of calls.
#include "backend/windows.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>

#include "backend/runtime.h"
#include "core/check.h"

namespace ferry {
namespace {

constexpr std::uint64_t kNoticeMagic = 0x4652594e4f544531;  // "FRYNOTE1"

/// The fixed part of a membership notice; R mask bytes and the engine's description follow.
struct NoticeHeader {
  std::uint64_t magic = kNoticeMagic;
  std::uint32_t number = 0;
  std::uint32_t left_out = 0;  ///< 1: the receiver is no longer a member
  CallCounters counters;
  std::uint64_t config_digest = 0;
  std::uint64_t num_ranks = 0;
  std::uint64_t description_bytes = 0;  ///< of the window in host memory; that of the one in device memory follows
  std::uint64_t has_fabric_handle = 0;
  FabricHandle fabric_handle{};  ///< of the sender's device memory
};

struct MembershipNotice {
  NoticeHeader header;
  std::vector<std::uint8_t> masked;
  std::vector<std::byte> description, device_description;
};

Notice pack(const NoticeHeader& header, const std::vector<std::uint8_t>& masked,
            std::span<const std::byte> description) {
  Notice notice;
  notice.bytes.resize(sizeof(header) + masked.size() + description.size());
  std::memcpy(notice.bytes.data(), &header, sizeof(header));
  std::memcpy(notice.bytes.data() + sizeof(header), masked.data(), masked.size());
  if (!description.empty())
    std::memcpy(notice.bytes.data() + sizeof(header) + masked.size(), description.data(), description.size());
  return notice;
}

MembershipNotice unpack(const Notice& notice, int peer, int num_ranks) {
  MembershipNotice out;
  const auto fixed = sizeof(NoticeHeader) + static_cast<std::size_t>(num_ranks);
  if (notice.bytes.size() >= sizeof(NoticeHeader)) std::memcpy(&out.header, notice.bytes.data(), sizeof(NoticeHeader));
  if (notice.bytes.size() < fixed || out.header.magic != kNoticeMagic ||
      out.header.num_ranks != static_cast<std::uint64_t>(num_ranks)) {
    throw peer_error(ErrorCode::kMismatch, "meet", 0, peer,
                     fmt::format("ferry: rank {} sent a notice that this version does not understand", peer));
  }
  const auto* masks = reinterpret_cast<const std::uint8_t*>(notice.bytes.data()) + sizeof(NoticeHeader);
  out.masked.assign(masks, masks + num_ranks);
  const auto described = std::min<std::uint64_t>(out.header.description_bytes, notice.bytes.size() - fixed);
  const auto begin = notice.bytes.begin() + static_cast<std::ptrdiff_t>(fixed);
  out.description.assign(begin, begin + static_cast<std::ptrdiff_t>(described));
  out.device_description.assign(begin + static_cast<std::ptrdiff_t>(described), notice.bytes.end());
  return out;
}

std::string list_masked(const std::vector<std::uint8_t>& masked) {
  std::vector<int> ranks;
  for (std::size_t rank = 0; rank < masked.size(); ++rank) {
    if (masked[rank] != 0) ranks.push_back(static_cast<int>(rank));
  }
  return ranks.empty() ? "nobody" : fmt::format("{}", fmt::join(ranks, ", "));
}

}  // namespace

Windows::Windows(Membership members, int my_rank, const Topology& topology, WindowLayout window_layout, int num_flights)
    : membership(std::move(members)),
      layout(std::move(window_layout)),
      rails(topology, membership.masked),
      last_latency_dispatch(static_cast<std::size_t>(num_flights), 0),
      last_combine(static_cast<std::size_t>(num_flights), 0),
      dispatch_staging_busy(static_cast<std::size_t>(num_flights), 0),
      combine_staging_busy(static_cast<std::size_t>(num_flights), 0),
      return_bank(static_cast<std::size_t>(num_flights), 0),
      mapped_(static_cast<std::size_t>(topology.num_ranks())),
      base_(static_cast<std::size_t>(topology.num_ranks()), nullptr),
      remote_(static_cast<std::size_t>(topology.num_ranks())),
      remote_device_(static_cast<std::size_t>(topology.num_ranks())),
      device_(static_cast<std::size_t>(topology.num_ranks())) {
  for (int rank = 0; rank < topology.num_ranks(); ++rank) {
    if (membership.is_masked(rank)) continue;
    live.push_back(rank);
    if (topology.node_of(rank) == topology.node_of(my_rank)) node_peers.push_back(rank);
  }
}

Windows::~Windows() {
  if (!engine_) return;
  for (const auto& window : remote_) {
    if (window) engine_->close(*window, memory_);  // puts of a call that failed may still be read from it
  }
  for (const auto& window : remote_device_) {
    if (window) engine_->close(*window, own_device_);
  }
}

/// Builds one Windows; a class so that its parts can share the arguments.
class WindowOpener {
 public:
  WindowOpener(Runtime& runtime, Windows& windows, NoticeHeader header, std::chrono::nanoseconds timeout,
               const Windows* before, bool unites)
      : runtime_(runtime),
        windows_(windows),
        header_(header),
        timeout_(unites ? 2 * timeout
                        : timeout),  // who waits for a late rank comes a deadline later than who has just given it up
        before_(before),
        unites_(unites) {}

  void open() {
    windows_.engine_ = runtime_.engine;
    windows_.first_epoch = header_.counters.epoch;
    windows_.memory_ = runtime_.mesh->allocate(static_cast<std::size_t>(windows_.layout.total_bytes()));
    if (runtime_.device_memories) {
      windows_.device_[static_cast<std::size_t>(runtime_.rank)] =
          runtime_.device_memories->allocate(static_cast<std::size_t>(runtime_.device_layout.total_bytes));
      const auto& fabric = windows_.device_[static_cast<std::size_t>(runtime_.rank)]->fabric_handle();
      header_.has_fabric_handle = fabric ? 1 : 0;
      header_.fabric_handle = fabric.value_or(FabricHandle{});
      const auto& own = windows_.device_[static_cast<std::size_t>(runtime_.rank)];
      windows_.own_device_ = Memory::on_device(own->data(), own->size(), own);
    }
    runtime_.forget_failures(windows_.membership.masked);
    send_notices();
    const auto deadline = std::chrono::steady_clock::now() + timeout_;
    std::vector<int> missing;
    for (int peer : windows_.live) {
      if (peer != runtime_.rank) missing.push_back(peer);
    }
    adopt(runtime_.rank, windows_.memory_, {});
    while (!missing.empty()) {
      std::erase_if(missing, [&](int peer) { return receive_from(peer); });
      if (missing.empty()) break;
      if (runtime_.aborted() || (before_ != nullptr && runtime_.abort_seen(*before_))) {
        throw call_error(ErrorCode::kAborted, "meet", header_.counters.epoch,
                         "ferry: the group was aborted while windows were opened");
      }
      // A peer may first want to receive a call whose rows pass through this rank.
      if (runtime_.progress) runtime_.progress();
      if (std::chrono::steady_clock::now() > deadline && unites_) go_on_without(missing);
      if (std::chrono::steady_clock::now() > deadline)
        fail(ErrorCode::kTimeout, missing, "did not come within the deadline");
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }

 private:
  void send_notices() {
    std::vector<std::byte> description =
        runtime_.engine ? runtime_.engine->describe(windows_.memory_) : std::vector<std::byte>{};
    header_.description_bytes = description.size();
    if (runtime_.engine && windows_.own_device_) {
      const std::vector<std::byte> of_device = runtime_.engine->describe(windows_.own_device_);
      description.insert(description.end(), of_device.begin(), of_device.end());
    }
    for (int peer = 0; peer < runtime_.topology.num_ranks(); ++peer) {
      if (peer == runtime_.rank) continue;
      header_.left_out = windows_.membership.is_masked(peer) ? 1 : 0;
      Notice notice = pack(header_, windows_.membership.masked, description);
      const bool in_node = runtime_.topology.node_of(peer) == runtime_.topology.node_of(runtime_.rank);
      // Who is elsewhere could not map it.
      if (header_.left_out == 0 && (in_node || maps_windows())) {
        notice.memory = windows_.memory_;
        notice.device = windows_.device_[static_cast<std::size_t>(runtime_.rank)];
      }
      runtime_.mesh->send(peer, notice);
    }
  }

  /// True once the peer's window of this membership is open. Notices of earlier memberships are dropped.
  bool receive_from(int peer) {
    while (std::optional<Notice> notice = runtime_.next_notice(peer)) {
      const MembershipNotice theirs = unpack(*notice, peer, runtime_.topology.num_ranks());
      if (theirs.header.number < header_.number) continue;
      if (unites_ && !agrees(peer, theirs, *notice)) continue;
      check_agreement(peer, theirs);
      adopt(peer, notice->memory, theirs.description);
      adopt_device(peer, notice->device, theirs);
      windows_.first_epoch = std::max(windows_.first_epoch, theirs.header.counters.epoch);
      return true;
    }
    if (runtime_.mesh->gone(peer) && unites_) go_on_without({peer});
    if (runtime_.mesh->gone(peer)) fail(ErrorCode::kPeerLost, {peer}, "is gone");
    return false;
  }

  /// False if the peer leaves out fewer ranks and will hear of the others. Throws MembershipGrew if it leaves out more.
  bool agrees(int peer, const MembershipNotice& theirs, Notice& notice) const {
    const Membership& mine = windows_.membership;
    if (theirs.header.left_out != 0) return true;  // check_agreement says so
    if (theirs.masked == mine.masked && theirs.header.number == mine.number) return true;
    Membership all{std::max(theirs.header.number, mine.number), mine.masked};
    for (std::size_t rank = 0; rank < all.masked.size(); ++rank) all.masked[rank] |= theirs.masked[rank];
    if (all.masked == mine.masked && all.number == mine.number) return false;
    if (all.masked != theirs.masked) ++all.number;  // neither's: the peer comes to the same
    auto& early = runtime_.early_notices_[static_cast<std::size_t>(peer)];
    early.insert(early.begin(), std::move(notice));
    throw MembershipGrew{std::move(all)};
  }

  [[noreturn]] void go_on_without(const std::vector<int>& peers) const {
    Membership rest{windows_.membership.number + 1, windows_.membership.masked};
    for (int peer : peers) rest.masked[static_cast<std::size_t>(peer)] = 1;
    throw MembershipGrew{std::move(rest)};
  }

  void check_agreement(int peer, const MembershipNotice& theirs) const {
    const auto disagree = [&](const std::string& what) {
      throw peer_error(ErrorCode::kMismatch, "meet", 0, peer,
                       fmt::format("ferry::Group: rank {} and rank {} disagree: {}", peer, runtime_.rank, what));
    };
    if (theirs.header.config_digest != header_.config_digest) disagree("their limits, topology or placement differ");
    if (theirs.header.left_out != 0)
      disagree(fmt::format("it left this rank out (membership {})", theirs.header.number));
    if (theirs.masked != windows_.membership.masked || theirs.header.number != header_.number) {
      disagree(fmt::format("it is in membership {} and masks {}, this rank is in membership {} and masks {}",
                           theirs.header.number, list_masked(theirs.masked), header_.number,
                           list_masked(windows_.membership.masked)));
    }
  }

  bool maps_windows() const { return runtime_.engine && runtime_.engine->provider().maps_windows; }

  void adopt(int peer, const std::shared_ptr<Memory>& memory, std::span<const std::byte> description) {
    const auto index = static_cast<std::size_t>(peer);
    if (memory && memory->size() < static_cast<std::size_t>(windows_.layout.total_bytes())) {
      throw peer_error(ErrorCode::kMismatch, "meet", 0, peer,
                       fmt::format("ferry::Group: rank {} has a window of {} bytes, expected {}", peer, memory->size(),
                                   windows_.layout.total_bytes()));
    }
    if (runtime_.topology.node_of(peer) == runtime_.topology.node_of(runtime_.rank)) {
      if (!memory) {
        throw peer_error(ErrorCode::kMismatch, "meet", 0, peer,
                         fmt::format("ferry::Group: rank {} of this node sent no window", peer));
      }
      windows_.mapped_[index] = memory;
      windows_.base_[index] = memory->data();
      return;
    }
    windows_.remote_[index] = runtime_.engine->open(peer, description, memory);
  }

  void adopt_device(int peer, const std::shared_ptr<Shareable>& shared, const MembershipNotice& theirs) {
    if (!runtime_.device_memories) return;
    if (!shared) {
      Error error(
          ErrorCode::kMismatch,
          fmt::format("ferry::Group: rank {} has no device window, this rank ({}) has one", peer, runtime_.rank));
      error.step = "meet";
      error.peers.push_back({.rank = peer});
      throw error;
    }
    std::optional<FabricHandle> fabric;
    if (theirs.header.has_fabric_handle != 0) fabric = theirs.header.fabric_handle;
    std::shared_ptr<DeviceMemory> mapped =
        runtime_.device_memories->map(*shared, fabric, static_cast<std::size_t>(runtime_.device_layout.total_bytes));
    const auto index = static_cast<std::size_t>(peer);
    if (runtime_.topology.node_of(peer) == runtime_.topology.node_of(runtime_.rank)) {
      windows_.device_[index] = std::move(mapped);
      return;
    }
    // Kernels never see it: what only the network reaches is written by the engine alone.
    auto memory = Memory::on_device(mapped->data(), mapped->size(), mapped);
    windows_.remote_device_[index] = runtime_.engine->open(peer, theirs.device_description, std::move(memory));
  }

  [[noreturn]] void fail(ErrorCode code, const std::vector<int>& peers, const char* why) const {
    Error error = call_error(code, "meet", header_.counters.epoch,
                             fmt::format("ferry::Group: rank {} waits for rank {} to open membership {}: {}",
                                         runtime_.rank, fmt::join(peers, ", "), header_.number, why));
    for (int peer : peers) error.peers.push_back({.rank = peer});
    throw error;
  }

  Runtime& runtime_;
  Windows& windows_;
  NoticeHeader header_;
  std::chrono::nanoseconds timeout_;
  const Windows* before_;
  bool unites_;
};

std::shared_ptr<Windows> Runtime::open_windows(const Membership& membership, const WindowLayout& layout,
                                               const CallCounters& counters, std::uint64_t config_digest,
                                               std::chrono::nanoseconds timeout, const Windows* before, bool unites) {
  auto windows = std::make_shared<Windows>(membership, rank, topology, layout, layout.num_flights());
  NoticeHeader header;
  header.number = membership.number;
  header.counters = counters;
  header.config_digest = config_digest;
  header.num_ranks = static_cast<std::uint64_t>(topology.num_ranks());
  WindowOpener(*this, *windows, header, timeout, before, unites).open();
  return windows;
}

void Runtime::wait_until_mapped(const Windows& windows, std::chrono::nanoseconds timeout, const Windows* before) {
  if (!device_memories) return;
  const auto word = [&](std::byte* window, int writer) {
    return std::atomic_ref(
        *reinterpret_cast<std::uint64_t*>(window + windows.layout.signal(Signal::kMapped, 0, writer)));
  };
  const auto end = [&](ErrorCode code, int peer, const char* why) {
    throw peer_error(code, "meet", windows.first_epoch, peer,
                     fmt::format("ferry::Group: rank {} waits for rank {} to open membership {}: {}", rank, peer,
                                 windows.membership.number, why));
  };
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  for (int peer : windows.node_peers) word(windows.peer(peer, 0), rank).store(1, std::memory_order_release);
  const auto offset = static_cast<std::uint64_t>(windows.layout.signal(Signal::kMapped, 0, rank));
  for (int peer : windows.live) {  // those of other nodes may share a device with this rank all the same
    while (windows.peer(peer, 0) == nullptr && !engine->channel(0).try_post(windows.remote(peer), offset, 1)) {
      if (std::chrono::steady_clock::now() > deadline) end(ErrorCode::kTimeout, peer, "the network takes no more");
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }
  for (int peer : windows.live) {
    while (word(windows.own(0), peer).load(std::memory_order_acquire) == 0) {
      if (mesh->gone(peer)) end(ErrorCode::kPeerLost, peer, "is gone");
      if (aborted() || (before != nullptr && abort_seen(*before))) {
        throw call_error(ErrorCode::kAborted, "meet", windows.first_epoch,
                         "ferry: the group was aborted while windows were opened");
      }
      if (std::chrono::steady_clock::now() > deadline)
        end(ErrorCode::kTimeout, peer, "did not come within the deadline");
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }
}

Runtime::Rejoin Runtime::wait_for_rejoin(std::chrono::nanoseconds timeout) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  while (std::chrono::steady_clock::now() < deadline && !aborted()) {
    collect_notices();
    std::optional<Rejoin> newest;
    for (int peer = 0; peer < topology.num_ranks(); ++peer) {
      const auto& notices = early_notices_[static_cast<std::size_t>(peer)];
      if (notices.empty()) continue;
      const MembershipNotice theirs = unpack(notices.back(), peer, topology.num_ranks());
      if (theirs.header.left_out != 0 || (newest && newest->membership.number >= theirs.header.number)) continue;
      newest = Rejoin{{theirs.header.number, theirs.masked}, theirs.header.counters};
    }
    if (newest) return *newest;  // notices of earlier memberships are dropped when the windows are opened
    if (progress) progress();
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  throw call_error(aborted() ? ErrorCode::kAborted : ErrorCode::kTimeout, "meet", 0,
                   fmt::format("ferry::Group::unmask: no rank took rank {} back within the deadline", rank));
}

std::optional<std::uint32_t> Runtime::reopened_as(const Windows& windows) const {
  std::optional<std::uint32_t> number;
  for (int peer : windows.live) {
    for (const Notice& notice : early_notices_[static_cast<std::size_t>(peer)]) {
      const MembershipNotice theirs = unpack(notice, peer, topology.num_ranks());
      const bool newer = theirs.header.number > number.value_or(windows.membership.number);
      if (newer && theirs.header.left_out == 0 && theirs.masked == windows.membership.masked)
        number = theirs.header.number;
    }
  }
  return number;
}

std::optional<Membership> Runtime::newer_membership(const Windows& windows) {
  collect_notices();
  std::optional<Membership> newest;
  for (int peer : windows.live) {
    for (const Notice& notice : early_notices_[static_cast<std::size_t>(peer)]) {
      const MembershipNotice theirs = unpack(notice, peer, topology.num_ranks());
      const std::uint32_t known = newest ? newest->number : windows.membership.number;
      if (theirs.header.number > known && theirs.header.left_out == 0)
        newest = Membership{theirs.header.number, theirs.masked};
    }
  }
  return newest;
}

std::optional<Notice> Runtime::next_notice(int peer) {
  auto& early = early_notices_[static_cast<std::size_t>(peer)];
  if (!early.empty()) {
    Notice notice = std::move(early.front());
    early.erase(early.begin());
    return notice;
  }
  return mesh->poll(peer);
}

void Runtime::collect_notices() {
  for (int peer = 0; peer < topology.num_ranks(); ++peer) {
    if (peer == rank) continue;
    while (std::optional<Notice> notice = mesh->poll(peer)) {
      early_notices_[static_cast<std::size_t>(peer)].push_back(std::move(*notice));
    }
  }
}

void Runtime::check_notices(const Call& call, const char* step, std::span<const Wait> waits) {
  collect_notices();
  for (int peer = 0; peer < topology.num_ranks(); ++peer) {
    const auto& notices = early_notices_[static_cast<std::size_t>(peer)];
    if (notices.empty()) continue;
    const MembershipNotice theirs = unpack(notices.back(), peer, topology.num_ranks());
    if (theirs.header.number <= call.windows->membership.number) continue;
    // A peer that began this call before it changed the membership owes it nothing more than any other peer does. Left out or
    // not, this rank waits for what the others still send; for a peer that has left it out only if that peer had sent its part.
    const bool owes = theirs.header.left_out != 0 && std::any_of(waits.begin(), waits.end(), [&](const Wait& wait) {
                        std::uint64_t seen = 0;
                        return wait.peer == peer && !reached(call, wait, seen);
                      });
    if (theirs.header.counters.epoch >= call.epoch && !owes) continue;
    throw peer_error(
        ErrorCode::kMismatch, step, call.epoch, peer,
        theirs.header.left_out != 0
            ? fmt::format("{}: rank {} has left this rank ({}) out since membership {}", step, peer, rank,
                          theirs.header.number)
            : fmt::format("{}: rank {} is in membership {} and masks {}, this rank is in membership {} and masks {}",
                          step, peer, theirs.header.number, list_masked(theirs.masked), call.windows->membership.number,
                          list_masked(masked_now)));
  }
}

}  // namespace ferry
