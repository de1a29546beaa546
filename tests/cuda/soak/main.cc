// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The soak: very many random calls on GPUs, each compared on the device, element by element. Layouts, numbers of tokens (also
// none), SM budgets, results in windows and owned, cached handles, combine inputs in place, delays before signals; every few
// thousand calls a fresh group, which begins and ends with a round trip compared with the reference on the host.
//
//     ferry_soak [--calls N] [--ranks R] [--seed S] [--seconds S] [--mode mixed|throughput|latency]
#include <fmt/format.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

#include "soak/checks.h"
#include "support/runner.h"

namespace ferry::test {
namespace {

constexpr int kMaxTokens = 256, kFewTokens = 24, kTopK = 8, kExpertsPerRank = 4, kWidth = 264;
constexpr std::int64_t kCallsPerGroup = 4000;
constexpr int kRoundsPerLook = 32;  ///< rounds between looks at the report: nothing waits for the host in between
constexpr std::chrono::seconds kTimeout{5};

struct Options {
  std::int64_t calls = 100000;
  int ranks = 0;  ///< 0: one on each GPU, at least two
  std::uint64_t seed = 1;
  int seconds = 230;
  std::string mode = "mixed";  ///< calls of both modes in one group, or of one
};

void check(cudaError_t status, const char* what) {
  require(status == cudaSuccess, std::string(what) + ": " + cudaGetErrorString(status));
}

std::string describe(const SoakReport& report) {
  static constexpr const char* kNames[] = {"num_rows", "source_offsets", "expert_counts", "expert_offsets",
                                           "payload",  "topk_ids",       "topk_weights",  "the combined rows"};
  return fmt::format("{} wrong values, the first in {} at row {} column {}: {} instead of {} (seed {:#x})",
                     report.errors, kNames[report.what % std::size(kNames)], report.row, report.column, report.seen,
                     report.wanted, report.seed);
}

/// Numbers that all ranks draw alike.
class Dice {
 public:
  explicit Dice(std::uint64_t seed) : seed_(seed) {}
  int below(int n) { return static_cast<int>(hash(seed_, ++count_) % static_cast<std::uint64_t>(n)); }
  bool once_in(int n) { return below(n) == 0; }

 private:
  std::uint64_t seed_, count_ = 0;
};

/// Everything about a call but its data.
struct Plan {
  SoakCall call;
  DispatchArgs dispatch;  ///< without tensors
  bool cached = false, in_place = false, twice = false;
  bool apart = false;  ///< sent now, received later
  Reduction reduction;
  CombineArgs::Weighting weighting = CombineArgs::Weighting::kNone;
  int combine_sms = 0;
  int sleeper = -1;  ///< a rank that comes late
};

Plan draw_plan(std::uint64_t seed, int rank, int num_ranks, const std::string& mode) {
  Dice dice(seed);
  Plan plan;
  SoakCall& call = plan.call;
  call.seed = seed;
  call.rank = rank;
  call.num_ranks = num_ranks;
  call.num_experts = kExpertsPerRank * num_ranks;
  call.top_k = 1 + dice.below(kTopK);
  call.width = dice.once_in(8) ? kWidth : 8 * (1 + dice.below(kWidth / 8));
  const int most = dice.once_in(16) ? kMaxTokens : kFewTokens;  // several blocks of each kernel, or one
  for (int r = 0; r < num_ranks; ++r) call.tokens[r] = dice.once_in(6) ? 0 : dice.below(most + 1);
  const bool latency = mode == "latency" || (mode == "mixed" && dice.once_in(2));
  constexpr Layout kLayouts[] = {Layout::kRankMajor, Layout::kExpertPadded, Layout::kExpertMajor};
  call.layout = kLayouts[dice.below(latency ? 2 : 3)];
  constexpr int kAlignments[] = {1, 8, 128};
  if (call.layout == Layout::kExpertMajor) call.alignment = kAlignments[dice.below(3)];

  constexpr int kSms[] = {0, 1, 2, 3, 8, 24};
  plan.dispatch.mode = latency ? Mode::kLatency : Mode::kThroughput;
  plan.apart = dice.once_in(3);
  plan.dispatch.layout = call.layout;
  plan.dispatch.alignment = call.alignment;
  plan.dispatch.zero_padding = dice.once_in(3) && call.layout == Layout::kExpertMajor;
  plan.dispatch.host_counts = dice.once_in(4);
  plan.dispatch.output = dice.once_in(4) ? Output::kOwned : Output::kWindow;
  plan.dispatch.num_sms = kSms[dice.below(6)];
  // A token may name an expert again and again, so an expert may want as many rows as there are choices.
  if (call.layout == Layout::kExpertPadded)
    plan.dispatch.expert_capacity = num_ranks * kMaxTokens * kTopK / kExpertsPerRank;

  const bool by_token = call.layout == Layout::kRankMajor;
  constexpr Reduction::Group kGroups[] = {Reduction::Group::kRank, Reduction::Group::kNode, Reduction::Group::kChoice};
  plan.reduction.group = kGroups[dice.below(by_token ? 2 : 3)];
  if (plan.reduction.group == Reduction::Group::kRank && dice.once_in(3))
    plan.reduction.order = Reduction::Order::kLastChoice;
  constexpr CombineArgs::Weighting kWeightings[] = {
      CombineArgs::Weighting::kNone, CombineArgs::Weighting::kFromDispatch, CombineArgs::Weighting::kGiven};
  if (!by_token) plan.weighting = kWeightings[dice.below(3)];
  call.weighted = plan.weighting != CombineArgs::Weighting::kNone;
  plan.in_place = dice.once_in(2) && !latency && (by_token || plan.reduction.group == Reduction::Group::kChoice);
  plan.combine_sms = kSms[dice.below(6)];
  plan.cached = dice.once_in(4);
  plan.twice = dice.once_in(5);
  if (dice.once_in(500)) plan.sleeper = dice.below(num_ranks);
  return plan;
}

/// A group that carries every plan, and the case of its round trips through the reference.
Case draw_group(std::uint64_t seed, int num_ranks) {
  Dice dice(hash(seed, 77));
  Case c;
  c.seed = seed;
  c.backend = "cuda";
  c.nodes = {num_ranks};
  c.num_experts = kExpertsPerRank * num_ranks;
  c.top_k = kTopK;
  c.tokens.assign(static_cast<std::size_t>(num_ranks), kMaxTokens);
  c.traffic = Traffic::kZipf;
  c.blocks = {{DType::kBf16, kWidth}};
  c.combine_width = kWidth;
  c.layout = dice.once_in(2) ? Layout::kRankMajor : Layout::kExpertMajor;
  c.num_flights = 1 + dice.below(3);
  constexpr std::int64_t kDelays[] = {0, 0, 2'000, 20'000, 100'000};
  c.max_signal_delay_ns = kDelays[dice.below(5)];
  c.timeout = kTimeout;
  c.mode = dice.once_in(2) && c.layout == Layout::kRankMajor ? Mode::kLatency : Mode::kThroughput;
  return c;
}

GroupConfig config_of(const Case& c) {
  GroupConfig config = group_config(c);
  // Calls of both modes; in latency mode, too, an expert may want as many rows as there are choices.
  config.limits.max_latency_tokens = kMaxTokens * kTopK / kExpertsPerRank;
  // Some results at a time: asking the driver for memory may wait for kernels of other ranks on the same GPU.
  config.limits.owned_rows = 6 * c.num_ranks() * kMaxTokens * kTopK;
  return config;
}

/// One rank: its memory, its stream, its calls.
class Soaker {
 public:
  Soaker(const Options& options, Rank rank, std::atomic<std::int64_t>& done)
      : options_(options), rank_(rank), done_(done) {
    device_ = rank.rank % num_devices();
    use_device(device_);
    load_checks();
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
    constexpr std::size_t kRowBytes = 2 * kWidth + 16;
    const auto rows = static_cast<std::size_t>(rank.size * kMaxTokens * kTopK + 128 * kExpertsPerRank);
    inputs_.payload = allocate(kMaxTokens * kRowBytes);
    inputs_.ids = static_cast<std::int32_t*>(allocate(kMaxTokens * kTopK * 4));
    inputs_.weights = static_cast<float*>(allocate(kMaxTokens * kTopK * 4));
    x_bytes_ = kExpertsPerRank * rows * kRowBytes;
    x_ = allocate(x_bytes_);
    report_ = static_cast<SoakReport*>(allocate(sizeof(SoakReport)));
    check(cudaMemset(report_, 0, sizeof(SoakReport)), "cudaMemset");
    check(cudaDeviceSynchronize(), "cudaMemset");
  }
  Soaker(const Soaker&) = delete;
  Soaker& operator=(const Soaker&) = delete;
  ~Soaker() {
    for (void* block : blocks_) cudaFree(block);
    cudaStreamDestroy(stream_);
  }

  void run() {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(options_.seconds);
    std::uint64_t number = 0;
    while (go_on(calls_ < options_.calls && std::chrono::steady_clock::now() < end)) {
      const Case c = draw_group(hash(options_.seed, 1, number++), rank_.size);
      try {
        run_group(c, number);
      } catch (const std::exception& error) {
        throw Failure(fmt::format("group {} after {} calls: {}\n  {}", number, calls_, error.what(), describe(c)));
      }
    }
  }

 private:
  void* allocate(std::size_t bytes) {
    void* block = nullptr;
    check(cudaMalloc(&block, bytes), "cudaMalloc");
    blocks_.push_back(block);
    return block;
  }

  /// Rank 0 decides for all.
  bool go_on(bool mine) {
    const std::byte word{static_cast<unsigned char>(mine ? 1 : 0)};
    return rank_.meeting->all_gather({&word, 1}, kTimeout)[0][0] == std::byte{1};
  }

  void run_group(const Case& c, std::uint64_t number) {
    Group group = make_group(c, rank_, config_of(c));
    const Reference reference(c, 0);
    compare_with_reference(group, reference);
    const std::int64_t until = std::min(options_.calls, calls_ + kCallsPerGroup);
    int looked = 0;
    for (std::uint64_t i = 0; calls_ < until; ++i) {
      const Plan plan = draw_plan(hash(options_.seed, 2, number, i), rank_.rank, rank_.size, options_.mode);
      one_round(group, plan);
      if (++looked % kRoundsPerLook == 0) look(group);
    }
    look(group);
    compare_with_reference(group, reference);
    if (rank_.rank == 0) done_ = calls_;
    // Giving memory back waits for whatever runs on the GPU, and keeps the driver from ranks that others there wait for.
    rank_.meeting->all_gather({}, kTimeout);
  }

  void compare_with_reference(Group& group, const Reference& reference) {
    Round round(reference, rank_.rank);
    const DispatchResult arrived = group.dispatch(round.dispatch_args());
    round.check(arrived);
    round.check(group.combine(round.combine_args(arrived)));
    calls_ += 2;
  }

  void look(Group& group) {
    check(cudaStreamSynchronize(stream_), "the soak's stream");
    group.check();
    SoakReport report;
    check(cudaMemcpyAsync(&report, report_, sizeof(report), cudaMemcpyDeviceToHost, stream_), "cudaMemcpy");
    check(cudaStreamSynchronize(stream_), "cudaMemcpy");
    require(report.errors == 0, describe(report));
  }

  void one_round(Group& group, const Plan& plan) {
    const SoakCall& call = plan.call;
    if (plan.sleeper == rank_.rank) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    make_inputs(call, inputs_, stream_);
    DispatchArgs send = plan.dispatch;
    send.payload = {Tensor::contiguous(inputs_.payload, DType::kBf16, {call.own_tokens(), call.width})};
    send.topk_ids = Tensor::contiguous(inputs_.ids, DType::kInt32, {call.own_tokens(), call.top_k});
    send.topk_weights = Tensor::contiguous(inputs_.weights, DType::kFp32, {call.own_tokens(), call.top_k});
    send.stream = stream_;
    DispatchResult arrived = plan.apart ? group.dispatch_send(send).receive() : group.dispatch(send);
    check_arrivals(call, arrived, report_, stream_);
    ++calls_;
    if (plan.cached) {
      DispatchArgs cached = send;
      cached.topk_ids = Tensor{};
      const DispatchResult first = std::move(arrived);
      cached.handle = &first.handle;
      arrived = group.dispatch(cached);
      check_arrivals(call, arrived, report_, stream_);
      ++calls_;
    }
    for (int turn = 0; turn <= (plan.twice ? 1 : 0); ++turn) combine(group, plan, arrived);
  }

  void combine(Group& group, const Plan& plan, const DispatchResult& arrived) {
    const SoakCall& call = plan.call;
    CombineArgs back;
    back.handle = &arrived.handle;
    back.x = plan.in_place ? group.combine_input(arrived.handle, DType::kBf16, call.width) : own_rows(arrived, call);
    make_returned(call, arrived, back.x, stream_);
    back.reduction = plan.reduction;
    back.weighting = plan.weighting;
    if (plan.weighting == CombineArgs::Weighting::kGiven)
      back.weights = Tensor::contiguous(inputs_.weights, DType::kFp32, {call.own_tokens(), call.top_k});
    back.num_sms = plan.combine_sms;
    back.stream = stream_;
    const CombineResult returned = plan.apart ? group.combine_send(back).receive() : group.combine(back);
    check_sums(call, returned.out, report_, stream_);
    ++calls_;
  }

  /// Memory in the shape of the result's rows.
  Tensor own_rows(const DispatchResult& arrived, const SoakCall& call) const {
    const Tensor& like = arrived.payload[0];
    const auto bytes = static_cast<std::size_t>(like.num_elements() / std::max<std::int64_t>(1, call.width)) *
                       static_cast<std::size_t>(call.width) * 2;
    require(bytes <= x_bytes_,
            fmt::format("the soak needs {} bytes for the experts' rows, it has {}", bytes, x_bytes_));
    if (like.ndim == 3) return Tensor::contiguous(x_, DType::kBf16, {like.shape[0], like.shape[1], call.width});
    return Tensor::contiguous(x_, DType::kBf16, {like.shape[0], call.width});
  }

  const Options options_;
  const Rank rank_;
  std::atomic<std::int64_t>& done_;
  int device_ = 0;
  cudaStream_t stream_ = nullptr;
  std::vector<void*> blocks_;
  SoakInputs inputs_;
  void* x_ = nullptr;
  std::size_t x_bytes_ = 0;
  SoakReport* report_ = nullptr;
  std::int64_t calls_ = 0;
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; i += 2) {
    require(i + 1 < argc, fmt::format("{} wants a value", argv[i]));
    const std::string name = argv[i];
    if (name == "--mode") {
      options.mode = argv[i + 1];
      require(options.mode == "mixed" || options.mode == "throughput" || options.mode == "latency",
              fmt::format("--mode is mixed, throughput or latency, not {}", options.mode));
      continue;
    }
    const std::int64_t value = std::stoll(argv[i + 1]);
    if (name == "--calls") {
      options.calls = value;
    } else if (name == "--ranks") {
      options.ranks = static_cast<int>(value);
    } else if (name == "--seed") {
      options.seed = static_cast<std::uint64_t>(value);
    } else if (name == "--seconds") {
      options.seconds = static_cast<int>(value);
    } else {
      throw Failure(fmt::format("unknown option {}", name));
    }
  }
  return options;
}

int soak(Options options) {
  if (num_devices() == 0) {
    fmt::print("soak: skipped, no GPU\n");
    return 0;
  }
  if (options.ranks == 0) options.ranks = std::max(2, num_devices());
  require(options.ranks <= kMaxSoakRanks, fmt::format("at most {} ranks", kMaxSoakRanks));
  std::atomic<std::int64_t> done{0};
  const auto begin = std::chrono::steady_clock::now();
  run_ranks(
      options.ranks, RanksAs::kThreads, [&](Rank rank) { Soaker(options, rank, done).run(); },
      std::chrono::seconds(options.seconds + 30));
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const bool all = done >= options.calls;
  fmt::print("soak: {} calls of {} ranks on {} GPUs in {:.1f} s, seed {}, every result as expected{}\n", done.load(),
             options.ranks, num_devices(), seconds, options.seed, all ? "" : "; out of time");
  return all ? 0 : 1;
}

}  // namespace
}  // namespace ferry::test

int main(int argc, char** argv) {
  try {
    return ferry::test::soak(ferry::test::parse(argc, argv));
  } catch (const std::exception& error) {
    fmt::print(stderr, "soak: {}\n", error.what());
    return 1;
  }
}
