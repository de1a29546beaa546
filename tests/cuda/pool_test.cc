// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The memory of owned results, over host memory: the pool only hands out addresses.
#include "cuda/pool.h"

#include <gtest/gtest.h>

#include <vector>

namespace ferry::cuda {
namespace {

constexpr std::size_t kUnit = 256;  // the pool's alignment

struct Heap {
  explicit Heap(std::size_t units) : memory(std::make_shared<std::vector<std::byte>>((units + 1) * kUnit)) {
    const auto at = reinterpret_cast<std::uintptr_t>(memory->data());
    begin = memory->data() + (kUnit - at % kUnit) % kUnit;
    pool = std::make_shared<Pool>(begin, units * kUnit, memory);
  }
  std::shared_ptr<std::vector<std::byte>> memory;
  std::byte* begin;
  std::shared_ptr<Pool> pool;
};

TEST(CudaPool, HandsOutWhatItHasAndNoMore) {
  Heap heap(4);
  const auto a = heap.pool->try_allocate(3 * kUnit), b = heap.pool->try_allocate(1);
  ASSERT_TRUE(a && b);
  EXPECT_EQ(a.get(), heap.begin);
  EXPECT_EQ(b.get(), heap.begin + 3 * kUnit) << "rounded up to the alignment";
  EXPECT_FALSE(heap.pool->try_allocate(1));
}

TEST(CudaPool, TheEndOfAShrunkBlockIsFreeAndJoinsWhatFollows) {
  Heap heap(8);
  const auto a = heap.pool->try_allocate(4 * kUnit), b = heap.pool->try_allocate(2 * kUnit);
  heap.pool->shrink(b, kUnit);  // 1 freed, next to the 2 that are left
  const auto c = heap.pool->try_allocate(3 * kUnit);
  ASSERT_TRUE(c);
  EXPECT_EQ(c.get(), heap.begin + 5 * kUnit);
  heap.pool->shrink(a, 4 * kUnit);  // not less: nothing comes free
  EXPECT_FALSE(heap.pool->try_allocate(1));
  heap.pool->shrink(a, 2 * kUnit + 1);
  const auto d = heap.pool->try_allocate(kUnit);
  EXPECT_EQ(d.get(), heap.begin + 3 * kUnit);
}

TEST(CudaPool, NeighboursThatAreLetGoBecomeOnePiece) {
  Heap heap(3);
  auto a = heap.pool->try_allocate(kUnit), b = heap.pool->try_allocate(kUnit), c = heap.pool->try_allocate(kUnit);
  a.reset();
  c.reset();
  EXPECT_FALSE(heap.pool->try_allocate(2 * kUnit)) << "two pieces apart";
  b.reset();
  EXPECT_TRUE(heap.pool->try_allocate(3 * kUnit));
}

TEST(CudaPool, AShrunkBlockGivesBackWhatItStillHas) {
  Heap heap(4);
  auto a = heap.pool->try_allocate(4 * kUnit);
  heap.pool->shrink(a, kUnit);
  a.reset();
  EXPECT_TRUE(heap.pool->try_allocate(4 * kUnit));
}

TEST(CudaPool, BlocksKeepTheMemoryAlive) {
  Heap heap(2);
  const std::weak_ptr<void> memory = heap.memory;
  auto block = heap.pool->try_allocate(kUnit);
  heap.pool.reset();
  heap.memory.reset();
  EXPECT_FALSE(memory.expired());
  block.reset();
  EXPECT_TRUE(memory.expired());
}

TEST(CudaPool, OfNothingThereIsNothing) {
  Heap heap(0);
  EXPECT_FALSE(heap.pool->try_allocate(1));
}

}  // namespace
}  // namespace ferry::cuda
