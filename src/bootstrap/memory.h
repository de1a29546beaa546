// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Host memory for windows: mapped on demand, zeroed by the kernel, reference-counted, and impossible to leave behind
// after a crash (no name in any file system).
#pragma once

#include <cstddef>
#include <memory>
#include <utility>

namespace ferry {

class Memory {
 public:
  /// For ranks that are threads of one process: everyone uses the same addresses. Throws Error(invalid_argument |
  /// internal).
  static std::shared_ptr<Memory> anonymous(std::size_t bytes);
  /// Backed by a memfd, so that it can be handed to other processes.
  static std::shared_ptr<Memory> shareable(std::size_t bytes);
  /// Maps a memfd that came from a peer; takes the descriptor over. The peer's claim of `bytes` is checked against
  /// the file.
  static std::shared_ptr<Memory> map(int fd, std::size_t bytes);
  /// Memory of a device that somebody else maps here and `owner` keeps; the CPU does not touch it.
  static std::shared_ptr<Memory> on_device(std::byte* data, std::size_t bytes, std::shared_ptr<const void> owner);

  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory();

  std::byte* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  int fd() const noexcept { return fd_; }  ///< -1 for anonymous memory
  bool is_on_device() const noexcept { return owner_ != nullptr; }

 private:
  Memory(std::byte* data, std::size_t size, int fd, std::shared_ptr<const void> owner = nullptr)
      : data_(data), size_(size), fd_(fd), owner_(std::move(owner)) {}
  std::byte* data_;
  std::size_t size_;
  int fd_;
  std::shared_ptr<const void> owner_;  ///< of device memory; null: these are our own pages
};

}  // namespace ferry
