// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Fuzzes argument checking: arguments of any shape, dtype, stride and value, given to a group of one rank. Every call either
// works or throws ferry::Error; whatever why_not() accepts must not be refused for its values, and the group must go on.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "ferry/ferry.h"

namespace {

using namespace ferry;

/// Values drawn from the fuzzer's bytes; zeros when they are used up.
class Draw {
 public:
  explicit Draw(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}
  std::uint8_t byte() {
    if (bytes_.empty()) return 0;
    const std::uint8_t value = bytes_.front();
    bytes_ = bytes_.subspan(1);
    return value;
  }
  /// Mostly small numbers around those that make sense, now and then a wild one.
  std::int64_t extent() {
    const std::uint8_t kind = byte();
    if (kind < 200) return kind % 10;
    if (kind < 250) return static_cast<std::int64_t>(kind) * (byte() - 128);
    std::int64_t wild = 0;
    for (int i = 0; i < 8; ++i) wild = static_cast<std::int64_t>(static_cast<std::uint64_t>(wild) << 8 | byte());
    return wild;
  }
  template <typename T>
  T pick(std::initializer_list<T> values) {
    return *(values.begin() + byte() % values.size());
  }

 private:
  std::span<const std::uint8_t> bytes_;
};

constexpr std::int64_t kArenaElements = 4096;

/// Memory that tensors of sensible size point into. A tensor whose shape and strides could leave it gets no memory at all, so
/// that only checks see it: a caller's wrong claim about its own memory is nothing that checks can find.
class Arena {
 public:
  /// Small ids, whatever the dtype they are read as: the fuzzer's bytes are for shapes.
  explicit Arena(std::uint8_t seed) {
    for (std::size_t i = 0; i < bytes_.size(); i += 8) bytes_[i] = static_cast<std::byte>((i / 8 + seed) % 5);
  }

  Tensor tensor(Draw& draw) {
    Tensor tensor;
    if (draw.byte() < 16) return tensor;
    tensor.dtype = draw.pick({DType::kBf16, DType::kFp32, DType::kInt32, DType::kInt64, DType::kFp16, DType::kFp8E4m3,
                              DType::kUe8m0, DType::kUint8});
    tensor.ndim = draw.pick({2, 2, 2, 2, 1, 3, 0});
    std::int64_t stride = 1;
    for (int d = tensor.ndim - 1; d >= 0; --d) {
      const auto index = static_cast<std::size_t>(d);
      tensor.shape[index] = draw.extent();
      const std::uint8_t kind = draw.byte();
      tensor.strides[index] = kind < 220 ? stride : kind < 245 ? draw.byte() % 5 : draw.extent();
      if (tensor.shape[index] > 0 && tensor.shape[index] < kArenaElements) stride *= tensor.shape[index];
    }
    if (fits(tensor)) tensor.data = bytes_.data() + (draw.byte() < 8 ? 1 : 0);
    return tensor;
  }

 private:
  static bool fits(const Tensor& tensor) {
    std::int64_t last = 0;
    for (int d = 0; d < tensor.ndim; ++d) {
      const auto index = static_cast<std::size_t>(d);
      if (tensor.shape[index] < 0 || tensor.shape[index] > kArenaElements) return false;
      if (tensor.shape[index] < 2) continue;  // a stride that nobody takes
      if (tensor.strides[index] < 0 || tensor.strides[index] > kArenaElements) return false;
      last += (tensor.shape[index] - 1) * tensor.strides[index];
      if (last >= kArenaElements) return false;
    }
    return true;
  }

  alignas(64) std::array<std::byte, kArenaElements * 8 + 64> bytes_{};
};

Group make_group() {
  auto meetings = meet_in_process(1);
  GroupConfig config;
  config.limits = {.num_experts = 4, .max_tokens = 8, .max_latency_tokens = 8, .max_top_k = 4, .hidden = 16};
  // Beyond libFuzzer's own limit for one input, which shows where a call hangs.
  config.timeout = std::chrono::seconds(60);
  return Group::create(config, *meetings[0]);
}

DispatchArgs draw_dispatch(Draw& draw, Arena& arena) {
  DispatchArgs args;
  for (int b = draw.byte() % 4; b >= 0; --b) args.payload.push_back(arena.tensor(draw));
  args.topk_ids = arena.tensor(draw);
  if (draw.byte() % 2 == 0) args.topk_weights = arena.tensor(draw);
  args.mode = draw.pick({Mode::kThroughput, Mode::kLatency, Mode::kAuto});
  args.max_tokens = draw.byte() < 200 ? 0 : draw.extent();
  args.layout = draw.pick({Layout::kRankMajor, Layout::kExpertMajor, Layout::kExpertPadded});
  args.codec = draw.pick({Codec::kNone, Codec::kNone, Codec::kFp8F32, Codec::kFp8Ue8m0, Codec::kLogfmt10});
  args.scale_block = draw.pick({128, 32, 0, 64});
  args.alignment = draw.byte() < 200 ? 1 : static_cast<int>(draw.extent());
  args.expert_capacity = draw.byte() < 200 ? 0 : draw.extent();
  args.zero_padding = draw.byte() % 2 == 0;
  args.host_counts = draw.byte() % 2 == 0;
  // Nothing that could end a call that goes well.
  using std::chrono::nanoseconds;
  if (draw.byte() >= 250)
    args.timeout = draw.pick({nanoseconds(0), nanoseconds::min(), nanoseconds::max(), nanoseconds(60'000'000'000)});
  return args;
}

CombineArgs draw_combine(Draw& draw, Arena& arena, const DispatchResult& result) {
  CombineArgs args;
  args.handle = &result.handle;
  args.x = draw.byte() < 128 ? result.payload[0] : arena.tensor(draw);
  args.reduction = draw.pick({Reduction::per_rank(), Reduction::per_node(), Reduction::flat()});
  args.weighting =
      draw.pick({CombineArgs::Weighting::kNone, CombineArgs::Weighting::kFromDispatch, CombineArgs::Weighting::kGiven});
  args.codec = draw.pick({Codec::kNone, Codec::kNone, Codec::kFp8F32, Codec::kFp8Ue8m0, Codec::kLogfmt10});
  if (draw.byte() < 64) args.weights = arena.tensor(draw);
  if (draw.byte() < 64) args.bias0 = arena.tensor(draw);
  if (draw.byte() < 64) args.topk_weights = arena.tensor(draw);
  return args;
}

/// What libFuzzer reports, after a line that says what was wrong.
void require(bool good, const char* what, const std::string& detail) {
  if (good) return;
  std::fprintf(stderr, "fuzz_arguments: %s: %s\n", what, detail.c_str());
  std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static Group group = make_group();
  Draw draw({data, size});
  Arena arena(draw.byte());
  const DispatchArgs args = draw_dispatch(draw, arena);
  const std::string reason = group.why_not(args);
  try {
    const DispatchResult result = group.dispatch(args);
    require(reason.empty(), "dispatch took what why_not() refuses", reason);
    const CombineArgs back = draw_combine(draw, arena, result);
    const std::string combine_reason = group.why_not(back);
    try {
      group.combine(back);
      require(combine_reason.empty(), "combine took what why_not() refuses", combine_reason);
    } catch (const Error& error) {
      require(!combine_reason.empty() || error.code() == ErrorCode::kMismatch, "combine refused what why_not() takes",
              error.what());
    }
  } catch (const Error& error) {
    // What depends on data (ids, counts) is only seen by the call itself.
    require(!reason.empty() || error.code() == ErrorCode::kOverflow || error.argument == "topk_ids",
            "dispatch refused what why_not() takes", error.what());
    require(error.what()[0] != '\0', "an error without a message", reason);
  }
  return 0;
}
