// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
#include "support/device.h"

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>

#include "support/spawn.h"

#ifdef FERRY_TEST_CUDA
#include <cuda_runtime_api.h>
#endif

namespace ferry::test {

#ifdef FERRY_TEST_CUDA

namespace {

void check(cudaError_t status, const char* what) {
  require(status == cudaSuccess, std::string(what) + ": " + cudaGetErrorString(status));
}

/// A stream and memory of one rank, handed from one test to the next: asking the driver for memory may wait for kernels of other
/// ranks, and those may wait for this one. Not the default stream, which would wait for streams of other ranks in this process.
struct Arena {
  cudaStream_t stream = nullptr;
  std::byte* base = nullptr;
  std::byte* pinned =
      nullptr;  ///< host memory that copies go through: of other memory the driver makes copies of its own, and may wait
  std::size_t used = 0;
  int users = 0;
  static constexpr std::size_t kBytes = std::size_t{64} << 20;

  std::byte* take(std::size_t bytes) {
    const std::size_t at = used;
    used += (bytes + 255) / 256 * 256;
    require(used <= kBytes, "the test needs more device memory than its arena has");
    return base + at;
  }
};

class Arenas {
 public:
  std::unique_ptr<Arena> take(int device) {
    const std::lock_guard lock(mutex_);
    auto& free = free_[device];
    if (!free.empty()) {
      auto arena = std::move(free.back());
      free.pop_back();
      return arena;
    }
    auto arena = std::make_unique<Arena>();
    check(cudaStreamCreateWithFlags(&arena->stream, cudaStreamNonBlocking), "cudaStreamCreate");
    void* memory = nullptr;
    check(cudaMalloc(&memory, Arena::kBytes), "cudaMalloc");
    arena->base = static_cast<std::byte*>(memory);
    check(cudaHostAlloc(&memory, Arena::kBytes, cudaHostAllocPortable), "cudaHostAlloc");
    arena->pinned = static_cast<std::byte*>(memory);
    return arena;
  }
  void put_back(int device, std::unique_ptr<Arena> arena) {
    const std::lock_guard lock(mutex_);
    free_[device].push_back(std::move(arena));
  }

 private:
  std::mutex mutex_;
  std::map<int, std::vector<std::unique_ptr<Arena>>> free_;
};

Arenas& arenas() {
  static Arenas* all = new Arenas;  // outlives every thread
  return *all;
}

/// The calling thread's arena.
struct ThreadArena {
  int device = -1;
  std::unique_ptr<Arena> arena;
  ~ThreadArena() {
    if (arena) arenas().put_back(device, std::move(arena));
  }
};
thread_local ThreadArena my_arena;

Arena& arena() {
  if (!my_arena.arena) use_device(0);
  return *my_arena.arena;
}

cudaStream_t own_stream() {
  return arena().stream;
}

/// A copy that waits in a copy engine's queue for a kernel of its stream holds up copies of other ranks behind it, and the kernel
/// may be waiting for just those ranks. So copies are asked for only once their stream has nothing left to do.
void wait_until_idle() {
  cudaError_t status = cudaErrorNotReady;
  while ((status = cudaStreamQuery(own_stream())) == cudaErrorNotReady)
    std::this_thread::sleep_for(
        std::chrono::microseconds(5));  // threads that only ask keep the driver's lock from others
  check(status, "cudaStreamQuery");
}

/// Bytes from the first element to the end of the last.
std::size_t span_of(const Tensor& tensor) {
  if (tensor.num_elements() == 0) return 0;
  std::int64_t last = 0;
  for (int i = 0; i < tensor.ndim; ++i)
    last += (tensor.shape[static_cast<std::size_t>(i)] - 1) * tensor.strides[static_cast<std::size_t>(i)];
  return static_cast<std::size_t>(last + 1) * dtype_bytes(tensor.dtype);
}

}  // namespace

int num_devices() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

void use_device(int device) {
  check(cudaSetDevice(device), "cudaSetDevice");
  if (my_arena.device == device) return;
  if (my_arena.arena) arenas().put_back(my_arena.device, std::move(my_arena.arena));
  my_arena.arena = arenas().take(device);
  my_arena.device = device;
}

DeviceCopies::DeviceCopies() = default;

DeviceCopies::~DeviceCopies() {
  if (in_use_ && --arena().users == 0) arena().used = 0;
}

void* DeviceCopies::stream() const {
  return own_stream();
}

void DeviceCopies::wait() const {
  wait_until_idle();
}

void DeviceCopies::write(void* device, const void* host, std::size_t bytes) {
  wait_until_idle();
  check(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, own_stream()), "copy to the device");
  check(cudaStreamSynchronize(own_stream()), "copy to the device");
}

Tensor DeviceCopies::to_device(const Tensor& host) {
  if (!host.present()) return host;
  wait_until_idle();
  const std::size_t bytes = span_of(host);
  if (!in_use_) {
    in_use_ = true;
    ++arena().users;
  }
  std::byte* block = arena().take(bytes + 16);
  std::byte* pinned = arena().pinned + (block - arena().base);  // as long as the block
  if (bytes > 0) std::memcpy(pinned, host.data, bytes);
  check(cudaMemcpyAsync(block, pinned, bytes, cudaMemcpyHostToDevice, own_stream()), "copy to the device");
  Tensor out = host;
  out.data = block;
  return out;
}

Tensor DeviceCopies::to_host(const Tensor& device) {
  if (!device.present()) return device;
  wait_until_idle();
  const std::size_t bytes = span_of(device);
  copies_.push_back(std::make_unique<std::byte[]>(bytes + 1));
  std::byte* pinned = arena().pinned + arena().used;  // what no block uses yet
  require(bytes <= Arena::kBytes - arena().used, "the test needs more pinned memory than its arena has");
  check(cudaMemcpyAsync(pinned, device.data, bytes, cudaMemcpyDeviceToHost, own_stream()), "copy to the host");
  check(cudaStreamSynchronize(own_stream()), "copy to the host");
  if (bytes > 0) std::memcpy(copies_.back().get(), pinned, bytes);
  Tensor out = device;
  out.data = copies_.back().get();
  return out;
}

void DeviceCopies::copy_rows(const Tensor& device, const Tensor& from) {
  if (from.num_elements() == 0) return;
  wait_until_idle();
  const auto last = static_cast<std::size_t>(device.ndim - 1);
  const auto element = static_cast<std::int64_t>(dtype_bytes(device.dtype));
  if (device.ndim == 1) {
    check(cudaMemcpyAsync(device.data, from.data, static_cast<std::size_t>(device.shape[0] * element),
                          cudaMemcpyDeviceToDevice, own_stream()),
          "copy on the device");
    return;
  }
  const std::int64_t rows = device.num_elements() / device.shape[last];
  check(cudaMemcpy2DAsync(device.data, static_cast<std::size_t>(device.strides[last - 1] * element), from.data,
                          static_cast<std::size_t>(from.strides[last - 1] * element),
                          static_cast<std::size_t>(device.shape[last] * element), static_cast<std::size_t>(rows),
                          cudaMemcpyDeviceToDevice, own_stream()),
        "cudaMemcpy2DAsync");
}

#else

int num_devices() {
  return 0;
}
void use_device(int) {
  throw Failure("this build has no CUDA");
}
DeviceCopies::DeviceCopies() = default;
DeviceCopies::~DeviceCopies() = default;
void* DeviceCopies::stream() const {
  return nullptr;
}
Tensor DeviceCopies::to_device(const Tensor&) {
  throw Failure("this build has no CUDA");
}
Tensor DeviceCopies::to_host(const Tensor&) {
  throw Failure("this build has no CUDA");
}
void DeviceCopies::copy_rows(const Tensor&, const Tensor&) {
  throw Failure("this build has no CUDA");
}
void DeviceCopies::wait() const {
  throw Failure("this build has no CUDA");
}
void DeviceCopies::write(void*, const void*, std::size_t) {
  throw Failure("this build has no CUDA");
}

#endif

std::string why_no_gpu() {
  const char* backend = std::getenv("FERRY_TEST_BACKEND");
  if (backend == nullptr || std::string(backend) != "cuda") return "FERRY_TEST_BACKEND is not cuda";
  if (std::getenv("FERRY_TEST_PROCESSES") != nullptr) return "ranks are threads in this test";
  return num_devices() > 0 ? "" : "no GPU";
}

}  // namespace ferry::test
