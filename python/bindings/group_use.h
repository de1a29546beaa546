// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// A group serves one thread at a time. In Python that cannot be left to the caller's care: waits give the GIL away,
// and the garbage collector drops pending calls on whatever thread it runs. So a second thread gets an error instead
// of a race, and what is dropped while a call runs goes when that call ends.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ferry/handle.h"
#include "streams.h"

namespace ferry::python {

/// All methods need the GIL, which also guards the members.
class OneAtATime {
 public:
  class Turn {
   public:
    explicit Turn(OneAtATime& place) : place_(place) {}
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    ~Turn() { place_.leave(); }

   private:
    OneAtATime& place_;
  };

  /// Enters; throws Error(invalid_argument) if a thread is inside. Hold the result while the GIL is given away and
  /// after.
  Turn enter(const char* function);

  /// Destroys `object` now, or when the thread inside leaves.
  void drop(std::shared_ptr<void> object);

 private:
  void leave() noexcept;

  bool is_inside_ = false;
  std::vector<std::shared_ptr<void>> dropped_;
};

/// Which stream wrote the results of the last dispatches, by their handles. As many as have a combine input.
class HandleStreams {
 public:
  explicit HandleStreams(int num_flights) : most_(static_cast<std::size_t>(num_flights)) {}
  void remember(const Handle& handle, const Stream& stream);
  std::optional<Stream> of(const Handle& handle) const;

 private:
  struct Entry {
    std::weak_ptr<HandleShadow> handle;
    Stream stream;
  };
  std::size_t most_;
  std::deque<Entry> entries_;
};

/// The shared state of a Python group, its pending calls and their arguments.
class GroupUse : public OneAtATime {
 public:
  explicit GroupUse(int num_flights) : streams(num_flights), num_flights_(num_flights) {}

  HandleStreams streams;

  /// A combine that was dropped before it was received: the group finishes it when it needs the flight again and may
  /// write its `out` and read its biases then, so these stay until so many more combines were sent.
  void retain(std::shared_ptr<void> arguments);
  void count_combine();

 private:
  struct Retained {
    std::uint64_t until = 0;
    std::shared_ptr<void> arguments;
  };
  int num_flights_;
  std::uint64_t num_combines_ = 0;
  std::deque<Retained> retained_;
};

}  // namespace ferry::python
