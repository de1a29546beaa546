// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
#include "net/split_engine.h"

#include <fmt/format.h>

#include <deque>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "bootstrap/bytes.h"
#include "core/check.h"

namespace ferry::net {
namespace {

struct Target {
  std::size_t engine = 0;
  WindowId window = 0;
};

/// Windows of all engines under ids of one kind.
class Targets {
 public:
  WindowId add(Target target) {
    const std::lock_guard lock(mutex_);
    targets_[++last_] = target;
    return last_;
  }
  Target find(const char* function, WindowId id) const {
    const std::lock_guard lock(mutex_);
    const auto found = targets_.find(id);
    if (found == targets_.end()) refuse(function, "window", fmt::format("{:#x}", id), "an open window of this engine");
    return found->second;
  }
  Target take(const char* function, WindowId id) {
    const Target target = find(function, id);
    const std::lock_guard lock(mutex_);
    targets_.erase(id);
    return target;
  }

 private:
  mutable std::mutex mutex_;
  std::unordered_map<WindowId, Target> targets_;
  WindowId last_ = 0;
};

/// One channel over one channel of each engine. Callers compare completed() with what submitted() has told them, so it is
/// enough to know, for each value told, what each engine had been given by then.
class SplitChannel final : public Channel {
 public:
  SplitChannel(const Targets& targets, std::vector<Channel*> parts) : targets_(targets), parts_(std::move(parts)) {}

  bool try_put(WindowId window, std::uint64_t offset, const void* src, std::size_t bytes) override {
    const Target target = targets_.find("ferry::net::Channel::try_put", window);
    return parts_[target.engine]->try_put(target.window, offset, src, bytes);
  }
  bool try_post(WindowId window, std::uint64_t offset, std::uint64_t total) override {
    const Target target = targets_.find("ferry::net::Channel::try_post", window);
    return parts_[target.engine]->try_post(target.window, offset, total);
  }
  std::uint64_t submitted() const override {
    const std::lock_guard lock(mutex_);
    Mark mark;
    for (const Channel* part : parts_) {
      mark.parts.push_back(part->submitted());
      mark.total += mark.parts.back();
    }
    if (mark.total != completed_ && (marks_.empty() || marks_.back().total != mark.total)) marks_.push_back(mark);
    return mark.total;
  }
  std::uint64_t completed() const override {
    const std::lock_guard lock(mutex_);
    while (!marks_.empty() && reached(marks_.front())) {
      completed_ = marks_.front().total;
      marks_.pop_front();
    }
    return completed_;
  }

 private:
  struct Mark {
    std::uint64_t total = 0;
    std::vector<std::uint64_t> parts;
  };
  bool reached(const Mark& mark) const {
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      if (parts_[i]->completed() < mark.parts[i]) return false;
    }
    return true;
  }

  const Targets& targets_;
  std::vector<Channel*> parts_;
  mutable std::mutex mutex_;
  mutable std::deque<Mark> marks_;  // values told and not yet reached, ascending
  mutable std::uint64_t completed_ = 0;
};

class SplitEngine final : public Engine {
 public:
  SplitEngine(const EngineConfig& config, std::vector<std::unique_ptr<Engine>> engines)
      : rank_(config.rank), engines_(std::move(engines)), provider_(engines_.front()->provider()) {
    provider_.detail += fmt::format("; {} proxy threads", engines_.size());
    for (int index = 0; index < config.num_channels; ++index) {
      std::vector<Channel*> parts;
      for (const auto& engine : engines_) parts.push_back(&engine->channel(index));
      channels_.push_back(std::make_unique<SplitChannel>(targets_, std::move(parts)));
    }
  }

  const Provider& provider() const override { return provider_; }

  std::vector<std::byte> describe(const std::shared_ptr<Memory>& memory) override {
    bootstrap::ByteWriter writer;
    writer.put(static_cast<std::uint32_t>(engines_.size()));
    for (const auto& engine : engines_) {
      const std::vector<std::byte> part = engine->describe(memory);
      writer.put(static_cast<std::uint32_t>(part.size())).put_raw(part);
    }
    return writer.take();
  }

  WindowId open(int peer, std::span<const std::byte> description, std::shared_ptr<Memory> memory) override {
    constexpr const char* kFunction = "ferry::net::Engine::open";
    if (peer < 0) refuse(kFunction, "peer", fmt::format("{}", peer), "a rank");
    bootstrap::ByteReader reader(description);
    const auto count = reader.get<std::uint32_t>();
    const std::size_t mine = engine_of(peer);
    std::span<const std::byte> part;
    for (std::size_t i = 0; i < engines_.size() && reader.ok(); ++i) {
      const auto raw = reader.get_raw(reader.get<std::uint32_t>());
      if (i == mine) part = raw;
    }
    if (!reader.finished() || count != engines_.size()) {
      refuse(kFunction, "description", fmt::format("of {} proxy threads (from rank {})", count, peer),
             fmt::format("{}, as this rank has", engines_.size()));
    }
    return targets_.add({mine, engines_[mine]->open(peer, part, std::move(memory))});
  }

  void close(WindowId window, std::shared_ptr<const void> sources) override {
    const Target target = targets_.take("ferry::net::Engine::close", window);
    engines_[target.engine]->close(target.window, std::move(sources));
  }

  void acknowledge_posts() override {
    for (const auto& engine : engines_) engine->acknowledge_posts();
  }

  bool help() override {
    bool moved = false;
    for (const auto& engine : engines_) moved |= engine->help();
    return moved;
  }

  void give_up(int peer) override { engines_[engine_of(peer)]->give_up(peer); }

  Channel& channel(int index) override {
    if (index < 0 || index >= num_channels())
      refuse("ferry::net::Engine::channel", "index", fmt::format("{}", index),
             fmt::format("0..{}", num_channels() - 1));
    return *channels_[static_cast<std::size_t>(index)];
  }
  int num_channels() const override { return static_cast<int>(channels_.size()); }

  std::optional<Failure> poll_error() override {
    for (const auto& engine : engines_) {
      if (auto failure = engine->poll_error()) return failure;
    }
    return std::nullopt;
  }

  Statistics statistics() const override {
    Statistics sum;
    for (const auto& engine : engines_) sum += engine->statistics();
    return sum;
  }

 private:
  /// The same at both ends of a pair, and spread over all: so every proxy of a rank also receives.
  std::size_t engine_of(int peer) const { return static_cast<std::size_t>(rank_ + peer) % engines_.size(); }

  int rank_;
  std::vector<std::unique_ptr<Engine>> engines_;
  Provider provider_;
  Targets targets_;
  std::vector<std::unique_ptr<SplitChannel>> channels_;
};

}  // namespace

std::unique_ptr<Engine> make_split_engine(const EngineConfig& config, std::vector<std::unique_ptr<Engine>> engines) {
  return std::make_unique<SplitEngine>(config, std::move(engines));
}

}  // namespace ferry::net
