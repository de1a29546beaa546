// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Starts ranks of one machine as processes or threads, collects what they send, and notices when one dies or falls
// silent.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "ferry/meeting.h"

namespace ferry::app {

enum class RanksAs : std::uint8_t { kProcesses, kThreads };
const char* name(RanksAs as) noexcept;

/// A rank's end of the line to the program that started it.
class RankPort {
 public:
  virtual ~RankPort() = default;
  virtual int rank() const noexcept = 0;
  virtual int size() const noexcept = 0;
  /// The meeting to create a group with. Processes gather through the program that started them: no port, no files.
  virtual Meeting& meeting() = 0;
  /// Hands bytes to Launch::on_message. Also a sign of life.
  virtual void send(std::span<const std::byte> message) = 0;
  /// Waits for all ranks. For lining up what is measured; not a substitute for any wait of the library.
  virtual void barrier() = 0;
  /// What ends this rank's waits from outside (Group::abort) once another rank has failed; empty takes it back. Only
  /// threads need it: processes can be killed.
  virtual void set_stop(std::function<void()> stop) = 0;
};

struct Launch {
  int num_ranks = 1;
  RanksAs as = RanksAs::kProcesses;
  /// No sign of life for this long from a rank that others wait for, or from all: the run is given up.
  std::chrono::nanoseconds silence_limit = std::chrono::seconds(60);
  std::function<void(int rank, std::span<const std::byte> message)> on_message{};
  /// Network namespaces by rank, as `ip netns` names them; empty: this program's. Processes only.
  std::vector<std::string> netns{};
};

struct RunFailure {
  int rank = -1;       ///< who failed first, or -1 if nobody could be named
  std::string reason;  ///< one sentence
  bool stuck = false;  ///< threads that could not be ended still run: leave the program without unwinding
};

/// Namespaces by rank from namespaces by node. Throws std::invalid_argument if they are not as many as the nodes.
std::vector<std::string> netns_of_ranks(const std::vector<std::string>& netns_of_nodes, int ranks, int nodes);

/// Runs `body` once per rank and waits. Empty if every rank came to its end. As processes it must be called before the
/// program has any other thread. An exception that leaves `body` is that rank's failure; the other ranks are then
/// ended.
std::optional<RunFailure> run_ranks(const Launch& launch, const std::function<void(RankPort&)>& body);

}  // namespace ferry::app
