// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Which blocks a row consists of on the wire and where each begins.
#pragma once

#include <array>
#include <cstdint>

#include "ferry/types.h"
#include "wire/float.h"

namespace ferry::wire {

/// Blocks and rows are padded to this on the wire, so that they can be moved in 16-byte pieces.
inline constexpr std::int64_t kPadBytes = 16;
inline constexpr int kMaxBlocks = 8;

FERRY_HD constexpr std::int64_t padded(std::int64_t bytes) {
  return (bytes + kPadBytes - 1) / kPadBytes * kPadBytes;
}

struct Block {
  DType dtype = DType::kUint8;
  std::int64_t width = 0;  ///< elements
  std::int64_t bytes = 0;  ///< without padding
  std::int64_t padded = 0;
  std::int64_t offset = 0;  ///< in the wire row
};

/// The wire form of a payload: its blocks one after the other.
struct RowFormat {
  std::array<Block, kMaxBlocks> blocks{};
  int num_blocks = 0;
  std::int64_t row_bytes = 0;

  void add(DType dtype, std::int64_t width, std::int64_t element_bytes) {
    Block& block = blocks[static_cast<std::size_t>(num_blocks++)];
    block = {.dtype = dtype,
             .width = width,
             .bytes = width * element_bytes,
             .padded = wire::padded(width * element_bytes),
             .offset = row_bytes};
    row_bytes += block.padded;
  }
  const Block& operator[](int i) const { return blocks[static_cast<std::size_t>(i)]; }
};

}  // namespace ferry::wire
