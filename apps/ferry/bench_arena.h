// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Memory that all ranks of a benchmark share beside what is measured: a barrier, the times, and room for the plain copies
// whose speed is the ceiling.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace ferry::bench {

struct ArenaShape {
  int ranks = 1;
  int columns = 1;  ///< things timed per iteration
  int iterations = 1;
  std::size_t copy_bytes = 0;  ///< per rank
};

class Arena {
 public:
  /// In memory without a name; children that are forked later and threads see it, other processes through attach().
  static Arena create(const ArenaShape& shape);
  /// Opens the arena of another process of the same user.
  static Arena attach(int pid, int fd, const ArenaShape& shape);
  Arena(Arena&& other) noexcept;
  Arena& operator=(Arena&&) = delete;
  ~Arena();

  int fd() const noexcept { return fd_; }

  /// Waits for all ranks. Throws std::runtime_error after the deadline or as soon as a rank has failed.
  void barrier(double deadline_s);
  /// The first message stays. Everybody who waits is woken with it.
  void fail(int rank, const std::string& message) noexcept;
  bool failed() const noexcept;
  std::string failure() const;

  /// A cell of the table of times in seconds; NaN where nothing was written.
  double& seconds(int column, int iteration, int rank);
  /// Slowest rank of every iteration; iterations without a value are left out.
  std::vector<double> slowest(int column);

  /// Room that a neighbour copies into.
  std::byte* copy_space(int rank);

 private:
  struct Header;
  Arena(int fd, const ArenaShape& shape, std::byte* memory, std::size_t bytes);
  Header& header() const;

  int fd_;
  ArenaShape shape_;
  std::byte* memory_;
  std::size_t bytes_;
};

}  // namespace ferry::bench
