// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Numbers and strings as bytes of a message: little-endian, and never read beyond the end.
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace ferry::bootstrap {

class ByteWriter {
 public:
  template <std::unsigned_integral T>
  ByteWriter& put(T value) {
    for (std::size_t i = 0; i < sizeof(T); ++i) bytes_.push_back(static_cast<std::byte>(value >> (8 * i)));
    return *this;
  }
  ByteWriter& put_raw(std::span<const std::byte> raw) {
    bytes_.insert(bytes_.end(), raw.begin(), raw.end());
    return *this;
  }
  ByteWriter& put_raw(std::string_view raw) { return put_raw(std::as_bytes(std::span(raw.data(), raw.size()))); }
  /// Length first, then the characters.
  ByteWriter& put_text(std::string_view text) { return put(static_cast<std::uint32_t>(text.size())).put_raw(text); }

  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

/// Reads what ByteWriter wrote. Whatever does not fit leaves the reader in a failed state, in which it yields zeros.
class ByteReader {
 public:
  explicit ByteReader(std::span<const std::byte> bytes) : rest_(bytes) {}

  template <std::unsigned_integral T>
  T get() {
    const std::span<const std::byte> raw = get_raw(sizeof(T));
    T value = 0;
    for (std::size_t i = 0; i < raw.size(); ++i) value = static_cast<T>(value | static_cast<T>(raw[i]) << (8 * i));
    return value;
  }
  std::span<const std::byte> get_raw(std::size_t num_bytes) {
    if (num_bytes > rest_.size()) {
      ok_ = false;
      rest_ = {};
      return {};
    }
    const std::span<const std::byte> raw = rest_.first(num_bytes);
    rest_ = rest_.subspan(num_bytes);
    return raw;
  }
  std::string get_text() {
    const std::span<const std::byte> raw = get_raw(get<std::uint32_t>());
    return {reinterpret_cast<const char*>(raw.data()), raw.size()};
  }
  std::size_t rest() const noexcept { return rest_.size(); }
  bool ok() const noexcept { return ok_; }
  /// Everything was there, and nothing more.
  bool finished() const noexcept { return ok_ && rest_.empty(); }

 private:
  std::span<const std::byte> rest_;
  bool ok_ = true;
};

/// Compares secrets: the time taken tells nothing about where they differ (lengths are no secret).
inline bool equal_secrets(std::span<const std::byte> a, std::span<const std::byte> b) {
  if (a.size() != b.size()) return false;
  volatile unsigned char difference = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference = static_cast<unsigned char>(difference | static_cast<unsigned char>(a[i] ^ b[i]));
  }
  return difference == 0;
}

}  // namespace ferry::bootstrap
