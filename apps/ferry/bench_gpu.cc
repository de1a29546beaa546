// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// From the options of `ferry bench` to those of the GPU benchmark; what the latter does not measure is refused.
#include "bench_gpu.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <stdexcept>
#include <utility>

namespace ferry::bench {
namespace {

template <typename Value>
void expect(const char* option, const Value& seen, const Value& wanted) {
  if (seen == wanted) return;
  throw std::invalid_argument(
      fmt::format("ferry bench: {}: {} given, expected {} with --backend cuda", option, seen, wanted));
}

void check_case(const BenchCase& c) {
  const BenchCase usual;
  expect<std::string>("--ranks-as", c.ranks_as, "threads");
  expect("--nodes", c.nodes, 1);
  expect("--expert-capacity", c.expert_capacity, usual.expert_capacity);
  expect("--warmup", c.warmup, usual.warmup);
  expect("--sets", c.num_sets, usual.num_sets);
  expect("--seed", c.seed, usual.seed);
  expect("--deadline", c.deadline_s, usual.deadline_s);
}

bool is_latency(const BenchCase& c) {
  if (c.mode != "throughput" && c.mode != "latency")
    throw std::invalid_argument(fmt::format("ferry bench: --mode: {} given, expected throughput or latency", c.mode));
  return c.mode == "latency";
}

std::string dispatch_word(const BenchCase& c) {
  if (c.payload == "bf16" && c.layout == "rank_major") return c.output == "owned" ? "dispatch-owned" : "dispatch-bf16";
  if (c.output == "window" && c.payload == "bf16" && c.layout == "expert_major") return "dispatch-expert";
  if (c.output == "window" && c.payload == "fp8_f32" && c.layout == "rank_major") return "dispatch-fp8";
  throw std::invalid_argument(
      fmt::format("ferry bench: --payload {} --layout {} --output {} given, expected with --backend cuda: bf16 "
                  "rank_major window or "
                  "owned, bf16 expert_major window, or fp8_f32 rank_major window",
                  c.payload, c.layout, c.output));
}

std::string combine_word(const GpuBench& gpu_bench) {
  if (gpu_bench.bench_case.layout != "rank_major") {
    throw std::invalid_argument(fmt::format(
        "ferry bench: --layout: {} given, expected rank_major for combine with --backend cuda; --op dispatch "
        "leaves combine out",
        gpu_bench.bench_case.layout));
  }
  return "combine-" + (gpu_bench.input.empty() ? "window" : gpu_bench.input);
}

std::string throughput_word(const GpuBench& gpu_bench, const std::string& op) {
  if (op == "steps")
    throw std::invalid_argument("ferry bench: --op: steps given, expected dispatch or combine with --backend cuda");
  return op == "dispatch" ? dispatch_word(gpu_bench.bench_case) : combine_word(gpu_bench);
}

void check_throughput(const GpuBench& gpu_bench) {
  expect<std::string>("--codec", gpu_bench.bench_case.codec, "none");
  expect<std::string>("--reduction", gpu_bench.bench_case.reduction, "per_rank");
}

/// Steps are the halves of calls with hooks, which are launched apart, not as graphs.
std::string latency_word(const GpuBench& gpu_bench, const std::string& op) {
  if (op == "steps") {
    expect<std::string>("--launch", gpu_bench.launch, "direct");
    return "halves";
  }
  return op == "combine" && gpu_bench.bench_case.reduction == "flat" ? "combine-flat" : op;
}

void check_latency(const GpuBench& gpu_bench) {
  const BenchCase& c = gpu_bench.bench_case;
  const bool padded = c.layout == "expert_padded";
  if (c.payload != "bf16" || !(padded || c.layout == "rank_major") || !(c.codec == "none" || c.codec == "fp8_f32") ||
      !(c.reduction == "per_rank" || (padded && c.reduction == "flat")) || c.output != "window") {
    throw std::invalid_argument(fmt::format(
        "ferry bench: --payload {} --layout {} --codec {} --reduction {} --output {} given, expected with --backend "
        "cuda --mode latency: bf16, rank_major or expert_padded, none or fp8_f32, per_rank or (expert_padded) flat, "
        "window",
        c.payload, c.layout, c.codec, c.reduction, c.output));
  }
  if (!gpu_bench.input.empty()) expect<std::string>("--input", gpu_bench.input, "any");
}

}  // namespace

std::vector<std::string> gpu_arguments(const GpuBench& gpu_bench, const Origin& origin) {
  const BenchCase& c = gpu_bench.bench_case;
  check_case(c);
  const bool latency = is_latency(c);
  latency ? check_latency(gpu_bench) : check_throughput(gpu_bench);
  std::vector<std::string> words;
  for (const std::string& op : gpu_bench.ops)
    words.push_back(latency ? latency_word(gpu_bench, op) : throughput_word(gpu_bench, op));
  const std::vector<int> usual_sms{latency ? 0 : 16};
  std::vector<std::string> arguments{"ferry bench --backend cuda"};
  const auto add = [&](const char* option, auto value) {
    arguments.push_back(fmt::format("{}={}", option, std::move(value)));
  };
  add("--ops", fmt::join(words, ","));
  add("--tokens", fmt::join(gpu_bench.tokens, ","));
  add("--sms", fmt::join(gpu_bench.sms.empty() ? usual_sms : gpu_bench.sms, ","));
  if (latency) {
    add("--layout", c.layout);
    add("--codec", c.codec);
  }
  add("--ranks", c.ranks);
  add("--routing", c.routing);
  add("--experts", c.experts);
  add("--top-k", c.top_k);
  add("--hidden", c.hidden);
  if (c.iterations != 0) add("--iterations", c.iterations);
  if (gpu_bench.launch != "direct") add("--launch", gpu_bench.launch);
  if (!gpu_bench.json_path.empty()) add("--json", gpu_bench.json_path);
  add("--commit", origin.commit);
  add("--date", origin.date);
  return arguments;
}

}  // namespace ferry::bench
