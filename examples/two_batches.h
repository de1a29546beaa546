// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Two-batch overlap, whatever computes: the tokens of a rank are cut in two batches, and while the rows of one are on their way
// the rank computes for the other. A send hands back a hook; between the two nothing of Ferry runs. Everything is marked on a
// timeline. 05_two_batch_overlap.cc runs it on a host, cuda/05_two_batch_overlap.cu on GPUs.
#pragma once

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "as_threads.h"
#include "ferry/ferry.h"

namespace example {

struct Shape {
  int ranks = 2, layers = 3, experts = 8, top_k = 2;
  std::int64_t tokens = 32, hidden = 64;  ///< tokens of a rank, both batches together
};

/// What differs between a host and a GPU: memory, the two computations of a layer, and moments in time.
class Machine {
 public:
  virtual ~Machine() = default;
  virtual const char* backend() const = 0;
  virtual int device() const = 0;
  /// A stream of the device, or null.
  virtual void* stream() const = 0;
  /// Memory that lives as long as the machine.
  virtual void* allocate(std::size_t bytes) = 0;
  virtual void put(void* to, const void* from, std::size_t bytes) = 0;
  virtual void fetch(void* to, const void* from, std::size_t bytes) = 0;
  /// x of T rows becomes what the tokens' own part of a layer makes of it.
  virtual void attention(float* x, std::int64_t tokens) = 0;
  /// y of expert e: its counts[e] rows of `rows`, [E_local, capacity, hidden], through the expert.
  virtual void experts(const float* rows, const std::int32_t* counts, float* y, int num_local,
                       std::int64_t capacity) = 0;
  /// Forgets all marks.
  virtual void forget() = 0;
  /// This moment of the rank's work; microseconds_at() of it may be asked for after wait().
  virtual int mark() = 0;
  virtual double microseconds_at(int mark) = 0;
  virtual void wait() = 0;
};

/// What a rank did, in the trace format that browsers and Perfetto show: chrome://tracing.
class Timeline {
 public:
  Timeline(Machine& machine, int rank) : machine_(machine), rank_(rank) {}

  /// `lane`: 0 is the rank's work, 1 and 2 the rows of a batch on their way.
  void add(const std::string& name, const char* kind, int lane, int begin, int end) {
    spans_.push_back({name, kind, lane, begin, end});
  }
  /// Marks what `work` does on the rank's lane; returns the marks before and after.
  template <class Work>
  std::pair<int, int> during(const std::string& name, const char* kind, Work&& work) {
    const int begin = machine_.mark();
    work();
    const int end = machine_.mark();
    add(name, kind, 0, begin, end);
    return {begin, end};
  }
  /// Events, with a comma behind each; `schedule` names the run, `start` is its first moment.
  std::string events(const std::string& schedule, double start) {
    std::string text;
    for (const Span& span : spans_) {
      const double begin = machine_.microseconds_at(span.begin), end = machine_.microseconds_at(span.end);
      char line[256];
      std::snprintf(
          line, sizeof(line),
          R"({"name":"%s","cat":"%s","ph":"X","ts":%.1f,"dur":%.1f,"pid":%d,"tid":%d,"args":{"schedule":"%s"}},)",
          span.name.c_str(), span.kind, begin - start, end - begin, rank_, span.lane, schedule.c_str());
      text += line;
      text += "\n";
    }
    return text;
  }
  double begin() { return machine_.microseconds_at(spans_.front().begin); }
  double end() {
    double last = begin();
    for (const Span& span : spans_) last = std::max(last, machine_.microseconds_at(span.end));
    return last;
  }

 private:
  struct Span {
    std::string name;
    const char* kind;
    int lane, begin, end;
  };
  Machine& machine_;
  const int rank_;
  std::vector<Span> spans_;
};

/// Some of a rank's tokens on their way through the layers.
class Batch {
 public:
  Batch(ferry::Group& group, Machine& machine, const Shape& shape, std::string name, int lane, std::int64_t first,
        std::int64_t tokens)
      : group_(group), machine_(machine), shape_(shape), name_(std::move(name)), lane_(lane), tokens_(tokens) {
    num_local_ = shape.experts / shape.ranks;
    capacity_ = shape.tokens * shape.ranks;
    input_ = input(first);
    x_ = static_cast<float*>(machine.allocate(input_.size() * sizeof(float)));
    const std::vector<std::int32_t> ids = choices(first);
    ids_ = machine.allocate(ids.size() * sizeof(std::int32_t));
    machine.put(ids_, ids.data(), ids.size() * sizeof(std::int32_t));
    const std::vector<float> weights(ids.size(), 1.0f / static_cast<float>(shape.top_k));
    weights_ = machine.allocate(weights.size() * sizeof(float));
    machine.put(weights_, weights.data(), weights.size() * sizeof(float));
    y_ = static_cast<float*>(
        machine.allocate(static_cast<std::size_t>(num_local_ * capacity_ * shape.hidden) * sizeof(float)));
  }

  /// Tokens as before the layers.
  void start(Timeline& timeline) {
    timeline_ = &timeline;
    machine_.put(x_, input_.data(), input_.size() * sizeof(float));
  }

  void attention() {
    timeline_->during("attention " + name_, "computation", [&] { machine_.attention(x_, tokens_); });
  }

  /// Sends the rows; the hook that is returned receives them.
  std::function<void()> dispatch() {
    using ferry::DType;
    using ferry::Tensor;
    ferry::DispatchArgs args;
    args.payload = {Tensor::contiguous(static_cast<void*>(x_), DType::kFp32, {tokens_, shape_.hidden})};
    args.topk_ids = Tensor::contiguous(ids_, DType::kInt32, {tokens_, shape_.top_k});
    args.topk_weights = Tensor::contiguous(weights_, DType::kFp32, {tokens_, shape_.top_k});
    args.mode = ferry::Mode::kLatency;
    args.layout = ferry::Layout::kExpertPadded;
    args.expert_capacity = capacity_;
    args.host_counts = false;  // on a GPU the host waits for nothing
    args.stream = machine_.stream();
    auto pending = std::make_shared<ferry::PendingDispatch>();
    const int sent =
        timeline_->during("dispatch " + name_ + ", send", "send", [&] { *pending = group_.dispatch_send(args); })
            .second;
    return [this, pending, sent] {
      const int begin =
          timeline_->during("dispatch " + name_ + ", receive", "receive", [&] { arrived_ = pending->receive(); }).first;
      timeline_->add("rows of " + name_, "in flight", lane_, sent, begin);
    };
  }

  void experts() {
    timeline_->during("experts " + name_, "computation", [&] {
      machine_.experts(static_cast<const float*>(arrived_.payload[0].data),
                       static_cast<const std::int32_t*>(arrived_.expert_counts.data), y_, num_local_, capacity_);
    });
  }

  /// Sends the experts' results back; the hook receives their sums.
  std::function<void()> combine() {
    using ferry::DType;
    using ferry::Tensor;
    ferry::CombineArgs args;
    args.handle = &arrived_.handle;
    args.x = Tensor::contiguous(static_cast<void*>(y_), DType::kFp32, {num_local_, capacity_, shape_.hidden});
    args.weighting = ferry::CombineArgs::Weighting::kFromDispatch;
    args.out = Tensor::contiguous(static_cast<void*>(x_), DType::kFp32, {tokens_, shape_.hidden});
    args.stream = machine_.stream();
    auto pending = std::make_shared<ferry::PendingCombine>();
    const int sent =
        timeline_->during("combine " + name_ + ", send", "send", [&] { *pending = group_.combine_send(args); }).second;
    return [this, pending, sent] {
      const int begin =
          timeline_->during("combine " + name_ + ", receive", "receive", [&] { pending->receive(); }).first;
      timeline_->add("results of " + name_, "in flight", lane_, sent, begin);
    };
  }

  /// Its tokens after the layers.
  std::vector<float> result() {
    std::vector<float> rows(static_cast<std::size_t>(tokens_ * shape_.hidden));
    machine_.fetch(rows.data(), x_, rows.size() * sizeof(float));
    return rows;
  }

 private:
  std::vector<float> input(std::int64_t first) const {
    std::vector<float> x;
    for (std::int64_t t = first; t < first + tokens_; ++t) {
      for (std::int64_t j = 0; j < shape_.hidden; ++j)
        x.push_back(static_cast<float>((group_.rank() * 31 + t * 7 + j * 3) % 64) / 64.0f);
    }
    return x;
  }
  /// Distinct experts, other ones for each token.
  std::vector<std::int32_t> choices(std::int64_t first) const {
    std::vector<std::int32_t> ids;
    for (std::int64_t t = first; t < first + tokens_; ++t) {
      for (int k = 0; k < shape_.top_k; ++k)
        ids.push_back(static_cast<std::int32_t>((group_.rank() + t * 5 + k * 3) % shape_.experts));
    }
    return ids;
  }

  ferry::Group& group_;
  Machine& machine_;
  Timeline* timeline_ = nullptr;
  const Shape shape_;
  const std::string name_;
  const int lane_;
  const std::int64_t tokens_;
  std::int64_t capacity_ = 0;
  int num_local_ = 0;
  std::vector<float> input_;
  float *x_ = nullptr, *y_ = nullptr;
  void *ids_ = nullptr, *weights_ = nullptr;
  ferry::DispatchResult arrived_;
};

/// All tokens at once: while rows are on their way, the rank waits.
inline void run_layers(Batch& batch, const Shape& shape) {
  for (int layer = 0; layer < shape.layers; ++layer) {
    batch.attention();
    batch.dispatch()();
    batch.experts();
    batch.combine()();
  }
}

/// While the rows of one batch are on their way, the rank computes for the other. All ranks send in this order; each receives
/// when it needs the rows.
inline void run_layers(Batch& a, Batch& b, const Shape& shape) {
  std::function<void()> results_of_b = [] {};
  for (int layer = 0; layer < shape.layers; ++layer) {
    a.attention();
    const auto rows_of_a = a.dispatch();
    results_of_b();  // of the layer before
    b.attention();
    const auto rows_of_b = b.dispatch();
    rows_of_a();
    a.experts();
    const auto results_of_a = a.combine();
    rows_of_b();
    b.experts();
    results_of_b = b.combine();
    results_of_a();
  }
  results_of_b();
}

/// The largest of the ranks' values; a barrier, too.
class Largest {
 public:
  explicit Largest(int ranks) : values_(static_cast<std::size_t>(ranks)), barrier_(ranks) {}
  double of_all(int rank, double value) {
    values_[static_cast<std::size_t>(rank)] = value;
    barrier_.arrive_and_wait();
    const double largest = *std::max_element(values_.begin(), values_.end());
    barrier_.arrive_and_wait();
    return largest;
  }
  /// The others do not wait for a rank that has failed.
  void leave() { barrier_.arrive_and_drop(); }

 private:
  std::vector<double> values_;
  std::barrier<> barrier_;
};

/// What came of a schedule on one rank.
struct Outcome {
  std::vector<float> rows;
  double microseconds = 0;  ///< of the slowest rank
  std::string events;
};

inline Outcome run_schedule(const std::vector<Batch*>& batches, ferry::Group& group, Machine& machine,
                            const Shape& shape, Largest& largest) {
  machine.forget();
  Timeline timeline(machine, group.rank());
  for (Batch* batch : batches) batch->start(timeline);
  machine.wait();
  largest.of_all(group.rank(), 0);
  if (batches.size() == 1) run_layers(*batches[0], shape);
  if (batches.size() == 2) run_layers(*batches[0], *batches[1], shape);
  machine.wait();
  group.check();
  Outcome outcome;
  for (Batch* batch : batches) {
    const std::vector<float> rows = batch->result();
    outcome.rows.insert(outcome.rows.end(), rows.begin(), rows.end());
  }
  outcome.microseconds = largest.of_all(group.rank(), timeline.end() - timeline.begin());
  outcome.events = timeline.events(batches.size() == 2 ? "two batches" : "one batch", timeline.begin());
  return outcome;
}

/// One rank: both schedules in turn, whose results must agree bit for bit. Of each the fastest of `runs` is shown, the first one
/// left out; its events go to `events`.
inline bool run_rank(ferry::Meeting& meeting, Machine& machine, const Shape& shape, int runs, Largest& largest,
                     std::string& events) {
  const ferry::GroupLimits limits{.num_experts = shape.experts,
                                  .max_tokens = 1,
                                  .max_latency_tokens = shape.tokens,
                                  .max_top_k = shape.top_k,
                                  .hidden = shape.hidden,
                                  .dtype = ferry::DType::kFp32};
  ferry::Group group = ferry::Group::create(
      {.limits = limits, .backend = machine.backend(), .device = machine.device(), .timeout = std::chrono::seconds(20)},
      meeting);
  const std::int64_t half = shape.tokens / 2, rest = shape.tokens - half;
  Batch all(group, machine, shape, "all", 1, 0, shape.tokens);
  Batch a(group, machine, shape, "A", 1, 0, half), b(group, machine, shape, "B", 2, half, rest);
  const std::vector<Batch*> schedules[2] = {{&all}, {&a, &b}};
  Outcome fastest[2];
  bool same = true;
  for (int run = 0; run <= runs; ++run) {
    Outcome outcomes[2];
    for (int i = 0; i < 2; ++i) {
      outcomes[i] = run_schedule(schedules[i], group, machine, shape, largest);
      if (run <= 1 || outcomes[i].microseconds < fastest[i].microseconds) fastest[i] = outcomes[i];
    }
    same = same && outcomes[0].rows == outcomes[1].rows;
  }
  events = fastest[0].events + fastest[1].events;
  if (group.rank() == 0)
    std::printf("one batch %.0f us, two batches %.0f us\n", fastest[0].microseconds, fastest[1].microseconds);
  std::printf("rank %d: the results %s\n", group.rank(), same ? "agree" : "DIFFER");
  largest.of_all(group.rank(), 0);  // who leaves may give memory back while kernels of others on its device wait
  return same;
}

struct Options {
  Shape shape;
  int runs = 2;
  std::string json, machine = "unknown", commit = "unknown";
};

/// --ranks N --layers N --experts N --tokens N --hidden N --runs N --json FILE --machine NAME --commit NAME; false: it has said what is wrong.
inline bool parse(int argc, char** argv, Options& options) {
  Shape& shape = options.shape;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string option = argv[i], value = argv[i + 1];
    const int number = std::atoi(value.c_str());
    if (option == "--ranks")
      shape.ranks = number;
    else if (option == "--layers")
      shape.layers = number;
    else if (option == "--experts")
      shape.experts = number;
    else if (option == "--tokens")
      shape.tokens = number;
    else if (option == "--hidden")
      shape.hidden = number;
    else if (option == "--runs")
      options.runs = number;
    else if (option == "--json")
      options.json = value;
    else if (option == "--machine")
      options.machine = value;
    else if (option == "--commit")
      options.commit = value;
    else
      std::fprintf(stderr, "%s is no option\n", option.c_str());
  }
  const bool good = argc % 2 == 1 && shape.ranks > 0 && shape.layers > 0 && shape.tokens > 1 && shape.hidden > 0 &&
                    options.runs > 0 && shape.experts >= shape.top_k && shape.experts % shape.ranks == 0;
  if (!good) std::fprintf(stderr, "expected: --option value, numbers above 0, --experts a multiple of --ranks\n");
  return good;
}

/// What --json asks for: everybody's events, and what they are about.
inline bool write_timeline(const Options& options, const char* backend, const std::vector<std::string>& events) {
  std::FILE* file = std::fopen(options.json.c_str(), "w");
  if (file == nullptr) return false;
  const Shape& shape = options.shape;
  std::fprintf(file,
               "{\"otherData\":{\"commit\":\"%s\",\"machine\":\"%s\",\"backend\":\"%s\",\"ranks\":%d,\"tokens\":%ld,"
               "\"hidden\":%ld,\"experts\":%d,\"top_k\":%d,\"layers\":%d,\"runs\":%d},\n\"traceEvents\":[\n",
               options.commit.c_str(), options.machine.c_str(), backend, shape.ranks, static_cast<long>(shape.tokens),
               static_cast<long>(shape.hidden), shape.experts, shape.top_k, shape.layers, options.runs);
  std::string all;
  for (const std::string& of_rank : events) all += of_rank;
  if (all.size() > 1) all.resize(all.size() - 2);  // no comma behind the last
  std::fprintf(file, "%s\n]}\n", all.c_str());
  return std::fclose(file) == 0;
}

/// The example: a rank on each thread, with the machine that `make_machine(rank)` gives it; the exit code.
template <class MakeMachine>
int run_two_batches(const Options& options, MakeMachine&& make_machine) {
  std::vector<std::string> events(static_cast<std::size_t>(options.shape.ranks));
  Largest largest(options.shape.ranks);
  std::string backend;
  std::atomic<int> next{0};
  const int code = run_as_threads(options.shape.ranks, [&](ferry::Meeting& meeting) {
    const int place = next++;
    try {
      const auto machine = make_machine(place);
      if (place == 0) backend = machine->backend();
      return run_rank(meeting, *machine, options.shape, options.runs, largest, events[static_cast<std::size_t>(place)]);
    } catch (...) {
      largest.leave();
      throw;
    }
  });
  if (code != 0 || options.json.empty()) return code;
  return write_timeline(options, backend.c_str(), events) ? 0 : 1;
}

}  // namespace example
