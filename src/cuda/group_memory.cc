// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
#include "cuda/group_memory.h"

#include <algorithm>
#include <cstring>

#include "cuda/check.h"

namespace ferry::cuda {
namespace {

constexpr std::size_t kPlacementBytes = std::size_t{256} << 10;  // some 30 placements of 256 experts

}  // namespace

Pinned::Pinned(std::size_t bytes) {
  void* memory = nullptr;
  check(cudaHostAlloc(&memory, bytes, cudaHostAllocMapped | cudaHostAllocPortable), "cudaHostAlloc");
  data_ = static_cast<std::byte*>(memory);
  std::memset(data_, 0, bytes);
}

Pinned::~Pinned() {
  cudaFreeHost(data_);
}

GroupMemory::GroupMemory(int device, const Sizes& sizes)
    : pool(std::make_shared<Pool>(device, static_cast<std::size_t>(sizes.result_bytes))),
      device_(device),
      num_ranks_(sizes.num_ranks),
      late_bytes_((sizes.num_ranks * 8 + 63) / 64 * 64),
      counts_bytes_((static_cast<std::int64_t>(sizeof(HostCounts)) +
                     4 * (sizes.num_ranks + 2 * sizes.max_local_experts + 2) + 63) /
                    64 * 64),
      board_(static_cast<std::size_t>(kBoardBytes + late_bytes_ + sizes.num_flights * counts_bytes_)),
      table_(pool->allocate(sizeof(std::byte*) * 2 * static_cast<std::size_t>(sizes.num_ranks))),
      state_(pool->allocate(sizeof(DeviceState))) {
  static_assert(sizeof(Fault) + sizeof(std::uint64_t) <= kBoardBytes);
  constexpr std::size_t kUsualBlocks = 32;
  route_scratch(kUsualBlocks * static_cast<std::size_t>(sizes.keys) * 4);
  const auto block = pool->allocate(kPlacementBytes);
  placement_memory_.push_back(std::make_shared<Pool>(block.get(), kPlacementBytes, block));
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
}

GroupMemory::~GroupMemory() {
  cudaStreamDestroy(stream_);
}

void GroupMemory::copy_to_device(void* to, const void* from, std::size_t bytes) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_), "cudaMemcpyAsync");
  check(cudaStreamSynchronize(stream_), "cudaMemcpyAsync");
}

void GroupMemory::adopt(const Windows& windows) {
  std::vector<std::byte*> table;
  for (int rank = 0; rank < num_ranks_; ++rank) table.push_back(windows.device(rank));
  std::byte* const any = *std::find_if(table.begin(), table.end(), [](std::byte* window) { return window != nullptr; });
  for (int rank = 0; rank < num_ranks_; ++rank) table.push_back(windows.membership.is_masked(rank) ? nullptr : any);
  copy_to_device(table_.get(), table.data(), table.size() * sizeof(table[0]));
  for (int rank = 0; rank < num_ranks_; ++rank) late()[rank] = 0;
  DeviceState state;
  state.epoch = windows.first_epoch;
  copy_to_device(state_.get(), &state, sizeof(state));
}

void GroupMemory::clear_fault() {
  *fault() = Fault{};
  const std::uint32_t taken = 0;
  copy_to_device(&state()->fault_taken, &taken, sizeof(taken));
}

std::shared_ptr<std::byte> GroupMemory::placement_block(std::size_t bytes) {
  if (auto block = placement_memory_.back()->try_allocate(bytes)) return block;
  placement_memory_.push_back(std::make_shared<Pool>(device_, std::max(bytes, kPlacementBytes)));
  return placement_memory_.back()->allocate(bytes);
}

PlacementArgs GroupMemory::placement(const Placement& placement) {
  if (const auto found = placements_.find(placement.digest()); found != placements_.end()) return found->second.args;
  std::vector<std::int32_t> words;
  for (int expert = 0; expert < placement.num_experts(); ++expert) {
    const auto slots = placement.slots_of(expert);
    const bool one = slots.size() == 1;
    words.push_back(one ? slots[0] : ExpertHome::kSeveral);
    words.push_back(one ? placement.rank_of_slot(slots[0]) : -1);
  }
  const std::size_t places_at = words.size();
  for (int expert = 0, place = 0; expert <= placement.num_experts(); ++expert) {
    words.push_back(place);
    if (expert < placement.num_experts()) place += static_cast<int>(placement.slots_of(expert).size());
  }
  const std::size_t slots_at = words.size();
  for (int expert = 0; expert < placement.num_experts(); ++expert) {
    for (std::int32_t slot : placement.slots_of(expert)) words.push_back(slot);
  }
  const std::size_t ranks_at = words.size();
  for (int slot = 0; slot < placement.num_slots(); ++slot) words.push_back(placement.rank_of_slot(slot));
  const std::size_t first_at = words.size();
  for (int rank = 0; rank <= placement.num_ranks(); ++rank) words.push_back(placement.first_slot(rank));
  PlacementCopy copy{placement_block(words.size() * 4), {}};
  copy_to_device(copy.memory.get(), words.data(), words.size() * 4);
  const auto* base = reinterpret_cast<const std::int32_t*>(copy.memory.get());
  static_assert(sizeof(ExpertHome) == 8);
  copy.args = {.homes = reinterpret_cast<const ExpertHome*>(base),
               .first_place = base + places_at,
               .slot_of_place = base + slots_at,
               .rank_of_slot = base + ranks_at,
               .first_slot = base + first_at,
               .num_experts = placement.num_experts(),
               .num_slots = placement.num_slots()};
  return placements_.emplace(placement.digest(), std::move(copy)).first->second.args;
}

std::int32_t* GroupMemory::route_scratch(std::size_t bytes) {
  if (bytes > scratch_bytes_) {
    scratches_.push_back(pool->allocate(bytes));  // graphs that were captured before go on using the smaller ones
    scratch_bytes_ = bytes;
  }
  return reinterpret_cast<std::int32_t*>(scratches_.back().get());
}

}  // namespace ferry::cuda
