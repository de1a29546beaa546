// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The thread that takes commands out of the rings and has the provider carry them out.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "net/bell.h"
#include "net/carrier.h"
#include "net/channel.h"
#include "net/lane.h"
#include "net/window_table.h"

namespace ferry::net {

/// Failures that nobody has asked for yet, the oldest first. Only the first few of a peer's many are worth keeping.
class FailureBox {
 public:
  static constexpr std::size_t kMaxKept = 16;

  void report(Failure failure);
  /// Kept even where the box is full: the last words of the proxy.
  void report_end(Failure failure);
  std::optional<Failure> take();

 private:
  void keep(Failure failure, std::size_t at_most);

  std::atomic<bool> any_{false};
  std::mutex mutex_;
  std::deque<Failure> failures_;
};

class Proxy {
 public:
  /// Everything given must outlive the proxy. Starts the thread, on `core` if that is not negative; throws Error(internal) if it
  /// cannot be started, Error(unsupported) if this process may not use the core.
  Proxy(Carrier& carrier, WindowTable& windows, std::span<const std::unique_ptr<RingChannel>> channels, Bell& bell,
        FailureBox& failures, int core = -1);
  Proxy(const Proxy&) = delete;
  Proxy& operator=(const Proxy&) = delete;
  ~Proxy();  ///< stops after the piece at hand; later commands are dropped

  /// Any thread: one pass in place of the proxy's thread, unless that is at it. True: something moved.
  bool help();
  /// Any thread: drops what is meant for the peer's windows up to the one with this serial.
  void give_up(int peer, std::uint64_t last_serial);

 private:
  /// One channel as the proxy sees it.
  struct Stream {
    RingChannel* channel;
    int index;
    std::vector<std::unique_ptr<Lane>> lanes;  // by the peer's dense number; null until used
    std::vector<Lane*> active;                 // lanes with something left
    std::size_t turn = 0;                      // which active lane begins
    std::uint64_t completed = 0;
  };

  struct GivenUp {
    int peer;
    std::uint64_t last_serial;
  };

  void stop();
  void work() noexcept;
  void end_with(const char* why) noexcept;
  void drop_given_up();
  void loop();
  bool pass();
  bool drain(Stream& stream);
  bool take(Stream& stream, CommandWords words);
  bool run_lanes(Stream& stream);
  bool run_lane(Lane& lane);
  bool finish_transfers();
  void publish_completed(Stream& stream);
  void retire_windows();
  void fail_lane(Lane& lane, const std::string& why);
  Lane& lane_for(Stream& stream, const WindowEntry& entry);
  void back_off(int idle_passes);
  bool stopping() const noexcept { return stop_.load(std::memory_order_seq_cst); }
  bool work_waits();
  struct Outlook {
    bool busy = false;       ///< transfers are on their way
    bool soon = false;       ///< they will be complete within microseconds
    bool must_look = false;  ///< again soon
    bool can_watch = false;  ///< descriptors say when
  };
  Outlook look_ahead();

  Carrier& carrier_;
  WindowTable& windows_;
  Bell& bell_;
  FailureBox& failures_;
  std::vector<Stream> streams_;
  std::size_t first_stream_ = 0;
  std::vector<Completion> completions_;
  std::vector<pollfd> watched_;
  std::vector<std::uint64_t> completed_;  // by channel, for retire_windows()
  std::mutex pass_mutex_;                 // who has it is the proxy for the length of a pass
  std::atomic<std::uint64_t> helps_{0};
  std::uint64_t helps_seen_ = 0;
  std::atomic<bool> ended_{false};
  std::mutex given_up_mutex_;
  std::vector<GivenUp> given_up_;
  std::atomic<bool> any_given_up_{false};
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace ferry::net
