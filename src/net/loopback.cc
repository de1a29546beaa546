// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The loopback provider. A put is a memcpy into the peer's mapped window, a post an atomic release store: a reader that
// acquires the signal sees every row that this thread copied before it. Into a window on a GPU both are orders to the copy
// engines, which carry them out one after the other.
//
// A limited link: bytes are copied when they can be, but a post goes out, and a put counts as complete, only at the time at which a
// link of that rate would have carried everything up to it. Nobody may look at what no signal has announced, so a receiver cannot
// tell the two apart, and the pace does not depend on how large the copies are.
#include "net/loopback.h"

#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <deque>
#include <unordered_map>
#include <utility>

#include <fmt/format.h>

#include "core/check.h"
#include "net/command.h"
#include "net/proxy_engine.h"
#include "net/rate_limiter.h"

namespace ferry::net {
namespace {

/// Small enough that other peers soon get their turn, large enough that the copy runs at full speed.
constexpr std::size_t kMaxPieceBytes = std::size_t{256} << 10;
/// Copy engines reach their rate with half a MiB or more; a lane's turn (proxy.cc) bounds it.
constexpr std::size_t kMaxDevicePieceBytes = std::size_t{4} << 20;

std::int64_t now_ns() {
  return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
}

/// What a window's description holds; both ends run on the same machine.
struct Description {
  std::array<char, 8> name{'l', 'o', 'o', 'p', 'b', 'a', 'c', 'k'};
  std::uint64_t version = 1;
  std::uint64_t size_bytes = 0;
};

class LoopbackWindow final : public RemoteWindow {
 public:
  explicit LoopbackWindow(std::shared_ptr<Memory> memory) : RemoteWindow(memory->size()), memory_(std::move(memory)) {}
  std::byte* at(std::uint64_t offset) const noexcept { return memory_->data() + offset; }
  bool is_on_device() const noexcept { return memory_->is_on_device(); }

 private:
  std::shared_ptr<Memory> memory_;
};

/// A transfer that is not complete when it is handed over.
struct Unfinished {
  Ticket ticket;
  std::uint64_t mark;         // of the copy engines; 0: not theirs
  std::int64_t arrives_ns;    // when the limited link has carried it
  std::uint64_t* of_engines;  // transfers of its (channel, peer) that the copy engines have; null: not theirs
};

/// What posts of one (channel, peer) wait for.
struct Flow {
  std::int64_t arrives_ns = 0;   // the last put
  std::uint64_t of_engines = 0;  // transfers that the copy engines have not finished
};

class LoopbackCarrier final : public Carrier {
 public:
  LoopbackCarrier(std::shared_ptr<CopyEngines> engines, std::uint64_t bytes_per_second)
      : provider_{.name = "loopback",
                  .why_not = "",
                  .ordered = true,
                  .maps_windows = true,
                  .detail = engines ? "copies by copy engines, between pretend nodes of this machine"
                                    : "copies by the proxy thread, between pretend nodes of this machine"},
        engines_(std::move(engines)),
        link_(bytes_per_second) {}

  const Provider& provider() const override { return provider_; }

  std::vector<std::byte> describe(const std::shared_ptr<Memory>& memory) override {
    const Description description{.size_bytes = memory->size()};
    std::vector<std::byte> bytes(sizeof(description));
    std::memcpy(bytes.data(), &description, sizeof(description));
    return bytes;
  }

  std::unique_ptr<RemoteWindow> attach(int peer, std::span<const std::byte> bytes,
                                       std::shared_ptr<Memory> memory) override {
    constexpr const char* kFunction = "ferry::net::Engine::open";
    if (!memory) {
      throw Error(
          ErrorCode::kUnsupported,
          fmt::format("{}: the loopback network needs rank {}'s memory mapped here, which works for ranks of this "
                      "machine only",
                      kFunction, peer));
    }
    const Description expected{.size_bytes = memory->size()};
    Description seen;
    if (bytes.size() != sizeof(seen)) {
      refuse(kFunction, "description", fmt::format("{} bytes from rank {}", bytes.size(), peer),
             fmt::format("{} bytes from a loopback engine's describe()", sizeof(seen)));
    }
    std::memcpy(&seen, bytes.data(), sizeof(seen));
    if (seen.name != expected.name || seen.version != expected.version) {
      refuse(kFunction, "description", fmt::format("of another kind or version (from rank {})", peer),
             "what a loopback engine of the same Ferry describes");
    }
    if (seen.size_bytes != expected.size_bytes || seen.size_bytes > kMaxWindowBytes) {
      refuse(kFunction, "description", fmt::format("of a window of {} bytes (from rank {})", seen.size_bytes, peer),
             fmt::format("the {} bytes that are mapped, at most 2^{}", expected.size_bytes, kOffsetBits));
    }
    if (memory->is_on_device() && !engines_) {
      refuse(kFunction, "memory", fmt::format("on a GPU (of rank {})", peer),
             "host memory, or an engine with copy engines");
    }
    return std::make_unique<LoopbackWindow>(std::move(memory));
  }

  std::size_t max_put_bytes() const override { return engines_ ? kMaxDevicePieceBytes : kMaxPieceBytes; }

  Start start_put(const PutRequest& request) override {
    const LoopbackWindow& window = window_of(request.window);
    const bool by_engines = window.is_on_device();
    if (by_engines) {
      engines_->copy(window.at(request.offset), request.source, request.bytes);
    } else {
      std::memcpy(window.at(request.offset), request.source, request.bytes);
    }
    if (!by_engines && !link_.is_limited()) return Start::kDone;
    Flow& flow = flow_of(request.channel, request.peer);
    if (link_.is_limited()) flow.arrives_ns = link_.pass(request.bytes, now_ns());
    return begin(request.ticket, flow, by_engines);
  }

  Start start_post(const PostRequest& request) override {
    const LoopbackWindow& window = window_of(request.window);
    Flow& flow = flow_of(request.channel, request.peer);
    if (link_.is_limited() && now_ns() < flow.arrives_ns) return Start::kBusy;
    if (window.is_on_device()) {
      engines_->write(window.at(request.offset), request.total);  // the engines have all earlier copies
      return begin(request.ticket, flow, true);
    }
    if (flow.of_engines != 0) return Start::kBusy;
    auto* signal = reinterpret_cast<std::uint64_t*>(window.at(request.offset));
    std::atomic_ref(*signal).store(request.total, std::memory_order_release);
    return Start::kDone;
  }

  bool progress(std::vector<Completion>& completions) override {
    if (unmarked_) {
      engines_->mark();
      ++marks_;
      unmarked_ = false;
    }
    if (unfinished_.empty()) return false;
    const std::uint64_t reached = engines_ ? engines_->reached() : 0;
    const std::int64_t now = link_.is_limited() ? now_ns() : 0;
    bool moved = false;
    for (; !unfinished_.empty(); unfinished_.pop_front(), moved = true) {
      const Unfinished& oldest = unfinished_.front();
      if (oldest.mark > reached || (link_.is_limited() && oldest.arrives_ns > now)) break;
      if (oldest.of_engines != nullptr) --*oldest.of_engines;
      completions.push_back({oldest.ticket, {}});
    }
    return moved;
  }

  /// A kernel cannot ring the bell: the proxy looks for commands by itself.
  bool must_be_driven() const override { return engines_ != nullptr; }

 private:
  static const LoopbackWindow& window_of(const RemoteWindow* window) {
    return static_cast<const LoopbackWindow&>(*window);
  }
  Flow& flow_of(int channel, int peer) {
    return flows_[static_cast<std::uint64_t>(channel) << 32 | static_cast<std::uint32_t>(peer)];
  }
  Start begin(Ticket ticket, Flow& flow, bool by_engines) {
    if (by_engines) ++flow.of_engines;
    unmarked_ |= by_engines;
    unfinished_.push_back(
        {ticket, by_engines ? marks_ + 1 : 0, flow.arrives_ns, by_engines ? &flow.of_engines : nullptr});
    return Start::kStarted;
  }

  Provider provider_;
  std::shared_ptr<CopyEngines> engines_;
  RateLimiter link_;
  std::unordered_map<std::uint64_t, Flow> flows_;  // by channel and peer; references stay valid
  std::deque<Unfinished> unfinished_;              // in the order of their marks and times
  std::uint64_t marks_ = 0;
  bool unmarked_ = false;  // the copy engines were given something since the last mark
};

}  // namespace

std::unique_ptr<Carrier> make_loopback_carrier(std::shared_ptr<CopyEngines> engines, std::uint64_t bytes_per_second) {
  return std::make_unique<LoopbackCarrier>(std::move(engines), bytes_per_second);
}

std::unique_ptr<Engine> make_loopback(const EngineConfig& config) {
  return make_proxy_engine(config, make_loopback_carrier(config.copy_engines, config.link_bytes_per_second));
}

}  // namespace ferry::net
