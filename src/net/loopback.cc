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
  std::int64_t arrives_ns;    // when the limited link has carried it; 0: no limit, or a post
  std::uint64_t* of_engines;  // transfers of its (channel, peer) that the copy engines have; null: not theirs
};

class LoopbackCarrier final : public Carrier {
 public:
  LoopbackCarrier(std::shared_ptr<CopyEngines> engines, std::uint64_t bytes_per_second)
      : provider_{.name = "loopback",
                  .why_not = "",
                  .ordered = bytes_per_second == 0,  // else posts wait until the link has carried what they announce
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
    return begin(puts_, request.ticket, by_engines ? &engine_transfers(request.channel, request.peer) : nullptr,
                 link_.is_limited() ? link_.pass(request.bytes, now_ns()) : 0);
  }

  Start start_post(const PostRequest& request) override {
    const LoopbackWindow& window = window_of(request.window);
    std::uint64_t& earlier = engine_transfers(request.channel, request.peer);
    if (window.is_on_device()) {
      engines_->write(window.at(request.offset), request.total);  // the engines have all earlier copies
      return begin(posts_, request.ticket, &earlier, 0);
    }
    if (earlier != 0) return Start::kBusy;
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
    if (!finishes_soon()) return false;
    const std::uint64_t reached = engines_ ? engines_->reached() : 0;
    const std::int64_t now = link_.is_limited() ? now_ns() : 0;
    const std::size_t before = completions.size();
    for (std::deque<Unfinished>* transfers : {&puts_, &posts_}) {
      for (; !transfers->empty(); transfers->pop_front()) {
        const Unfinished& oldest = transfers->front();
        if (oldest.mark > reached || oldest.arrives_ns > now) break;
        if (oldest.of_engines != nullptr) --*oldest.of_engines;
        completions.push_back({oldest.ticket, {}});
      }
    }
    return completions.size() != before;
  }

  bool finishes_soon() const override { return !puts_.empty() || !posts_.empty(); }

  /// A kernel cannot ring the bell: the proxy looks for commands by itself.
  bool must_be_driven() const override { return engines_ != nullptr; }

 private:
  static const LoopbackWindow& window_of(const RemoteWindow* window) {
    return static_cast<const LoopbackWindow&>(*window);
  }
  /// Of a (channel, peer): transfers that the copy engines have not finished. References stay valid.
  std::uint64_t& engine_transfers(int channel, int peer) {
    return engine_transfers_[static_cast<std::uint64_t>(channel) << 32 | static_cast<std::uint32_t>(peer)];
  }
  /// `of_engines`: null if the copy engines have no part in it.
  Start begin(std::deque<Unfinished>& transfers, Ticket ticket, std::uint64_t* of_engines, std::int64_t arrives_ns) {
    if (of_engines != nullptr) {
      ++*of_engines;
      unmarked_ = true;
    }
    transfers.push_back({ticket, of_engines != nullptr ? marks_ + 1 : 0, arrives_ns, of_engines});
    return Start::kStarted;
  }

  Provider provider_;
  std::shared_ptr<CopyEngines> engines_;
  RateLimiter link_;
  std::unordered_map<std::uint64_t, std::uint64_t> engine_transfers_;
  std::deque<Unfinished> puts_, posts_;  // each in the order of their marks and times; no post waits behind later puts
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
