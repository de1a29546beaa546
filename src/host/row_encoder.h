// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Gives every token's row in its wire form, once, whatever strides and codec: pointers to each block's bytes.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "backend/call.h"

namespace ferry::host {

struct EncodedRow {
  std::array<const std::byte*, wire::kMaxBlocks> blocks{};
};

class RowEncoder {
 public:
  explicit RowEncoder(const DispatchCall& call);
  /// Valid until the next call. Blocks whose elements lie side by side are not copied.
  EncodedRow encode(std::int64_t token);
  /// The blocks one after the other at `to`, as on the wire.
  void copy(const EncodedRow& row, std::byte* to) const;

 private:
  const std::byte* gather(const Tensor& tensor, std::int64_t token, std::byte* scratch) const;
  void quantise(std::int64_t token, EncodedRow& row);

  const DispatchCall& call_;
  std::vector<std::byte> scratch_;  // one wire row
  std::vector<std::byte> source_;   // a strided row before it is quantised
};

}  // namespace ferry::host
