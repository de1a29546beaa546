// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Streams of a GPU and CUDA graphs for tests. Without CUDA in the build every function throws.
#pragma once

#include <chrono>
#include <functional>

namespace ferry::test {

/// A stream of the thread's device beside the one that DeviceCopies uses. Make it before the ranks begin to wait for each other:
/// asking the driver for one may wait for kernels.
class Stream {
 public:
  Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream();

  void* get() const { return stream_; }

 private:
  void* stream_ = nullptr;
};

/// What is put into `after` from now on follows what is in `before` now.
void order(void* before, void* after);
/// Holds up what comes later in the stream.
void delay(void* stream, std::chrono::microseconds time);
bool is_idle(void* stream);
/// Waits until nothing is left in the stream; at most a minute.
void wait_for(void* stream);

/// Calls captured from a stream, to be run again and again.
class Graph {
 public:
  /// Runs `calls`, which put work into `stream`, without carrying that work out. What `calls` throws comes out, with the stream as
  /// it was before.
  Graph(void* stream, const std::function<void()>& calls);
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph();

  void replay(void* stream) const;

 private:
  void* graph_ = nullptr;
};

}  // namespace ferry::test
