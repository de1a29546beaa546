// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The layer: gate, dispatch, experts, combine; then the way back, where the backward of combine is a cached dispatch
// and the backward of dispatch is a combine.
#include "layer.h"

#include <chrono>
#include <cmath>
#include <stdexcept>
#include <utility>

#include "experts.h"
#include "gate.h"
#include "multiply.h"
#include "numbers.h"
#include "text.h"

namespace ferry::app {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int kScaleBlock = 128;
constexpr int kAlignment = 16;  // of expert blocks in expert_major, as grouped matrix products like it

/// One row of a local expert: where it is in the dispatch result, and where its weight is.
struct ExpertRow {
  std::int64_t row = 0;
  std::int64_t weight = 0;
};

/// A dispatch result read through its layout: the rows of each expert, always by (source rank, source token, choice).
struct ExpertView {
  std::vector<std::vector<ExpertRow>> experts;
  std::vector<float> weights;  ///< a copy; the window may be reused
  std::int64_t num_rows = 0;   ///< rows of a combine input of this layout
  int top_k = 0;
};

const std::byte* row_address(const Tensor& tensor, std::int64_t row) {
  const auto* data = static_cast<const std::byte*>(tensor.data);
  const auto element = static_cast<std::int64_t>(dtype_bytes(tensor.dtype));
  if (tensor.ndim == 3) {
    return data + (row / tensor.shape[1] * tensor.strides[0] + row % tensor.shape[1] * tensor.strides[1]) * element;
  }
  return data + row * tensor.strides[0] * element;
}

std::int64_t row_width(const Tensor& tensor) {
  return tensor.shape[static_cast<std::size_t>(tensor.ndim - 1)];
}

/// Rows `rows` of a dispatch result as float32, scales applied.
std::vector<float> read_rows(const DispatchResult& arrived, const std::vector<ExpertRow>& rows) {
  const Tensor& data = arrived.payload.at(0);
  const std::int64_t hidden = row_width(data);
  std::vector<float> values(rows.size() * static_cast<std::size_t>(hidden));
  std::vector<float> scales;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    float* row = values.data() + static_cast<std::int64_t>(i) * hidden;
    decode(data.dtype, row_address(data, rows[i].row), hidden, row);
    if (arrived.payload.size() < 2) continue;
    const Tensor& blocks = arrived.payload[1];
    scales.resize(static_cast<std::size_t>(row_width(blocks)));
    decode(blocks.dtype, row_address(blocks, rows[i].row), row_width(blocks), scales.data());
    for (std::int64_t h = 0; h < hidden; ++h) row[h] *= scales[static_cast<std::size_t>(h / kScaleBlock)];
  }
  return values;
}

std::vector<float> read_weights(const Tensor& weights) {
  std::vector<float> values;
  const std::int64_t rows = weights.shape[0];
  const std::int64_t width = weights.ndim == 2 ? weights.shape[1] : 1;
  const std::int64_t step = weights.ndim == 2 ? weights.strides[1] : 0;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t i = 0; i < width; ++i)
      values.push_back(static_cast<const float*>(weights.data)[r * weights.strides[0] + i * step]);
  }
  return values;
}

void view_rank_major(const DispatchResult& arrived, ExpertView& view) {
  const Tensor& ids = arrived.topk_ids;
  view.num_rows = ids.shape[0];
  view.top_k = static_cast<int>(ids.shape[1]);
  for (std::int64_t n = 0; n < view.num_rows; ++n) {
    for (int k = 0; k < view.top_k; ++k) {
      const std::int32_t local = static_cast<const std::int32_t*>(ids.data)[n * ids.strides[0] + k * ids.strides[1]];
      if (local >= 0)
        view.experts.at(static_cast<std::size_t>(local)).push_back({.row = n, .weight = n * view.top_k + k});
    }
  }
}

void view_expert_layout(const DispatchResult& arrived, ExpertView& view) {
  const auto* counts = static_cast<const std::int32_t*>(arrived.expert_counts.data);
  const bool padded = arrived.layout == Layout::kExpertPadded;
  const std::int64_t capacity = padded ? arrived.payload.at(0).shape[1] : 0;
  for (std::size_t e = 0; e < view.experts.size(); ++e) {
    const std::int64_t first = padded ? static_cast<std::int64_t>(e) * capacity
                                      : static_cast<const std::int32_t*>(arrived.expert_offsets.data)[e];
    for (std::int64_t i = 0; i < counts[e]; ++i) view.experts[e].push_back({.row = first + i, .weight = first + i});
  }
  view.num_rows = padded ? static_cast<std::int64_t>(view.experts.size()) * capacity : arrived.payload.at(0).shape[0];
}

ExpertView view_experts(const DispatchResult& arrived, int num_local_experts) {
  ExpertView view;
  view.experts.resize(static_cast<std::size_t>(num_local_experts));
  if (arrived.layout == Layout::kRankMajor) {
    view_rank_major(arrived, view);
  } else {
    view_expert_layout(arrived, view);
  }
  view.weights = read_weights(arrived.topk_weights);
  return view;
}

/// The class carries one rank through one case.
class LayerRun {
 public:
  LayerRun(Group& group, RankMemory& memory, const DemoOptions& options, const DemoCase& run, const LayerInput& input,
           const LayerHooks& hooks)
      : group_(group), memory_(memory), options_(options), run_(run), input_(input), hooks_(hooks) {
    gate_ = make_gate(options.gate_shape(), options.seed);
    routing_ = route_tokens(options.gate_shape(), gate_, input.x);
    num_local_experts_ = group.placement().num_local_experts(group.rank());
    first_expert_ = group.placement().first_slot(group.rank());
  }

  LayerResult run() {
    forward();
    backward();
    return std::move(result_);
  }

 private:
  void forward() {
    memory_.forget();
    const std::vector<std::byte> x = encoded(input_.x);
    DispatchArgs args = dispatch_args(x);
    args.topk_ids =
        memory_.lend(Tensor::contiguous(routing_.ids.data(), DType::kInt32, {options_.tokens, options_.top_k}));
    args.topk_weights =
        memory_.lend(Tensor::contiguous(routing_.weights.data(), DType::kFp32, {options_.tokens, options_.top_k}));
    args.codec = options_.wire.codec;
    const DispatchResult arrived = dispatch(args, result_.forward);
    handle_ = arrived.handle;
    view_ = view_experts(arrived, num_local_experts_);
    for (const auto& rows : view_.experts) result_.expert_rows.push_back(static_cast<std::int64_t>(rows.size()));

    const auto begin = Clock::now();
    std::vector<std::vector<float>> y;
    for (int e = 0; e < num_local_experts_; ++e) {
      const auto weights = make_expert<float>(options_.hidden, options_.inner(), options_.seed, first_expert_ + e);
      runs_.push_back(expert_forward(weights, read_rows(arrived, view_.experts[static_cast<std::size_t>(e)])));
      for (float& value : runs_.back().y) value = round_to(options_.wire.dtype, value);
      y.push_back(runs_.back().y);
      hooks_.alive();
    }
    result_.expert_seconds += std::chrono::duration<double>(Clock::now() - begin).count();

    CombineArgs back;
    back.weighting =
        run_.layout == Layout::kRankMajor ? CombineArgs::Weighting::kNone : CombineArgs::Weighting::kFromDispatch;
    const CombineResult combined = combine(back, y, view_.weights, result_.forward);
    result_.out = decoded(combined.out);
  }

  void backward() {
    memory_.forget();
    std::vector<float> gradients(result_.out.size());
    for (std::size_t i = 0; i < gradients.size(); ++i) {
      gradients[i] = round_to(options_.wire.dtype, result_.out[i] - input_.target[i]);
    }
    const std::vector<std::byte> rows = encoded(gradients);
    DispatchArgs args = dispatch_args(rows);
    args.handle = &handle_;
    const DispatchResult arrived = dispatch(args, result_.backward);
    handle_ = arrived.handle;  // the same routing; on a GPU also the flight whose memory takes the experts' rows

    const auto begin = Clock::now();
    std::vector<float> weight_gradients(view_.weights.size());
    std::vector<std::vector<float>> dx;
    for (int e = 0; e < num_local_experts_; ++e) dx.push_back(expert_gradients(e, arrived, weight_gradients));
    result_.expert_seconds += std::chrono::duration<double>(Clock::now() - begin).count();

    CombineArgs back;
    back.topk_weights = memory_.lend(weight_tensor(weight_gradients));
    const CombineResult combined = combine(back, dx, {}, result_.backward);
    result_.x_gradients = decoded(combined.out);
    const auto* returned = static_cast<const float*>(combined.topk_weights.data);
    result_.weight_gradients.assign(returned, returned + options_.tokens * options_.top_k);
    add_gate_gradients();
  }

  /// Gradients of one expert's input rows; leaves those of its weights as a digest and those of the routing weights in
  /// place.
  std::vector<float> expert_gradients(int e, const DispatchResult& arrived, std::vector<float>& weight_gradients) {
    const auto& rows = view_.experts[static_cast<std::size_t>(e)];
    const auto& run = runs_[static_cast<std::size_t>(e)];
    std::vector<float> dy = read_rows(arrived, rows);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      float* gradient = dy.data() + static_cast<std::int64_t>(i) * options_.hidden;
      const float* y = run.y.data() + static_cast<std::int64_t>(i) * options_.hidden;
      const auto at = static_cast<std::size_t>(rows[i].weight);
      weight_gradients[at] = ordered_dot(gradient, y, options_.hidden);
      for (std::int64_t h = 0; h < options_.hidden; ++h) gradient[h] *= view_.weights[at];
    }
    const auto weights = make_expert<float>(options_.hidden, options_.inner(), options_.seed, first_expert_ + e);
    ExpertGradients<float> gradients = expert_backward(weights, run, dy);
    result_.expert_digests.push_back(digest(gradients.down, digest(gradients.up, digest(gradients.gate))));
    for (float& value : gradients.x) value = round_to(options_.wire.dtype, value);
    hooks_.alive();
    return std::move(gradients.x);
  }

  void add_gate_gradients() {
    const auto gradients = gate_backward(options_.gate_shape(), gate_, input_.x, routing_, result_.weight_gradients);
    for (std::size_t i = 0; i < result_.x_gradients.size(); ++i) result_.x_gradients[i] += gradients.x[i];
    result_.gate_digest = digest(gradients.gate);
  }

  /// What arrived, where the host can read it.
  DispatchResult dispatch(DispatchArgs& args, std::vector<StepTrace>& trace) {
    memory_.configure(args);
    hooks_.line_up();
    DispatchResult arrived = group_.dispatch(args);
    memory_.finish(group_);
    add_trace(trace);
    for (Tensor& block : arrived.payload) block = memory_.read(block);
    for (Tensor* tensor : {&arrived.topk_ids, &arrived.topk_weights, &arrived.expert_counts, &arrived.expert_offsets}) {
      *tensor = memory_.read(*tensor);
    }
    return arrived;
  }

  /// Brings the experts' rows into the layout of the dispatch and sends them back. `weights` (may be empty: 1) are only
  /// needed for rank_major, where the sum over the choices of this rank is the experts' own work.
  CombineResult combine(CombineArgs& args, const std::vector<std::vector<float>>& rows,
                        const std::vector<float>& weights, std::vector<StepTrace>& trace) {
    const std::vector<std::byte> x =
        run_.layout == Layout::kRankMajor ? summed_by_row(rows, weights) : placed_by_expert(rows);
    const auto experts = static_cast<std::int64_t>(num_local_experts_);
    const Tensor placed =
        run_.layout == Layout::kExpertPadded
            ? Tensor::contiguous(x.data(), options_.wire.dtype, {experts, handle_.expert_capacity(), options_.hidden})
            : Tensor::contiguous(x.data(), options_.wire.dtype, {view_.num_rows, options_.hidden});
    args.x = memory_.lend_rows(group_, handle_, placed);
    args.handle = &handle_;
    args.reduction = options_.reduction;
    memory_.configure(args);
    hooks_.line_up();
    CombineResult combined = group_.combine(args);
    memory_.finish(group_);
    add_trace(trace);
    combined.out = memory_.read(combined.out);
    combined.topk_weights = memory_.read(combined.topk_weights);
    return combined;
  }

  std::vector<std::byte> placed_by_expert(const std::vector<std::vector<float>>& rows) const {
    std::vector<std::byte> x(static_cast<std::size_t>(view_.num_rows) * row_bytes());
    for (std::size_t e = 0; e < rows.size(); ++e) {
      for (std::size_t i = 0; i < view_.experts[e].size(); ++i) {
        encode(options_.wire.dtype, rows[e].data() + static_cast<std::int64_t>(i) * options_.hidden, options_.hidden,
               x.data() + static_cast<std::size_t>(view_.experts[e][i].row) * row_bytes());
      }
    }
    return x;
  }

  /// The first stage of the documented order: choices ascending, acc = fma(w, y, acc) or acc += y, one rounding.
  std::vector<std::byte> summed_by_row(const std::vector<std::vector<float>>& rows,
                                       const std::vector<float>& weights) const {
    std::vector<const float*> row_of_choice(static_cast<std::size_t>(view_.num_rows * view_.top_k));
    for (std::size_t e = 0; e < rows.size(); ++e) {
      for (std::size_t i = 0; i < view_.experts[e].size(); ++i) {
        row_of_choice[static_cast<std::size_t>(view_.experts[e][i].weight)] =
            rows[e].data() + static_cast<std::int64_t>(i) * options_.hidden;
      }
    }
    std::vector<std::byte> x(static_cast<std::size_t>(view_.num_rows) * row_bytes());
    std::vector<float> sum(static_cast<std::size_t>(options_.hidden));
    for (std::int64_t n = 0; n < view_.num_rows; ++n) {
      std::fill(sum.begin(), sum.end(), 0.0f);
      for (int k = 0; k < view_.top_k; ++k) {
        const auto at = static_cast<std::size_t>(n * view_.top_k + k);
        if (row_of_choice[at] == nullptr) continue;
        for (std::size_t h = 0; h < sum.size(); ++h) {
          sum[h] =
              weights.empty() ? sum[h] + row_of_choice[at][h] : std::fma(weights[at], row_of_choice[at][h], sum[h]);
        }
      }
      for (float& value : sum) value = round_to(options_.wire.dtype, value);
      encode(options_.wire.dtype, sum.data(), options_.hidden, x.data() + static_cast<std::size_t>(n) * row_bytes());
    }
    return x;
  }

  DispatchArgs dispatch_args(const std::vector<std::byte>& rows) {
    DispatchArgs args;
    args.payload = {
        memory_.lend(Tensor::contiguous(rows.data(), options_.wire.dtype, {options_.tokens, options_.hidden}))};
    args.mode = run_.mode;
    args.layout = run_.layout;
    args.scale_block = kScaleBlock;
    if (run_.layout == Layout::kExpertMajor) args.alignment = kAlignment;
    return args;
  }

  Tensor weight_tensor(const std::vector<float>& values) const {
    const auto experts = static_cast<std::int64_t>(num_local_experts_);
    switch (run_.layout) {
      case Layout::kRankMajor:
        return Tensor::contiguous(values.data(), DType::kFp32, {view_.num_rows, options_.top_k});
      case Layout::kExpertMajor:
        return Tensor::contiguous(values.data(), DType::kFp32, {view_.num_rows});
      default:
        return Tensor::contiguous(values.data(), DType::kFp32, {experts, handle_.expert_capacity()});
    }
  }

  std::vector<std::byte> encoded(const std::vector<float>& values) const {
    std::vector<std::byte> bytes(values.size() * dtype_bytes(options_.wire.dtype));
    encode(options_.wire.dtype, values.data(), static_cast<std::int64_t>(values.size()), bytes.data());
    return bytes;
  }

  std::vector<float> decoded(const Tensor& rows) const {
    std::vector<float> values(static_cast<std::size_t>(options_.tokens * options_.hidden));
    for (std::int64_t t = 0; t < options_.tokens; ++t) {
      decode(rows.dtype, row_address(rows, t), options_.hidden, values.data() + t * options_.hidden);
    }
    return values;
  }

  void add_trace(std::vector<StepTrace>& steps) const {
    const auto& trace = group_.last_trace();
    steps.insert(steps.end(), trace.begin(), trace.end());
  }

  std::size_t row_bytes() const { return static_cast<std::size_t>(options_.hidden) * dtype_bytes(options_.wire.dtype); }

  Group& group_;
  RankMemory& memory_;
  const DemoOptions& options_;
  const DemoCase& run_;
  const LayerInput& input_;
  const LayerHooks& hooks_;
  int num_local_experts_ = 0;
  int first_expert_ = 0;
  std::vector<float> gate_;
  Routing<float> routing_;
  Handle handle_;
  ExpertView view_;
  std::vector<ExpertRun<float>> runs_;
  LayerResult result_;
};

}  // namespace

LayerInput layer_input(const DemoOptions& options, const std::string& text, int rank) {
  const std::int64_t first = rank * options.tokens;
  return {.x = embed(text, first, options.tokens, options.hidden, options.wire.dtype, options.seed),
          .target = embed(text, first + 1, options.tokens, options.hidden, options.wire.dtype, options.seed)};
}

LayerResult run_layer(Group& group, RankMemory& memory, const DemoOptions& options, const DemoCase& run,
                      const LayerInput& input, const LayerHooks& hooks) {
  return LayerRun(group, memory, options, run, input, hooks).run();
}

}  // namespace ferry::app
