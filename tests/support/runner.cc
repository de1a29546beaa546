// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
#include "support/runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <thread>

#include "support/floats.h"
#include "support/streams.h"

namespace ferry::test {
namespace {

constexpr std::byte kUntouched{0xee};

std::size_t u(std::int64_t value) {
  return static_cast<std::size_t>(value);
}

std::int64_t bytes_of(DType dtype) {
  return static_cast<std::int64_t>(dtype_bytes(dtype));
}

const std::byte* row_of(const Tensor& tensor, std::int64_t row) {
  return static_cast<const std::byte*>(tensor.data) + row * tensor.strides[0] * bytes_of(tensor.dtype);
}

std::string shape_text(const Tensor& tensor) {
  std::string text = fmt::format("{} [", name(tensor.dtype));
  for (int i = 0; i < tensor.ndim; ++i) text += fmt::format("{}{}", i ? ", " : "", tensor.shape[u(i)]);
  return text + "]";
}

void require_shape(const char* what, const Tensor& tensor, DType dtype, std::vector<std::int64_t> shape) {
  Tensor expected;
  expected.dtype = dtype;
  expected.ndim = static_cast<int>(shape.size());
  std::copy(shape.begin(), shape.end(), expected.shape.begin());
  const bool same = tensor.dtype == dtype && tensor.ndim == expected.ndim &&
                    std::equal(shape.begin(), shape.end(), tensor.shape.begin());
  require(same, fmt::format("{} is {}, expected {}", what, shape_text(tensor), shape_text(expected)));
}

template <class T>
std::vector<T> values_of(const char* what, const Tensor& tensor, DType dtype, std::int64_t count) {
  require_shape(what, tensor, dtype, {count});
  const T* data = static_cast<const T*>(tensor.data);
  return count == 0 ? std::vector<T>() : std::vector<T>(data, data + count);
}

template <class A, class B>
void require_equal(const char* what, const A& seen, const B& expected) {
  require(seen.size() == expected.size(),
          fmt::format("{}: {} values, expected {}", what, seen.size(), expected.size()));
  for (std::size_t i = 0; i < seen.size(); ++i) {
    require(seen[i] == expected[i], fmt::format("{}[{}] is {}, expected {}", what, i, seen[i], expected[i]));
  }
}

void require_same_row(const std::string& what, DType dtype, const std::byte* seen, const std::byte* expected,
                      std::int64_t width) {
  const std::int64_t size = bytes_of(dtype);
  for (std::int64_t i = 0; i < width; ++i) {
    if (same_element(dtype, seen + i * size, expected + i * size)) continue;
    std::string bits;
    for (const std::byte* element : {seen + i * size, expected + i * size}) {
      bits += bits.empty() ? "" : ", expected ";
      for (std::int64_t k = size - 1; k >= 0; --k) bits += fmt::format("{:02x}", static_cast<unsigned>(element[k]));
      if (dtype != DType::kUint8 && dtype != DType::kInt32 && dtype != DType::kInt64)
        bits += fmt::format(" ({})", load(dtype, element));
    }
    throw Failure(fmt::format("{} element {} ({}) is {}", what, i, name(dtype), bits));
  }
}

}  // namespace

Round::Round(const Reference& reference, int rank) : reference_(reference), case_(reference.test_case()), rank_(rank) {
  capacity_ = reference.fullest_expert() + 1;
  if (case_.mode == Mode::kLatency) capacity_ = std::min(capacity_, case_.num_ranks() * case_.max_latency_tokens());
  expected_ = reference.dispatch(rank, capacity_);
}

Tensor Round::hold(const void* data, DType dtype, std::int64_t rows, std::int64_t cols, bool gaps_inside_rows) {
  const std::int64_t step = case_.strided && gaps_inside_rows ? 3 : 1;
  const std::int64_t row = cols * step + (case_.strided ? 16 / bytes_of(dtype) : 0);
  auto& memory = memory_.emplace_back(u(std::max<std::int64_t>(1, rows * row) * bytes_of(dtype)), kUntouched);
  Tensor tensor = Tensor::contiguous(memory.data(), dtype, {rows, cols});
  tensor.strides = {row, step, 0};
  for (std::int64_t i = 0; i < rows * cols; ++i) {
    const std::int64_t to = i / cols * row + i % cols * step;
    std::memcpy(&memory[u(to * bytes_of(dtype))], static_cast<const std::byte*>(data) + i * bytes_of(dtype),
                dtype_bytes(dtype));
  }
  return placed(tensor);
}

Tensor Round::hold_ids() {
  const RankInputs& in = reference_.inputs(rank_);
  if (case_.int64_ids) return hold(in.ids.data(), DType::kInt64, in.tokens, case_.top_k, true);
  std::vector<std::int32_t> ids;
  for (const std::int64_t id : in.ids) ids.push_back(static_cast<std::int32_t>(id));
  return hold(ids.data(), DType::kInt32, in.tokens, case_.top_k, true);
}

DispatchArgs Round::dispatch_args() {
  const RankInputs& in = reference_.inputs(rank_);
  DispatchArgs args;
  for (std::size_t b = 0; b < case_.blocks.size(); ++b) {
    args.payload.push_back(hold(in.payload[b].data(), case_.blocks[b].dtype, in.tokens, case_.blocks[b].width, true));
  }
  args.topk_ids = hold_ids();
  if (case_.weights) args.topk_weights = hold(in.weights.data(), DType::kFp32, in.tokens, case_.top_k, true);
  args.mode = case_.mode;
  args.layout = case_.layout;
  args.codec = case_.codec;
  args.scale_block = case_.scale_block;
  args.alignment = case_.alignment;
  if (case_.layout == Layout::kExpertPadded && !case_.default_capacity) args.expert_capacity = capacity_;
  args.zero_padding = case_.zero_padding;
  args.renormalise = case_.renormalise;
  args.host_counts = case_.host_counts;
  args.output = case_.output;
  if (on_device()) args.stream = device_.stream();
  return args;
}

DispatchArgs Round::cached_args(const Handle& handle) {
  DispatchArgs args = dispatch_args();
  args.topk_ids = Tensor{};
  args.renormalise = false;  // there are no ids to see what masked ranks would have had
  args.handle = &handle;
  if (case_.weights && case_.renormalise) args.topk_weights = Tensor{};
  return args;
}

void Round::check_payload(const DispatchResult& result) const {
  require(result.layout == case_.layout, "layout differs");
  require(result.payload.size() == expected_.blocks.size(),
          fmt::format("{} payload blocks, expected {}", result.payload.size(), expected_.blocks.size()));
  const auto num_rows = static_cast<std::int64_t>(expected_.rows.size());
  for (std::size_t b = 0; b < expected_.blocks.size(); ++b) {
    const Block& block = expected_.blocks[b];
    const Tensor& seen = result.payload[b];
    const std::string what = fmt::format("payload[{}]", b);
    const std::int64_t row_stride = (block.row_bytes() + 15) / 16 * 16 / bytes_of(block.dtype);
    Tensor flat = seen;
    std::int64_t capacity = capacity_;
    if (case_.layout == Layout::kExpertPadded) {
      if (case_.default_capacity) {
        capacity = seen.shape[1];
        require(capacity >= capacity_ - 1,
                fmt::format("{} has room for {} rows an expert, the fullest needs {}", what, capacity, capacity_ - 1));
      }
      require_shape(what.c_str(), seen, block.dtype,
                    {static_cast<std::int64_t>(expected_.expert_counts.size()), capacity, block.width});
      require(seen.strides == std::array<std::int64_t, 3>{capacity * row_stride, row_stride, 1},
              what + " has other strides than documented");
      flat.strides[0] = row_stride;
    } else {
      const std::int64_t shown = case_.host_counts ? num_rows : seen.shape[0];
      require(shown >= num_rows, fmt::format("{} shows {} rows, expected at least {}", what, shown, num_rows));
      require_shape(what.c_str(), seen, block.dtype, {shown, block.width});
      require(num_rows == 0 || (seen.strides[0] == row_stride && seen.strides[1] == 1),
              what + " has other strides than documented");
    }
    for (std::int64_t row = 0; row < num_rows; ++row) {
      const Origin& origin = expected_.rows[u(row)];
      const bool must_be_zero = case_.layout == Layout::kExpertMajor && case_.zero_padding;
      if (origin.source < 0 && !must_be_zero) continue;
      const std::int64_t at =
          case_.layout == Layout::kExpertPadded ? row / capacity_ * capacity + row % capacity_ : row;
      require_same_row(
          fmt::format("{} row {} (rank {} token {} choice {})", what, row, origin.source, origin.token, origin.choice),
          block.dtype, row_of(flat, at), &expected_.payload[b][u(row * block.row_bytes())], block.width);
    }
  }
}

void Round::check_choices(const DispatchResult& result, bool cached) const {
  const auto num_rows = static_cast<std::int64_t>(expected_.rows.size());
  const std::int64_t k = case_.top_k;
  if (case_.layout == Layout::kRankMajor) {
    const bool wide = case_.int64_ids && !cached;
    const std::int64_t shown = case_.host_counts ? num_rows : result.topk_ids.shape[0];
    require_shape("topk_ids", result.topk_ids, wide ? DType::kInt64 : DType::kInt32, {shown, k});
    for (std::int64_t i = 0; i < num_rows * k; ++i) {
      const std::byte* at =
          row_of(result.topk_ids, i / k) + i % k * result.topk_ids.strides[1] * bytes_of(result.topk_ids.dtype);
      std::int64_t seen = 0;
      if (wide) {
        std::memcpy(&seen, at, 8);
      } else {
        std::int32_t narrow;
        std::memcpy(&narrow, at, 4);
        seen = narrow;
      }
      require(seen == expected_.ids[u(i)],
              fmt::format("topk_ids[{}, {}] is {}, expected {}", i / k, i % k, seen, expected_.ids[u(i)]));
    }
  } else {
    require(!result.topk_ids.present(), "topk_ids is there in an expert layout");
  }
  if (!case_.weights) {
    require(!result.topk_weights.present(), "topk_weights is there though none were given");
    return;
  }
  if (cached && case_.renormalise) return;  // none were given again
  const Tensor& weights = result.topk_weights;
  const auto* data = static_cast<const float*>(weights.data);
  if (case_.layout == Layout::kRankMajor) {
    require_shape("topk_weights", weights, DType::kFp32, {case_.host_counts ? num_rows : weights.shape[0], k});
  } else if (case_.layout == Layout::kExpertMajor) {
    require_shape("topk_weights", weights, DType::kFp32, {case_.host_counts ? num_rows : weights.shape[0]});
  } else {
    require_shape("topk_weights", weights, DType::kFp32,
                  {static_cast<std::int64_t>(expected_.expert_counts.size()), result.payload[0].shape[1]});
  }
  for (std::size_t i = 0; i < expected_.weights.size(); ++i) {
    auto at = static_cast<std::int64_t>(i);
    if (case_.layout != Layout::kRankMajor) {
      const bool must_be_zero = case_.layout == Layout::kExpertMajor && case_.zero_padding;
      if (expected_.rows[i].source < 0 && !must_be_zero) continue;
      if (case_.layout == Layout::kExpertPadded) at = at / capacity_ * weights.shape[1] + at % capacity_;
    }
    require(same_element(DType::kFp32, reinterpret_cast<const std::byte*>(data + at),
                         reinterpret_cast<const std::byte*>(&expected_.weights[i])),
            fmt::format("topk_weights[{}] is {}, expected {}", i, data[at], expected_.weights[i]));
  }
}

void Round::check_counts(const DispatchResult& result, bool cached) const {
  const auto experts = static_cast<std::int64_t>(expected_.expert_counts.size());
  require_equal("num_rows", values_of<std::int64_t>("num_rows", result.num_rows, DType::kInt64, 1),
                std::vector<std::int64_t>{expected_.num_rows});
  require_equal("source_offsets",
                values_of<std::int32_t>("source_offsets", result.source_offsets, DType::kInt32, case_.num_ranks() + 1),
                expected_.source_offsets);
  require_equal("expert_counts", values_of<std::int32_t>("expert_counts", result.expert_counts, DType::kInt32, experts),
                expected_.expert_counts);
  if (case_.layout != Layout::kRankMajor) {
    std::vector<std::int32_t> offsets = expected_.expert_offsets;
    if (case_.layout == Layout::kExpertPadded) {
      for (std::size_t e = 0; e < offsets.size(); ++e)
        offsets[e] = static_cast<std::int32_t>(static_cast<std::int64_t>(e) * result.payload[0].shape[1]);
    }
    require_equal("expert_offsets",
                  values_of<std::int32_t>("expert_offsets", result.expert_offsets, DType::kInt32, experts + 1),
                  offsets);
  }
  // The host backend's throughput mode says it; a cached dispatch has not counted again.
  if (result.rank_counts.present()) {
    const std::int64_t num_ranks = case_.num_ranks();
    require_shape("rank_counts", result.rank_counts, DType::kInt32, {num_ranks, num_ranks});
    const auto* counts = static_cast<const std::int32_t*>(result.rank_counts.data);
    require_equal("rank_counts", std::vector<std::int32_t>(counts, counts + num_ranks * num_ranks),
                  expected_.rank_counts);
  }
  require(on_device() || cached || case_.mode == Mode::kLatency || result.rank_counts.present(),
          "rank_counts are absent");
  const std::vector<std::int64_t> none;
  require_equal("host_expert_counts", result.host_expert_counts,
                case_.host_counts ? expected_.host_expert_counts : none);
}

void Round::check_handle(const DispatchResult& result) const {
  const Handle& handle = result.handle;
  require(handle.valid(), "handle is not valid");
  require(handle.layout() == case_.layout && handle.mode() == case_.mode, "handle has another layout or mode");
  require(handle.num_tokens() == reference_.inputs(rank_).tokens && handle.top_k() == case_.top_k,
          "handle has other numbers of tokens or choices");
  require(handle.num_rows() == expected_.num_rows,
          fmt::format("handle.num_rows is {}, expected {}", handle.num_rows(), expected_.num_rows));
  require(handle.num_local_experts() == static_cast<int>(expected_.expert_counts.size()),
          "handle.num_local_experts differs");
  require_equal("handle.source_offsets", handle.source_offsets(), expected_.source_offsets);
  require_equal("handle.expert_counts", handle.expert_counts(), expected_.expert_counts);
  if (case_.layout != Layout::kRankMajor) {
    const auto expert_rows =
        case_.layout == Layout::kExpertPadded
            ? static_cast<std::int64_t>(expected_.expert_counts.size()) * result.payload[0].shape[1]
            : static_cast<std::int64_t>(expected_.rows.size());
    require(handle.num_expert_rows() == expert_rows,
            fmt::format("handle.num_expert_rows is {}, expected {}", handle.num_expert_rows(), expert_rows));
  }
  require(handle.expert_capacity() == (case_.layout == Layout::kExpertPadded ? result.payload[0].shape[1] : 0),
          "handle.expert_capacity differs");
  for (std::size_t n = 0; n < expected_.source_tokens.size() && !on_device(); ++n) {
    const std::int32_t seen = handle.source_token(static_cast<std::int64_t>(n));
    require(seen == expected_.source_tokens[n],
            fmt::format("handle.source_token({}) is {}, expected {}", n, seen, expected_.source_tokens[n]));
  }
}

void Round::check(const DispatchResult& given, bool cached) {
  DispatchResult result = given;
  for (Tensor& block : result.payload) block = fetched(block);
  for (Tensor* tensor : {&result.topk_ids, &result.topk_weights, &result.num_rows, &result.source_offsets,
                         &result.expert_counts, &result.expert_offsets}) {
    *tensor = fetched(*tensor);
  }
  check_payload(result);
  check_choices(result, cached);
  check_counts(result, cached);
  if (!on_device() || case_.host_counts) check_handle(result);  // else the counts are on the device alone
}

Tensor Round::returned_rows(const DispatchResult& result) {
  const bool padded = case_.layout == Layout::kExpertPadded;
  const std::int64_t size = bytes_of(case_.combine_dtype);
  const std::int64_t row_elements = case_.combine_width + (case_.strided ? 16 / size : 0);
  const std::int64_t capacity = padded ? result.payload[0].shape[1] : 0;
  const std::int64_t num_rows = padded ? result.payload[0].shape[0] * capacity : result.payload[0].shape[0];
  // What is not filled below would show as NaN.
  auto& memory = memory_.emplace_back(u(std::max<std::int64_t>(1, num_rows * row_elements * size)), std::byte{0xff});
  for (std::size_t i = 0; i < expected_.rows.size(); ++i) {
    const Origin& origin = expected_.rows[i];
    if (origin.source < 0) continue;
    auto at = static_cast<std::int64_t>(i);
    if (padded) at = at / capacity_ * capacity + at % capacity_;
    const auto row =
        returned_row(case_, reference_.round(), rank_, origin.local, origin.source, origin.token, origin.choice);
    std::memcpy(&memory[u(at * row_elements * size)], row.data(), row.size());
  }
  if (padded) {
    Tensor tensor = Tensor::contiguous(memory.data(), case_.combine_dtype,
                                       {result.payload[0].shape[0], capacity, case_.combine_width});
    tensor.strides = {capacity * row_elements, row_elements, 1};
    return placed(tensor);
  }
  Tensor tensor = Tensor::contiguous(memory.data(), case_.combine_dtype, {num_rows, case_.combine_width});
  tensor.strides = {row_elements, 1, 0};
  return placed(tensor);
}

Tensor Round::returned_weights(const DispatchResult& result) {
  const bool padded = case_.layout == Layout::kExpertPadded, rank_major = case_.layout == Layout::kRankMajor;
  const std::int64_t capacity = padded ? result.payload[0].shape[1] : 0;
  const std::int64_t num_rows = padded ? result.payload[0].shape[0] * capacity : result.payload[0].shape[0];
  const std::int64_t width = rank_major ? case_.top_k : 1;
  auto& memory = memory_.emplace_back(u(std::max<std::int64_t>(1, num_rows * width * 4)), std::byte{0xff});
  const auto put = [&](std::int64_t at, float value) { std::memcpy(&memory[u(at * 4)], &value, 4); };
  for (std::size_t i = 0; i < expected_.rows.size(); ++i) {
    const Origin& origin = expected_.rows[i];
    if (origin.source < 0) continue;
    auto at = static_cast<std::int64_t>(i);
    if (rank_major) {
      for (int k = 0; k < case_.top_k; ++k) {
        const bool mine = expected_.ids[u(at * width + k)] >= 0;
        put(at * width + k,
            mine ? returned_weight(case_, reference_.round(), rank_, origin.source, origin.token, k) : 0);
      }
    } else {
      if (padded) at = at / capacity_ * capacity + at % capacity_;
      put(at, returned_weight(case_, reference_.round(), rank_, origin.source, origin.token, origin.choice));
    }
  }
  Tensor weights = Tensor::contiguous(memory.data(), DType::kFp32, {num_rows});
  if (rank_major) weights = Tensor::contiguous(memory.data(), DType::kFp32, {num_rows, width});
  if (padded) weights = Tensor::contiguous(memory.data(), DType::kFp32, {result.payload[0].shape[0], capacity});
  weights = placed(weights);
  if (num_rows == 0) weights.data = nullptr;  // as frameworks give empty tensors
  return weights;
}

CombineArgs Round::combine_args(const DispatchResult& result) {
  const RankInputs& in = reference_.inputs(rank_);
  CombineArgs args;
  args.handle = &result.handle;
  if (on_device()) args.stream = device_.stream();
  args.x = returned_rows(result);
  args.reduction = case_.reduction;
  args.weighting = case_.weighting;
  args.codec = case_.combine_codec;
  if (case_.weighting == CombineArgs::Weighting::kGiven)
    args.weights = hold(in.late_weights.data(), DType::kFp32, in.tokens, case_.top_k, false);
  if (case_.bias0 && !(case_.bias_on_even_ranks_only && rank_ % 2 != 0))
    args.bias0 = hold(in.bias0.data(), *case_.bias0, in.tokens, case_.combine_width, false);
  if (case_.bias1 && !(case_.bias_on_even_ranks_only && rank_ % 2 != 0))
    args.bias1 = hold(in.bias1.data(), *case_.bias1, in.tokens, case_.combine_width, false);
  if (case_.combine_weights) args.topk_weights = returned_weights(result);
  if (case_.out_given) {
    const std::vector<std::byte> nothing(u(in.tokens * case_.combine_width) * dtype_bytes(case_.combine_dtype),
                                         kUntouched);
    args.out = hold(nothing.data(), case_.combine_dtype, in.tokens, case_.combine_width, false);
  }
  return args;
}

void Round::use_combine_input(const Group& group, CombineArgs& args) {
  if (!on_device() || case_.mode == Mode::kLatency) return;  // there rows are read where they are
  const Tensor input = group.combine_input(*args.handle, args.x.dtype, case_.combine_width);
  device_.copy_rows(input, args.x);
  args.x = input;
}

void Round::refill(const DispatchArgs& args) {
  const DispatchArgs mine = dispatch_args();
  for (std::size_t b = 0; b < mine.payload.size(); ++b) device_.copy_rows(args.payload[b], mine.payload[b]);
  if (args.topk_ids.present()) device_.copy_rows(args.topk_ids, mine.topk_ids);
  if (args.topk_weights.present()) device_.copy_rows(args.topk_weights, mine.topk_weights);
}

void Round::refill(const CombineArgs& args, const DispatchResult& result) {
  const CombineArgs mine = combine_args(result);
  const std::pair<const Tensor*, const Tensor*> pairs[] = {{&args.x, &mine.x},
                                                           {&args.weights, &mine.weights},
                                                           {&args.bias0, &mine.bias0},
                                                           {&args.bias1, &mine.bias1},
                                                           {&args.topk_weights, &mine.topk_weights}};
  for (const auto& [to, from] : pairs) {
    if (to->present()) device_.copy_rows(*to, *from);
  }
}

void Round::set_id(const DispatchArgs& args, std::int64_t token, int choice, std::int64_t id) {
  const Tensor& ids = args.topk_ids;
  const auto bytes = dtype_bytes(ids.dtype);  // the machine is little-endian
  std::byte* at = static_cast<std::byte*>(ids.data) +
                  (token * ids.strides[0] + choice * ids.strides[1]) * static_cast<std::int64_t>(bytes);
  if (on_device()) return device_.write(at, &id, bytes);
  std::memcpy(at, &id, bytes);
}

Tensor Round::spoiled(const Tensor& like) {
  const auto last = u(like.ndim - 1);
  const std::int64_t rows = like.num_elements() / std::max<std::int64_t>(1, like.shape[last]);
  auto& memory = memory_.emplace_back(
      u(std::max<std::int64_t>(1, rows * like.strides[last - 1] * bytes_of(like.dtype))), std::byte{0x5a});
  Tensor tensor = like;
  tensor.data = memory.data();
  return placed(tensor);
}

void Round::hold_up(std::chrono::microseconds time) const {
  if (on_device()) return delay(device_.stream(), time);
  std::this_thread::sleep_for(time);
}

void Round::wait() const {
  if (on_device()) device_.wait();
}

void Round::check(const CombineResult& given) {
  CombineResult result = given;
  result.out = fetched(result.out);
  result.topk_weights = fetched(result.topk_weights);
  const RankInputs& in = reference_.inputs(rank_);
  require_shape("out", result.out, case_.combine_dtype, {in.tokens, case_.combine_width});
  const std::vector<std::byte> expected = reference_.combine(rank_);
  const std::int64_t row_bytes = case_.combine_width * bytes_of(case_.combine_dtype);
  for (std::int64_t t = 0; t < in.tokens; ++t) {
    require_same_row(fmt::format("out token {}", t), case_.combine_dtype, row_of(result.out, t),
                     &expected[u(t * row_bytes)], case_.combine_width);
  }
  if (!case_.combine_weights) {
    require(!result.topk_weights.present(), "combined topk_weights are there though none were given");
    return;
  }
  require_shape("combined topk_weights", result.topk_weights, DType::kFp32, {in.tokens, case_.top_k});
  const std::vector<float> weights = reference_.combined_weights(rank_);
  const auto* seen = static_cast<const float*>(result.topk_weights.data);
  for (std::size_t i = 0; i < weights.size(); ++i) {
    require(seen[i] == weights[i], fmt::format("combined topk_weights[{}] is {}, expected {}", i, seen[i], weights[i]));
  }
}

Group make_group(const Case& c, Rank rank) {
  return make_group(c, rank, group_config(c));
}

Group make_group(const Case& c, Rank rank, GroupConfig config) {
  if (c.backend == "cuda") {
    require(num_devices() > 0, "backend cuda: no GPU");
    config.device = rank.rank % num_devices();
    use_device(config.device);
  }
  Group group = Group::create(config, *rank.meeting);
  if (!c.is_masked(rank.rank)) {
    for (const int masked : c.masked) group.mask(masked);
  }
  return group;
}

std::vector<std::unique_ptr<Reference>> make_references(const Case& c) {
  std::vector<std::unique_ptr<Reference>> references;
  for (int round = 0; round < c.rounds; ++round) references.push_back(std::make_unique<Reference>(c, round));
  return references;
}

namespace {

void round_trip(Group& group, const Reference& reference, int rank) {
  Round round(reference, rank);
  const char* step = "dispatch";
  try {
    const DispatchResult result = group.dispatch(round.dispatch_args());
    round.check(result);
    step = "combine";
    const CombineResult combined = group.combine(round.combine_args(result));
    round.check(combined);
    step = "cached dispatch";
    const DispatchResult again = group.dispatch(round.cached_args(result.handle));
    round.check(again, true);
    step = "second combine";
    CombineArgs args = round.combine_args(result);
    round.use_combine_input(group, args);
    round.check(group.combine(args));
  } catch (const std::exception& error) {
    throw Failure(fmt::format("round {} {}: {}", reference.round(), step, error.what()));
  }
}

}  // namespace

void run_case(const Case& given) {
  const Case c = adapted(given);
  require(c.why_not().empty(), "illegal case: " + c.why_not());
  const auto references = make_references(c);
  try {
    run_ranks(c.num_ranks(), c.ranks_as, [&](Rank rank) {
      Group group = make_group(c, rank);
      for (std::size_t i = 0; i < references.size() && !c.is_masked(rank.rank); ++i)
        round_trip(group, *references[i], rank.rank);
      // Giving memory back waits for whatever runs on the GPU, and keeps the driver from ranks that others there wait for.
      if (c.backend == "cuda") rank.meeting->all_gather({}, c.timeout);
    });
  } catch (const Failure& failure) {
    throw Failure(std::string(failure.what()) + "in case: " + describe(c));
  }
}

}  // namespace ferry::test
