// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
#include "soak/checks.h"

#include "support/spawn.h"

namespace ferry::test {
namespace {

constexpr int kThreads = 256, kBlocks = 8;
__device__ std::uint32_t mix(std::uint64_t seed, std::uint32_t purpose, std::int64_t a, std::int64_t b) {
  std::uint64_t state = seed ^ (static_cast<std::uint64_t>(purpose) << 56);
  state = (state ^ static_cast<std::uint64_t>(a)) * 0xbf58476d1ce4e5b9u;
  state = (state ^ (state >> 29) ^ static_cast<std::uint64_t>(b)) * 0x94d049bb133111ebu;
  return static_cast<std::uint32_t>(state >> 32);
}

/// A token and, in expert layouts, a choice, in the order in which rows lie.
struct Item {
  int source, token, choice;
};

/// What the hash says about a call.
struct World {
  const SoakCall& c;

  __device__ std::int64_t choice_key(int source, int token, int k) const {
    return (static_cast<std::int64_t>(source) * 4096 + token) * 64 + k;
  }
  /// -1: dropped.
  __device__ int id(int source, int token, int k) const {
    return static_cast<int>(mix(c.seed, 1, choice_key(source, token, k), 0) %
                            static_cast<unsigned>(c.num_experts + 1)) -
           1;
  }
  __device__ float weight(int source, int token, int k) const {
    return static_cast<float>(mix(c.seed, 2, choice_key(source, token, k), 0) % 3);
  }
  __device__ std::uint16_t element(int source, int token, int column) const {
    return static_cast<std::uint16_t>(mix(c.seed, 3, choice_key(source, token, 0), column));
  }
  /// Of an expert's row, or of a rank's (then `who` is negative), for one token: a whole number from -7 to 7.
  __device__ int returned(int who, int source, int token, int k, int column) const {
    return static_cast<int>(
               mix(c.seed, 4, choice_key(source, token, k), static_cast<std::int64_t>(who) * 65536 + column) % 15) -
           7;
  }
  __device__ int experts_per_rank() const { return c.num_experts / c.num_ranks; }
  __device__ int owner(int expert) const { return expert / experts_per_rank(); }
  __device__ bool is_mine(int expert) const { return expert >= 0 && owner(expert) == c.rank; }
  __device__ bool by_token() const { return c.layout == Layout::kRankMajor; }

  __device__ int num_items() const {
    int tokens = 0;
    for (int source = 0; source < c.num_ranks; ++source) tokens += c.tokens[source];
    return by_token() ? tokens : tokens * c.top_k;
  }
  __device__ Item item(int index) const {
    const int choices = by_token() ? 1 : c.top_k;
    int token = index / choices, source = 0;
    while (token >= c.tokens[source]) token -= c.tokens[source++];
    return {source, token, index % choices};
  }
  /// The expert of this rank that an item belongs to; rank_major: 0 if it has one here. -1: none.
  __device__ int expert_here(const Item& item) const {
    if (!by_token()) {
      const int expert = id(item.source, item.token, item.choice);
      return is_mine(expert) ? expert % experts_per_rank() : -1;
    }
    for (int k = 0; k < c.top_k; ++k) {
      if (is_mine(id(item.source, item.token, k))) return 0;
    }
    return -1;
  }
  /// How many items before `end` belong to `expert`; of one source, or of all if that is -1. All lanes of a warp.
  __device__ int count(int expert, int end, int source = -1) const {
    int number = 0;
    for (int i = static_cast<int>(threadIdx.x) % 32; i < end; i += 32) {
      const Item other = item(i);
      if ((source < 0 || other.source == source) && expert_here(other) == expert) ++number;
    }
    return __reduce_add_sync(0xffffffffu, number);
  }
};

/// Where the rows of a result or of the experts lie.
struct Rows {
  std::uint16_t* data = nullptr;
  std::int64_t row_stride = 0, expert_stride = 0;  ///< elements; expert_stride 0 unless padded
  const std::int32_t* expert_offsets = nullptr;

  __device__ std::uint16_t* row(int expert, int position) const {
    if (expert_stride != 0) return data + expert * expert_stride + position * row_stride;
    return data +
           (static_cast<std::int64_t>(expert_offsets == nullptr ? 0 : expert_offsets[expert]) + position) * row_stride;
  }
  __device__ std::int64_t index(int expert, int position) const { return (row(expert, position) - data) / row_stride; }
};

struct Arrivals {
  Rows rows;
  const std::int32_t* ids;
  const float* weights;
  const std::int64_t* num_rows;
  const std::int32_t *source_offsets, *expert_counts;
};

__device__ void report_difference(SoakReport* report, const SoakCall& call, SoakWhat what, std::int64_t row,
                                  std::int64_t column, double seen, double wanted) {
  if (atomicAdd(&report->errors, 1u) != 0) return;
  report->what = what;
  report->row = row;
  report->column = column;
  report->seen = seen;
  report->wanted = wanted;
  report->seed = call.seed;
}

__device__ std::uint16_t bf16_of(int whole) {
  return static_cast<std::uint16_t>(__float_as_uint(static_cast<float>(whole)) >> 16);
}

__device__ int first_warp() {
  return static_cast<int>(blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32);
}
__device__ int num_warps() {
  return static_cast<int>(gridDim.x * (blockDim.x / 32));
}

__global__ void make_inputs_kernel(SoakCall call, SoakInputs in) {
  const World world{call};
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int t = first_warp(); t < call.tokens[call.rank]; t += num_warps()) {
    for (int k = lane; k < call.top_k; k += 32) {
      in.ids[t * call.top_k + k] = world.id(call.rank, t, k);
      in.weights[t * call.top_k + k] = world.weight(call.rank, t, k);
    }
    auto* row = static_cast<std::uint16_t*>(in.payload) + static_cast<std::int64_t>(t) * call.width;
    for (int column = lane; column < call.width; column += 32) row[column] = world.element(call.rank, t, column);
  }
}

/// Counts and offsets; by one warp.
__device__ void check_counts(const World& world, const Arrivals& a, SoakReport* report) {
  const SoakCall& call = world.c;
  const int items = world.num_items();
  const bool first = threadIdx.x % 32 == 0;
  const auto compare = [&](SoakWhat what, int at, std::int64_t seen, std::int64_t wanted) {
    if (first && seen != wanted)
      report_difference(report, call, what, at, 0, static_cast<double>(seen), static_cast<double>(wanted));
  };
  SoakCall as_tokens = call;
  as_tokens.layout = Layout::kRankMajor;
  const World tokens{as_tokens};
  const int token_items = tokens.num_items();
  int before = 0;
  for (int source = 0; source < call.num_ranks; ++source) {
    compare(kSourceOffset, source, a.source_offsets[source], before);
    before += tokens.count(0, token_items, source);
  }
  compare(kSourceOffset, call.num_ranks, a.source_offsets[call.num_ranks], before);
  compare(kNumRows, 0, *a.num_rows, before);
  if (world.by_token()) return;
  int offset = 0;
  for (int expert = 0; expert < world.experts_per_rank(); ++expert) {
    const int count = world.count(expert, items);
    compare(kExpertCount, expert, a.expert_counts[expert], count);
    if (call.layout != Layout::kExpertMajor) continue;
    compare(kExpertOffset, expert, a.rows.expert_offsets[expert], offset);
    offset += (count + call.alignment - 1) / call.alignment * call.alignment;
  }
}

__global__ void check_arrivals_kernel(SoakCall call, Arrivals a, SoakReport* report) {
  const World world{call};
  const int lane = static_cast<int>(threadIdx.x) % 32, items = world.num_items();
  if (first_warp() == 0) check_counts(world, a, report);
  for (int i = first_warp(); i < items; i += num_warps()) {
    const Item item = world.item(i);
    const int expert = world.expert_here(item);
    if (expert < 0) continue;
    const int position = world.count(expert, i);
    const std::uint16_t* row = a.rows.row(expert, position);
    const std::int64_t at = a.rows.index(expert, position);
    for (int column = lane; column < call.width; column += 32) {
      const std::uint16_t wanted = world.element(item.source, item.token, column);
      if (row[column] != wanted) report_difference(report, call, kPayload, at, column, row[column], wanted);
    }
    if (world.by_token()) {
      for (int k = lane; k < call.top_k; k += 32) {
        const int id = world.id(item.source, item.token, k);
        const int local = world.is_mine(id) ? id % world.experts_per_rank() : -1;
        const float weight = local < 0 ? 0.0f : world.weight(item.source, item.token, k);
        const std::int64_t choice = at * call.top_k + k;
        if (a.ids[choice] != local) report_difference(report, call, kId, at, k, a.ids[choice], local);
        if (a.weights[choice] != weight) report_difference(report, call, kWeight, at, k, a.weights[choice], weight);
      }
    } else if (lane == 0) {
      const float weight = world.weight(item.source, item.token, item.choice);
      if (a.weights[at] != weight) report_difference(report, call, kWeight, at, 0, a.weights[at], weight);
    }
  }
}

__global__ void make_returned_kernel(SoakCall call, Rows rows) {
  const World world{call};
  const int items = world.num_items();
  for (int i = first_warp(); i < items; i += num_warps()) {
    const Item item = world.item(i);
    const int expert = world.expert_here(item);
    if (expert < 0) continue;
    std::uint16_t* row = rows.row(expert, world.count(expert, i));
    const int who = world.by_token() ? -1 - call.rank : call.rank * world.experts_per_rank() + expert;
    for (int column = static_cast<int>(threadIdx.x) % 32; column < call.width; column += 32)
      row[column] = bf16_of(world.returned(who, item.source, item.token, item.choice, column));
  }
}

__device__ int sum_of(const World& world, int token, int column) {
  const SoakCall& call = world.c;
  int sum = 0;
  unsigned ranks_seen = 0;
  for (int k = 0; k < call.top_k; ++k) {
    const int id = world.id(call.rank, token, k);
    if (id < 0) continue;
    const int owner = world.owner(id);
    if (world.by_token()) {
      if ((ranks_seen >> owner & 1u) == 0) sum += world.returned(-1 - owner, call.rank, token, 0, column);
      ranks_seen |= 1u << owner;
    } else {
      const int weight = call.weighted ? static_cast<int>(world.weight(call.rank, token, k)) : 1;
      sum += weight * world.returned(id, call.rank, token, k, column);
    }
  }
  return sum;
}

__global__ void check_sums_kernel(SoakCall call, const std::uint16_t* out, std::int64_t stride, SoakReport* report) {
  const World world{call};
  for (int t = first_warp(); t < call.tokens[call.rank]; t += num_warps()) {
    for (int column = static_cast<int>(threadIdx.x) % 32; column < call.width; column += 32) {
      const int wanted = sum_of(world, t, column);
      const float seen = __uint_as_float(static_cast<unsigned>(out[t * stride + column]) << 16);
      if (seen != static_cast<float>(wanted)) report_difference(report, call, kSum, t, column, seen, wanted);
    }
  }
}

Rows rows_of(const SoakCall& call, const DispatchResult& result, const Tensor& tensor) {
  Rows rows;
  rows.data = static_cast<std::uint16_t*>(tensor.data);
  rows.row_stride = tensor.strides[static_cast<std::size_t>(tensor.ndim) - 2];
  if (call.layout == Layout::kExpertPadded) rows.expert_stride = tensor.strides[0];
  if (call.layout == Layout::kExpertMajor)
    rows.expert_offsets = static_cast<const std::int32_t*>(result.expert_offsets.data);
  return rows;
}

void check_launch() {
  const cudaError_t status = cudaGetLastError();
  require(status == cudaSuccess, std::string("a kernel of the soak: ") + cudaGetErrorString(status));
}

}  // namespace

void load_checks() {
  cudaFuncAttributes attributes{};
  cudaFuncGetAttributes(&attributes, make_inputs_kernel);
  cudaFuncGetAttributes(&attributes, check_arrivals_kernel);
  cudaFuncGetAttributes(&attributes, make_returned_kernel);
  cudaFuncGetAttributes(&attributes, check_sums_kernel);
  check_launch();
}

void make_inputs(const SoakCall& call, const SoakInputs& inputs, cudaStream_t stream) {
  make_inputs_kernel<<<kBlocks, kThreads, 0, stream>>>(call, inputs);
  check_launch();
}

void check_arrivals(const SoakCall& call, const DispatchResult& result, SoakReport* report, cudaStream_t stream) {
  const Arrivals arrivals{.rows = rows_of(call, result, result.payload[0]),
                          .ids = static_cast<const std::int32_t*>(result.topk_ids.data),
                          .weights = static_cast<const float*>(result.topk_weights.data),
                          .num_rows = static_cast<const std::int64_t*>(result.num_rows.data),
                          .source_offsets = static_cast<const std::int32_t*>(result.source_offsets.data),
                          .expert_counts = static_cast<const std::int32_t*>(result.expert_counts.data)};
  check_arrivals_kernel<<<kBlocks, kThreads, 0, stream>>>(call, arrivals, report);
  check_launch();
}

void make_returned(const SoakCall& call, const DispatchResult& result, const Tensor& x, cudaStream_t stream) {
  make_returned_kernel<<<kBlocks, kThreads, 0, stream>>>(call, rows_of(call, result, x));
  check_launch();
}

void check_sums(const SoakCall& call, const Tensor& out, SoakReport* report, cudaStream_t stream) {
  check_sums_kernel<<<kBlocks, kThreads, 0, stream>>>(call, static_cast<const std::uint16_t*>(out.data), out.strides[0],
                                                      report);
  check_launch();
}

}  // namespace ferry::test
