// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Where a row lies when it crosses in packets (latency mode on GPUs): 16 bytes that are stored and loaded as one, 12 of data and a
// tag that says to which call they belong. Pure arithmetic.
#pragma once

#include <cstdint>

#include "wire/fp8_quant.h"
#include "wire/row_format.h"

namespace ferry::wire {

inline constexpr int kPacketBytes = 16;
inline constexpr int kPacketWords = 3;  ///< of data
/// A warp moves a piece at a time: 3 vectors of 16 bytes a lane, which are 4 packets.
inline constexpr int kPieceVectors = 96;
inline constexpr int kPiecePackets = 128;
inline constexpr std::int64_t kPieceBytes = std::int64_t{kPiecePackets} * kPacketBytes;

FERRY_HD constexpr std::int64_t div_up(std::int64_t value, std::int64_t by) {
  return (value + by - 1) / by;
}

/// Bytes of so many packets; each group begins on a line of its own.
FERRY_HD constexpr std::int64_t packets_bytes(std::int64_t packets) {
  return div_up(packets, 8) * 8 * kPacketBytes;
}
/// Packets of so many 32-bit words.
FERRY_HD constexpr std::int64_t packets_of_words(std::int64_t words) {
  return div_up(words, kPacketWords);
}

/// A row in packets: pieces of a coded block with the scales of their channels, then pieces of the other blocks, side by side as
/// in the wire row; in a slot behind the token's record.
struct PacketFormat {
  std::int32_t record_packets = 0;  ///< one for each choice, one for the token
  std::int32_t coded_pieces = 0;    ///< 16 channels to a vector
  std::int32_t scale_words = 0;     ///< of a coded piece
  std::int32_t plain_vectors = 0;   ///< of the blocks that are not coded
  std::int32_t coded_vectors = 0;
  std::int32_t record_bytes = 0, coded_piece_bytes = 0;
  std::int64_t slot_bytes = 0;

  FERRY_HD int plain_pieces() const { return static_cast<int>(div_up(plain_vectors, kPieceVectors)); }
  FERRY_HD int pieces() const { return coded_pieces + plain_pieces(); }
  FERRY_HD std::int64_t piece_at(int piece) const {
    const int coded = piece < coded_pieces ? piece : coded_pieces;
    return record_bytes + std::int64_t{coded} * coded_piece_bytes + (piece - coded) * kPieceBytes;
  }
};

/// Rows without a record or a codec, as combine returns them.
FERRY_HD constexpr std::int64_t returned_bytes(std::int64_t row_bytes, int top_k, bool with_weights) {
  const std::int64_t pieces = div_up(div_up(row_bytes, kPadBytes), kPieceVectors);
  return pieces * kPieceBytes + (with_weights ? packets_bytes(packets_of_words(top_k)) : 0);
}

/// Packets for the words of a coded row's groups: two for each piece (wire/return_codec.h).
FERRY_HD constexpr std::int64_t coded_words_packets_bytes(std::int64_t pieces) {
  return packets_bytes(2 * pieces);
}
/// The same for a coded row, which takes no more packets than it would as it is: words lie behind the pieces, before the weights.
FERRY_HD constexpr std::int64_t coded_returned_bytes(std::int64_t row_bytes, int top_k, bool with_weights) {
  return returned_bytes(row_bytes, top_k, with_weights) +
         coded_words_packets_bytes(div_up(div_up(row_bytes, kPadBytes), kPieceVectors));
}

inline PacketFormat packet_format(const RowFormat& format, int top_k, Codec codec, int scale_block) {
  PacketFormat out;
  out.record_packets = top_k + 1;
  out.record_bytes = static_cast<std::int32_t>(packets_bytes(out.record_packets));
  std::int64_t coded_bytes = 0;
  if (codec != Codec::kNone) {
    coded_bytes = format[0].padded + format[1].padded;
    out.coded_vectors = static_cast<std::int32_t>(format[0].padded / kPadBytes);
    out.coded_pieces = static_cast<std::int32_t>(div_up(out.coded_vectors, kPieceVectors));
    const int scales = kPieceVectors * 16 / scale_block;
    out.scale_words = codec == Codec::kFp8F32 ? scales : scales / 4;
    out.coded_piece_bytes = static_cast<std::int32_t>(kPieceBytes + packets_bytes(packets_of_words(out.scale_words)));
  }
  out.plain_vectors = static_cast<std::int32_t>((format.row_bytes - coded_bytes) / kPadBytes);
  out.slot_bytes = out.piece_at(out.pieces());
  return out;
}

}  // namespace ferry::wire
