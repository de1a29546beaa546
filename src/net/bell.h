// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Lets the idle proxy sleep and a producer wake it; for a producer whose proxy is awake it costs one load.
#pragma once

#include <poll.h>

#include <atomic>
#include <chrono>
#include <vector>

#include "bootstrap/fd.h"

namespace ferry::net {

class Bell {
 public:
  Bell();

  /// After the work is visible through a sequentially consistent store (Ring::push does that).
  void ring() {
    if (asleep_.load(std::memory_order_seq_cst)) wake();
  }

  /// Sleeps until ring(), until one of `also` (may be null) is ready, or until the time is over. `has_work` looks for work with
  /// sequentially consistent loads; it is asked after this thread counts as asleep, so work that it misses comes with a
  /// ring(). The order of these steps is tested; that a relaxed store would not do is not (Ring::push says why).
  template <class HasWork>
  void sleep(std::chrono::nanoseconds at_most, HasWork has_work, std::vector<pollfd>* also = nullptr) {
    asleep_.store(true, std::memory_order_seq_cst);
    if (!has_work()) wait(at_most, also);
    asleep_.store(false, std::memory_order_seq_cst);
  }

 private:
  void wake();
  void wait(std::chrono::nanoseconds at_most, std::vector<pollfd>* also);

  std::atomic<bool> asleep_{false};
  bootstrap::Fd event_;  // readable: somebody rang
};

}  // namespace ferry::net
