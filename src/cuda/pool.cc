// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
#include "cuda/pool.h"

#include <cuda_runtime_api.h>

#include <algorithm>

#include "cuda/check.h"

namespace ferry::cuda {
namespace {

constexpr std::size_t kAlignment = 256;

std::size_t rounded(std::size_t bytes) {
  return (std::max<std::size_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

Pool::Pool(int device, std::size_t bytes) : device_(device) {
  if (bytes > 0) add_chunk(rounded(bytes));
}

Pool::Pool(std::byte* memory, std::size_t bytes, std::shared_ptr<const void> owner) : owner_(std::move(owner)) {
  const std::size_t whole = bytes / kAlignment * kAlignment;
  if (whole == 0) return;
  chunks_.push_back(memory);
  free_.emplace(memory, whole);
}

Pool::~Pool() {
  if (owner_) return;
  int before = 0;
  cudaGetDevice(&before);
  cudaSetDevice(device_);
  for (std::byte* chunk : chunks_) cudaFree(chunk);
  cudaSetDevice(before);
}

std::shared_ptr<std::byte> Pool::allocate(std::size_t bytes) {
  const std::size_t size = rounded(bytes);
  const std::lock_guard lock(mutex_);
  std::byte* block = take(size);
  if (block == nullptr) {
    add_chunk(size);
    block = take(size);
  }
  return hand_out(block, size);
}

std::shared_ptr<std::byte> Pool::try_allocate(std::size_t bytes) {
  const std::size_t size = rounded(bytes);
  const std::lock_guard lock(mutex_);
  std::byte* block = take(size);
  return block == nullptr ? nullptr : hand_out(block, size);
}

std::shared_ptr<std::byte> Pool::hand_out(std::byte* block, std::size_t bytes) {
  taken_[block] = bytes;
  return {block, [pool = shared_from_this()](std::byte* memory) { pool->put_back(memory); }};
}

void Pool::shrink(const std::shared_ptr<std::byte>& block, std::size_t bytes) {
  const std::size_t size = rounded(bytes);
  const std::lock_guard lock(mutex_);
  std::size_t& taken = taken_.at(block.get());
  if (size >= taken) return;
  join(block.get() + size, taken - size);
  taken = size;
}

void Pool::add_chunk(std::size_t bytes) {
  const DeviceScope scope(device_);
  // Stream-ordered, on a stream of its own: cudaMalloc may wait for whatever runs on the device.
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  void* memory = nullptr;
  const cudaError_t status = cudaMallocAsync(&memory, bytes, stream);
  cudaStreamSynchronize(stream);
  cudaStreamDestroy(stream);
  check(status, "ferry: device memory for results: cudaMallocAsync");
  chunks_.push_back(static_cast<std::byte*>(memory));
  free_.emplace(chunks_.back(), bytes);
}

/// The smallest free piece that is large enough; the rest of it stays free.
std::byte* Pool::take(std::size_t bytes) {
  auto best = free_.end();
  for (auto it = free_.begin(); it != free_.end(); ++it) {
    if (it->second >= bytes && (best == free_.end() || it->second < best->second)) best = it;
  }
  if (best == free_.end()) return nullptr;
  const auto [block, size] = *best;
  free_.erase(best);
  if (size > bytes) free_.emplace(block + bytes, size - bytes);
  return block;
}

void Pool::put_back(std::byte* block) {
  const std::lock_guard lock(mutex_);
  const auto taken = taken_.find(block);
  join(block, taken->second);
  taken_.erase(taken);
}

/// Makes a piece free, and one with its free neighbours.
void Pool::join(std::byte* block, std::size_t bytes) {
  const auto is_chunk = [&](std::byte* at) { return std::find(chunks_.begin(), chunks_.end(), at) != chunks_.end(); };
  auto here = free_.emplace(block, bytes).first;
  const auto next = std::next(here);
  if (next != free_.end() && here->first + here->second == next->first && !is_chunk(next->first)) {
    here->second += next->second;
    free_.erase(next);
  }
  if (here == free_.begin() || is_chunk(here->first)) return;
  const auto before = std::prev(here);
  if (before->first + before->second != here->first) return;
  before->second += here->second;
  free_.erase(here);
}

}  // namespace ferry::cuda
