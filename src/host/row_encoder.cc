// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
#include "host/row_encoder.h"

#include <cstring>

#include "wire/fp8_quant.h"
#include "wire/rows.h"

namespace ferry::host {

RowEncoder::RowEncoder(const DispatchCall& call)
    : call_(call), scratch_(static_cast<std::size_t>(call.format.row_bytes)) {
  if (call.args.codec != Codec::kNone) source_.resize(static_cast<std::size_t>(call.args.payload[0].shape[1]) * 2);
}

const std::byte* RowEncoder::gather(const Tensor& tensor, std::int64_t token, std::byte* scratch) const {
  const auto element = static_cast<std::int64_t>(dtype_bytes(tensor.dtype));
  const auto* row = static_cast<const std::byte*>(tensor.data) + token * tensor.strides[0] * element;
  if (tensor.strides[1] == 1 || tensor.shape[1] <= 1) return row;
  for (std::int64_t i = 0; i < tensor.shape[1]; ++i) {
    std::memcpy(scratch + i * element, row + i * tensor.strides[1] * element, static_cast<std::size_t>(element));
  }
  return scratch;
}

void RowEncoder::quantise(std::int64_t token, EncodedRow& row) {
  const Tensor& x = call_.args.payload[0];
  const auto* values = reinterpret_cast<const std::uint16_t*>(gather(x, token, source_.data()));
  std::byte* data = scratch_.data();
  std::byte* scales = scratch_.data() + call_.format[1].offset;
  auto* out = reinterpret_cast<std::uint8_t*>(data);
  if (call_.args.codec == Codec::kFp8F32) {
    wire::quantise_row_f32(values, x.shape[1], call_.args.scale_block, out, reinterpret_cast<float*>(scales));
  } else {
    wire::quantise_row_ue8m0(values, x.shape[1], call_.args.scale_block, out, reinterpret_cast<std::uint8_t*>(scales));
  }
  row.blocks[0] = data;
  row.blocks[1] = scales;
}

EncodedRow RowEncoder::encode(std::int64_t token) {
  EncodedRow row;
  std::size_t wire_block = 0;
  std::size_t first = 0;
  if (call_.args.codec != Codec::kNone) {
    quantise(token, row);
    wire_block = 2;
    first = 1;
  }
  for (std::size_t b = first; b < call_.args.payload.size(); ++b, ++wire_block) {
    row.blocks[wire_block] =
        gather(call_.args.payload[b], token, scratch_.data() + call_.format.blocks[wire_block].offset);
  }
  return row;
}

void RowEncoder::copy(const EncodedRow& row, std::byte* to) const {
  for (int b = 0; b < call_.format.num_blocks; ++b) {
    const wire::Block& block = call_.format[b];
    if (block.bytes > 0) wire::copy_row(to + block.offset, row.blocks[static_cast<std::size_t>(b)], block.bytes);
  }
}

}  // namespace ferry::host
