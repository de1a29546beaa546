// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Litmus tests of what the library builds on: rows stored at a peer (by ordinary and by bulk stores) or left for it to fetch, a
// signal after them, and a reader that looks at the rows as soon as it has seen the signal. With every fence in its place no
// iteration may show an old word; how often it happens with a fence left out is told for information.
//
//     ferry_litmus [--iterations N]
#include <array>
#include <chrono>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include "cuda/device/ptx.cuh"
#include "support/device.h"
#include "support/spawn.h"

namespace ferry::cuda {
namespace {

constexpr int kBlocks = 8, kThreads = 128, kRowBytes = 4096, kRowsPerBlock = 8;
constexpr int kWordsPerBlock = kRowBytes / 4 * kRowsPerBlock;
constexpr std::int64_t kDeadlineNs = 3'000'000'000;

/// How rows go from the writer to the reader.
enum class Way : int { kStores, kBulkStores, kFetched, kBulkFetched };
/// What is left out.
enum class Without : int { kNothing, kWriterFence, kRelease, kAcquire, kBulkWait, kProxyFence };

/// Rows, a signal per block, and a counter of blocks: at the reader, but for rows that are fetched.
struct Channel {
  std::uint32_t* rows;       ///< [kBlocks][kWordsPerBlock]
  std::uint64_t* signals;    ///< [kBlocks], 128 bytes apart, at the reader
  std::uint64_t* credits;    ///< the same, at the writer
  std::uint64_t* old_words;  ///< at the reader
  std::uint32_t* gave_up;    ///< one at each side
  std::uint32_t max_delay_ns;
};

constexpr int kSignalStride = 16;

__device__ void pause(std::uint32_t most_ns, std::uint64_t salt) {
  if (most_ns == 0) return;
  std::uint32_t mixed = static_cast<std::uint32_t>(now_ns()) ^ static_cast<std::uint32_t>(salt * 2654435761u);
  mixed = (mixed ^ (mixed >> 15)) * 2246822519u;
  const std::int64_t until = now_ns() + (mixed ^ (mixed >> 13)) % most_ns;
  while (now_ns() < until) {
  }
}

/// All threads; false if it did not come.
__device__ bool wait_for(const std::uint64_t* signal, std::uint64_t wanted, bool acquire) {
  bool came = true;
  if (threadIdx.x == 0) {
    const std::int64_t start = now_ns();
    while ((acquire ? load_acquire(signal) : load_relaxed(signal)) < wanted) {
      if (now_ns() - start < kDeadlineNs) continue;
      came = false;
      break;
    }
  }
  return __syncthreads_and(came) != 0;
}

/// Thread 0, after what the block did before.
__device__ void post(std::uint64_t* signal, std::uint64_t value, bool release) {
  if (release) {
    store_release(signal, value);
  } else {
    *static_cast<volatile std::uint64_t*>(signal) = value;
  }
}

extern __shared__ __align__(128) std::byte stage[];

// The bulk copy engine came with compute capability 9.0; older ones never run these kernels.

template <Way kWay, Without kWithout>
__global__ void writer(Channel c, int iterations) {
#if __CUDA_ARCH__ >= 900
  constexpr bool kBulk = kWay == Way::kBulkStores;
  std::uint32_t* rows = c.rows + blockIdx.x * kWordsPerBlock;
  auto* words = reinterpret_cast<std::uint32_t*>(stage);
  for (int i = 1; i <= iterations; ++i) {
    if (!wait_for(c.credits + blockIdx.x * kSignalStride, static_cast<std::uint64_t>(i) - 1, true)) {
      if (threadIdx.x == 0) atomicAdd(c.gave_up, 1u);
      return;
    }
    pause(c.max_delay_ns, blockIdx.x + threadIdx.x / 32);
    std::uint32_t* target = kBulk ? words : rows;
    for (int at = static_cast<int>(threadIdx.x); at < kWordsPerBlock; at += kThreads)
      target[at] = static_cast<std::uint32_t>(i);
    if constexpr (kBulk) {
      fence_bulk();  // the stage was written by ordinary stores
      __syncthreads();
      if (threadIdx.x % 32 == 0) {
        for (int row = static_cast<int>(threadIdx.x) / 32; row < kRowsPerBlock; row += kThreads / 32)
          bulk_store(rows + row * (kRowBytes / 4), words + row * (kRowBytes / 4), kRowBytes);
        bulk_commit();
        if constexpr (kWithout == Without::kBulkWait) {
          bulk_wait_read<0>();
        } else {
          bulk_wait_done();
        }
        if constexpr (kWithout != Without::kProxyFence) fence_bulk();
      }
    }
    if constexpr (kWithout != Without::kWriterFence) __threadfence_system();
    __syncthreads();
    if (threadIdx.x == 0)
      post(c.signals + blockIdx.x * kSignalStride, static_cast<std::uint64_t>(i), kWithout != Without::kRelease);
  }
#endif
}

template <Way kWay, Without kWithout>
__global__ void reader(Channel c, int iterations) {
#if __CUDA_ARCH__ >= 900
  const std::uint32_t* rows = c.rows + blockIdx.x * kWordsPerBlock;
  auto* words = reinterpret_cast<std::uint32_t*>(stage);
  __shared__ std::uint64_t barrier;
  if (threadIdx.x == 0) barrier_init(&barrier);
  fence_bulk();
  __syncthreads();
  for (int i = 1; i <= iterations; ++i) {
    if (!wait_for(c.signals + blockIdx.x * kSignalStride, static_cast<std::uint64_t>(i),
                  kWithout != Without::kAcquire)) {
      if (threadIdx.x == 0) atomicAdd(c.gave_up + 1, 1u);
      return;
    }
    if constexpr (kWay == Way::kBulkFetched) {
      if (threadIdx.x == 0) {
        if constexpr (kWithout != Without::kProxyFence) fence_bulk();
        barrier_expect(&barrier, kWordsPerBlock * 4);
        for (int row = 0; row < kRowsPerBlock; ++row)
          bulk_load(words + row * (kRowBytes / 4), rows + row * (kRowBytes / 4), kRowBytes, &barrier);
      }
      const std::int64_t start = now_ns();
      while (!barrier_passed(&barrier, static_cast<std::uint32_t>(i - 1) % 2)) {
        if (now_ns() - start > kDeadlineNs) break;
      }
    }
    unsigned old_words = 0;
    for (int at = static_cast<int>(threadIdx.x) * 4; at < kWordsPerBlock; at += kThreads * 4) {
      const uint4 seen = kWay == Way::kBulkFetched ? *reinterpret_cast<const uint4*>(words + at) : load_once(rows + at);
      const auto wanted = static_cast<std::uint32_t>(i);
      old_words += (seen.x != wanted) + (seen.y != wanted) + (seen.z != wanted) + (seen.w != wanted);
    }
    if (old_words != 0)
      atomicAdd(reinterpret_cast<unsigned long long*>(c.old_words), static_cast<unsigned long long>(old_words));
    pause(c.max_delay_ns, blockIdx.x * 7 + threadIdx.x / 32);
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x == 0) store_release(c.credits + blockIdx.x * kSignalStride, static_cast<std::uint64_t>(i));
  }
#endif
}

void check(cudaError_t status, const char* what) {
  test::require(status == cudaSuccess, std::string(what) + ": " + cudaGetErrorString(status));
}

/// Memory and a stream of one side; the other side's device may read and write it.
class Side {
 public:
  explicit Side(int device) : device_(device) {
    check(cudaSetDevice(device), "cudaSetDevice");
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
    check(cudaMalloc(&memory_, kBytes), "cudaMalloc");
  }
  void see(const Side& other) const {
    if (device_ == other.device_) return;
    check(cudaSetDevice(device_), "cudaSetDevice");
    const cudaError_t status = cudaDeviceEnablePeerAccess(other.device_, 0);
    if (status == cudaErrorPeerAccessAlreadyEnabled) {
      cudaGetLastError();
      return;
    }
    check(status, "cudaDeviceEnablePeerAccess");
  }
  void clear() const {
    check(cudaSetDevice(device_), "cudaSetDevice");
    check(cudaMemset(memory_, 0, kBytes), "cudaMemset");
    check(cudaDeviceSynchronize(), "cudaMemset");
  }
  std::uint32_t* rows() const { return static_cast<std::uint32_t*>(memory_); }
  std::uint64_t* words(int block) const {
    return reinterpret_cast<std::uint64_t*>(static_cast<std::byte*>(memory_) + kRowsBytes + block * kWordsBytes);
  }
  int device() const { return device_; }

  cudaStream_t stream = nullptr;

 private:
  static constexpr std::size_t kRowsBytes = std::size_t{4} * kWordsPerBlock * kBlocks;
  static constexpr std::size_t kWordsBytes = 8 * kSignalStride * kBlocks;
  static constexpr std::size_t kBytes = kRowsBytes + 4 * kWordsBytes;
  const int device_;
  void* memory_ = nullptr;
};

struct Test {
  const char* name;
  void (*writer)(Channel, int);
  void (*reader)(Channel, int);
  bool fetched;
  bool whole;  ///< nothing is left out: old words are a failure
};

template <Way kWay, Without kWithout>
Test test(const char* name) {
  return {name, writer<kWay, kWithout>, reader<kWay, kWithout>, kWay == Way::kFetched || kWay == Way::kBulkFetched,
          kWithout == Without::kNothing};
}

/// Until the stream is idle, or too late.
void finish(cudaStream_t stream) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  cudaError_t status = cudaErrorNotReady;
  while ((status = cudaStreamQuery(stream)) == cudaErrorNotReady) {
    test::require(std::chrono::steady_clock::now() < end, "kernels of a litmus test do not end");
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  check(status, "a kernel of a litmus test");
}

/// Words that were old when the signal had been seen.
std::uint64_t run(const Test& test, const Side& from, const Side& to, int iterations, std::uint32_t max_delay_ns) {
  // A kernel that is loaded while another one runs may wait for it.
  cudaFuncAttributes attributes{};
  check(cudaSetDevice(from.device()), "cudaSetDevice");
  check(cudaFuncGetAttributes(&attributes, test.writer), "cudaFuncGetAttributes");
  check(cudaSetDevice(to.device()), "cudaSetDevice");
  check(cudaFuncGetAttributes(&attributes, test.reader), "cudaFuncGetAttributes");
  from.clear();
  to.clear();
  Channel c{};
  c.rows = test.fetched ? from.rows() : to.rows();
  c.signals = to.words(0);
  c.credits = from.words(1);
  c.old_words = to.words(2);
  c.gave_up = reinterpret_cast<std::uint32_t*>(to.words(3));
  c.max_delay_ns = max_delay_ns;
  constexpr std::size_t kStage = std::size_t{4} * kWordsPerBlock;
  check(cudaSetDevice(from.device()), "cudaSetDevice");
  test.writer<<<kBlocks, kThreads, kStage, from.stream>>>(c, iterations);
  check(cudaGetLastError(), "launching a writer");
  check(cudaSetDevice(to.device()), "cudaSetDevice");
  test.reader<<<kBlocks, kThreads, kStage, to.stream>>>(c, iterations);
  check(cudaGetLastError(), "launching a reader");
  finish(from.stream);
  finish(to.stream);
  std::uint64_t old_words = 0;
  std::array<std::uint32_t, 2> gave_up{};
  check(cudaMemcpy(&old_words, c.old_words, sizeof(old_words), cudaMemcpyDeviceToHost), "cudaMemcpy");
  check(cudaMemcpy(gave_up.data(), c.gave_up, sizeof(gave_up), cudaMemcpyDeviceToHost), "cudaMemcpy");
  test::require(gave_up[0] == 0 && gave_up[1] == 0, std::string(test.name) + ": a wait did not end");
  return old_words;
}

std::vector<Test> tests() {
  return {test<Way::kStores, Without::kNothing>("stores"),
          test<Way::kStores, Without::kWriterFence>("stores, no fence at the writer"),
          test<Way::kStores, Without::kRelease>("stores, relaxed signal"),
          test<Way::kStores, Without::kAcquire>("stores, relaxed wait"),
          test<Way::kBulkStores, Without::kNothing>("bulk stores"),
          test<Way::kBulkStores, Without::kBulkWait>("bulk stores, only their reads awaited"),
          test<Way::kBulkStores, Without::kProxyFence>("bulk stores, no proxy fence"),
          test<Way::kBulkStores, Without::kWriterFence>("bulk stores, no fence at the writer"),
          test<Way::kFetched, Without::kNothing>("fetched rows"),
          test<Way::kFetched, Without::kWriterFence>("fetched rows, no fence at the writer"),
          test<Way::kFetched, Without::kAcquire>("fetched rows, relaxed wait"),
          test<Way::kBulkFetched, Without::kNothing>("bulk-fetched rows"),
          test<Way::kBulkFetched, Without::kProxyFence>("bulk-fetched rows, no proxy fence at the reader")};
}

int litmus(int iterations) {
  const int devices = test::num_devices();
  if (devices == 0) {
    std::printf("litmus: skipped, no GPU\n");
    return 0;
  }
  int capability = 0;
  check(cudaDeviceGetAttribute(&capability, cudaDevAttrComputeCapabilityMajor, 0), "cudaDeviceGetAttribute");
  if (capability < 9) {
    std::printf("litmus: skipped, it needs compute capability 9.0\n");
    return 0;
  }
  const Side from(0), to(devices > 1 ? 1 : 0);
  from.see(to);
  to.see(from);
  bool good = true;
  for (const Test& test : tests()) {
    std::uint64_t old_words = 0;
    for (const std::uint32_t delay : {0u, 500u, 3000u}) old_words += run(test, from, to, iterations, delay);
    if (test.whole && old_words != 0) good = false;
    std::printf("litmus: %-50s %9llu old words in %lld iterations%s\n", test.name,
                static_cast<unsigned long long>(old_words), 3LL * iterations * kBlocks,
                !test.whole      ? " (for information)"
                : old_words == 0 ? ""
                                 : "  FAILED");
  }
  std::printf("litmus: %d GPU%s, %s\n", devices, devices > 1 ? "s" : ", both sides on it", good ? "good" : "BAD");
  return good ? 0 : 1;
}

}  // namespace
}  // namespace ferry::cuda

int main(int argc, char** argv) {
  try {
    const bool given = argc == 3 && std::string(argv[1]) == "--iterations";
    return ferry::cuda::litmus(given ? std::stoi(argv[2]) : 20000);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "litmus: %s\n", error.what());
    return 1;
  }
}
