// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Fuzzes everything that the bootstrap reads from others: frames and messages of the TCP meeting, the door of rank 0,
// the cards and packets of the mesh. No sockets: all of it is pure.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <span>
#include <vector>

#include "bootstrap/frames.h"
#include "bootstrap/link.h"
#include "bootstrap/linking.h"
#include "ferry/error.h"

namespace {

using namespace ferry;
using namespace ferry::bootstrap;

/// Stays in every build: a broken rule must end the fuzzer.
void require(bool holds) {
  if (!holds) std::abort();
}

/// Calls `take` with the bytes in pieces whose sizes the input chooses.
template <typename Take>
void in_pieces(std::span<const std::byte> sizes, std::span<const std::byte> bytes, Take take) {
  std::size_t turn = 0;
  while (!bytes.empty()) {
    const std::size_t wish = sizes.empty() ? bytes.size() : static_cast<std::size_t>(sizes[turn++ % sizes.size()]) + 1;
    const std::size_t length = std::min(wish, bytes.size());
    take(bytes.first(length));
    bytes = bytes.subspan(length);
  }
}

/// What decodes must encode to the same bytes again, unless a value was clamped; then once more must change nothing.
template <typename Message>
void check_message(std::span<const std::byte> payload) {
  const std::optional<Message> message = Message::decode(payload);
  if (!message) return;
  const Bytes once = message->encode();
  const std::optional<Message> again = Message::decode(once);
  require(again.has_value());
  require(again->encode() == once);
  require(once.size() == payload.size());
}

void check_contribution(std::span<const std::byte> payload) {
  const auto contribution = Contribution::decode(payload);
  if (!contribution) return;
  require(contribution->bytes.size() + 16 == payload.size());
  require(contribution->patience.count() >= 0);
}

/// Frames do not depend on how the stream was cut, and nothing is kept beyond the limit and one piece.
void check_stream(std::span<const std::byte> sizes, std::span<const std::byte> bytes) {
  constexpr std::uint64_t kLimit = 200;
  const auto read = [&](std::span<const std::byte> cuts) {
    FrameReader reader(kLimit);
    std::vector<Bytes> frames;
    in_pieces(cuts, bytes, [&](std::span<const std::byte> piece) {
      reader.feed(piece);
      while (const auto frame = reader.next()) {
        require(reader.complaint().empty());
        require(frame->payload.size() <= kLimit);
        frames.push_back(encode_frame(frame->kind, frame->payload));
        check_message<Hello>(frame->payload);
        check_message<Reason>(frame->payload);
        check_message<Result>(frame->payload);
        check_contribution(frame->payload);
      }
      require(reader.kept_bytes() < kFrameHeaderBytes + kLimit);
    });
    return std::pair(frames, reader.complaint());
  };
  const auto whole = read({});
  require(read(sizes) == whole);
  std::size_t at = 0;
  for (const Bytes& frame : whole.first) {  // every frame was really there
    require(std::equal(frame.begin(), frame.end(), bytes.begin() + static_cast<std::ptrdiff_t>(at)));
    at += frame.size();
  }
}

/// Nobody gets a seat without the token, the size, and a rank that is free; and every handshake ends for good.
void check_door(std::span<const std::byte> sizes, std::span<const std::byte> bytes) {
  constexpr int kSize = 3;
  Doorkeeper door(kSize, "k");
  door.seat(1);
  Handshake handshake;
  Handshake::Status last = Handshake::Status::kMore;
  in_pieces(sizes, bytes, [&](std::span<const std::byte> piece) {
    const Handshake::Status status = handshake.feed(piece, door);
    require(last == Handshake::Status::kMore || status == last);
    require(handshake.kept_bytes() <= kFrameHeaderBytes + kMaxHelloBytes + 256);
    last = status;
  });
  if (last == Handshake::Status::kAdmit) {
    const Hello& hello = handshake.hello();
    require(hello.token == "k" && hello.size == kSize && hello.rank == 2);
    door.seat(2);
    require(door.full() && door.objection(hello).has_value());
  }
  require((last == Handshake::Status::kRefuse) <= !handshake.reason().empty());
}

void check_mesh(std::span<const std::byte> bytes) {
  if (const auto header = PacketHeader::parse(bytes)) {
    const std::vector<std::byte> packet = header->packet(bytes.subspan(PacketHeader::kBytes));
    require(std::equal(packet.begin(), packet.end(), bytes.begin(), bytes.end()));
  }
  try {
    const Card card = Card::decode(0, bytes);
    const std::vector<std::byte> encoded = card.encode();
    require(std::equal(encoded.begin(), encoded.end(), bytes.begin(), bytes.end()));
  } catch (const Error& error) {
    require(error.code() == ErrorCode::kBootstrap);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  // The first byte says how many bytes choose the pieces; the rest comes over the wire.
  if (bytes.empty()) return 0;
  const std::size_t num_sizes = std::min(static_cast<std::size_t>(bytes[0]) % 8, bytes.size() - 1);
  const auto sizes = bytes.subspan(1, num_sizes);
  const auto wire = bytes.subspan(1 + num_sizes);
  check_stream(sizes, wire);
  check_door(sizes, wire);
  check_message<Hello>(wire);
  check_message<Reason>(wire);
  check_message<Result>(wire);
  check_contribution(wire);
  check_mesh(wire);
  return 0;
}
