// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Holds transfers back and hands them to the inner provider in random order. It claims no order, so the proxy gates its
// posts: a post comes here only when everything before it on its lane is complete.
#include "net/shuffle.h"

#include <chrono>
#include <random>
#include <utility>

#include <fmt/format.h>

#include "core/check.h"

namespace ferry::net {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t kMaxPostDelayNs = 1'000'000'000;
constexpr std::size_t kMaxHeldPuts = 512;  // more is answered with "busy", so that this path is walked too

class ShuffleCarrier final : public Carrier {
 public:
  ShuffleCarrier(const ShuffleConfig& config, std::unique_ptr<Carrier> inner)
      : config_(config), inner_(std::move(inner)), provider_(inner_->provider()), random_(config.seed) {
    provider_.name += config.seed != 0 ? ", shuffled" : ", delayed posts";
    provider_.ordered = false;
  }

  const Provider& provider() const override { return provider_; }
  std::vector<std::byte> describe(const Memory& memory) override { return inner_->describe(memory); }
  std::unique_ptr<RemoteWindow> attach(int peer, std::span<const std::byte> description,
                                       std::shared_ptr<Memory> memory) override {
    return inner_->attach(peer, description, std::move(memory));
  }
  std::size_t max_put_bytes() const override { return inner_->max_put_bytes(); }
  bool must_be_driven() const override { return inner_->must_be_driven(); }

  Start start_put(const PutRequest& request) override {
    if (config_.seed == 0) return inner_->start_put(request);
    if (puts_.size() >= kMaxHeldPuts) return Start::kBusy;
    puts_.push_back({request, request.bytes});
    return Start::kStarted;
  }

  Start start_post(const PostRequest& request) override {
    if (config_.max_post_delay_ns == 0) return inner_->start_post(request);
    const auto delay = std::chrono::nanoseconds(below(static_cast<std::uint64_t>(config_.max_post_delay_ns) + 1));
    posts_.push_back({request, Clock::now() + delay});
    return Start::kStarted;
  }

  bool progress(std::vector<Completion>& completions) override {
    bool moved = inner_->progress(completions);
    moved |= release_puts(completions);
    moved |= release_posts(completions);
    return moved;
  }

 private:
  struct HeldPut {
    PutRequest request;
    std::size_t rest;  // bytes from the front that are still to be written; the tail goes first
  };
  struct HeldPost {
    PostRequest request;
    Clock::time_point due;
  };

  std::uint64_t below(std::uint64_t end) { return random_() % end; }

  /// Hands over a random number of held puts, perhaps none; some only in part, from the back, so that nobody relies on
  /// the last byte.
  bool release_puts(std::vector<Completion>& completions) {
    bool moved = false;
    for (std::uint64_t turns = below(puts_.size() + 1); turns > 0; --turns) {
      HeldPut& put = puts_[below(puts_.size())];
      const bool split = config_.split_puts && below(4) == 0;
      if (!write_tail(put, split ? 1 + below(put.rest) : put.rest, completions)) break;
      moved = true;
      if (put.rest != 0) continue;
      put = puts_.back();
      puts_.pop_back();
    }
    return moved;
  }

  /// False: the inner provider is busy.
  bool write_tail(HeldPut& put, std::size_t piece, std::vector<Completion>& completions) {
    PutRequest part = put.request;
    part.offset += put.rest - piece;
    part.source += put.rest - piece;
    part.bytes = piece;
    const Start start = inner_->start_put(part);
    if (start == Start::kBusy) return false;
    put.rest -= piece;
    if (put.rest == 0 && start == Start::kDone) completions.push_back({put.request.ticket, {}});
    return true;
  }

  bool release_posts(std::vector<Completion>& completions) {
    if (posts_.empty()) return false;
    const Clock::time_point now = Clock::now();
    const auto released = [&](const HeldPost& post) {
      if (post.due > now) return false;
      const Start start = inner_->start_post(post.request);
      if (start == Start::kDone) completions.push_back({post.request.ticket, {}});
      return start != Start::kBusy;
    };
    return std::erase_if(posts_, released) != 0;
  }

  ShuffleConfig config_;
  std::unique_ptr<Carrier> inner_;
  Provider provider_;
  std::mt19937_64 random_;
  std::vector<HeldPut> puts_;
  std::vector<HeldPost> posts_;
};

}  // namespace

std::unique_ptr<Carrier> make_shuffle(const ShuffleConfig& config, std::unique_ptr<Carrier> inner) {
  if (config.max_post_delay_ns < 0 || config.max_post_delay_ns > kMaxPostDelayNs) {
    refuse("ferry::net::EngineConfig", "max_post_delay_ns", fmt::format("{}", config.max_post_delay_ns),
           fmt::format("0..{}", kMaxPostDelayNs));
  }
  return std::make_unique<ShuffleCarrier>(config, std::move(inner));
}

}  // namespace ferry::net
