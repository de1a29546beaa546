// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The 16-byte order from a producer (a CPU thread today, a GPU later) to the proxy, and its bit layout.
//
//   word   bits    put                            post
//   first  63      lap bit                        lap bit
//          62..61  1                              2
//          60..49  window slot                    window slot
//          48..9   offset in the window, bytes    offset of the signal, bytes (a multiple of 8)
//          8..0    bytes - 1, bits 23..15         bit 8: bit 63 of the total; 7..0: zero
//   second 63      lap bit                        lap bit
//          62..48  bytes - 1, bits 14..0          total, bits 62..48
//          47..0   source address                 total, bits 47..0
//
// Both words carry the lap bit, so a reader never takes half a command even where the two words become visible one
// after the other. Limits: 4096 windows, offsets below 1 TiB, 1 byte..16 MiB a put, source addresses below 2^48.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace ferry::net {

struct alignas(16) CommandWords {
  std::uint64_t first = 0;
  std::uint64_t second = 0;

  friend constexpr bool operator==(const CommandWords&, const CommandWords&) = default;
};
static_assert(sizeof(CommandWords) == 16);

enum class Operation : std::uint8_t { kPut = 1, kPost = 2 };  // 0 and 3 are no commands

struct Command {
  Operation operation = Operation::kPut;
  std::uint32_t window_slot = 0;
  std::uint64_t offset = 0;
  std::uint64_t source = 0;  ///< put: address
  std::uint64_t bytes = 0;   ///< put
  std::uint64_t total = 0;   ///< post

  friend constexpr bool operator==(const Command&, const Command&) = default;
};

inline constexpr int kWindowSlotBits = 12;
inline constexpr int kOffsetBits = 40;
inline constexpr int kSourceBits = 48;
inline constexpr int kBytesBits = 24;

inline constexpr std::uint32_t kMaxWindows = std::uint32_t{1} << kWindowSlotBits;
inline constexpr std::uint64_t kMaxWindowBytes = std::uint64_t{1} << kOffsetBits;
inline constexpr std::uint64_t kSourceEnd = std::uint64_t{1} << kSourceBits;
inline constexpr std::uint64_t kMaxPutBytes = std::uint64_t{1} << kBytesBits;

namespace bits {
inline constexpr int kLapShift = 63;
inline constexpr int kOperationShift = 61;
inline constexpr int kWindowShift = 49;
inline constexpr int kOffsetShift = 9;
inline constexpr int kTotalTopShift = 8;
inline constexpr int kBytesLowBits = 15;

FERRY_HD constexpr std::uint64_t mask(int count) {
  return (std::uint64_t{1} << count) - 1;
}

FERRY_HD constexpr std::uint64_t head(Operation operation, std::uint32_t window_slot, std::uint64_t offset) {
  return (static_cast<std::uint64_t>(operation) << kOperationShift) |
         (static_cast<std::uint64_t>(window_slot) << kWindowShift) | (offset << kOffsetShift);
}
}  // namespace bits

/// Whether a put can be written down; pack_put() must not be called otherwise.
FERRY_HD constexpr bool put_fits(std::uint32_t window_slot, std::uint64_t offset, std::uint64_t source,
                                 std::uint64_t bytes) {
  return window_slot < kMaxWindows && offset < kMaxWindowBytes && bytes >= 1 && bytes <= kMaxPutBytes &&
         source < kSourceEnd && bytes <= kSourceEnd - source;
}

FERRY_HD constexpr bool post_fits(std::uint32_t window_slot, std::uint64_t offset) {
  return window_slot < kMaxWindows && offset < kMaxWindowBytes && offset % 8 == 0;
}

/// The lap bits are zero; with_lap() sets them.
FERRY_HD constexpr CommandWords pack_put(std::uint32_t window_slot, std::uint64_t offset, std::uint64_t source,
                                         std::uint64_t bytes) {
  const std::uint64_t length = bytes - 1;
  return {.first = bits::head(Operation::kPut, window_slot, offset) | (length >> bits::kBytesLowBits),
          .second = ((length & bits::mask(bits::kBytesLowBits)) << kSourceBits) | source};
}

FERRY_HD constexpr CommandWords pack_post(std::uint32_t window_slot, std::uint64_t offset, std::uint64_t total) {
  return {.first = bits::head(Operation::kPost, window_slot, offset) | ((total >> 63) << bits::kTotalTopShift),
          .second = total & bits::mask(63)};
}

FERRY_HD constexpr CommandWords with_lap(CommandWords words, bool lap) {
  const std::uint64_t bit = static_cast<std::uint64_t>(lap) << bits::kLapShift;
  return {.first = (words.first & bits::mask(63)) | bit, .second = (words.second & bits::mask(63)) | bit};
}

FERRY_HD constexpr bool lap_of(std::uint64_t word) {
  return (word >> bits::kLapShift) != 0;
}

/// The lap bit that the command with this ring index carries. Zeroed memory is unwritten for lap 0.
FERRY_HD constexpr bool lap_of_index(std::uint64_t index, int slots_log2) {
  return ((index >> slots_log2) & 1) == 0;
}

/// False: these words are no command (only a producer with a bug writes such).
FERRY_HD constexpr bool unpack(CommandWords words, Command& command) {
  const std::uint64_t operation = (words.first >> bits::kOperationShift) & bits::mask(2);
  command = Command{};
  command.window_slot = static_cast<std::uint32_t>((words.first >> bits::kWindowShift) & bits::mask(kWindowSlotBits));
  command.offset = (words.first >> bits::kOffsetShift) & bits::mask(kOffsetBits);
  if (operation == static_cast<std::uint64_t>(Operation::kPut)) {
    command.operation = Operation::kPut;
    command.source = words.second & bits::mask(kSourceBits);
    command.bytes = (((words.first & bits::mask(bits::kOffsetShift)) << bits::kBytesLowBits) |
                     ((words.second >> kSourceBits) & bits::mask(bits::kBytesLowBits))) +
                    1;
    return true;
  }
  if (operation == static_cast<std::uint64_t>(Operation::kPost)) {
    command.operation = Operation::kPost;
    command.total = (words.second & bits::mask(63)) | (((words.first >> bits::kTotalTopShift) & 1) << 63);
    return true;
  }
  return false;
}

}  // namespace ferry::net
