// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Rows that combine returns in fewer bits (latency mode, bf16): groups of 128 channels, a 32-bit word for each, and what
// remains of the channels. fp8: the word is the group's float32 scale, a channel one e4m3 byte (wire/fp8_quant.h). logfmt10: the word holds
// the group's range, a channel takes 10 bits (wire/logfmt.h); a chunk of six groups in which one does not fit stays bf16.
// A restored channel is a float32. Groups and chunks are counted from the row's begin; the last may be short.
#pragma once

#include <cstdint>

#include "wire/fp8_quant.h"
#include "wire/logfmt.h"
#include "wire/row_format.h"

namespace ferry::wire {

inline constexpr int kCodedGroup = 128;  ///< channels
inline constexpr int kChunkGroups = 6;   ///< a chunk is what a warp of a GPU takes at a time (wire/packets.h)
inline constexpr int kChunkChannels = kChunkGroups * kCodedGroup;

/// How a coded row lies in memory on the host: words of groups, `weights_bytes` of other things, then channels without gaps.
FERRY_HD constexpr std::int64_t coded_words_bytes(std::int64_t hidden) {
  return padded(4 * num_scales(hidden, kCodedGroup));
}
/// Bytes of channels at most.
FERRY_HD constexpr std::int64_t most_coded_bytes(Codec codec, std::int64_t hidden) {
  return codec == Codec::kLogfmt10 ? 2 * hidden : hidden;
}

/// One row on the host: `hidden` bf16 values, contiguous. Returns the bytes of channels. `words` holds num_scales(hidden, 128), any
/// alignment; codec: kFp8F32 or kLogfmt10.
std::int64_t encode_returned(Codec codec, const std::uint16_t* x, std::int64_t hidden, std::byte* words,
                             std::byte* channels);
/// Restores the row as float32.
void decode_returned(Codec codec, const std::byte* words, const std::byte* channels, std::int64_t hidden, float* out);

}  // namespace ferry::wire
