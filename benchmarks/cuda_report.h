// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What the benchmarks on GPUs share on the host: their options, ranks as threads, and the JSON line of a measurement.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cuda_settings.h"
#include "ferry/meeting.h"
#include "options.h"

namespace ferry::bench {

/// Options that every one of them has; `o` holds the defaults.
inline void add_cuda_options(app::Options& options, Settings& o, int max_top_k) {
  options.values("--tokens", o.tokens, "tokens per rank; several values make several cases");
  options.values("--sms", o.sms, "SMs per call, 0: Ferry chooses; several values make several cases");
  options.word("--routing", o.routing, app::Words<std::string>{{"uniform", "uniform"}, {"zipf", "zipf"}},
               "how tokens choose experts (default: uniform)");
  options.number("--experts", o.experts, 1, 1 << 20, "experts of all ranks together");
  options.number("--top-k", o.top_k, 1, max_top_k, "choices per token");
  options.number("--hidden", o.hidden, 8, 1 << 20, "width of a row in elements");
  options.number("--iterations", o.iterations, 1, 1 << 20, "timed calls");
  options.json_file(o.json, "append one JSON line per measurement to this file");
  options.value("--commit", o.commit, "commit that the JSON lines name");
  options.value("--date", o.date, "date that the JSON lines name");
}
inline void add_launch_option(app::Options& options, Settings& o) {
  options.word("--launch", o.launch, app::Words<std::string>{{"direct", "direct"}, {"graph", "graph"}},
               "direct calls or replays of captured ones (default: direct)");
}

/// body(rank, meeting) on a thread for each rank. One that throws ends the program: the others wait for it.
template <typename Body>
void run_ranks(int ranks, Body&& body) {
  auto meetings = meet_in_process(ranks);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        body(rank, *meetings[static_cast<std::size_t>(rank)]);
      } catch (const std::exception& error) {
        std::fprintf(stderr, "rank %d: %s\n", rank, error.what());
        std::fflush(nullptr);
        std::_Exit(1);
      }
    });
  }
  for (auto& thread : threads) thread.join();
}

inline double quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  return values[std::min(values.size() - 1, static_cast<std::size_t>(q * static_cast<double>(values.size())))];
}
inline double median(std::vector<double> values) {
  return quantile(std::move(values), 0.5);
}

/// Per iteration the slowest rank; times are [rank][iteration].
inline std::vector<double> slowest(const std::vector<std::vector<double>>& times_of_ranks) {
  std::vector<double> out = times_of_ranks[0];
  for (const auto& times : times_of_ranks) {
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = std::max(out[i], times[i]);
  }
  return out;
}

/// What was timed; the fields' names are explained in benchmarks/README.md.
struct Measured {
  std::string mode{}, op{}, layout{}, payload{}, codec{}, reduction{};
  std::int64_t tokens = 0;
  int num_sms = 0;
  double necessary_bytes = 0, logical_bytes = 0;
  bool verified = true;
};

/// Makes JSON lines and appends them to the file that was asked for.
class Lines {
 public:
  Lines(const Settings& o, int ranks, std::string machine)
      : o_(o), ranks_(ranks), machine_(std::move(machine)), file_(nullptr, &std::fclose) {
    if (!o.json.empty()) file_.reset(std::fopen(o.json.c_str(), "a"));
  }

  /// GB/s of this run's link; 0: not known.
  double ceiling = 0;

  nlohmann::ordered_json make(const Measured& what, const std::vector<double>& times_us) const {
    const double time = median(times_us);
    const auto known = [&](double value) { return ceiling > 0 ? nlohmann::ordered_json(value) : nullptr; };
    return {{"commit", o_.commit},
            {"date", o_.date},
            {"machine", machine_},
            {"backend", "cuda"},
            {"ranks", ranks_},
            {"nodes", 1},
            {"ranks_as", "threads"},
            {"mode", what.mode},
            {"op", what.op},
            {"layout", what.layout},
            {"payload", what.payload},
            {"codec", what.codec},
            {"reduction", what.reduction},
            {"tokens", what.tokens},
            {"hidden", o_.hidden},
            {"top_k", o_.top_k},
            {"experts", o_.experts},
            {"routing", o_.routing},
            {"network", "none"},
            {"link_limit_gbps", nullptr},
            {"launch", o_.launch},
            {"num_sms", what.num_sms},
            {"calls", times_us.size()},
            {"time_us_median", time},
            {"time_us_p90", quantile(times_us, 0.9)},
            {"time_us_p99", quantile(times_us, 0.99)},
            {"necessary_bytes", what.necessary_bytes},
            {"ceiling_gbps", known(ceiling)},
            {"fraction", known(what.necessary_bytes / (time * 1e3) / ceiling)},
            {"logical_gbps", what.logical_bytes / (time * 1e3)},
            {"verified", what.verified}};
  }
  void append(const nlohmann::ordered_json& line) {
    if (!file_) return;
    std::fprintf(file_.get(), "%s\n", line.dump().c_str());
    std::fflush(file_.get());
  }

 private:
  const Settings& o_;
  const int ranks_;
  const std::string machine_;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
};

}  // namespace ferry::bench
