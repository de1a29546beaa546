// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Device memory of a rank: one block, taken beforehand, and a stream.
#include "gpu_memory.h"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <thread>
#include <vector>

namespace ferry::app {
namespace {

/// Streams beyond these share hardware queues, where a kernel can stand behind one that waits for it.
constexpr int kMaxQueues = 32;
/// More gain little (docs/design/cuda.md).
constexpr int kMaxSms = 16;

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(fmt::format("{}: {}", what, cudaGetErrorString(status)));
}

/// Bytes from the first element to the end of the last.
std::size_t span_of(const Tensor& tensor) {
  if (tensor.num_elements() == 0) return 0;
  std::int64_t last = 0;
  for (std::size_t i = 0; i < static_cast<std::size_t>(tensor.ndim); ++i)
    last += (tensor.shape[i] - 1) * tensor.strides[i];
  return static_cast<std::size_t>(last + 1) * dtype_bytes(tensor.dtype);
}

class GpuMemory final : public RankMemory {
 public:
  explicit GpuMemory(const GpuShare& share) : patience_(share.patience), bytes_(share.lent_bytes) {
    const int num_gpus = require_gpus();
    device_ = share.rank % num_gpus;
    share_sms(share, (share.num_ranks + num_gpus - 1) / num_gpus);
    check(cudaSetDevice(device_), "cudaSetDevice");
    // Not the default stream, which would wait for those of other ranks in this process.
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
    void* memory = nullptr;
    const cudaError_t taken = cudaMalloc(&memory, bytes_);
    if (taken != cudaSuccess) {
      cudaStreamDestroy(stream_);
      check(taken, fmt::format("{} bytes of device memory on GPU {}", bytes_, device_).c_str());
    }
    base_ = static_cast<std::byte*>(memory);
  }
  GpuMemory(const GpuMemory&) = delete;
  GpuMemory& operator=(const GpuMemory&) = delete;
  ~GpuMemory() override {
    cudaFree(base_);
    cudaStreamDestroy(stream_);
  }

  void configure(GroupConfig& config) const override { config.device = device_; }
  void configure(DispatchArgs& args) const override {
    args.stream = stream_;
    args.num_sms = num_sms_;
  }
  void configure(CombineArgs& args) const override {
    args.stream = stream_;
    args.num_sms = num_sms_;
  }

  Tensor lend(const Tensor& host) override {
    if (!host.present()) return host;
    const std::size_t room = (span_of(host) + 255) / 256 * 256 + 256;  // an empty tensor has an address, too
    if (used_ + room > bytes_)
      throw std::logic_error(fmt::format("ferry: {} bytes of tensors, room was made for {}", used_ + room, bytes_));
    Tensor lent = host;
    lent.data = base_ + used_;
    used_ += room;
    copy(lent.data, host.data, span_of(host), cudaMemcpyHostToDevice);
    return lent;
  }

  Tensor lend_rows(const Group& group, const Handle& handle, const Tensor& host) override {
    if (handle.mode() == Mode::kLatency) return lend(host);  // combine reads them wherever they are
    const std::int64_t width = host.shape[static_cast<std::size_t>(host.ndim) - 1];
    const Tensor input = group.combine_input(handle, host.dtype, width);
    if (input.shape != host.shape || input.strides != host.strides)
      throw std::logic_error("ferry: the group's input of combine has another form than the experts' rows");
    copy(input.data, host.data, span_of(host), cudaMemcpyHostToDevice);
    return input;
  }

  Tensor read(const Tensor& tensor) override {
    if (!tensor.present()) return tensor;
    const std::size_t bytes = span_of(tensor);
    copies_.push_back(std::make_unique<std::byte[]>(bytes + 1));
    Tensor copied = tensor;
    copied.data = copies_.back().get();
    copy(copied.data, tensor.data, bytes, cudaMemcpyDeviceToHost);
    return copied;
  }

  void finish(Group& group) override {
    wait_until_idle();
    group.check();
  }

  void forget() override {
    used_ = 0;
    copies_.clear();
  }

 private:
  /// Kernels of ranks on one GPU wait for each other, so all of them must fit onto it at once.
  void share_sms(const GpuShare& share, int ranks_here) {
    int num_sms = 0;
    check(cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device_), "cudaDeviceGetAttribute");
    const int most = std::min(kMaxQueues, num_sms);
    if (share.ranks_as == RanksAs::kThreads && ranks_here > most) {
      throw std::runtime_error(
          fmt::format("--ranks: {} given, {} of them on one GPU, expected at most {} threads per GPU", share.num_ranks,
                      ranks_here, most));
    }
    num_sms_ = std::clamp(num_sms / ranks_here, 1, kMaxSms);
  }

  /// A copy that waits in a copy engine's queue for a kernel of its stream holds up copies of other ranks behind it, and the
  /// kernel may be waiting for just those ranks. So copies are asked for only once the stream has nothing left to do.
  void wait_until_idle() const {
    const auto deadline = std::chrono::steady_clock::now() + patience_;
    cudaError_t status = cudaErrorNotReady;
    while ((status = cudaStreamQuery(stream_)) == cudaErrorNotReady) {
      if (std::chrono::steady_clock::now() > deadline)
        throw std::runtime_error(fmt::format("GPU {} did not end its work within {:.0f} s", device_,
                                             std::chrono::duration<double>(patience_).count()));
      std::this_thread::yield();
    }
    check(status, "the work of a rank on its GPU");
  }

  void copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) const {
    wait_until_idle();
    if (bytes == 0) return;
    check(cudaMemcpyAsync(to, from, bytes, kind, stream_), "cudaMemcpyAsync");
    check(cudaStreamSynchronize(stream_), "a copy between host and GPU");
  }

  const std::chrono::nanoseconds patience_;
  const std::size_t bytes_;
  int device_ = 0;
  int num_sms_ = 1;
  cudaStream_t stream_ = nullptr;
  std::byte* base_ = nullptr;
  std::size_t used_ = 0;
  std::vector<std::unique_ptr<std::byte[]>> copies_;
};

}  // namespace

void prepare_for_gpus() {
  // Ranks that are threads need a hardware queue each; the driver's default is 8. Not over what the user has set.
  ::setenv("CUDA_DEVICE_MAX_CONNECTIONS", fmt::to_string(kMaxQueues).c_str(), 0);
}

int require_gpus() {
  int num_gpus = 0;
  const cudaError_t found = cudaGetDeviceCount(&num_gpus);
  if (found == cudaSuccess && num_gpus > 0) return num_gpus;
  throw std::runtime_error(fmt::format(
      "--backend: cuda given, but CUDA finds no GPU ({}); use --backend host, `ferry doctor` says what is missing",
      cudaGetErrorString(found != cudaSuccess ? found : cudaErrorNoDevice)));
}

std::unique_ptr<RankMemory> make_gpu_memory(const GpuShare& share) {
  return std::make_unique<GpuMemory>(share);
}

}  // namespace ferry::app
