// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Rows in packets: every byte of every block has one place, beside the tags, in a piece of its own, inside the slot.
#include "wire/packets.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace ferry::wire {
namespace {

/// Where a warp stores word `word` (0 to 3) of a piece's vector: lane v % 32 holds vectors v, v + 32 and v + 64, twelve words one
/// after the other, and stores them in four packets 32 packets apart (store_piece in src/cuda/device/packets.cuh).
std::int64_t place_in_piece(int vector, int word) {
  const int lane = vector % 32, at = vector / 32 * 4 + word;
  return (at / kPacketWords * 32 + lane) * kPacketBytes + at % kPacketWords * 4;
}

struct Shape {
  Codec codec = Codec::kNone;
  std::int64_t hidden = 0;
  int scale_block = 128, top_k = 8;
  std::vector<std::int64_t> extra{};  ///< bytes of blocks behind the row

  std::string text() const {
    return fmt::format("codec {}, hidden {}, scale block {}, top-k {}, {} extra blocks", static_cast<int>(codec),
                       hidden, scale_block, top_k, extra.size());
  }
};

RowFormat row_format(const Shape& shape) {
  RowFormat format;
  if (shape.codec == Codec::kNone) {
    format.add(DType::kBf16, shape.hidden, 2);
  } else {
    const std::int64_t scales = num_scales(shape.hidden, shape.scale_block);
    format.add(DType::kFp8E4m3, shape.hidden, 1);
    if (shape.codec == Codec::kFp8F32) format.add(DType::kFp32, scales, 4);
    if (shape.codec == Codec::kFp8Ue8m0) format.add(DType::kUe8m0, scales, 1);
  }
  for (const std::int64_t bytes : shape.extra) format.add(DType::kUint8, bytes, 1);
  return format;
}

/// Puts every byte of a row at its place in a slot, and says what is wrong.
class Slot {
 public:
  explicit Slot(const Shape& shape)
      : row_(row_format(shape)),
        packets_(packet_format(row_, shape.top_k, shape.codec, shape.scale_block)),
        taken_(static_cast<std::size_t>(packets_.slot_bytes), false) {
    const bool coded = shape.codec != Codec::kNone;
    for (int i = 0; i < packets_.record_packets; ++i) take(std::int64_t{i} * kPacketBytes, 0, packets_.record_bytes);
    for (int b = 0; b < row_.num_blocks; ++b) {
      for (std::int64_t byte = 0; byte < row_[b].bytes; ++byte) {
        if (coded && b == 0) put_coded(byte);
        if (coded && b == 1) put_scale(byte);
        if (!coded || b >= 2) put_plain(row_[b].offset + byte - (coded ? row_[2].offset : 0));
      }
    }
  }

  const PacketFormat& packets() const { return packets_; }
  const std::string& wrong() const { return wrong_; }

 private:
  void put_coded(std::int64_t byte) {
    const auto vector = static_cast<int>(byte / kPadBytes), piece = vector / kPieceVectors;
    if (piece >= packets_.coded_pieces || vector >= packets_.coded_vectors)
      return complain("a coded byte has no piece");
    const std::int64_t begin = packets_.piece_at(piece);
    const auto word = static_cast<int>(byte % kPadBytes / 4);
    take(begin + place_in_piece(vector % kPieceVectors, word) + byte % 4, begin, begin + kPieceBytes);
  }
  /// Word w of a piece's scales is word w % 3 of packet w / 3 behind the piece's data.
  void put_scale(std::int64_t byte) {
    const std::int64_t word = byte / 4, piece = word / packets_.scale_words, in_piece = word % packets_.scale_words;
    if (piece >= packets_.coded_pieces) return complain("a scale has no piece");
    const std::int64_t begin = packets_.piece_at(static_cast<int>(piece)) + kPieceBytes;
    take(begin + in_piece / kPacketWords * kPacketBytes + in_piece % kPacketWords * 4 + byte % 4, begin,
         packets_.piece_at(static_cast<int>(piece) + 1));
  }
  void put_plain(std::int64_t byte) {
    const auto vector = static_cast<int>(byte / kPadBytes), piece = vector / kPieceVectors;
    if (piece >= packets_.plain_pieces() || vector >= packets_.plain_vectors) return complain("a byte has no piece");
    const std::int64_t begin = packets_.piece_at(packets_.coded_pieces + piece);
    const auto word = static_cast<int>(byte % kPadBytes / 4);
    take(begin + place_in_piece(vector % kPieceVectors, word) + byte % 4, begin, begin + kPieceBytes);
  }

  void take(std::int64_t at, std::int64_t begin, std::int64_t end) {
    if (at < begin || at >= end || at >= packets_.slot_bytes)
      return complain(fmt::format("{} is outside its piece", at));
    if (at % kPacketBytes >= kPacketWords * 4) return complain(fmt::format("{} is a tag's", at));
    if (taken_[static_cast<std::size_t>(at)]) return complain(fmt::format("{} is taken twice", at));
    taken_[static_cast<std::size_t>(at)] = true;
  }
  void complain(std::string what) {
    if (wrong_.empty()) wrong_ = std::move(what);
  }

  const RowFormat row_;
  const PacketFormat packets_;
  std::vector<bool> taken_;
  std::string wrong_;
};

void check(const Shape& shape) {
  SCOPED_TRACE(shape.text());
  const Slot slot(shape);
  EXPECT_EQ(slot.wrong(), "");
  const PacketFormat& packets = slot.packets();
  EXPECT_EQ(packets.record_packets, shape.top_k + 1);
  EXPECT_GE(packets.piece_at(0), std::int64_t{packets.record_packets} * kPacketBytes);
  for (int piece = 0; piece < packets.pieces(); ++piece) {
    const std::int64_t scales = piece < packets.coded_pieces ? packets_of_words(packets.scale_words) * kPacketBytes : 0;
    EXPECT_GE(packets.piece_at(piece + 1), packets.piece_at(piece) + kPieceBytes + scales) << "piece " << piece;
    EXPECT_EQ(packets.piece_at(piece) % 128, 0) << "piece " << piece << " does not begin on a line";
  }
  EXPECT_EQ(packets.slot_bytes, packets.piece_at(packets.pieces()));
}

const std::vector<std::vector<std::int64_t>> kExtras{{}, {1}, {16, 5}, {1535}, {1536}, {1537, 3, 4096}};

TEST(WirePackets, APieceHoldsItsVectorsOnceEach) {
  std::vector<bool> taken(static_cast<std::size_t>(kPieceBytes), false);
  for (int vector = 0; vector < kPieceVectors; ++vector) {
    for (int word = 0; word < 4; ++word) {
      const std::int64_t at = place_in_piece(vector, word);
      ASSERT_LT(at, kPieceBytes);
      ASSERT_LT(at % kPacketBytes, 12);
      ASSERT_FALSE(taken[static_cast<std::size_t>(at)]);
      taken[static_cast<std::size_t>(at)] = true;
    }
  }
  EXPECT_EQ(std::int64_t{kPieceVectors} * 16, std::int64_t{kPiecePackets} * 12);
}

TEST(WirePackets, RowsAsTheyAre) {
  for (const std::int64_t hidden : {1, 7, 8, 100, 767, 768, 769, 2048, 7168, 7173}) {
    for (const auto& extra : kExtras) check({.hidden = hidden, .extra = extra});
  }
}

TEST(WirePackets, CodedRowsWithTheirScales) {
  for (const Codec codec : {Codec::kFp8F32, Codec::kFp8Ue8m0}) {
    for (const int scale_block : {32, 128}) {
      for (const std::int64_t hidden : {1, 16, 100, 128, 129, 1535, 1536, 1537, 7168, 7173}) {
        for (const auto& extra : kExtras)
          check({.codec = codec, .hidden = hidden, .scale_block = scale_block, .extra = extra});
      }
    }
  }
}

TEST(WirePackets, RecordsOfAnyTopK) {
  for (int top_k = 1; top_k <= 32; ++top_k) {
    check({.hidden = 264, .top_k = top_k});
    check({.codec = Codec::kFp8F32, .hidden = 264, .top_k = top_k, .extra = {40}});
  }
}

TEST(WirePackets, WhatARowTakes) {
  const auto slot_bytes = [](Codec codec, int scale_block) {
    const Shape shape{.codec = codec, .hidden = 7168, .scale_block = scale_block};
    return packet_format(row_format(shape), shape.top_k, codec, scale_block).slot_bytes;
  };
  // A record of 9 packets takes two lines; 896 vectors are 10 pieces, 448 are 5, each with the scales of 1536 channels behind it.
  EXPECT_EQ(slot_bytes(Codec::kNone, 128), 256 + 10 * 2048);
  EXPECT_EQ(slot_bytes(Codec::kFp8F32, 128), 256 + 5 * (2048 + 128));
  EXPECT_EQ(slot_bytes(Codec::kFp8F32, 32), 256 + 5 * (2048 + 256));
  EXPECT_EQ(slot_bytes(Codec::kFp8Ue8m0, 128), 256 + 5 * (2048 + 128));
  EXPECT_EQ(slot_bytes(Codec::kFp8Ue8m0, 32), 256 + 5 * (2048 + 128));
}

TEST(WirePackets, ReturnedRowsHaveRoomForTheirWeights) {
  for (const std::int64_t row_bytes : {1, 16, 17, 1536, 1537, 14336, 28672}) {
    for (int top_k = 1; top_k <= 32; ++top_k) {
      const std::int64_t row = returned_bytes(row_bytes, top_k, false), both = returned_bytes(row_bytes, top_k, true);
      EXPECT_EQ(row % kPieceBytes, 0);
      EXPECT_GE(row / kPacketBytes * 12, row_bytes);
      EXPECT_LT((row - kPieceBytes) / kPacketBytes * 12, row_bytes) << "a piece too many";
      EXPECT_GE((both - row) / kPacketBytes * kPacketWords, top_k);
      EXPECT_EQ(both % 128, 0) << "two rows share a line";
    }
  }
  EXPECT_EQ(returned_bytes(14336, 8, true), 10 * 2048 + 128);
  // Coded, there are two packets more for each piece, which begin on a line: 20 take three.
  EXPECT_EQ(coded_returned_bytes(14336, 8, true), 10 * 2048 + 384 + 128);
}

}  // namespace
}  // namespace ferry::wire
