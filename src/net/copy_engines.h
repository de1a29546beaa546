// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What the engine needs of a GPU whose windows it writes and whose kernels command it: copies in one order, and host memory that
// both read and write. A backend implements it; tests have one without a GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace ferry::net {

/// All calls but pinned() come from the proxy's thread. Everything that is handed over is carried out in the order of the calls.
class CopyEngines {
 public:
  virtual ~CopyEngines() = default;  ///< waits until what was handed over is done: afterwards no memory is touched
  /// Host memory that kernels read and write at the same address, zeroed.
  virtual std::shared_ptr<std::byte> pinned(std::size_t bytes) = 0;
  /// Either end may be host memory or memory of any GPU that is mapped here.
  virtual void copy(std::byte* to, const std::byte* from, std::size_t bytes) = 0;
  /// One store of 8 bytes, visible after everything that was handed over before.
  virtual void write(std::byte* to, std::uint64_t value) = 0;
  /// Marks the end of what was handed over so far; marks are numbered from 1.
  virtual std::uint64_t mark() = 0;
  /// The last mark before which everything is done.
  virtual std::uint64_t reached() = 0;
};

}  // namespace ferry::net
