// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Device memory of results and handles, reserved when the group is made: asking the driver for memory may wait for kernels, and
// those may wait for this rank. A block that is let go is given to a later call of the same group: calls of a group follow each
// other on the device, so the next user comes after the last one. Who reads a result on another stream keeps it until that work
// is done.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

namespace ferry::cuda {

class Pool : public std::enable_shared_from_this<Pool> {
 public:
  /// Reserves `bytes`. Throws Error(internal).
  Pool(int device, std::size_t bytes);
  /// Of memory that belongs to `owner`, aligned to 256 bytes; never more.
  Pool(std::byte* memory, std::size_t bytes, std::shared_ptr<const void> owner);
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  ~Pool();

  /// Aligned to 256 bytes, not initialised. What does not fit any more comes from the driver, which is slow, and stays.
  std::shared_ptr<std::byte> allocate(std::size_t bytes);
  /// Null if it does not fit.
  std::shared_ptr<std::byte> try_allocate(std::size_t bytes);
  /// Gives the end of a block back.
  void shrink(const std::shared_ptr<std::byte>& block, std::size_t bytes);

 private:
  void add_chunk(std::size_t bytes);
  std::shared_ptr<std::byte> hand_out(std::byte* block, std::size_t bytes);
  std::byte* take(std::size_t bytes);
  void put_back(std::byte* block);
  void join(std::byte* block, std::size_t bytes);

  const int device_ = -1;
  const std::shared_ptr<const void> owner_;  ///< of the memory; null: the chunks are the pool's own
  std::mutex mutex_;
  std::vector<std::byte*> chunks_;
  std::map<std::byte*, std::size_t> free_;   // by address; neighbours inside a chunk are joined
  std::map<std::byte*, std::size_t> taken_;  // by address
};

}  // namespace ferry::cuda
