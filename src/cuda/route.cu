// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Step 1, route: the owner of each choice, everybody's counts, and from them the row of every token. The host step of this name
// says what is computed; here it is spread over warps: each takes a run of tokens, counts its choices per key (ranks, then
// slots), and after exclusive scans over warps, blocks and ranks goes over its run again to number them.
//
// What takes time here is latency: of memory, of the link, of instructions that run once and cold. So there are few phases,
// loads are asked for a phase ahead, lookups are in shared memory, counts cross the link without a signal behind them, and
// loops stay loops.
#include "cuda/device/choose_slot.cuh"
#include "cuda/device/network_counts.cuh"
#include "cuda/kernels.h"
#include "wire/token_meta.h"

namespace ferry::cuda {
namespace {

constexpr FaultStep kStep = FaultStep::kRoute;

/// What rank `writer` tells this rank, or this rank tells rank `reader`: CountWords of the note, then of the counts by key.
struct CountWords {
  CountWord* words;
  __device__ CountWords(std::byte* window, const DeviceLayout& layout, std::uint64_t exchange, int writer)
      : words(reinterpret_cast<CountWord*>(window + layout.counts_at(static_cast<int>(exchange % 2), writer))) {}
  __device__ CountWord* note() const { return words; }
  __device__ CountWord* key(int key) const { return words + DeviceLayout::kNoteWords + key; }
};

/// Waits for a word of `from`, which `writer` writes. False if the call ends here.
__device__ bool await(const GroupArgs& group, std::uint64_t epoch, std::uint64_t exchange, const CountWords& from,
                      int writer, const CountWord* word, std::uint32_t& value) {
  const WordIs is = wait_word(group, kStep, epoch, word, exchange, writer, value);
  if (is != WordIs::kOverwritten) return is == WordIs::kHere;
  const std::uint64_t low = load_relaxed(&from.note()[0].value), high = load_relaxed(&from.note()[1].value);
  fail(group, epoch,
       {.kind = FaultKind::kGoneOn, .step = kStep, .peer = writer, .seen = high << 32 | low, .wanted = epoch});
  return false;
}

__device__ std::int64_t id_at(const RouteArgs& a, std::int64_t token, int k) {
  const std::int64_t index = token * a.ids_stride[0] + k * a.ids_stride[1];
  return a.wide_ids ? static_cast<const std::int64_t*>(a.ids)[index] : static_cast<const std::int32_t*>(a.ids)[index];
}

/// Lookups in shared memory: the slot of each expert, or why it takes a closer look, and the rank of each slot.
struct Tables {
  static constexpr std::int32_t kSeveral = -2;
  std::int32_t *slot_of_expert, *rank_of_slot;

  __device__ void fill(const GroupArgs& group) const {
    const PlacementArgs& p = group.placement;
    for (int expert = static_cast<int>(threadIdx.x); expert < p.num_experts; expert += static_cast<int>(blockDim.x)) {
      const std::int32_t begin = p.first_place[expert], end = p.first_place[expert + 1];
      slot_of_expert[expert] = end - begin == 1 ? choose_slot(group, group.members, expert, 0) : kSeveral;
    }
    for (int slot = static_cast<int>(threadIdx.x); slot < p.num_slots; slot += static_cast<int>(blockDim.x))
      rank_of_slot[slot] = p.rank_of_slot[slot];
  }
  __device__ std::int32_t slot_of(const GroupArgs& group, std::int32_t expert, std::int64_t token) const {
    const std::int32_t slot = slot_of_expert[expert];
    return slot == kSeveral ? choose_slot(group, group.members, expert, token) : slot;
  }
};

/// A warp's run of tokens and its counters. kWide: a token has more choices than a warp has lanes, and takes several steps.
template <bool kWide>
class TokenRun {
 public:
  __device__ TokenRun(const RouteArgs& args, const Tables& tables, std::int32_t* counters)
      : a_(args), tables_(tables), counters_(counters) {
    lane_ = static_cast<int>(threadIdx.x) % 32;
    per_step_ = kWide ? 1 : 32 / args.top_k;
    const std::int64_t warps = static_cast<std::int64_t>(gridDim.x) * (blockDim.x / 32);
    const std::int64_t warp = static_cast<std::int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
    const std::int64_t run = (args.num_tokens + warps - 1) / warps;
    const std::int64_t whole = (run + per_step_ - 1) / per_step_ * per_step_;
    begin_ = min(args.num_tokens, warp * whole);
    end_ = min(args.num_tokens, begin_ + whole);
  }

  /// Asks for what count() begins with, and copies the weights.
  __device__ void start() {
    if (!a_.cached) next_ = id_of(choice_at({begin_}));
    if (a_.weights == nullptr) return;
#pragma unroll 1
    for (std::int64_t at = begin_ * a_.top_k + lane_; at < end_ * a_.top_k; at += 32)
      a_.handle.weights[at] = a_.weights[at / a_.top_k * a_.weights_stride[0] + at % a_.top_k * a_.weights_stride[1]];
  }
  /// Chooses slots; numbers each choice within its slot and each token within its rank, counting from the begin of the run.
  __device__ void count() {
#pragma unroll 1
    for (Step step{begin_}; step.token < end_; step = after(step)) {
      const Choice c = choice_at(step);
      const std::int64_t id = next_;
      next_ = id_of(choice_at(after(step)));
      std::int32_t slot = -1;
      if (id >= a_.group.placement.num_experts) {
        atomicMin(reinterpret_cast<unsigned long long*>(&a_.group.state->bad_id),
                  static_cast<unsigned long long>(c.at));
      } else if (id >= 0) {
        slot = tables_.slot_of(a_.group, static_cast<std::int32_t>(id), c.token);
      }
      const std::int32_t rank = slot < 0 ? -1 : tables_.rank_of_slot[slot];
      const Rows rows = number(slot, rank, is_seen(c, rank));
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
      const std::int32_t number = a_.handle.tokens[at], row = a_.handle.rows[at];
      if (rank < 0) continue;
      const std::int32_t token = number + counters_[rank];
      a_.handle.tokens[at] = token;
      a_.handle.rows[at] = by_token ? token : row + counters_[a_.group.num_ranks + slot];
    }
  }
  /// On request scales the weights of live choices up to what all choices of the token had.
  __device__ void renormalise() {
    if (a_.weights == nullptr || !a_.renormalise) return;
    __syncwarp();
#pragma unroll 1
    for (std::int64_t t = begin_ + lane_; t < end_; t += 32) {
      float* row = a_.handle.weights + t * a_.top_k;
      float all = 0.0f, live = 0.0f;
      for (int k = 0; k < a_.top_k; ++k) {
        if (id_at(a_, t, k) >= 0) all += row[k];
        if (a_.handle.slots[t * a_.top_k + k] >= 0) live += row[k];
      }
      if (live == all || live == 0.0f) continue;
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
  /// What the lanes of a warp take together: whole tokens from this one on, or choices of it from this one on.
  struct Step {
    std::int64_t token;
    int choice = 0;
  };
  __device__ Step after(const Step& step) const {
    if (kWide && step.choice + 32 < a_.top_k) return {step.token, step.choice + 32};
    return {step.token + per_step_};
  }
  __device__ Choice choice_at(const Step& step) const {
    if constexpr (kWide) {
      const int k = step.choice + lane_;
      return {k < a_.top_k && step.token < end_, k, step.token, step.token * a_.top_k + k};
    } else {
      const std::int64_t token = step.token + lane_ / a_.top_k;
      const int k = lane_ % a_.top_k;
      return {lane_ < per_step_ * a_.top_k && token < end_, k, token, token * a_.top_k + k};
    }
  }
  /// The token was counted for this rank in an earlier step: looked up in what those wrote down.
  __device__ bool is_seen(const Choice& c, std::int32_t rank) const {
    bool seen = false;
    if constexpr (kWide) {
      __syncwarp();  // what other lanes wrote
      const std::int32_t* ranks = a_.handle.ranks + c.token * a_.top_k;
#pragma unroll 1
      for (int k = 0; k < c.k - lane_; ++k) seen = seen || ranks[k] == rank;
    }
    return seen && rank >= 0;
  }
  __device__ std::int64_t id_of(const Choice& choice) const {
    return choice.active ? id_at(a_, choice.token, choice.k) : -1;
  }

  /// The number of each lane's choice in its slot and of its token at its rank, -1 without; counts both, the token where it was
  /// not `seen` before. Lanes are in order of (token, choice).
  __device__ Rows number(std::int32_t slot, std::int32_t rank, bool seen) {
    const int num_ranks = a_.group.num_ranks;
    const bool has = slot >= 0;
    const unsigned before = (1u << lane_) - 1;
    const int nobody = -1 - lane_;  // no two lanes agree about it
    const unsigned same_slot = __match_any_sync(kAll, has ? slot : nobody);
    const unsigned same_owner = __match_any_sync(kAll, has ? lane_ / a_.top_k * num_ranks + rank : nobody);
    const bool first = has && !seen && (same_owner & before) == 0;
    const unsigned same_rank = __match_any_sync(kAll, first ? rank : nobody);
    std::int32_t choice = -1, token = -1;
    if (has) choice = counters_[num_ranks + slot] + __popc(same_slot & before);
    if (first) token = counters_[rank] + __popc(same_rank & before);
    if (kWide && seen) token = counters_[rank] - 1;  // this token was the last to be counted there
    token = __shfl_sync(kAll, token, __ffs(static_cast<int>(same_owner)) - 1);
    __syncwarp();
    if (has && (same_slot & before) == 0) counters_[num_ranks + slot] += __popc(same_slot);
    if (first && (same_rank & before) == 0) counters_[rank] += __popc(same_rank);
    __syncwarp();
    return {token, choice};
  }

  const RouteArgs& a_;
  const Tables tables_;
  std::int32_t* counters_;
  std::int64_t next_ = -1;  ///< id of this lane's choice in the next step
  int lane_, per_step_;
  std::int64_t begin_, end_;
};

/// Blocks' sums of a key lie side by side, so that a thread has them all with few loads.
__device__ std::int64_t totals_of(int key) {
  return static_cast<std::int64_t>(key) * ((gridDim.x + 3) / 4 * 4);
}

/// Counters of all warps become exclusive sums over the warps of the block; the block's sums go to the scratch memory.
__device__ void scan_warps(const RouteArgs& a, std::int32_t* counters, int keys) {
  const int warps = static_cast<int>(blockDim.x) / 32;
  for (int key = static_cast<int>(threadIdx.x); key < keys; key += static_cast<int>(blockDim.x)) {
    std::int32_t sum = 0;
#pragma unroll 8
    for (int warp = 0; warp < warps; ++warp) {
      std::int32_t& counter = counters[warp * keys + key];
      const std::int32_t count = counter;
      counter = sum;
      sum += count;
    }
    a.block_totals[totals_of(key) + blockIdx.x] = sum;
  }
}

/// Sums of a key over the blocks: before this one, and all.
struct BlockSums {
  std::int32_t before = 0, all = 0;
  __device__ BlockSums(const RouteArgs& a, int key) {
    const auto* totals = reinterpret_cast<const int4*>(a.block_totals + totals_of(key));
    const int blocks = static_cast<int>(gridDim.x), own = static_cast<int>(blockIdx.x);
#pragma unroll 4
    for (int first = 0; first < blocks; first += 4) {
      const int4 four = __ldcg(totals + first / 4);  // not from the first-level cache: other blocks wrote them
      const std::int32_t counts[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (first + i < own) before += counts[i];
        if (first + i < blocks) all += counts[i];
      }
    }
  }
};

__device__ void tell(const GroupArgs& group, int peer, CountWord* word, std::uint32_t value, std::uint64_t exchange) {
  delay_signal(group, peer);
  store_relaxed(reinterpret_cast<std::uint64_t*>(word), exchange << 32 | value);
}

/// Tells every peer what this rank is about to do; a warp per peer.
__device__ void tell_note(const RouteArgs& a, std::uint64_t epoch, std::uint64_t exchange) {
  const GroupArgs& group = a.group;
  __shared__ DispatchNote note;
  if (threadIdx.x == 0) {
    note = {};
    note.call.epoch = epoch;
    note.call.digest = group.digest;
    note.call.num_tokens = a.num_tokens;
    note.call.reserved[0] = group.flight;
    const std::uint64_t bad = a.cached ? ~std::uint64_t{0} : load_relaxed(&group.state->bad_id);
    if (bad != ~std::uint64_t{0}) {
      note.call.status = kCallBadId;
      note.call.where = static_cast<std::int64_t>(bad) / a.top_k;
      note.call.value = id_at(a, note.call.where, static_cast<int>(bad % static_cast<std::uint64_t>(a.top_k)));
    }
    for (int b = 0; b < wire::kMaxBlocks; ++b) note.rows_at[b] = a.rows_at[b];
  }
  __syncthreads();
  static_assert(DeviceLayout::kNoteWords == 32, "a word per lane");
  const std::uint32_t word = reinterpret_cast<const std::uint32_t*>(&note)[threadIdx.x % 32];
  for (int peer = static_cast<int>(threadIdx.x) / 32; peer < group.num_ranks;
       peer += static_cast<int>(blockDim.x) / 32) {
    if (group.windows[peer] == nullptr) continue;
    const CountWords to(group.windows[peer], group.layout, exchange, group.rank);
    tell(group, peer, to.note() + threadIdx.x % 32, word, exchange);
  }
}

/// Waits for every peer's note, a warp per peer; refuses what one confessed, that it is in another call, or that its arguments
/// differ. Warps from the end, since those from the begin have keys to wait for. kNetwork: and for the words that say that notes and
/// counts of other nodes are whole.
template <bool kNetwork>
__device__ bool check_notes(const RouteArgs& a, std::uint64_t epoch, std::uint64_t exchange) {
  const GroupArgs& group = a.group;
  const int warps = static_cast<int>(blockDim.x) / 32;
  bool good = true;
  for (int peer = warps - 1 - static_cast<int>(threadIdx.x) / 32; peer < group.num_ranks; peer += warps) {
    if (group.members[peer] == nullptr) continue;
    if (kNetwork && group.windows[peer] == nullptr) good = await_network(group, epoch, exchange, peer) && good;
    if (!good) break;
    const CountWords from(group.windows[group.rank], group.layout, exchange, peer);
    std::uint32_t word = 0;
    good = __all_sync(kAll, await(group, epoch, exchange, from, peer, from.note() + threadIdx.x % 32, word)) && good;
    if (!good) break;
    const auto field = [&](int at) {  // in 8-byte words of the note
      const std::uint64_t low = __shfl_sync(kAll, word, 2 * at), high = __shfl_sync(kAll, word, 2 * at + 1);
      return high << 32 | low;
    };
    const std::uint64_t their_epoch = field(0), digest = field(1), status = field(2), where = field(3),
                        value = field(4), flight = field(6);
    Fault fault{.step = kStep, .peer = peer, .seen = their_epoch, .wanted = epoch};
    if (their_epoch != epoch) {
      fault.kind = FaultKind::kGoneOn;
    } else if (status == kCallBadId) {
      fault.kind = FaultKind::kBadId;
      fault.where = static_cast<std::int64_t>(where);
      fault.value = static_cast<std::int64_t>(value);
    } else if (digest != group.digest || flight != static_cast<std::uint64_t>(group.flight)) {
      fault.kind = FaultKind::kMismatch;  // flights differ where ranks once were in different calls
    } else {
      continue;
    }
    if (threadIdx.x % 32 == 0) fail(group, epoch, fault);
    good = false;
  }
  return good;
}

/// What follows from everybody's counts, in shared memory: for each key the first row of this rank's share and the total.
struct Places {
  std::int32_t *base, *total;

  /// Waits for everybody's counts.
  __device__ bool sum_ranks(const RouteArgs& a, std::uint64_t epoch, std::uint64_t exchange, int keys) const {
    const GroupArgs& group = a.group;
    bool good = true;
    for (int key = static_cast<int>(threadIdx.x); key < keys && good; key += static_cast<int>(blockDim.x)) {
      std::int32_t sum = 0, mine = 0;
      for (int source = 0; source < group.num_ranks && good; ++source) {
        if (source == group.rank) mine = sum;
        if (group.members[source] == nullptr) continue;
        const CountWords from(group.windows[group.rank], group.layout, exchange, source);
        std::uint32_t count = 0;
        good = await(group, epoch, exchange, from, source, from.key(key), count);
        sum += static_cast<std::int32_t>(count);
      }
      base[key] = mine;
      total[key] = sum;
    }
    return good;
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
        if (a.shape.layout == Layout::kExpertPadded && count > a.shape.capacity) good = false;
        const std::int64_t extent = slot < end ? routing::expert_extent(a.shape, count) : 0;
        std::int64_t sum = extent;  // inclusive scan
        for (int step = 1; step < 32; step *= 2) {
          const std::int64_t below = __shfl_up_sync(kAll, sum, static_cast<unsigned>(step));
          if (lane >= step) sum += below;
        }
        if (slot < end) base[group.num_ranks + slot] += static_cast<std::int32_t>(rows + sum - extent);
        rows += __shfl_sync(kAll, sum, 31);
      }
      if (max(rows, static_cast<std::int64_t>(total[rank])) > group.layout.recv_rows) good = false;
    }
    good = __syncthreads_and(good) != 0;
    if (!good && threadIdx.x == 0) report_overflow(a, epoch);
    return good;
  }

 private:
  /// Names the rank, or else the expert, with the most rows, as the host does. One thread; all blocks find the same.
  __device__ void report_overflow(const RouteArgs& a, std::uint64_t epoch) const {
    const GroupArgs& group = a.group;
    const PlacementArgs& p = group.placement;
    Fault fault{.kind = FaultKind::kOverflow, .step = kStep, .value = group.layout.recv_rows};
    for (int rank = 0; rank < group.num_ranks; ++rank) {
      std::int64_t rows = 0;
      for (int slot = p.first_slot[rank]; slot < p.first_slot[rank + 1] && a.shape.layout != Layout::kRankMajor; ++slot)
        rows += routing::expert_extent(a.shape, total[group.num_ranks + slot]);
      rows = max(rows, static_cast<std::int64_t>(total[rank]));
      if (rows <= fault.where) continue;
      fault.where = rows;
      fault.peer = rank;
    }
    if (fault.where <= group.layout.recv_rows) {
      const std::int32_t* counts = total + group.num_ranks;
      int fullest = 0;
      for (int slot = 1; slot < p.num_slots; ++slot) fullest = counts[slot] > counts[fullest] ? slot : fullest;
      fault.where = counts[fullest];
      fault.value = a.shape.capacity;
      fault.peer = p.rank_of_slot[fullest];
      for (int expert = 0; expert < p.num_experts; ++expert) {
        for (int place = p.first_place[expert]; place < p.first_place[expert + 1]; ++place)
          if (p.slot_of_place[place] == fullest) fault.expert = expert;
      }
    }
    fail(group, epoch, fault);
  }
};

/// A count that was here before. A rank two exchanges ahead, which has given up on this one, may have overwritten it since.
__device__ std::int32_t count_of(const RouteArgs& a, const CountWord* word, std::uint64_t exchange, int writer) {
  const std::uint64_t both = load_relaxed(reinterpret_cast<const std::uint64_t*>(word));
  if (static_cast<std::uint32_t>(both >> 32) != static_cast<std::uint32_t>(exchange)) {
    const std::uint64_t epoch = a.group.state->epoch + 1;
    fail(a.group, epoch,
         {.kind = FaultKind::kGoneOn, .step = kStep, .peer = writer, .seen = epoch + 1, .wanted = epoch});
    return 0;
  }
  return static_cast<std::int32_t>(both);
}

/// What this rank receives, for the handle and the host; by one block.
__device__ void write_arrivals(const RouteArgs& a, std::uint64_t exchange, const Places& places, bool failed) {
  const GroupArgs& group = a.group;
  const HandleArgs& h = a.handle;
  const int num_ranks = group.num_ranks;
  const int first_slot = group.placement.first_slot[group.rank];
  const int num_local = group.placement.first_slot[group.rank + 1] - first_slot;
  std::byte* own = group.windows[group.rank];
  const int tid = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  if (!a.cached) {  // else the handle is that of a dispatch that went well, and stays what it is if this one fails
    for (int e = tid; e < num_local; e += threads)
      h.expert_counts[e] = failed ? 0 : places.total[num_ranks + first_slot + e];
    for (int slot = tid; slot < group.placement.num_slots; slot += threads)
      h.rank_of_slot[slot] = group.placement.rank_of_slot[slot];
    const CountWords mine(own, group.layout, exchange, group.rank);
    for (int rank = tid / 32; rank < num_ranks; rank += threads / 32) {
      std::int32_t choices = 0;
      for (int slot = group.placement.first_slot[rank] + tid % 32;
           !failed && slot < group.placement.first_slot[rank + 1]; slot += 32)
        choices += count_of(a, mine.key(num_ranks + slot), exchange, group.rank);
      choices = __reduce_add_sync(kAll, choices);
      if (tid % 32 != 0) continue;
      h.choices_to[rank] = choices;
      h.tokens_to[rank] = failed ? 0 : count_of(a, mine.key(rank), exchange, group.rank);
    }
    if (tid == 0) {
      std::int32_t rows = 0, to_node = 0;
      for (int source = 0; source < num_ranks; ++source) {
        h.source_offsets[source] = rows;
        if (failed || group.members[source] == nullptr) continue;
        const CountWords from(own, group.layout, exchange, source);
        rows += count_of(a, from.key(group.rank), exchange, source);
        to_node += count_of(a, mine.key(source), exchange, group.rank);
      }
      h.source_offsets[num_ranks] = rows;
      h.tokens_to_node[0] = to_node;
    }
    if (a.shape.layout == Layout::kRankMajor || failed) {
      for (int e = tid; e <= num_local; e += threads) h.expert_offsets[e] = 0;
    } else if (tid == (threads > 32 ? 32 : 0)) {
      routing::expert_starts(a.shape, places.total + num_ranks + first_slot, num_local, h.expert_offsets);
    }
    __syncthreads();
  }
  if (tid == 0) *a.num_rows = failed ? 0 : h.source_offsets[num_ranks];
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
  counts->failed = failed || has_failed(group, group.state->epoch + 1) ? 1 : 0;
  __threadfence_system();
  counts->ticket = a.ticket;
}

extern __shared__ std::int32_t shared_words[];

/// kNetwork: the group spans nodes, and `net` is not null.
template <bool kWide, bool kNetwork>
__device__ __forceinline__ void route_tokens(const RouteArgs& a, const NetworkArgs* net) {
  const int keys = a.group.num_ranks + a.group.placement.num_slots;
  const int warps = static_cast<int>(blockDim.x) / 32;
  const Places places{shared_words, shared_words + keys};
  std::int32_t* counters = shared_words + 2 * keys;
  const Tables tables{counters + warps * keys, counters + warps * keys + a.group.placement.num_experts};
  TokenRun<kWide> run(a, tables, counters + static_cast<int>(threadIdx.x) / 32 * keys);
  run.start();
  const std::uint64_t epoch = a.group.state->epoch + 1;
  const std::uint64_t exchange = a.group.state->exchanges + 1;
  // Whom latency mode has masked in these windows others may still count: the host opens new ones before it launches this, unless
  // the mask came in between.
  bool good = a.group.state->bank_event == 0;
  if (!good && threadIdx.x == 0) fail(a.group, epoch, {.kind = FaultKind::kRowsMissing, .step = kStep});
  if (!a.cached) {
    tables.fill(a.group);
    for (int i = static_cast<int>(threadIdx.x); i < warps * keys; i += static_cast<int>(blockDim.x)) counters[i] = 0;
    __syncthreads();
    run.count();
    __syncthreads();
    scan_warps(a, counters, keys);
    good = grid_barrier(a.group, kStep, epoch) && good;
  }
  // A peer that has seen the words may store rows here. What used that memory before was done by earlier kernels of this stream,
  // and what a peer's words allow this rank is done by later ones: no fence is needed here (one by all threads took 9 us).
  if (blockIdx.x == 0) tell_note(a, epoch, exchange);
  for (int key = static_cast<int>(threadIdx.x); key < keys && !a.cached; key += static_cast<int>(blockDim.x)) {
    const BlockSums sums(a, key);
    for (int warp = 0; warp < warps; ++warp) counters[warp * keys + key] += sums.before;
    for (int peer = 0; peer < a.group.num_ranks && blockIdx.x == 0; ++peer) {
      if (a.group.windows[peer] == nullptr) continue;
      const CountWords to(a.group.windows[peer], a.group.layout, exchange, a.group.rank);
      tell(a.group, peer, to.key(key), static_cast<std::uint32_t>(sums.all), exchange);
    }
  }
  if constexpr (kNetwork) {
    if (blockIdx.x == 0) tell_network(a, *net, epoch, exchange);
  }
  run.renormalise();  // while counts are on the way
  good = good && check_notes<kNetwork>(a, epoch, exchange);
  if constexpr (kNetwork) good = __syncthreads_and(good) != 0;  // other warps have waited for what this one reads
  if (!a.cached) good = good && places.sum_ranks(a, epoch, exchange, keys);
  good = __syncthreads_and(good) != 0;
  if (!a.cached && good) {
    good = places.place_experts(a, epoch);
    if (good) {
      for (int key = static_cast<int>(threadIdx.x); key < keys; key += static_cast<int>(blockDim.x)) {
        for (int warp = 0; warp < warps; ++warp) counters[warp * keys + key] += places.base[key];
      }
      __syncthreads();
      run.place();
    }
  }
  if (blockIdx.x != gridDim.x - 1) return;
  write_arrivals(a, exchange, places, !good);
  if (threadIdx.x == 0) a.group.state->bad_id = ~std::uint64_t{0};
  if (threadIdx.x < kMostChunks) a.group.state->chunk_warps[threadIdx.x] = 0;
}

template <bool kWide>
__global__ void __launch_bounds__(1024, 1) route_kernel(const __grid_constant__ RouteArgs a) {
  route_tokens<kWide, false>(a, nullptr);
}

__global__ void __launch_bounds__(1024, 1)
    route_network_kernel(const __grid_constant__ RouteArgs a, const __grid_constant__ NetworkArgs net) {
  route_tokens<false, true>(a, &net);
}

}  // namespace

std::size_t route_shared_bytes(int keys, int num_experts, int warps) {
  // Bases and totals, the counters of the warps, and the tables: no more slots than keys.
  return sizeof(std::int32_t) * (static_cast<std::size_t>(keys) * (3 + static_cast<std::size_t>(warps)) +
                                 static_cast<std::size_t>(num_experts));
}

void launch_route(const RouteArgs& args, const Launch& launch, cudaStream_t stream) {
  const auto kernel = args.top_k > kMaxTopK ? route_kernel<true> : route_kernel<false>;
  kernel<<<launch.blocks, launch.threads, launch.shared_bytes, stream>>>(args);
}

void launch_route(const RouteArgs& args, const NetworkArgs& network, const Launch& launch, cudaStream_t stream) {
  route_network_kernel<<<launch.blocks, launch.threads, launch.shared_bytes, stream>>>(args, network);
}

void prepare_route(int dynamic_bytes) {
  prepare_kernel(reinterpret_cast<const void*>(route_network_kernel), dynamic_bytes);
  prepare_kernel(reinterpret_cast<const void*>(route_kernel<false>), dynamic_bytes);
  prepare_kernel(reinterpret_cast<const void*>(route_kernel<true>), dynamic_bytes);
}

}  // namespace ferry::cuda
