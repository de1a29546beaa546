// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// `ferry demo`: a real mixture-of-experts layer on a real text, spread over ranks, compared with the same layer in one
// process.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "commands.h"
#include "demo_options.h"
#include "ferry/group.h"
#include "gpu_memory.h"
#include "json_file.h"
#include "layer.h"
#include "options.h"
#include "progress.h"
#include "ranks.h"
#include "reference.h"
#include "report.h"
#include "text.h"

namespace ferry::app {
namespace {

using Clock = std::chrono::steady_clock;

/// What a rank tells: the number of a case, and, once it is through, the result.
struct Note {
  std::uint32_t case_idx = 0;
  std::uint32_t has_result = 0;
};

void tell(RankPort& port, Note note, std::span<const std::byte> result) {
  std::vector<std::byte> message(sizeof(note) + result.size());
  std::memcpy(message.data(), &note, sizeof(note));
  std::copy(result.begin(), result.end(), message.begin() + sizeof(note));
  port.send(message);
}

std::unique_ptr<RankMemory> make_memory(const DemoOptions& options, int rank) {
  if (!options.on_gpus()) return make_host_memory();
  return make_gpu_memory({.rank = rank,
                          .num_ranks = options.ranks,
                          .ranks_as = options.ranks_as,
                          .lent_bytes = options.lent_bytes(rank),
                          .patience = 2 * options.timeout() + std::chrono::seconds(10)});
}

/// All that one rank does.
void run_rank(RankPort& port, const DemoOptions& options, const std::vector<DemoCase>& cases, const std::string& text) {
  const LayerInput input = layer_input(options, text, port.rank());
  const std::unique_ptr<RankMemory> memory = make_memory(options, port.rank());
  GroupConfig config = options.group_config();
  memory->configure(config);
  Group group = Group::create(config, port.meeting());
  // Taken back before the group goes, on every way out.
  port.set_stop([&group] { group.abort(); });
  const std::unique_ptr<RankPort, void (*)(RankPort*)> take_back(&port, [](RankPort* p) { p->set_stop({}); });
  for (std::uint32_t i = 0; i < cases.size(); ++i) {
    const LayerHooks hooks{.line_up = [&] { port.barrier(); }, .alive = [&] { tell(port, {.case_idx = i}, {}); }};
    const LayerResult result = run_layer(group, *memory, options, cases[i], input, hooks);
    tell(port, {.case_idx = i, .has_result = 1}, pack(result));
  }
}

/// Gathers the notes of all ranks and prints a case as soon as its last rank is through.
class Collector {
 public:
  Collector(DemoReport& report, const std::vector<DemoCase>& cases, Progress& progress)
      : report_(report), progress_(progress), runs_(cases.size()), num_results_(cases.size()) {
    for (std::size_t i = 0; i < cases.size(); ++i) {
      runs_[i].run = cases[i];
      runs_[i].ranks.resize(static_cast<std::size_t>(report.options.ranks));
    }
  }

  void take(int rank, std::span<const std::byte> message) {
    Note note;
    if (message.size() < sizeof(note)) throw std::runtime_error("a rank's note is cut short");
    std::memcpy(&note, message.data(), sizeof(note));
    CaseRun& run = runs_.at(note.case_idx);
    progress_.show(fmt::format("case {} of {}: {} ...", note.case_idx + 1, runs_.size(), run.run.name()));
    if (note.has_result == 0) return;
    run.ranks[static_cast<std::size_t>(rank)] = unpack_layer_result(message.subspan(sizeof(note)));
    if (++num_results_[note.case_idx] < report_.options.ranks) return;
    progress_.clear();
    print_steps(run);
    report_.cases.push_back(std::move(run));
  }

 private:
  DemoReport& report_;
  Progress& progress_;
  std::vector<CaseRun> runs_;
  std::vector<int> num_results_;
};

void verify(DemoReport& report, const std::string& text, Progress& progress) {
  const DemoOptions& options = report.options;
  std::vector<LayerInput> inputs;
  for (int rank = 0; rank < options.ranks; ++rank) inputs.push_back(layer_input(options, text, rank));
  const auto show = [&progress](const char* what) {
    return [&progress, what](double fraction) {
      progress.show(fmt::format("{} in one process: {:.0f} %", what, fraction * 100));
    };
  };
  const ReferenceResult reference = compute_reference(options, inputs, show("the same layer"));
  const ExactResult exact = compute_exactly(options, inputs, reference.ids, show("the layer in float64"));
  progress.clear();
  for (const CaseRun& run : report.cases) {
    report.differences.push_back(compare(run, reference, exact));
    if (report.failure.empty()) report.failure = first_difference(run.run, report.differences.back());
  }
}

/// The last line. The exit code says the same.
int conclude(DemoReport& report) {
  try {
    write_json_file(report.options.json, to_json(report));
  } catch (const std::exception& error) {
    if (report.failure.empty()) report.failure = error.what();
  }
  fmt::print("\n");
  if (report.failure.empty()) {
    fmt::print("verified\n");
  } else {
    std::string line = report.failure;
    std::replace(line.begin(), line.end(), '\n', ' ');
    fmt::print("FAILED: {}\n", line);
  }
  std::fflush(stdout);
  return report.failure.empty() ? kExitOk : kExitFailed;
}

int run_demo(DemoOptions options) {
  const auto begin = Clock::now();
  DemoReport report;
  std::vector<DemoCase> cases;
  std::string text;
  try {
    complete(options);
    cases = demo_cases(options, report.skipped);
    static_cast<void>(netns_of_ranks(options.netns, options.ranks, options.nodes));
    text = read_text(options.text);
  } catch (const std::exception& error) {
    fmt::print(stderr, "ferry demo: {}\n", error.what());
    return kExitBadUsage;
  }
  if (options.on_gpus()) prepare_for_gpus();
  report.options = options;
  report.text_bytes = text.size();
  print_header(report);

  Progress progress;
  Collector collector(report, cases, progress);
  Launch launch{.num_ranks = options.ranks, .as = options.ranks_as};
  launch.netns = netns_of_ranks(options.netns, options.ranks, options.nodes);
  // A rank that is silent because it waits for a lost peer says so within its timeout; only then is silence a failure.
  launch.silence_limit = options.timeout() + std::chrono::seconds(5);
  launch.on_message = [&](int rank, std::span<const std::byte> message) { collector.take(rank, message); };
  try {
    const auto failure = run_ranks(launch, [&](RankPort& port) { run_rank(port, options, cases, text); });
    progress.clear();
    if (failure) report.failure = failure->reason;
    if (failure && failure->stuck) {
      const int code = conclude(report);
      std::_Exit(code);  // threads that still run use what is on this stack
    }
    if (!failure) {
      print_load(report);
      verify(report, text, progress);
      print_differences(report);
    }
  } catch (const std::exception& error) {
    progress.clear();
    report.failure = error.what();
  }
  report.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  return conclude(report);
}

}  // namespace

void add_demo_command(Program& program, int& exit_code) {
  auto options = std::make_shared<DemoOptions>();
  Options demo =
      program.command("demo", "a mixture-of-experts layer on a text, spread over ranks and checked bit for bit",
                      [options, &exit_code] { exit_code = run_demo(*options); });
  add_demo_options(demo, *options);
}

}  // namespace ferry::app
