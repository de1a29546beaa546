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

bool RingChannel::has_room_or_stall(std::uint64_t commands) noexcept {
  if (ring_.has_room(commands)) return true;
  count(stalls_, 1);
  return false;
}

bool RingChannel::try_put(WindowId window, std::uint64_t offset, const void* src, std::size_t bytes) {
  constexpr const char* kFunction = "ferry::net::Channel::try_put";
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
