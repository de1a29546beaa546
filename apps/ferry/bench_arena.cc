// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Shared memory of a benchmark's ranks: see bench_arena.h.
#include "bench_arena.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>
#include <thread>
#include <utility>

#include <fmt/format.h>

namespace ferry::bench {

struct Arena::Header {
  alignas(64) std::atomic<std::uint32_t> arrived;
  alignas(64) std::atomic<std::uint32_t> generation;
  alignas(64) std::atomic<std::uint32_t> failed;  // 0 no, 1 message being written, 2 message complete
  char message[2048];
};

namespace {

constexpr std::size_t kPage = 4096;

std::size_t round_up(std::size_t value) {
  return (value + kPage - 1) / kPage * kPage;
}

std::size_t cells(const ArenaShape& shape) {
  return static_cast<std::size_t>(shape.columns) * static_cast<std::size_t>(shape.iterations) *
         static_cast<std::size_t>(shape.ranks);
}

std::size_t arena_bytes(const ArenaShape& shape) {
  return kPage + round_up(cells(shape) * sizeof(double)) +
         static_cast<std::size_t>(shape.ranks) * round_up(shape.copy_bytes);
}

std::byte* map_shared(int fd, std::size_t bytes) {
  void* const memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return static_cast<std::byte*>(memory);
}

}  // namespace

Arena::Arena(int fd, const ArenaShape& shape, std::byte* memory, std::size_t bytes)
    : fd_(fd), shape_(shape), memory_(memory), bytes_(bytes) {}

Arena::Arena(Arena&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      shape_(other.shape_),
      memory_(std::exchange(other.memory_, nullptr)),
      bytes_(other.bytes_) {}

Arena::~Arena() {
  if (memory_ != nullptr) ::munmap(memory_, bytes_);
  if (fd_ >= 0) ::close(fd_);
}

Arena Arena::create(const ArenaShape& shape) {
  static_assert(sizeof(Header) <= kPage);
  const std::size_t bytes = arena_bytes(shape);
  const int fd = ::memfd_create("ferry-bench", MFD_CLOEXEC);
  if (fd < 0 || ::ftruncate(fd, static_cast<off_t>(bytes)) != 0) {
    throw std::runtime_error(fmt::format("ferry bench: no shared memory of {} bytes: {}", bytes, std::strerror(errno)));
  }
  Arena arena(fd, shape, map_shared(fd, bytes), bytes);
  new (arena.memory_) Header{};
  auto* const times = reinterpret_cast<double*>(arena.memory_ + kPage);
  std::fill(times, times + cells(shape), std::numeric_limits<double>::quiet_NaN());
  return arena;
}

Arena Arena::attach(int pid, int fd, const ArenaShape& shape) {
  const std::string path = fmt::format("/proc/{}/fd/{}", pid, fd);
  const int own = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (own < 0) throw std::runtime_error(fmt::format("ferry bench: cannot open {}: {}", path, std::strerror(errno)));
  const std::size_t bytes = arena_bytes(shape);
  return Arena(own, shape, map_shared(own, bytes), bytes);
}

Arena::Header& Arena::header() const {
  return *std::launder(reinterpret_cast<Header*>(memory_));
}

void Arena::barrier(double deadline_s) {
  Header& shared = header();
  const std::uint32_t generation = shared.generation.load(std::memory_order_acquire);
  if (shared.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<std::uint32_t>(shape_.ranks)) {
    shared.arrived.store(0, std::memory_order_relaxed);
    shared.generation.store(generation + 1, std::memory_order_release);
    return;
  }
  // With a core for every rank a short spin starts all of them together; otherwise the core belongs to somebody else.
  const bool own_core = static_cast<unsigned>(shape_.ranks) <= std::thread::hardware_concurrency();
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(deadline_s);
  for (std::uint64_t spins = 0; shared.generation.load(std::memory_order_acquire) == generation; ++spins) {
    if (shared.failed.load(std::memory_order_acquire) != 0) throw std::runtime_error(failure());
    if (!own_core || spins % 1024 == 1023) ::sched_yield();
    if (spins % 256 == 255 && std::chrono::steady_clock::now() > end) {
      throw std::runtime_error(fmt::format("ferry bench: {} of {} ranks came to the barrier within {} s",
                                           shared.arrived.load(), shape_.ranks, deadline_s));
    }
  }
}

void Arena::fail(int rank, const std::string& message) noexcept {
  Header& shared = header();
  std::uint32_t expected = 0;
  if (!shared.failed.compare_exchange_strong(expected, 1)) return;
  std::snprintf(shared.message, sizeof shared.message, "rank %d: %s", rank, message.c_str());
  shared.failed.store(2, std::memory_order_release);
}

bool Arena::failed() const noexcept {
  return header().failed.load(std::memory_order_acquire) != 0;
}

std::string Arena::failure() const {
  return header().failed.load(std::memory_order_acquire) == 2 ? header().message : "a rank failed";
}

double& Arena::seconds(int column, int iteration, int rank) {
  const std::size_t cell = (static_cast<std::size_t>(column) * static_cast<std::size_t>(shape_.iterations) +
                            static_cast<std::size_t>(iteration)) *
                               static_cast<std::size_t>(shape_.ranks) +
                           static_cast<std::size_t>(rank);
  return reinterpret_cast<double*>(memory_ + kPage)[cell];
}

std::vector<double> Arena::slowest(int column) {
  std::vector<double> result;
  for (int iteration = 0; iteration < shape_.iterations; ++iteration) {
    double most = std::numeric_limits<double>::quiet_NaN();
    for (int rank = 0; rank < shape_.ranks; ++rank) most = std::fmax(most, seconds(column, iteration, rank));
    if (!std::isnan(most)) result.push_back(most);
  }
  return result;
}

std::byte* Arena::copy_space(int rank) {
  return memory_ + kPage + round_up(cells(shape_) * sizeof(double)) +
         static_cast<std::size_t>(rank) * round_up(shape_.copy_bytes);
}

}  // namespace ferry::bench
