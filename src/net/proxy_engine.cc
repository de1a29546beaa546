// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Engine = carrier + window table + channels + proxy, taken down in the reverse order: the thread ends before anything
// that it uses, and a window's memory is let go last.
#include "net/proxy_engine.h"

#include <bit>
#include <mutex>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "core/check.h"
#include "net/channel.h"
#include "net/proxy.h"
#include "net/shuffle.h"
#include "net/window_table.h"

namespace ferry::net {
namespace {

constexpr int kMaxChannels = 256;
constexpr std::uint32_t kMaxRingSlots = std::uint32_t{1} << 20;

void check(const EngineConfig& config) {
  constexpr const char* kFunction = "ferry::net::EngineConfig";
  if (config.num_channels < 1 || config.num_channels > kMaxChannels) {
    refuse(kFunction, "num_channels", fmt::format("{}", config.num_channels), fmt::format("1..{}", kMaxChannels));
  }
  if (config.ring_slots < 2 || config.ring_slots > kMaxRingSlots || !std::has_single_bit(config.ring_slots)) {
    refuse(kFunction, "ring_slots", fmt::format("{}", config.ring_slots),
           fmt::format("a power of two from 2 to {}", kMaxRingSlots));
  }
  for (const int core : config.proxy_cores) {
    if (core < 0) refuse(kFunction, "proxy_cores", fmt::format("{}", core), "numbers of cores, from 0 on");
  }
}

class ProxyEngine final : public Engine {
 public:
  ProxyEngine(const EngineConfig& config, std::unique_ptr<Carrier> carrier) : carrier_(std::move(carrier)) {
    const int core = config.proxy_cores.empty() ? -1 : config.proxy_cores.front();
    for (int i = 0; i < config.num_channels; ++i) {
      channels_.push_back(std::make_unique<RingChannel>(config, windows_, bell_));
    }
    if (config.copy_engines) {
      auto pinned = config.copy_engines->pinned(RingChannel::device_bytes(config));
      channels_.push_back(std::make_unique<RingChannel>(config, windows_, bell_, std::move(pinned)));
      device_channel_ = channels_.back().get();
    }
    proxy_ = std::make_unique<Proxy>(*carrier_, windows_, channels_, bell_, failures_, core);
  }

  const Provider& provider() const override { return carrier_->provider(); }

  std::vector<std::byte> describe(const std::shared_ptr<Memory>& memory) override {
    const std::lock_guard lock(attach_mutex_);
    return carrier_->describe(memory);
  }

  WindowId open(int peer, std::span<const std::byte> description, std::shared_ptr<Memory> memory) override {
    if (peer < 0) refuse("ferry::net::Engine::open", "peer", fmt::format("{}", peer), "a rank");
    const std::lock_guard lock(attach_mutex_);
    return windows_.open(peer, carrier_->attach(peer, description, std::move(memory)));
  }

  void close(WindowId window, std::shared_ptr<const void> sources) override {
    std::vector<std::uint64_t> pushed;
    for (const auto& channel : channels_) pushed.push_back(channel->submitted());
    windows_.close(window, std::move(pushed), std::move(sources));
    bell_.ring();
  }

  void give_up(int peer) override {
    const std::lock_guard lock(attach_mutex_);
    const std::uint64_t last_serial = windows_.last_serial();
    proxy_->give_up(peer, last_serial);  // first: the transfers that abandon() ends are then no news
    carrier_->abandon(peer, last_serial);
    bell_.ring();
  }

  void acknowledge_posts() override { carrier_->acknowledge_posts(); }
  bool help() override { return proxy_->help(); }

  Channel& channel(int index) override {
    if (index < 0 || index >= num_channels()) {
      refuse("ferry::net::Engine::channel", "index", fmt::format("{}", index),
             fmt::format("0..{}", num_channels() - 1));
    }
    return *channels_[static_cast<std::size_t>(index)];
  }

  int num_channels() const override { return static_cast<int>(channels_.size()); }

  DeviceRing device_ring() const override {
    return device_channel_ == nullptr ? DeviceRing{} : device_channel_->device_ring();
  }

  std::optional<Failure> poll_error() override { return failures_.take(); }

  Statistics statistics() const override {
    Statistics sum;
    for (const auto& channel : channels_) channel->add_to(sum);
    return sum;
  }

 private:
  std::mutex attach_mutex_;
  std::unique_ptr<Carrier> carrier_;
  WindowTable windows_;
  Bell bell_;
  FailureBox failures_;
  std::vector<std::unique_ptr<RingChannel>> channels_;
  const RingChannel* device_channel_ = nullptr;
  std::unique_ptr<Proxy> proxy_;
};

}  // namespace

std::unique_ptr<Engine> make_proxy_engine(const EngineConfig& config, std::unique_ptr<Carrier> carrier) {
  check(config);
  if (config.shuffle_seed != 0 || config.max_post_delay_ns != 0) {
    const ShuffleConfig shuffle{.seed = config.shuffle_seed, .max_post_delay_ns = config.max_post_delay_ns};
    carrier = make_shuffle(shuffle, std::move(carrier));
  }
  return std::make_unique<ProxyEngine>(config, std::move(carrier));
}

}  // namespace ferry::net
