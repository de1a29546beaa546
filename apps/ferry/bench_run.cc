// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The loop of a benchmark: see bench_run.h.
#include "bench_run.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <stdexcept>

#include <fmt/format.h>

#include "bench_columns.h"

namespace ferry::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kCopyIterations = 7;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// What one rank holds while it measures.
struct Bench {
  const BenchCase& bench_case;
  int rank;
  Arena& arena;
  Job& job;
  RowPools pools;
  std::vector<Routing> routings{};
  std::vector<InputSet> inputs{};

  /// Others may be in a call whose wait began as late as this one and ends at its deadline: twice that leaves it to the call to
  /// say first which step waited for whom.
  void barrier() { arena.barrier(2 * bench_case.deadline_s); }
};

void make_inputs(Bench& bench) {
  for (int set = 0; set < bench.bench_case.num_sets; ++set) {
    bench.routings.push_back(make_routing(bench.bench_case, set));
    bench.inputs.push_back(make_input(bench.bench_case, bench.pools, bench.routings.back(), set, bench.rank));
  }
}

void write_steps(Bench& bench, int iteration) {
  if (iteration < 0) return;
  const std::vector<std::string>& names = step_names();
  for (const StepTime& step : bench.job.steps()) {
    const auto found = std::find(names.begin(), names.end(), step.step);
    if (found == names.end()) continue;
    const int column = kFirstStepColumn + static_cast<int>(found - names.begin());
    bench.arena.seconds(column, iteration, bench.rank) = step.seconds;
  }
}

/// One call alone. Warm-up has negative numbers.
template <typename Call>
void time_call(Bench& bench, int column, int iteration, Call call) {
  bench.barrier();
  const Clock::time_point start = Clock::now();
  call();
  const double seconds = seconds_since(start);
  if (iteration >= 0) bench.arena.seconds(column, iteration, bench.rank) = seconds;
  write_steps(bench, iteration);
}

void time_all(Bench& bench) {
  const BenchCase& c = bench.bench_case;
  for (int iteration = -c.warmup; iteration < c.iterations; ++iteration) {
    const InputSet& input = bench.inputs[static_cast<std::size_t>(iteration + c.warmup) % bench.inputs.size()];
    time_call(bench, kDispatchColumn, iteration, [&] { bench.job.dispatch(input); });
    time_call(bench, kCombineColumn, iteration, [&] { bench.job.combine(input); });
  }
}

/// Copies `bytes` of an input set, from its start again and again, as a send of one row to several ranks would.
void copy_out(const InputSet& input, std::byte* to, std::size_t bytes) {
  const Buffer& source = input.blocks[0];
  for (std::size_t done = 0; done < bytes;) {
    const std::size_t part = std::min(source.size(), bytes - done);
    std::memcpy(to + done, source.data(), part);
    done += part;
  }
}

void time_copies(Bench& bench, int column, std::int64_t bytes) {
  const BenchCase& c = bench.bench_case;
  if (bytes == 0) return;
  std::byte* const to = bench.arena.copy_space((bench.rank + 1) % c.ranks);
  for (int i = -2; i < kCopyIterations && i < c.iterations; ++i) {
    const InputSet& input = bench.inputs[static_cast<std::size_t>(i + 2) % bench.inputs.size()];
    bench.barrier();
    const Clock::time_point start = Clock::now();
    copy_out(input, to, static_cast<std::size_t>(bytes));
    const double seconds = seconds_since(start);
    if (i >= 0) bench.arena.seconds(column, i, bench.rank) = seconds;
  }
}

void check_sets(Bench& bench) {
  const BenchCase& c = bench.bench_case;
  for (const std::size_t set : {std::size_t{0}, bench.inputs.size() - 1}) {
    bench.barrier();
    const InputSet& input = bench.inputs[set];
    bench.job.dispatch(input);
    std::string difference =
        check_dispatch(c, bench.pools, bench.routings[set], input.index, bench.rank, bench.job.received());
    bench.job.combine(input);
    if (difference.empty()) {
      difference = check_combine(c, bench.pools, bench.routings[set], input.index, bench.rank, bench.job.combined());
    }
    // A wrong result must not look like a dead rank to the others, so it is only noted here.
    bench.arena.seconds(kWrongColumn, 0, bench.rank) = difference.empty() ? 0 : 1;
    if (!difference.empty()) fmt::print(stderr, "ferry bench: rank {}: {}\n", bench.rank, difference);
  }
}

std::int64_t largest_copy(const BenchCase& bench_case) {
  std::int64_t most = 0;
  for (int set = 0; set < bench_case.num_sets; ++set) {
    const Necessary necessary = necessary_bytes(bench_case, make_routing(bench_case, set));
    most = std::max({most, necessary.dispatch_bytes, necessary.combine_bytes});
  }
  return most;
}

}  // namespace

const std::vector<std::string>& step_names() {
  static const std::vector<std::string> names{"route",        "dispatch_send",   "dispatch_forward", "dispatch_recv",
                                              "combine_send", "combine_forward", "combine_recv"};
  return names;
}

ArenaShape arena_shape(const BenchCase& bench_case) {
  return {.ranks = bench_case.ranks,
          .columns = kNumColumns,
          .iterations = bench_case.iterations,
          .copy_bytes = static_cast<std::size_t>(largest_copy(bench_case))};
}

Necessary mean_necessary_bytes(const BenchCase& bench_case) {
  Necessary sum;
  for (int set = 0; set < bench_case.num_sets; ++set) {
    const Necessary one = necessary_bytes(bench_case, make_routing(bench_case, set));
    sum.dispatch_bytes += one.dispatch_bytes;
    sum.combine_bytes += one.combine_bytes;
  }
  return {.dispatch_bytes = sum.dispatch_bytes / bench_case.num_sets,
          .combine_bytes = sum.combine_bytes / bench_case.num_sets};
}

void run_rank(const BenchCase& bench_case, int rank, Arena& arena, Job& job) {
  Bench bench{.bench_case = bench_case, .rank = rank, .arena = arena, .job = job, .pools = make_pools(bench_case)};
  make_inputs(bench);
  const Necessary necessary = mean_necessary_bytes(bench_case);
  bench.barrier();
  time_all(bench);
  time_copies(bench, kDispatchCopyColumn, necessary.dispatch_bytes);
  time_copies(bench, kCombineCopyColumn, necessary.combine_bytes);
  check_sets(bench);
  bench.barrier();
}

}  // namespace ferry::bench
