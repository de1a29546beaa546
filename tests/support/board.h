// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// A board in shared memory on which ranks, threads or processes, and the test meet.
#pragma once

#include <array>
#include <atomic>

namespace ferry::test {

/// Gates that ranks and the test pass together; works across fork().
class Board {
 public:
  Board();
  Board(const Board&) = delete;
  Board& operator=(const Board&) = delete;
  ~Board();

  /// Says that the caller came to `gate`.
  void arrive(int gate);
  /// Waits until `count` have come to `gate`; throws Failure after a while.
  void wait_for(int gate, int count) const;
  int arrived(int gate) const;
  void meet(int gate, int count) {
    arrive(gate);
    wait_for(gate, count);
  }

 private:
  static constexpr int kGates = 64;
  using Gates = std::array<std::atomic<int>, kGates>;
  Gates* gates_;
};

}  // namespace ferry::test
