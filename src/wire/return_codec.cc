// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Coded rows of combine on the host.
#include "wire/return_codec.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "core/clones.h"

namespace ferry::wire {
namespace {

// Inner loops have a constant length, so that compilers vectorise them at -O2 too.
constexpr std::int64_t kStride = 32;
static_assert(kCodedGroup % kStride == 0 && kChunkChannels % 4 == 0);

using Codes = std::array<std::uint16_t, kChunkChannels>;

FERRY_CLONES LogfmtRange range_of(const std::uint16_t* x, std::int64_t n) {
  // Less one, zeros are the largest of all and never the least.
  std::uint32_t largest[kStride] = {}, least[kStride];
  std::fill_n(least, kStride, 0xffffu);
  std::int64_t i = 0;
  for (; i + kStride <= n; i += kStride) {
    for (std::int64_t k = 0; k < kStride; ++k) {
      const std::uint32_t magnitude = x[i + k] & 0x7fffu, less_one = (magnitude - 1u) & 0xffffu;
      largest[k] = select(magnitude > largest[k], magnitude, largest[k]);
      least[k] = select(less_one < least[k], less_one, least[k]);
    }
  }
  for (; i < n; ++i) {
    const std::uint32_t magnitude = x[i] & 0x7fffu, less_one = (magnitude - 1u) & 0xffffu;
    largest[0] = std::max(largest[0], magnitude);
    least[0] = std::min(least[0], less_one);
  }
  return {*std::max_element(largest, largest + kStride), (*std::min_element(least, least + kStride) + 1u) & 0xffffu};
}

FERRY_CLONES void encode_group(const std::uint16_t* __restrict x, std::int64_t n, const LogfmtScale& scale,
                               std::uint16_t* __restrict codes) {
  std::int64_t i = 0;
  for (; i + kStride <= n; i += kStride) {
    for (std::int64_t k = 0; k < kStride; ++k) codes[i + k] = static_cast<std::uint16_t>(scale.encode(x[i + k]));
  }
  for (; i < n; ++i) codes[i] = static_cast<std::uint16_t>(scale.encode(x[i]));
}

FERRY_CLONES void decode_group(const std::uint16_t* __restrict codes, std::int64_t n, const LogfmtScale& scale,
                               float* __restrict out) {
  std::int64_t i = 0;
  for (; i + kStride <= n; i += kStride) {
    for (std::int64_t k = 0; k < kStride; ++k) out[i + k] = scale.decode(codes[i + k]);
  }
  for (; i < n; ++i) out[i] = scale.decode(codes[i]);
}

constexpr std::int64_t packed_bytes(std::int64_t n) {
  return (n * kLogfmtBits + 7) / 8;
}

// Four codes are 40 bits, five bytes; the lowest first.
constexpr std::int64_t kFour = 4, kFourBytes = 5;

std::uint64_t four_of(const std::uint16_t* codes) {
  std::uint64_t bits = 0;
  for (int k = 0; k < kFour; ++k) bits |= std::uint64_t{codes[k]} << (kLogfmtBits * k);
  return bits;
}
void spread_four(std::uint64_t bits, std::uint16_t* codes) {
  for (int k = 0; k < kFour; ++k) codes[k] = static_cast<std::uint16_t>(bits >> (kLogfmtBits * k) & 1023u);
}

/// Codes behind the n-th, up to a multiple of four, are 0.
void pack(const Codes& codes, std::int64_t n, std::byte* out) {
  std::int64_t i = 0, at = 0;
  for (; i < n; i += kFour, at += kFourBytes) {
    const std::uint64_t bits = four_of(codes.data() + i);
    if (i + kFour <= n) {
      std::memcpy(out + at, &bits, kFourBytes);
    } else {
      std::memcpy(out + at, &bits, static_cast<std::size_t>(packed_bytes(n) - at));
    }
  }
}
void unpack(const std::byte* in, std::int64_t n, Codes& codes) {
  std::int64_t i = 0, at = 0;
  for (; i < n; i += kFour, at += kFourBytes) {
    // Five bytes copied into eight and loaded again would wait for the store: six times as slow.
    std::uint32_t low = 0;
    std::uint64_t bits = 0;
    if (i + kFour <= n) {
      std::memcpy(&low, in + at, 4);
      bits = low | static_cast<std::uint64_t>(in[at + 4]) << 32;
    } else {
      std::memcpy(&bits, in + at, static_cast<std::size_t>(packed_bytes(n) - at));
    }
    spread_four(bits, codes.data() + i);
  }
}

/// The words of a chunk's groups. True if all of them fit.
bool write_ranges(const std::uint16_t* x, std::int64_t n, std::byte* words) {
  bool fit = true;
  for (std::int64_t at = 0; at < n; at += kCodedGroup) {
    const LogfmtRange range = range_of(x + at, std::min<std::int64_t>(kCodedGroup, n - at));
    const std::uint32_t word = range.word();
    std::memcpy(words + at / kCodedGroup * 4, &word, 4);
    fit = fit && range.fits();
  }
  return fit;
}
LogfmtRange range_at(const std::byte* words, std::int64_t group) {
  std::uint32_t word = 0;
  std::memcpy(&word, words + group * 4, 4);
  return LogfmtRange::of(word);
}
bool all_fit(const std::byte* words, std::int64_t n) {
  for (std::int64_t at = 0; at < n; at += kCodedGroup) {
    if (!range_at(words, at / kCodedGroup).fits()) return false;
  }
  return true;
}

/// One chunk of n channels.
std::int64_t encode_chunk(const std::uint16_t* x, std::int64_t n, std::byte* words, std::byte* out) {
  if (!write_ranges(x, n, words)) {
    std::memcpy(out, x, static_cast<std::size_t>(2 * n));
    return 2 * n;
  }
  Codes codes{};
  for (std::int64_t at = 0; at < n; at += kCodedGroup) {
    encode_group(x + at, std::min<std::int64_t>(kCodedGroup, n - at), LogfmtScale(range_at(words, at / kCodedGroup)),
                 codes.data() + at);
  }
  pack(codes, n, out);
  return packed_bytes(n);
}
std::int64_t decode_chunk(const std::byte* words, const std::byte* in, std::int64_t n, float* out) {
  if (!all_fit(words, n)) {
    for (std::int64_t i = 0; i < n; ++i) {
      std::uint16_t code = 0;
      std::memcpy(&code, in + 2 * i, 2);
      out[i] = bf16_to_float(code);
    }
    return 2 * n;
  }
  Codes codes;
  unpack(in, n, codes);
  for (std::int64_t at = 0; at < n; at += kCodedGroup) {
    decode_group(codes.data() + at, std::min<std::int64_t>(kCodedGroup, n - at),
                 LogfmtScale(range_at(words, at / kCodedGroup)), out + at);
  }
  return packed_bytes(n);
}

}  // namespace

std::int64_t encode_returned(Codec codec, const std::uint16_t* x, std::int64_t hidden, std::byte* words,
                             std::byte* channels) {
  if (codec == Codec::kFp8F32) {
    quantise_row_f32(x, hidden, kCodedGroup, reinterpret_cast<std::uint8_t*>(channels),
                     reinterpret_cast<float*>(words));
    return hidden;
  }
  std::int64_t bytes = 0;
  for (std::int64_t at = 0; at < hidden; at += kChunkChannels) {
    bytes += encode_chunk(x + at, std::min<std::int64_t>(kChunkChannels, hidden - at), words + at / kCodedGroup * 4,
                          channels + bytes);
  }
  return bytes;
}

void decode_returned(Codec codec, const std::byte* words, const std::byte* channels, std::int64_t hidden, float* out) {
  if (codec == Codec::kFp8F32) {
    return dequantise_row_f32(reinterpret_cast<const std::uint8_t*>(channels), reinterpret_cast<const float*>(words),
                              hidden, kCodedGroup, out);
  }
  std::int64_t bytes = 0;
  for (std::int64_t at = 0; at < hidden; at += kChunkChannels) {
    bytes += decode_chunk(words + at / kCodedGroup * 4, channels + bytes,
                          std::min<std::int64_t>(kChunkChannels, hidden - at), out + at);
  }
}

}  // namespace ferry::wire
