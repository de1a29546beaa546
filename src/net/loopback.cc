// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The loopback provider. A put is a memcpy into the peer's mapped window, a post an atomic release store: a reader that
// acquires the signal sees every row that this thread copied before it.
#include "net/loopback.h"

#include <array>
#include <atomic>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "core/check.h"
#include "net/command.h"
#include "net/proxy_engine.h"

namespace ferry::net {
namespace {

/// Small enough that other peers soon get their turn, large enough that the copy runs at full speed.
constexpr std::size_t kMaxPieceBytes = std::size_t{256} << 10;

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

 private:
  std::shared_ptr<Memory> memory_;
};

class LoopbackCarrier final : public Carrier {
 public:
  LoopbackCarrier()
      : provider_{.name = "loopback",
                  .why_not = "",
                  .ordered = true,
                  .maps_windows = true,
                  .detail = "copies by the proxy thread, between pretend nodes of this machine"} {}

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
    return std::make_unique<LoopbackWindow>(std::move(memory));
  }

  std::size_t max_put_bytes() const override { return kMaxPieceBytes; }

  Start start_put(const PutRequest& request) override {
    std::memcpy(window_of(request.window).at(request.offset), request.source, request.bytes);
    return Start::kDone;
  }

  Start start_post(const PostRequest& request) override {
    auto* signal = reinterpret_cast<std::uint64_t*>(window_of(request.window).at(request.offset));
    std::atomic_ref(*signal).store(request.total, std::memory_order_release);
    return Start::kDone;
  }

  bool progress(std::vector<Completion>&) override { return false; }

 private:
  static const LoopbackWindow& window_of(const RemoteWindow* window) {
    return static_cast<const LoopbackWindow&>(*window);
  }

  Provider provider_;
};

}  // namespace

std::unique_ptr<Carrier> make_loopback_carrier() {
  return std::make_unique<LoopbackCarrier>();
}

std::unique_ptr<Engine> make_loopback(const EngineConfig& config) {
  return make_proxy_engine(config, make_loopback_carrier());
}

}  // namespace ferry::net
