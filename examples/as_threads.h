// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Ranks as threads of one program: the shortest way to try something. examples/11_launch.py has them as processes.
#pragma once

#include <cstdio>
#include <exception>
#include <thread>
#include <vector>

#include "ferry/ferry.h"

namespace example {

/// Runs `run_rank(meeting)` once per rank; 0 if all returned true, else 1.
template <class RunRank>
int run_as_threads(int num_ranks, RunRank&& run_rank) {
  auto meetings = ferry::meet_in_process(num_ranks);
  std::vector<char> good(num_ranks, 0);
  std::vector<std::thread> ranks;
  for (int r = 0; r < num_ranks; ++r) {
    ranks.emplace_back([&, r] {
      try {
        good[r] = run_rank(*meetings[r]);
      } catch (const std::exception& error) {
        std::fprintf(stderr, "rank %d: %s\n", r, error.what());
      }
    });
  }
  for (auto& rank : ranks) rank.join();
  for (const char ok : good) {
    if (!ok) return 1;
  }
  return 0;
}

}  // namespace example
