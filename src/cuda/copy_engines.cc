// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// How the network engine writes windows on GPUs of this machine: copies and 8-byte writes on one stream of its own, which carries
// them out in order. Not by kernels of ours: a network card takes no SMs either. The stream has a high priority, and so a queue
// apart from those of callers, whose kernels may be waiting for what is copied.
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>

#include "backend/backend.h"
#include "cuda/check.h"
#include "cuda/driver.h"
#include "cuda/group_memory.h"
#include "ferry/error.h"
#include "net/copy_engines.h"

namespace ferry::cuda {
namespace {

class StreamCopies final : public net::CopyEngines {
 public:
  explicit StreamCopies(int device) : device_(device) {
    find_driver_function("cuStreamWriteValue64", write_value_);
    find_driver_function("cuDeviceGetAttribute", attribute_);
    const DeviceScope scope(device_);
    check(cudaFree(nullptr), "ferry: making a CUDA context");
    int can_write = 0;
    attribute_(&can_write, CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS, device_);
    if (can_write == 0) {
      throw Error(
          ErrorCode::kUnsupported,
          fmt::format("ferry::Group::create: GPU {} has no 64-bit writes on streams, which signals between nodes "
                      "are; use a topology of one node",
                      device_));
    }
    int least = 0, greatest = 0;
    check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange");
    check(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, greatest), "cudaStreamCreate");
    board_ = std::make_unique<Pinned>(kBoardBytes);
    warm_up();
  }

  ~StreamCopies() override {
    const DeviceScope scope(device_);
    cudaStreamSynchronize(stream_);
    cudaStreamDestroy(stream_);
  }

  std::shared_ptr<std::byte> pinned(std::size_t bytes) override {
    const DeviceScope scope(device_);
    auto memory = std::make_shared<Pinned>(bytes);
    return {memory, memory->data()};
  }

  void copy(std::byte* to, const std::byte* from, std::size_t bytes) override {
    enter();
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_), "cudaMemcpyAsync between nodes");
  }

  /// Comes with a barrier: what the stream did before is visible to whoever sees the value.
  void write(std::byte* to, std::uint64_t value) override {
    enter();
    if (write_value_(reinterpret_cast<CUstream>(stream_), reinterpret_cast<CUdeviceptr>(to), value,
                     CU_STREAM_WRITE_VALUE_DEFAULT) != CUDA_SUCCESS)
      throw Error(ErrorCode::kInternal, "cuStreamWriteValue64 between nodes");
  }

  std::uint64_t mark() override {
    write(board_->data(), ++marks_);
    return marks_;
  }

  std::uint64_t reached() override { return *reinterpret_cast<volatile std::uint64_t*>(board_->data()); }

 private:
  static constexpr std::size_t kBoardBytes = 64;

  /// For the proxy's thread, which does nothing else with CUDA: the device stays as it is set, since going back to one that this process
  /// does not use would make a context there. Other threads may be capturing a graph meanwhile.
  void enter() const {
    check(cudaSetDevice(device_), "cudaSetDevice");
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    check(cudaThreadExchangeStreamCaptureMode(&mode), "cudaThreadExchangeStreamCaptureMode");
  }

  /// What the driver loads for a first copy would otherwise be loaded while kernels wait for that copy, and might wait for them.
  void warm_up() {
    constexpr std::size_t kBytes = std::size_t{2} << 20;
    void* block = nullptr;
    check(cudaMalloc(&block, 2 * kBytes), "cudaMalloc");
    auto* memory = static_cast<std::byte*>(block);
    for (const std::size_t bytes : {kBytes, std::size_t{64} << 10, std::size_t{100}, std::size_t{3}}) {
      copy(memory + kBytes, memory, bytes);
      copy(memory + kBytes + 1, memory, bytes - 1);
      copy(memory, board_->data(), std::min(bytes, kBoardBytes));
    }
    write(memory, 0);
    mark();
    check(cudaStreamSynchronize(stream_), "ferry: copies between nodes");
    check(cudaFree(block), "cudaFree");
  }

  const int device_;
  decltype(&cuStreamWriteValue64) write_value_ = nullptr;
  decltype(&cuDeviceGetAttribute) attribute_ = nullptr;
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<Pinned> board_;  // the last mark that was reached
  std::uint64_t marks_ = 0;
};

}  // namespace
}  // namespace ferry::cuda

namespace ferry {

std::shared_ptr<net::CopyEngines> make_cuda_copy_engines(int device) {
  return std::make_shared<cuda::StreamCopies>(cuda::chosen_device(device));
}

}  // namespace ferry
