// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Step 1, route: the owner of each choice, everybody's counts, and from them the row of every token. The host step of this name
// says what is computed; here it is spread over warps: each takes a run of tokens, counts its choices per key (ranks, then
// slots), and after exclusive scans over warps, blocks and ranks goes over its run again to number them.
#include "cuda/device/wait.cuh"
#include "cuda/kernels.h"
#include "wire/token_meta.h"

namespace ferry::cuda {
namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr FaultStep kStep = FaultStep::kRoute;

/// Ranks' counts as they lie in a window: CallNote, int32 tokens[R], choices[S]; here the two arrays are one, by key.
struct Counts {
  CallNote* note;
  std::int32_t* keys;
  __device__ explicit Counts(std::byte* at)
      : note(reinterpret_cast<CallNote*>(at)), keys(reinterpret_cast<std::int32_t*>(at + sizeof(CallNote))) {}
};

__device__ DeviceSignal counts_signal(std::uint64_t exchange) {
  return exchange % 2 == 0 ? DeviceSignal::kCountsEven : DeviceSignal::kCountsOdd;
}

__device__ std::int64_t id_at(const RouteArgs& a, std::int64_t token, int k) {
  const std::int64_t index = token * a.ids_stride[0] + k * a.ids_stride[1];
  return a.wide_ids ? static_cast<const std::int64_t*>(a.ids)[index] : static_cast<const std::int32_t*>(a.ids)[index];
}

/// As Placement::choose_slot.
__device__ std::int32_t choose_slot(const GroupArgs& group, std::int32_t expert, std::int64_t token) {
  const PlacementArgs& p = group.placement;
  const std::int32_t begin = p.first_place[expert], end = p.first_place[expert + 1];
  const auto is_live = [&](std::int32_t place) {
    return group.windows[p.rank_of_slot[p.slot_of_place[place]]] != nullptr;
  };
  if (end - begin == 1) return is_live(begin) ? p.slot_of_place[begin] : -1;
  std::int32_t num_live = 0;
  for (std::int32_t i = begin; i < end; ++i) num_live += is_live(i) ? 1 : 0;
  if (num_live == 0) return -1;
  std::int64_t skip = (group.rank + token) % num_live;
  for (std::int32_t i = begin; i < end; ++i) {
    if (is_live(i) && skip-- == 0) return p.slot_of_place[i];
  }
  return -1;
}

/// A warp's run of tokens and its counters.
class TokenRun {
 public:
  __device__ TokenRun(const RouteArgs& args, std::int32_t* counters) : a_(args), counters_(counters) {
    lane_ = static_cast<int>(threadIdx.x) % 32;
    per_step_ = 32 / args.top_k;
    const std::int64_t warps = static_cast<std::int64_t>(gridDim.x) * (blockDim.x / 32);
    const std::int64_t warp = static_cast<std::int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
    const std::int64_t run = (args.num_tokens + warps - 1) / warps;
    const std::int64_t whole = (run + per_step_ - 1) / per_step_ * per_step_;
    begin_ = min(args.num_tokens, warp * whole);
    end_ = min(args.num_tokens, begin_ + whole);
  }

  // The code of this kernel runs once and cold: what counts is how much of it there is (measured: three quarters of the time
  // went into fetching instructions while the loops were unrolled), so loops stay loops.

  /// Chooses slots; numbers each choice within its slot and each token within its rank, counting from the begin of the run.
  __device__ void count() {
#pragma unroll 1
    for (std::int64_t first = begin_; first < end_; first += per_step_) {
      const Choice c = choice_at(first);
      std::int32_t slot = -1;
      if (c.active) {
        const std::int64_t id = id_at(a_, c.token, c.k);
        if (id >= a_.group.placement.num_experts) {
          atomicMin(reinterpret_cast<unsigned long long*>(&a_.group.state->bad_id),
                    static_cast<unsigned long long>(c.at));
        } else if (id >= 0) {
          slot = choose_slot(a_.group, static_cast<std::int32_t>(id), c.token);
        }
      }
      const std::int32_t rank = slot < 0 ? -1 : a_.group.placement.rank_of_slot[slot];
      const Rows rows = number(slot, rank);
      if (!c.active) continue;
      a_.handle.slots[c.at] = slot;
      a_.handle.ranks[c.at] = rank;
      a_.handle.tokens[c.at] = rows.token;
      a_.handle.rows[c.at] = rows.choice;
    }
  }
  /// With counters that hold the first row of each key: numbers become rows.
  __device__ void place() {
    const std::int64_t end = end_ * a_.top_k;
    const bool by_token = a_.shape.layout == Layout::kRankMajor;
#pragma unroll 1
    for (std::int64_t at = begin_ * a_.top_k + lane_; at < end; at += 32) {
      const std::int32_t rank = a_.handle.ranks[at], slot = a_.handle.slots[at];
      if (rank < 0) continue;
      const std::int32_t token = a_.handle.tokens[at] + counters_[rank];
      a_.handle.tokens[at] = token;
      a_.handle.rows[at] = by_token ? token : a_.handle.rows[at] + counters_[a_.group.num_ranks + slot];
    }
  }
  /// Copies the weights; on request scales those of live choices up to what all choices of the token had.
  __device__ void weigh() {
    if (a_.weights == nullptr) return;
#pragma unroll 1
    for (std::int64_t t = begin_ + lane_; t < end_; t += 32) {
      float* row = a_.handle.weights + t * a_.top_k;
      float all = 0.0f, live = 0.0f;
      for (int k = 0; k < a_.top_k; ++k) {
        row[k] = a_.weights[t * a_.weights_stride[0] + k * a_.weights_stride[1]];
        if (!a_.renormalise) continue;
        if (id_at(a_, t, k) >= 0) all += row[k];
        if (a_.handle.slots[t * a_.top_k + k] >= 0) live += row[k];
      }
      if (!a_.renormalise || live == all || live == 0.0f) continue;
      const float scale = all / live;
      for (int k = 0; k < a_.top_k; ++k) row[k] *= scale;
    }
  }

 private:
  struct Choice {
    bool active;
    int k;
    std::int64_t token, at;
  };
  struct Rows {
    std::int32_t token = -1, choice = -1;
  };
  __device__ Choice choice_at(std::int64_t first) const {
    const std::int64_t token = first + lane_ / a_.top_k;
    const int k = lane_ % a_.top_k;
    return {lane_ < per_step_ * a_.top_k && token < end_, k, token, token * a_.top_k + k};
  }

  /// The number of each lane's choice in its slot and of its token at its rank, -1 without; counts both. Lanes are in order of
  /// (token, choice).
  __device__ Rows number(std::int32_t slot, std::int32_t rank) {
    const int num_ranks = a_.group.num_ranks;
    const bool has = slot >= 0;
    const unsigned before = (1u << lane_) - 1;
    const int nobody = -1 - lane_;  // no two lanes agree about it
    const unsigned same_slot = __match_any_sync(kAll, has ? slot : nobody);
    const unsigned same_owner = __match_any_sync(kAll, has ? lane_ / a_.top_k * num_ranks + rank : nobody);
    const bool first = has && (same_owner & before) == 0;
    const unsigned same_rank = __match_any_sync(kAll, first ? rank : nobody);
    std::int32_t choice = -1, token = -1;
    if (has) choice = counters_[num_ranks + slot] + __popc(same_slot & before);
    if (first) token = counters_[rank] + __popc(same_rank & before);
    token = __shfl_sync(kAll, token, __ffs(static_cast<int>(same_owner)) - 1);
    __syncwarp();
    if (has && (same_slot & before) == 0) counters_[num_ranks + slot] += __popc(same_slot);
    if (first && (same_rank & before) == 0) counters_[rank] += __popc(same_rank);
    __syncwarp();
    return {token, choice};
  }

  const RouteArgs& a_;
  std::int32_t* counters_;
  int lane_, per_step_;
  std::int64_t begin_, end_;
};

/// Counters of all warps become exclusive sums over the warps of the block; the block's sums go to the scratch memory.
__device__ void scan_warps(const RouteArgs& a, std::int32_t* counters, int keys) {
  const int warps = static_cast<int>(blockDim.x) / 32;
  for (int key = static_cast<int>(threadIdx.x); key < keys; key += static_cast<int>(blockDim.x)) {
    std::int32_t sum = 0;
    for (int warp = 0; warp < warps; ++warp) {
      std::int32_t& counter = counters[warp * keys + key];
      const std::int32_t count = counter;
      counter = sum;
      sum += count;
    }
    a.block_totals[static_cast<std::int64_t>(blockIdx.x) * keys + key] = sum;
  }
}

/// Tells every peer this rank's counts; by one block, all threads.
__device__ void publish(const RouteArgs& a, std::uint64_t epoch, std::uint64_t exchange, int keys) {
  const GroupArgs& group = a.group;
  const std::uint64_t bad = a.cached ? ~std::uint64_t{0} : load_relaxed(&group.state->bad_id);
  CallNote note;
  note.epoch = epoch;
  note.digest = group.digest;
  note.num_tokens = a.num_tokens;
  if (bad != ~std::uint64_t{0}) {
    note.status = kCallBadId;
    note.where = static_cast<std::int64_t>(bad) / a.top_k;
    note.value = id_at(a, note.where, static_cast<int>(bad % static_cast<std::uint64_t>(a.top_k)));
  }
  const std::int64_t offset = group.layout.counts_at(static_cast<int>(exchange % 2), group.rank);
  for (int key = static_cast<int>(threadIdx.x); key < keys; key += static_cast<int>(blockDim.x)) {
    std::int32_t total = 0;
    if (!a.cached && note.status == kCallGood) {
      for (unsigned block = 0; block < gridDim.x; ++block)
        total += load_relaxed(&a.block_totals[static_cast<std::int64_t>(block) * keys + key]);
    }
    for (int peer = 0; peer < group.num_ranks; ++peer) {
      if (group.windows[peer] != nullptr) Counts(group.windows[peer] + offset).keys[key] = total;
    }
  }
  for (int peer = static_cast<int>(threadIdx.x); peer < group.num_ranks; peer += static_cast<int>(blockDim.x)) {
    if (group.windows[peer] != nullptr) *Counts(group.windows[peer] + offset).note = note;
  }
  __threadfence_system();
  __syncthreads();
  for (int peer = static_cast<int>(threadIdx.x); peer < group.num_ranks; peer += static_cast<int>(blockDim.x))
    post(group, counts_signal(exchange), peer, total_of(epoch));
}

/// Refuses what a peer confessed, that it is in another call, or that its arguments differ. All threads of a block.
__device__ bool check_notes(const RouteArgs& a, std::uint64_t epoch, std::uint64_t exchange) {
  const GroupArgs& group = a.group;
  bool good = true;
  for (int peer = static_cast<int>(threadIdx.x); peer < group.num_ranks; peer += static_cast<int>(blockDim.x)) {
    if (group.windows[peer] == nullptr) continue;
    const CallNote& note =
        *Counts(group.windows[group.rank] + group.layout.counts_at(static_cast<int>(exchange % 2), peer)).note;
    Fault fault{.step = kStep, .peer = peer, .seen = note.epoch, .wanted = epoch};
    if (note.epoch != epoch) {
      fault.kind = FaultKind::kGoneOn;
    } else if (note.status == kCallBadId) {
      fault.kind = FaultKind::kBadId;
      fault.where = note.where;
      fault.value = note.value;
    } else if (note.digest != group.digest) {
      fault.kind = FaultKind::kMismatch;
    } else {
      continue;
    }
    fail(group, epoch, fault);
    good = false;
  }
  return __syncthreads_and(good) != 0;
}

/// What follows from everybody's counts, in shared memory: for each key the first row of this rank's share and the total.
struct Places {
  std::int32_t *base, *total;

  __device__ void sum_ranks(const RouteArgs& a, std::uint64_t exchange, int keys) const {
    const GroupArgs& group = a.group;
    for (int key = static_cast<int>(threadIdx.x); key < keys; key += static_cast<int>(blockDim.x)) {
      std::int32_t sum = 0, mine = 0;
      for (int source = 0; source < group.num_ranks; ++source) {
        if (source == group.rank) mine = sum;
        if (group.windows[source] == nullptr) continue;
        sum += Counts(group.windows[group.rank] + group.layout.counts_at(static_cast<int>(exchange % 2), source))
                   .keys[key];
      }
      base[key] = mine;
      total[key] = sum;
    }
    __syncthreads();
  }

  /// Adds the first row of each expert, a warp per rank; refuses what does not fit. All ranks see the same totals.
  __device__ bool place_experts(const RouteArgs& a, std::uint64_t epoch) const {
    const GroupArgs& group = a.group;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    bool good = true;
    for (int rank = static_cast<int>(threadIdx.x) / 32; rank < group.num_ranks;
         rank += static_cast<int>(blockDim.x) / 32) {
      const int first = group.placement.first_slot[rank], end = group.placement.first_slot[rank + 1];
      std::int64_t rows = 0;
      for (int from = first; from < end && a.shape.layout != Layout::kRankMajor; from += 32) {
        const int slot = from + lane;
        const std::int64_t count = slot < end ? total[group.num_ranks + slot] : 0;
        if (a.shape.layout == Layout::kExpertPadded && count > a.shape.capacity) {
          fail(group, epoch,
               {.kind = FaultKind::kOverflow, .step = kStep, .peer = rank, .where = count, .value = a.shape.capacity});
          good = false;
        }
        const std::int64_t extent = slot < end ? routing::expert_extent(a.shape, count) : 0;
        std::int64_t sum = extent;  // inclusive scan
        for (int step = 1; step < 32; step *= 2) {
          const std::int64_t below = __shfl_up_sync(kAll, sum, static_cast<unsigned>(step));
          if (lane >= step) sum += below;
        }
        if (slot < end) base[group.num_ranks + slot] += static_cast<std::int32_t>(rows + sum - extent);
        rows += __shfl_sync(kAll, sum, 31);
      }
      rows = max(rows, static_cast<std::int64_t>(total[rank]));
      if (rows <= group.layout.recv_rows) continue;
      if (lane == 0)
        fail(group, epoch,
             {.kind = FaultKind::kOverflow,
              .step = kStep,
              .peer = rank,
              .where = rows,
              .value = group.layout.recv_rows});
      good = false;
    }
    return __syncthreads_and(good) != 0;
  }
};

/// What this rank receives, for the handle and the host; by one block.
__device__ void write_arrivals(const RouteArgs& a, std::uint64_t exchange, const Places& places, bool failed) {
  const GroupArgs& group = a.group;
  const HandleArgs& h = a.handle;
  const int num_ranks = group.num_ranks;
  const int first_slot = group.placement.first_slot[group.rank];
  const int num_local = group.placement.first_slot[group.rank + 1] - first_slot;
  std::byte* own = group.windows[group.rank];
  const int tid = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  if (!a.cached || failed) {
    for (int e = tid; e < num_local; e += threads)
      h.expert_counts[e] = failed ? 0 : places.total[num_ranks + first_slot + e];
    for (int slot = tid; slot < group.placement.num_slots; slot += threads)
      h.rank_of_slot[slot] = group.placement.rank_of_slot[slot];
    const Counts mine(own + group.layout.counts_at(static_cast<int>(exchange % 2), group.rank));
    for (int rank = tid / 32; rank < num_ranks; rank += threads / 32) {
      std::int32_t choices = 0;
      for (int slot = group.placement.first_slot[rank] + tid % 32;
           !failed && slot < group.placement.first_slot[rank + 1]; slot += 32)
        choices += mine.keys[num_ranks + slot];
      choices = __reduce_add_sync(kAll, choices);
      if (tid % 32 != 0) continue;
      h.choices_to[rank] = choices;
      h.tokens_to[rank] = failed ? 0 : mine.keys[rank];
    }
    if (tid == 0) {
      std::int32_t rows = 0, to_node = 0;
      for (int source = 0; source < num_ranks; ++source) {
        h.source_offsets[source] = rows;
        if (failed || group.windows[source] == nullptr) continue;
        rows += Counts(own + group.layout.counts_at(static_cast<int>(exchange % 2), source)).keys[group.rank];
        to_node += mine.keys[source];
      }
      h.source_offsets[num_ranks] = rows;
      h.tokens_to_node[0] = to_node;
    } else if (tid == 32) {
      if (a.shape.layout == Layout::kRankMajor || failed) {
        for (int e = 0; e <= num_local; ++e) h.expert_offsets[e] = 0;
      } else {
        routing::expert_starts(a.shape, places.total + num_ranks + first_slot, num_local, h.expert_offsets);
      }
    }
    __syncthreads();
  }
  if (tid == 0) *a.num_rows = h.source_offsets[num_ranks];
  if (a.counts == nullptr) return;
  auto* out = reinterpret_cast<volatile std::int32_t*>(a.counts + 1);
  for (int i = tid; i <= num_ranks; i += threads) out[i] = h.source_offsets[i];
  for (int i = tid; i < num_local; i += threads) out[num_ranks + 1 + i] = h.expert_counts[i];
  for (int i = tid; i <= num_local; i += threads) out[num_ranks + 1 + num_local + i] = h.expert_offsets[i];
  __threadfence_system();
  __syncthreads();
  if (tid != 0) return;
  volatile HostCounts* counts = a.counts;
  counts->num_rows = h.source_offsets[num_ranks];
  counts->num_expert_rows = h.expert_offsets[num_local];
  counts->failed = failed ? 1 : 0;
  __threadfence_system();
  counts->ticket = a.ticket;
}

extern __shared__ std::int32_t shared_words[];

__global__ void __launch_bounds__(512, 1) route_kernel(const __grid_constant__ RouteArgs a) {
  const int keys = a.group.num_ranks + a.group.placement.num_slots;
  const int warps = static_cast<int>(blockDim.x) / 32;
  const std::uint64_t epoch = a.group.state->epoch + 1;
  const std::uint64_t exchange = a.group.state->exchanges + 1;
  const Places places{shared_words, shared_words + keys};
  std::int32_t* counters = shared_words + 2 * keys;
  TokenRun run(a, counters + static_cast<int>(threadIdx.x) / 32 * keys);
  bool good = true;
  if (!a.cached) {
    for (int i = static_cast<int>(threadIdx.x); i < warps * keys; i += static_cast<int>(blockDim.x)) counters[i] = 0;
    __syncthreads();
    run.count();
    __syncthreads();
    scan_warps(a, counters, keys);
    good = grid_barrier(a.group, kStep, epoch);
  }
  if (blockIdx.x == 0) publish(a, epoch, exchange, keys);
  run.weigh();  // while counts are on the way
  good = good && wait_everybody(a.group, kStep, epoch, counts_signal(exchange), total_of(epoch));
  good = good && check_notes(a, epoch, exchange);
  if (!a.cached && good) {
    places.sum_ranks(a, exchange, keys);
    good = places.place_experts(a, epoch);
    if (good) {
      for (int key = static_cast<int>(threadIdx.x); key < keys; key += static_cast<int>(blockDim.x)) {
        std::int32_t first = places.base[key];
        for (unsigned block = 0; block < blockIdx.x; ++block)
          first += load_relaxed(&a.block_totals[static_cast<std::int64_t>(block) * keys + key]);
        for (int warp = 0; warp < warps; ++warp) counters[warp * keys + key] += first;
      }
      __syncthreads();
      run.place();
    }
  }
  if (blockIdx.x == 0) {
    write_arrivals(a, exchange, places, !good);
    if (threadIdx.x == 0) a.group.state->bad_id = ~std::uint64_t{0};
  }
}

}  // namespace

std::size_t route_shared_bytes(int keys, int warps) {
  return sizeof(std::int32_t) * static_cast<std::size_t>(keys) * (2 + static_cast<std::size_t>(warps));
}

void launch_route(const RouteArgs& args, const Launch& launch, cudaStream_t stream) {
  route_kernel<<<launch.blocks, launch.threads, launch.shared_bytes, stream>>>(args);
}

void prepare_route(int dynamic_bytes) {
  prepare_kernel(reinterpret_cast<const void*>(route_kernel), dynamic_bytes);
}

}  // namespace ferry::cuda
