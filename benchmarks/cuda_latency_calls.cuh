// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Calls of latency mode as the benchmarks on GPUs make them: arguments, checks, the group, and what their lines share. For files of
// one program each.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "cuda_report.h"
#include "cuda_ruler.cuh"
#include "cuda_settings.h"
#include "ferry/ferry.h"
#include "options.h"

namespace {

using namespace ferry;

/// logfmt10 packs magnitudes below 1 only: the experts' rows are so many octaves smaller than what they got.
constexpr int kOctaves = 6;

__global__ void shrink_kernel(std::uint16_t* values, std::int64_t count) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step)
    values[i] = static_cast<std::uint16_t>(values[i] - (kOctaves << 7));
}

/// Every call's arguments, results and checks on one rank.
class Calls {
 public:
  Calls(RankBench& bench, const Settings& o, Group& group, std::int64_t tokens, int sms)
      : bench_(bench), o_(o), group_(group), tokens_(tokens), sms_(sms) {
    for (int s = 0; s < o.sets; ++s) inputs_.push_back(bench.make_inputs(tokens, s));
    const std::int64_t rows = (is_padded() ? num_local() : 1) * capacity();
    y_ = bench.allocate_array<std::uint16_t>(rows * o.hidden);
    out_ = bench.allocate_array<std::uint16_t>(tokens * o.hidden);
    fill_kernel<<<128, 256, 0, bench.stream_>>>(y_.get(), rows, o.hidden, bench.rank_, 0);
    shrink_kernel<<<128, 256, 0, bench.stream_>>>(y_.get(), rows * o.hidden);
    check(cudaStreamSynchronize(bench.stream_), "filling inputs");
  }

  bool is_padded() const { return o_.layout == "expert_padded"; }
  bool is_coded() const { return o_.codec == "fp8_f32"; }
  Codec combine_codec() const {
    if (o_.combine_codec == "fp8_f32") return Codec::kFp8F32;
    return o_.combine_codec == "logfmt10" ? Codec::kLogfmt10 : Codec::kNone;
  }
  int num_local() const { return o_.experts / bench_.ranks_; }
  /// Rows of an expert, or (rank_major) of a rank.
  std::int64_t capacity() const { return tokens_ * bench_.ranks_; }

  DispatchArgs dispatch_args(int set) const {
    const Inputs& in = inputs_[static_cast<std::size_t>(set)];
    DispatchArgs args;
    args.mode = Mode::kLatency;
    args.layout = is_padded() ? Layout::kExpertPadded : Layout::kRankMajor;
    args.codec = is_coded() ? Codec::kFp8F32 : Codec::kNone;
    args.payload = {Tensor::contiguous(static_cast<void*>(in.x.get()), DType::kBf16, {tokens_, o_.hidden})};
    args.topk_ids = Tensor::contiguous(static_cast<void*>(in.ids.get()), DType::kInt64, {tokens_, o_.top_k});
    args.topk_weights = Tensor::contiguous(static_cast<void*>(in.weights.get()), DType::kFp32, {tokens_, o_.top_k});
    args.expert_capacity = is_padded() ? capacity() : 0;
    args.host_counts = false;
    args.num_sms = sms_;
    args.stream = bench_.stream_;
    return args;
  }
  CombineArgs combine_args(const DispatchResult& from, Reduction reduction) const {
    CombineArgs args;
    args.handle = &from.handle;
    void* rows = y_.get();
    args.x = is_padded() ? Tensor::contiguous(rows, DType::kBf16, {num_local(), capacity(), o_.hidden})
                         : Tensor::contiguous(rows, DType::kBf16, {capacity(), o_.hidden});
    args.reduction = reduction;
    if (is_padded()) args.weighting = CombineArgs::Weighting::kFromDispatch;
    args.codec = combine_codec();
    args.out = Tensor::contiguous(static_cast<void*>(out_.get()), DType::kBf16, {tokens_, o_.hidden});
    args.num_sms = sms_;
    args.stream = bench_.stream_;
    return args;
  }

  /// The experts return the rows they got, kOctaves smaller. Weighted (expert_padded), a token comes back as twice that, else as that
  /// times the number of its ranks; up to what the codecs made of it.
  bool verify() {
    const DispatchResult arrived = group_.dispatch(dispatch_args(0));
    check(cudaStreamSynchronize(bench_.stream_), "dispatch");
    const std::int64_t seen = return_rows(arrived);
    bench_.shared_.sync
        .arrive_and_wait();  // copies may queue behind kernels that wait for them, where ranks share a GPU
    if (seen != rows_for_me()) return false;
    group_.combine(combine_args(arrived, Reduction::per_rank()));
    check(cudaStreamSynchronize(bench_.stream_), "combine");
    return sums_are_right();
  }

 private:
  std::int64_t rows_for_me() const {
    std::int64_t wanted = 0;
    for (int source = 0; source < bench_.ranks_; ++source) {
      const auto ids = make_routing(o_, tokens_, source, 0);
      for (const std::int64_t id : ids) wanted += is_padded() && id / num_local() == bench_.rank_ ? 1 : 0;
      for (const unsigned needed : bench::ranks_needed(o_, ids, bench_.ranks_))
        wanted += !is_padded() && (needed >> bench_.rank_ & 1) != 0 ? 1 : 0;
    }
    return wanted;
  }

  /// Rows in each run of `capacity` rows of the result: by expert, or all of the rank.
  std::vector<std::int64_t> runs_of(const DispatchResult& arrived) const {
    if (!is_padded()) {
      std::int64_t rows = 0;
      check(cudaMemcpy(&rows, arrived.num_rows.data, sizeof(rows), cudaMemcpyDeviceToHost), "rows");
      return {rows};
    }
    std::vector<std::int32_t> counts(static_cast<std::size_t>(num_local()));
    check(cudaMemcpy(counts.data(), arrived.expert_counts.data, counts.size() * 4, cudaMemcpyDeviceToHost), "counts");
    return {counts.begin(), counts.end()};
  }

  /// Writes what came, restored from fp8, where combine takes it from; returns the number of rows.
  std::int64_t return_rows(const DispatchResult& arrived) {
    const std::vector<std::int64_t> runs = runs_of(arrived);
    std::int64_t seen = 0;
    for (std::size_t run = 0; run < runs.size(); ++run) {
      seen += runs[run];
      for (std::int64_t n = 0; n < runs[run]; ++n) return_row(arrived, static_cast<std::int64_t>(run) * capacity() + n);
    }
    return seen;
  }

  void return_row(const DispatchResult& arrived, std::int64_t at) {
    const std::size_t row_dim = is_padded() ? 1 : 0;
    const Tensor& rows = arrived.payload[0];
    std::vector<std::uint16_t> restored(static_cast<std::size_t>(o_.hidden));
    const auto fetch = [&](auto& to, const Tensor& from) {
      const std::int64_t element = static_cast<std::int64_t>(dtype_bytes(from.dtype));
      check(cudaMemcpy(to.data(), static_cast<const std::byte*>(from.data) + at * from.strides[row_dim] * element,
                       to.size() * sizeof(to[0]), cudaMemcpyDeviceToHost),
            "row");
    };
    if (is_coded()) {
      std::vector<std::uint8_t> row(restored.size());
      std::vector<float> scales((restored.size() + 127) / 128);
      fetch(row, rows);
      fetch(scales, arrived.payload[1]);
      for (std::size_t j = 0; j < row.size(); ++j) restored[j] = to_bf16(from_e4m3(row[j]) * scales[j / 128]);
    } else {
      fetch(restored, rows);
    }
    for (std::uint16_t& x : restored) x = static_cast<std::uint16_t>(x - (kOctaves << 7));
    check(cudaMemcpy(y_.get() + at * o_.hidden, restored.data(), restored.size() * 2, cudaMemcpyHostToDevice), "row");
  }

  bool sums_are_right() const {
    // fp8 keeps 4 significant bits and bf16 8: within 1/16 and a little. Sums of bf16 rows are rounded once a rank.
    // A codec of combine comes on top.
    const float again = combine_codec() == Codec::kFp8F32 ? 0.07f : combine_codec() == Codec::kLogfmt10 ? 0.023f : 0.0f;
    const float tolerance = (is_coded() ? 0.08f : 0.02f) + again;
    const auto needed = bench::ranks_needed(o_, make_routing(o_, tokens_, bench_.rank_, 0), bench_.ranks_);
    std::vector<std::uint16_t> sums(static_cast<std::size_t>(o_.hidden));
    for (std::int64_t t = 0; t < tokens_; ++t) {
      check(cudaMemcpy(sums.data(), out_.get() + t * o_.hidden, sums.size() * 2, cudaMemcpyDeviceToHost), "out");
      const int times = is_padded() ? 2 : __builtin_popcount(needed[static_cast<std::size_t>(t)]);
      for (std::int64_t j = 0; j < o_.hidden; ++j) {
        const float expected =
            std::ldexp(static_cast<float>(times) * from_bf16(value_of(t, j, bench_.rank_, 0)), -kOctaves);
        const float value = from_bf16(sums[static_cast<std::size_t>(j)]);
        if (!(value > expected * (1 - tolerance) && value < expected * (1 + tolerance))) return false;
      }
    }
    return true;
  }

  static float from_bf16(std::uint16_t code) {
    const std::uint32_t bits = static_cast<std::uint32_t>(code) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  }
  static std::uint16_t to_bf16(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
  static float from_e4m3(std::uint8_t code) {
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                          : std::ldexp(1.0f + static_cast<float>(mantissa) / 8, exponent - 7);
    return (code & 0x80) != 0 ? -magnitude : magnitude;
  }

  RankBench& bench_;
  const Settings& o_;
  Group& group_;
  const std::int64_t tokens_;
  const int sms_;
  std::vector<Inputs> inputs_;
  DeviceArray<std::uint16_t> y_, out_;
};

/// A group whose latency calls carry `tokens` tokens of a rank.
Group make_latency_group(const Settings& o, Meeting& meeting, int device, std::int64_t tokens) {
  GroupConfig config;
  config.backend = "cuda";
  config.device = device;
  config.limits.num_experts = o.experts;
  config.limits.max_tokens = 1;
  config.limits.recv_rows = 64;
  config.limits.max_latency_tokens = tokens;
  config.limits.max_top_k = o.top_k;
  config.limits.hidden = o.hidden;
  config.timeout = std::chrono::seconds(5);
  return Group::create(config, meeting);
}

/// The fields that lines of latency mode share: bf16 rows, coded on the way there and back if so asked.
bench::Measured measured(const Settings& o, int ranks, const std::string& op, const std::string& reduction,
                         std::int64_t tokens, int sms) {
  const std::string& codec = op.starts_with("combine") ? o.combine_codec : o.codec;
  const bool coded = codec != "none";
  const std::int64_t channels_bytes = codec == "logfmt10" ? o.hidden * 10 / 8 : o.hidden;
  const std::int64_t row_bytes = coded ? channels_bytes + (o.hidden + 127) / 128 * 4 : 2 * o.hidden;
  const auto unit = reduction == "flat" ? bench::Unit::kChoice : bench::Unit::kToken;
  double rows = 0;
  for (int s = 0; s < o.sets; ++s) rows += bench::busiest(o, tokens, ranks, s, unit) / o.sets;
  return {.mode = "latency",
          .op = op,
          .layout = o.layout,
          .payload = "bf16",
          .codec = coded ? codec : "bf16",
          .reduction = reduction,
          .tokens = tokens,
          .num_sms = sms,
          .necessary_bytes = rows * static_cast<double>(row_bytes),
          .logical_bytes = static_cast<double>(tokens * o.top_k * row_bytes)};
}

/// Options of programs that make these calls; `o` holds the defaults.
void add_latency_options(app::Options& options, Settings& o) {
  options.number("--ranks", o.ranks, 0, kMaxGpus, "ranks; 0: one on each GPU; more than GPUs: several on one");
  options.word("--layout", o.layout,
               app::Words<std::string>{{"expert_padded", "expert_padded"}, {"rank_major", "rank_major"}},
               "of the result (default: expert_padded)");
  options.word("--codec", o.codec, app::Words<std::string>{{"fp8_f32", "fp8_f32"}, {"none", "none"}},
               "of the bf16 rows on the way there (default: fp8_f32)");
  options.word("--combine-codec", o.combine_codec,
               app::Words<std::string>{{"none", "none"}, {"fp8_f32", "fp8_f32"}, {"logfmt10", "logfmt10"}},
               "of the rows on the way back (default: none)");
  bench::add_cuda_options(options, o, 32);
}

/// The ranks and GPUs that were asked for, or the exit code of a program that has said what is wrong with them.
struct LatencyRanks {
  int ranks = 0, gpus = 0, exit_code = 0;
};
LatencyRanks latency_ranks(const Settings& o) {
  int gpus = 0;
  if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus == 0) {
    std::fprintf(stderr, "no GPU\n");
    return {.exit_code = 1};
  }
  const int ranks = o.ranks > 0 ? o.ranks : std::min(gpus, kMaxGpus);
  if (o.experts % ranks != 0) {
    std::fprintf(stderr, "--experts: %d given, expected a multiple of the number of ranks, %d\n", o.experts, ranks);
    return {.exit_code = 2};
  }
  return {ranks, std::min(gpus, ranks)};
}

}  // namespace
