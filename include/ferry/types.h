// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Plain values that every call speaks in: element types, tensor views, modes, layouts, codecs and reductions.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace ferry {

/// Element type of a tensor. `kUe8m0` is a power-of-two scale: one byte, value 2^(byte - 127), byte 255 is NaN.
enum class DType : std::uint8_t { kBf16, kFp16, kFp32, kFp8E4m3, kUe8m0, kUint8, kInt32, kInt64 };

/// Bytes of one element.
std::size_t dtype_bytes(DType dtype) noexcept;
/// Lower-case name as used on the command line and in messages: "bf16", "fp8_e4m3", ...
const char* name(DType dtype) noexcept;

/// throughput: counts are exchanged first, rows are exact. latency: fixed slots, no count exchange before data.
/// auto (of a dispatch's arguments only): one of the two by size, see DispatchArgs::mode.
enum class Mode : std::uint8_t { kThroughput, kLatency, kAuto };

/// Shape and order of a dispatch result; see DispatchResult.
enum class Layout : std::uint8_t { kRankMajor, kExpertMajor, kExpertPadded };

/// Where result tensors live: a view of the receive window, or memory of their own.
enum class Output : std::uint8_t { kWindow, kOwned };

/// How rows are coded on the way; all but kNone take bf16 rows. Dispatch codes the first payload block: the fp8 codecs add a
/// block of scales behind the data block: float32 values, or UE8M0 bytes (scales rounded up to a power of two). Combine
/// (latency mode) restores what it gets: kFp8F32, or kLogfmt10, 10 bits on a logarithmic scale; see CombineArgs::codec.
enum class Codec : std::uint8_t { kNone, kFp8F32, kFp8Ue8m0, kLogfmt10 };

const char* name(Mode mode) noexcept;
const char* name(Layout layout) noexcept;
const char* name(Output output) noexcept;
const char* name(Codec codec) noexcept;

/// A view of a dense array of up to three dimensions. Owns nothing. Strides count elements, not bytes.
/// `data == nullptr` means "no tensor"; a tensor with zero elements has a shape with a zero in it and may have any data.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kUint8;
  int ndim = 0;
  std::array<std::int64_t, 3> shape{};
  std::array<std::int64_t, 3> strides{};

  /// Row-major contiguous view.
  static Tensor contiguous(void* data, DType dtype, std::initializer_list<std::int64_t> shape) noexcept;
  /// The same for memory that will only be read.
  static Tensor contiguous(const void* data, DType dtype, std::initializer_list<std::int64_t> shape) noexcept;

  bool present() const noexcept { return data != nullptr || ndim != 0; }
  std::int64_t num_elements() const noexcept;
};

/// How the rows of one token are added up in combine. Rows are grouped by choice (no groups), by rank, or by rank and then
/// node. A stage starts at +0 (the last one at bias0 + bias1, in float32), adds its terms in order and rounds once to the
/// dtype of the rows. Groups follow each other by ascending rank or node, or by the position of their last choice.
struct Reduction {
  enum class Group : std::uint8_t { kChoice, kRank, kNode };
  enum class Order : std::uint8_t { kAscending, kLastChoice };

  Group group = Group::kRank;
  Order order = Order::kAscending;

  /// Choices ascending, one rounding: the bits of a single-process reference, whatever the placement and topology.
  static constexpr Reduction flat() noexcept { return {Group::kChoice, Order::kAscending}; }
  /// Choices ascending inside a rank, one rounding, then ranks.
  static constexpr Reduction per_rank() noexcept { return {Group::kRank, Order::kAscending}; }
  /// As per_rank inside a node with one rounding, then nodes.
  static constexpr Reduction per_node() noexcept { return {Group::kNode, Order::kAscending}; }

  friend constexpr bool operator==(const Reduction&, const Reduction&) = default;
};

const char* name(Reduction reduction) noexcept;

}  // namespace ferry
