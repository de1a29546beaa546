// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Holds transfers back and hands them to the inner provider in random order. It claims no order, so the proxy gates its
// posts: a post comes here only when everything before it on its lane is complete.
#include "net/shuffle.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <mutex>
#include <random>
#include <utility>

#include <fmt/format.h>

#include "core/check.h"

namespace ferry::net {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t kMaxPostDelayNs = 1'000'000'000;
constexpr std::size_t kMaxHeldPuts = 512;  // more is answered with "busy", so that this path is walked too
constexpr const char* kAbandoned = "given up";

/// A put in our hands: some of it not handed over, some of it on its way. Its address is the ticket of its pieces.
struct HeldPut {
  PutRequest request;
  std::size_t rest;  // bytes from the front that are still to be handed over; the tail goes first
  std::uint32_t on_the_way = 0;
  std::string failure;
};

struct HeldPost {
  PostRequest request;
  Clock::time_point due;
};

class ShuffleCarrier final : public Carrier {
 public:
  ShuffleCarrier(const ShuffleConfig& config, std::unique_ptr<Carrier> inner)
      : config_(config), inner_(std::move(inner)), provider_(inner_->provider()), random_(config.seed) {
    provider_.name += config.seed != 0 ? ", shuffled" : ", delayed posts";
    provider_.ordered = false;
  }

  const Provider& provider() const override { return provider_; }
  std::vector<std::byte> describe(const std::shared_ptr<Memory>& memory) override { return inner_->describe(memory); }
  std::unique_ptr<RemoteWindow> attach(int peer, std::span<const std::byte> description,
                                       std::shared_ptr<Memory> memory) override {
    return inner_->attach(peer, description, std::move(memory));
  }
  std::size_t max_put_bytes() const override { return inner_->max_put_bytes(); }
  void acknowledge_posts() override { inner_->acknowledge_posts(); }
  bool must_be_driven() const override { return inner_->must_be_driven(); }
  bool finishes_soon() const override { return inner_->finishes_soon(); }
  bool prepare_sleep(std::vector<pollfd>& watched) override {
    return puts_.empty() && posts_.empty() && inner_->prepare_sleep(watched);
  }

  void abandon(int peer, std::uint64_t last_serial) override {
    {
      const std::lock_guard lock(abandoned_mutex_);
      abandoned_.emplace_back(peer, last_serial);
    }
    inner_->abandon(peer, last_serial);
  }

  Start start_put(const PutRequest& request) override {
    if (config_.seed == 0) return inner_->start_put(request);
    if (puts_.size() >= kMaxHeldPuts) return Start::kBusy;
    puts_.push_back(std::make_unique<HeldPut>(HeldPut{.request = request, .rest = request.bytes, .failure = {}}));
    return Start::kStarted;
  }

  Start start_post(const PostRequest& request) override {
    if (config_.max_post_delay_ns == 0) return inner_->start_post(request);
    const auto delay = std::chrono::nanoseconds(below(static_cast<std::uint64_t>(config_.max_post_delay_ns) + 1));
    posts_.push_back({request, Clock::now() + delay});
    return Start::kStarted;
  }

  bool progress(std::vector<Completion>& completions) override {
    inner_completions_.clear();
    bool moved = inner_->progress(inner_completions_);
    for (Completion& completion : inner_completions_) finish(std::move(completion), completions);
    drop_abandoned(completions);
    moved |= release_puts(completions);
    moved |= release_posts(completions);
    return moved;
  }

 private:
  std::uint64_t below(std::uint64_t end) { return random_() % end; }

  /// Posts keep their tickets; those of puts are ours while there is a seed.
  void finish(Completion completion, std::vector<Completion>& completions) {
    const auto put = std::find_if(flying_.begin(), flying_.end(), [&](const std::unique_ptr<HeldPut>& one) {
      return reinterpret_cast<Ticket>(one.get()) == completion.ticket;
    });
    if (put != flying_.end()) {
      note_piece(**put, std::move(completion.failure));
      if (!over(**put)) return;
      completions.push_back({(*put)->request.ticket, (*put)->failure});
      flying_.erase(put);
      return;
    }
    for (const auto& one : puts_) {  // its front is still here
      if (reinterpret_cast<Ticket>(one.get()) == completion.ticket)
        return note_piece(*one, std::move(completion.failure));
    }
    completions.push_back(std::move(completion));
  }

  static void note_piece(HeldPut& put, std::string failure) {
    --put.on_the_way;
    if (!failure.empty()) put.failure = std::move(failure);
  }
  static bool over(const HeldPut& put) { return put.rest == 0 && put.on_the_way == 0; }

  void drop_abandoned(std::vector<Completion>& completions) {
    const std::lock_guard lock(abandoned_mutex_);
    for (const auto& [peer, last_serial] : abandoned_) {
      const auto concerns = [peer = peer, last_serial = last_serial](const auto& request) {
        return request.peer == peer && request.window->serial <= last_serial;
      };
      for (std::size_t i = 0; i < puts_.size();) {
        if (!concerns(puts_[i]->request)) {
          ++i;
          continue;
        }
        puts_[i]->rest = 0;
        puts_[i]->failure = kAbandoned;
        settle(i, completions);
      }
      std::erase_if(posts_, [&](const HeldPost& post) {
        if (concerns(post.request)) completions.push_back({post.request.ticket, kAbandoned});
        return concerns(post.request);
      });
    }
    abandoned_.clear();
  }

  /// A put that has been handed over in full leaves the held ones.
  void settle(std::size_t index, std::vector<Completion>& completions) {
    std::unique_ptr<HeldPut> put = std::move(puts_[index]);
    puts_[index] = std::move(puts_.back());
    puts_.pop_back();
    if (over(*put)) {
      completions.push_back({put->request.ticket, put->failure});
    } else {
      flying_.push_back(std::move(put));
    }
  }

  /// Hands over a random number of held puts, perhaps none; some only in part, from the back, so that nobody relies on
  /// the last byte.
  bool release_puts(std::vector<Completion>& completions) {
    bool moved = false;
    for (std::uint64_t turns = below(puts_.size() + 1); turns > 0; --turns) {
      const std::size_t index = below(puts_.size());
      HeldPut& put = *puts_[index];
      const bool split = below(4) == 0;
      if (!hand_over_tail(put, split ? 1 + below(put.rest) : put.rest)) break;
      moved = true;
      if (put.rest == 0) settle(index, completions);
    }
    return moved;
  }

  /// False: the inner provider is busy.
  bool hand_over_tail(HeldPut& put, std::size_t piece) {
    PutRequest part = put.request;
    part.offset += put.rest - piece;
    part.source += put.rest - piece;
    part.bytes = piece;
    part.ticket = reinterpret_cast<Ticket>(&put);
    Start start = Start::kDone;
    try {
      start = inner_->start_put(part);
    } catch (const std::exception& failure) {  // of this put's lane, not of all
      put.failure = failure.what();
      put.rest = piece;
    }
    if (start == Start::kBusy) return false;
    put.rest -= piece;
    if (start == Start::kStarted) ++put.on_the_way;
    return true;
  }

  bool release_posts(std::vector<Completion>& completions) {
    if (posts_.empty()) return false;
    const Clock::time_point now = Clock::now();
    const auto released = [&](const HeldPost& post) {
      if (post.due > now) return false;
      try {
        const Start start = inner_->start_post(post.request);
        if (start == Start::kDone) completions.push_back({post.request.ticket, {}});
        return start != Start::kBusy;
      } catch (const std::exception& failure) {
        completions.push_back({post.request.ticket, failure.what()});
        return true;
      }
    };
    return std::erase_if(posts_, released) != 0;
  }

  ShuffleConfig config_;
  std::unique_ptr<Carrier> inner_;
  Provider provider_;
  std::mt19937_64 random_;
  std::vector<std::unique_ptr<HeldPut>> puts_;    // not handed over in full
  std::vector<std::unique_ptr<HeldPut>> flying_;  // handed over, not complete
  std::vector<HeldPost> posts_;
  std::vector<Completion> inner_completions_;
  std::mutex abandoned_mutex_;
  std::vector<std::pair<int, std::uint64_t>> abandoned_;  // peer and serial of its last window then
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
