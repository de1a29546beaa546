// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// A 64-bit digest by which ranks find out that they disagree. Not for security.
#pragma once

#include <cstdint>
#include <type_traits>

namespace ferry {

class Digest {
 public:
  template <typename T>
  requires(std::is_integral_v<T> || std::is_enum_v<T>) Digest& add(T value) {
    // One round of the splitmix64 finaliser per value: every bit of the value reaches every bit of the state.
    state_ += static_cast<std::uint64_t>(value) + 0x9e3779b97f4a7c15u;
    state_ = (state_ ^ (state_ >> 30)) * 0xbf58476d1ce4e5b9u;
    state_ = (state_ ^ (state_ >> 27)) * 0x94d049bb133111ebu;
    state_ ^= state_ >> 31;
    return *this;
  }
  std::uint64_t value() const noexcept { return state_; }

 private:
  std::uint64_t state_ = 0;
};

}  // namespace ferry
