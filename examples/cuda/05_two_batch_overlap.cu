// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Two-batch overlap on GPUs, a rank on each: see ../two_batches.h. All work is queued on one stream; the host waits for nothing
// until the layers are over. With --json FILE it writes its timeline, which benchmarks/timeline.py draws.
#include <cuda_runtime_api.h>

#include <stdexcept>

#include "../two_batches.h"

namespace {

constexpr int kTile = 16;
constexpr int kSkipped = 77;  // to ctest

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

/// out = scale x rows x matrix for the rows of one expert in z, `counts` of them (null: `rows_each`), `rows_each` apart. The scale
/// grows with z.
__global__ void multiply_kernel(const float* rows, const float* matrix, float* out, const std::int32_t* counts,
                                std::int64_t rows_each, std::int64_t hidden) {
  __shared__ float left[kTile][kTile], right[kTile][kTile];
  const std::int64_t count = counts != nullptr ? counts[blockIdx.z] : rows_each;
  const std::int64_t row = std::int64_t{blockIdx.y} * kTile + threadIdx.y;
  const std::int64_t column = std::int64_t{blockIdx.x} * kTile + threadIdx.x;
  if (std::int64_t{blockIdx.y} * kTile >= count) return;  // the whole block
  const float* from = rows + (blockIdx.z * rows_each + row) * hidden;
  float sum = 0;
  for (std::int64_t first = 0; first < hidden; first += kTile) {
    const std::int64_t i = first + threadIdx.x, k = first + threadIdx.y;
    left[threadIdx.y][threadIdx.x] = row < count && i < hidden ? from[i] : 0.0f;
    right[threadIdx.y][threadIdx.x] = k < hidden && column < hidden ? matrix[k * hidden + column] : 0.0f;
    __syncthreads();
    for (int n = 0; n < kTile; ++n) sum += left[threadIdx.y][n] * right[n][threadIdx.x];
    __syncthreads();
  }
  if (row < count && column < hidden)
    out[(blockIdx.z * rows_each + row) * hidden + column] = sum * (1.0f + 0.125f * static_cast<float>(blockIdx.z));
}

class Gpu : public example::Machine {
 public:
  Gpu(int device, const example::Shape& shape) : device_(device), hidden_(shape.hidden) {
    check(cudaSetDevice(device), "cudaSetDevice");
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
    std::vector<float> matrix(static_cast<std::size_t>(hidden_ * hidden_));
    for (std::size_t i = 0; i < matrix.size(); ++i)
      matrix[i] = static_cast<float>(i * 5 % 16) / (8.0f * static_cast<float>(hidden_));
    matrix_ = static_cast<float*>(allocate(matrix.size() * sizeof(float)));
    put(matrix_, matrix.data(), matrix.size() * sizeof(float));
    scratch_ = static_cast<float*>(allocate(static_cast<std::size_t>(shape.tokens * hidden_) * sizeof(float)));
  }
  ~Gpu() override {
    for (void* memory : memory_) cudaFree(memory);
    for (cudaEvent_t event : marks_) cudaEventDestroy(event);
    cudaStreamDestroy(stream_);
  }

  const char* backend() const override { return "cuda"; }
  int device() const override { return device_; }
  void* stream() const override { return stream_; }
  void* allocate(std::size_t bytes) override {
    void* memory = nullptr;
    check(cudaMalloc(&memory, bytes), "cudaMalloc");
    memory_.push_back(memory);
    return memory;
  }
  void put(void* to, const void* from, std::size_t bytes) override {
    check(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  void fetch(void* to, const void* from, std::size_t bytes) override {
    check(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "cudaMemcpy");
  }

  void attention(float* x, std::int64_t tokens) override {
    multiply(x, scratch_, nullptr, 1, tokens);
    check(cudaMemcpyAsync(x, scratch_, static_cast<std::size_t>(tokens * hidden_) * sizeof(float),
                          cudaMemcpyDeviceToDevice, stream_),
          "cudaMemcpyAsync");
  }
  void experts(const float* rows, const std::int32_t* counts, float* y, int num_local, std::int64_t capacity) override {
    multiply(rows, y, counts, num_local, capacity);
  }

  void forget() override { num_marks_ = 0; }
  int mark() override {
    if (num_marks_ == marks_.size()) check(cudaEventCreate(&marks_.emplace_back(nullptr)), "cudaEventCreate");
    check(cudaEventRecord(marks_[num_marks_], stream_), "cudaEventRecord");
    return static_cast<int>(num_marks_++);
  }
  double microseconds_at(int mark) override {
    float ms = 0;
    check(cudaEventElapsedTime(&ms, marks_.front(), marks_[static_cast<std::size_t>(mark)]), "cudaEventElapsedTime");
    return 1000.0 * ms;
  }
  void wait() override { check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

 private:
  void multiply(const float* rows, float* out, const std::int32_t* counts, int num_local, std::int64_t rows_each) {
    const auto tiles = [](std::int64_t n) { return static_cast<unsigned>((n + kTile - 1) / kTile); };
    const dim3 grid(tiles(hidden_), tiles(rows_each), static_cast<unsigned>(num_local));
    multiply_kernel<<<grid, dim3(kTile, kTile), 0, stream_>>>(rows, matrix_, out, counts, rows_each, hidden_);
    check(cudaGetLastError(), "multiply_kernel");
  }

  const int device_;
  const std::int64_t hidden_;
  cudaStream_t stream_ = nullptr;
  float *matrix_ = nullptr, *scratch_ = nullptr;
  std::vector<void*> memory_;
  std::vector<cudaEvent_t> marks_;  ///< used again by later runs
  std::size_t num_marks_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  int gpus = 0;
  if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus == 0) {
    std::printf("no GPU\n");
    return kSkipped;
  }
  example::Options options;
  options.shape.ranks = gpus;
  options.shape.experts = 8 * gpus;
  if (!example::parse(argc, argv, options)) return 2;
  return example::run_two_batches(options, [&](int rank) { return std::make_unique<Gpu>(rank % gpus, options.shape); });
}
