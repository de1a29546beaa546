// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Lets the idle proxy sleep and a producer wake it; for a producer whose proxy is awake it costs one load.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>

namespace ferry::net {

class Bell {
 public:
  /// After the work is visible through a sequentially consistent store (Ring::push does that).
  void ring() {
    if (!asleep_.load(std::memory_order_seq_cst)) return;
    {
      const std::lock_guard lock(mutex_);
      asleep_.store(false, std::memory_order_seq_cst);
    }
    wake_.notify_one();
  }

  /// Sleeps until ring() or the time is over. `has_work` looks for work with sequentially consistent loads; it is asked
  /// after this thread counts as asleep, so work that it misses comes with a ring(). The order of these steps is tested;
  /// that a relaxed store would not do is not (Ring::push says why).
  template <class HasWork>
  void sleep(std::chrono::nanoseconds at_most, HasWork has_work) {
    std::unique_lock lock(mutex_);
    asleep_.store(true, std::memory_order_seq_cst);
    if (!has_work()) wake_.wait_for(lock, at_most, [this] { return !asleep_.load(std::memory_order_seq_cst); });
    asleep_.store(false, std::memory_order_seq_cst);
  }

 private:
  std::atomic<bool> asleep_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
};

}  // namespace ferry::net
