// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Checks what can be checked before a command is written, and splits puts that are too long for one command.
#include "net/channel.h"

#include <algorithm>

#include <fmt/format.h>

#include "core/check.h"

namespace ferry::net {
namespace {

void count(std::atomic<std::uint64_t>& counter, std::uint64_t by) noexcept {
  counter.store(counter.load(std::memory_order_relaxed) + by, std::memory_order_relaxed);
}

void check_target(const char* function, const WindowTable& windows, WindowId window, std::uint64_t offset) {
  if (!windows.is_open(window))
    refuse(function, "window", fmt::format("{:#x}", window), "an open window of this engine");
  if (offset >= kMaxWindowBytes) {
    refuse(function, "offset", fmt::format("{}", offset), fmt::format("less than 2^{}", kOffsetBits));
  }
}

void check_source(const char* function, const void* src, std::size_t bytes) {
  const auto source = reinterpret_cast<std::uintptr_t>(src);
  if (src == nullptr) refuse(function, "src", fmt::format("null with {} bytes", bytes), "memory to read");
  if (source >= kSourceEnd || bytes > kSourceEnd - source) {
    refuse(function, "src", fmt::format("{} bytes at {:#x}", bytes, source),
           fmt::format("memory that ends at or below 2^{}", kSourceBits));
  }
}

}  // namespace

RingChannel::RingChannel(const EngineConfig& config, const WindowTable& windows, Bell& bell)
    : windows_(windows), bell_(bell), slots_(config.ring_slots), ring_(slots_, config.first_index) {}

RingChannel::RingChannel(const EngineConfig& config, const WindowTable& windows, Bell& bell,
                         std::shared_ptr<std::byte> pinned)
    : windows_(windows),
      bell_(bell),
      pinned_(std::move(pinned)),
      device_words_(reinterpret_cast<DeviceWords*>(pinned_.get())),
      ring_({reinterpret_cast<CommandWords*>(pinned_.get() + sizeof(DeviceWords)), config.ring_slots},
            config.first_index, &device_words_->tail) {}

std::size_t RingChannel::device_bytes(const EngineConfig& config) {
  return sizeof(DeviceWords) + config.ring_slots * sizeof(CommandWords);
}

std::uint64_t RingChannel::submitted() const {
  if (device_words_ == nullptr) return ring_.pushed();
  return std::atomic_ref(device_words_->submitted).load(std::memory_order_acquire);
}

void RingChannel::set_completed(std::uint64_t commands) noexcept {
  completed_.store(commands, std::memory_order_release);
  if (device_words_ != nullptr) std::atomic_ref(device_words_->completed).store(commands, std::memory_order_release);
}

DeviceRing RingChannel::device_ring() const noexcept {
  return {.slots = reinterpret_cast<CommandWords*>(pinned_.get() + sizeof(DeviceWords)),
          .num_slots = ring_.num_slots(),
          .slots_log2 = ring_.slots_log2(),
          .first_index = ring_.first_index(),
          .tail = &device_words_->tail,
          .completed = &device_words_->completed,
          .submitted = &device_words_->submitted};
}

void RingChannel::check_producer(const char* function) const {
  if (device_words_ != nullptr) refuse(function, "channel", "one of kernels", "a channel of CPU threads");
}

bool RingChannel::has_room_or_stall(std::uint64_t commands) noexcept {
  if (ring_.has_room(commands)) return true;
  count(stalls_, 1);
  return false;
}

bool RingChannel::try_put(WindowId window, std::uint64_t offset, const void* src, std::size_t bytes) {
  constexpr const char* kFunction = "ferry::net::Channel::try_put";
  check_producer(kFunction);
  check_target(kFunction, windows_, window, offset);
  if (bytes == 0) return true;
  check_source(kFunction, src, bytes);
  const std::uint64_t commands = (bytes - 1) / kMaxPutBytes + 1;
  if (bytes > kMaxWindowBytes - offset || commands > ring_.num_slots()) {
    refuse(kFunction, "bytes", fmt::format("{} at offset {}", bytes, offset),
           fmt::format("an end at or below 2^{} and no more than a ring of {} commands of {} bytes can hold",
                       kOffsetBits, ring_.num_slots(), kMaxPutBytes));
  }
  const auto source = reinterpret_cast<std::uintptr_t>(src);
  if (!has_room_or_stall(commands)) return false;
  for (std::uint64_t done = 0; done < bytes; done += kMaxPutBytes) {
    const std::uint64_t piece = std::min<std::uint64_t>(bytes - done, kMaxPutBytes);
    ring_.push(pack_put(slot_of(window), offset + done, source + done, piece));
  }
  count(commands_, 1);
  bell_.ring();
  return true;
}

bool RingChannel::try_post(WindowId window, std::uint64_t offset, std::uint64_t total) {
  constexpr const char* kFunction = "ferry::net::Channel::try_post";
  check_producer(kFunction);
  check_target(kFunction, windows_, window, offset);
  if (offset % sizeof(total) != 0) refuse(kFunction, "offset", fmt::format("{}", offset), "a multiple of 8");
  if (!has_room_or_stall(1)) return false;
  ring_.push(pack_post(slot_of(window), offset, total));
  count(commands_, 1);
  bell_.ring();
  return true;
}

void RingChannel::count_carried(std::uint64_t bytes, std::uint64_t merged) noexcept {
  count(bytes_, bytes);
  count(merged_, merged);
}

void RingChannel::add_to(Statistics& sum) const noexcept {
  sum.commands += commands_.load(std::memory_order_relaxed);
  sum.stalls += stalls_.load(std::memory_order_relaxed);
  sum.bytes += bytes_.load(std::memory_order_relaxed);
  sum.merged += merged_.load(std::memory_order_relaxed);
}

}  // namespace ferry::net
