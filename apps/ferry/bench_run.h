// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The measurement itself, the same for every backend: each call timed alone after a barrier, the slowest rank counting, a
// plain copy of the same bytes as the ceiling, and a separate pass that checks what was timed.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "bench_arena.h"
#include "bench_case.h"
#include "bench_check.h"
#include "options.h"

namespace ferry::bench {

/// What one step of a call took on one rank.
struct StepTime {
  std::string step;
  double seconds = 0;
};

/// One rank's end of the backend that is measured.
class Job {
 public:
  virtual ~Job() = default;
  /// Timed: from the call to the rows being usable.
  virtual void dispatch(const InputSet& input) = 0;
  /// What the last dispatch brought; not timed.
  virtual Received received() = 0;
  /// Timed: brings input.results back to where the last dispatch took its rows from.
  virtual void combine(const InputSet& input) = 0;
  virtual const std::byte* combined() = 0;
  /// Steps of the last call, if the backend knows them.
  virtual std::vector<StepTime> steps() { return {}; }
};

/// The seven steps, in the order of their columns in the arena.
const std::vector<std::string>& step_names();

/// Size of the arena that run_rank() needs.
ArenaShape arena_shape(const BenchCase& bench_case);

/// Everything one rank does. Throws what goes wrong; the caller tells the arena.
void run_rank(const BenchCase& bench_case, int rank, Arena& arena, Job& job);

/// What the whole run says besides its case.
struct Origin {
  std::string commit;
  std::string date;
  std::string machine;
};
/// Date now, this machine, and the commit of the checkout that the program lies in ("unknown" elsewhere).
Origin find_origin();

/// One JSON object per measurement: dispatch, combine and, if asked for, their steps.
std::vector<nlohmann::ordered_json> summarise(const BenchCase& bench_case, const Origin& origin, Arena& arena);

/// Adds the options of a case; `tokens` takes a list.
void add_case_options(app::Options& command, BenchCase& bench_case, std::vector<std::int64_t>& tokens);

/// A line of the table that people read.
std::string table_header();
std::string table_line(const nlohmann::ordered_json& measurement);
/// Appends one line per measurement. Throws std::runtime_error if the file cannot be written.
void append_json(const std::string& path, const std::vector<nlohmann::ordered_json>& measurements);

}  // namespace ferry::bench
