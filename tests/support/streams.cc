// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
#include "support/streams.h"

#include <string>
#include <thread>

#include "support/spawn.h"

#ifdef FERRY_TEST_CUDA
#include <cuda_runtime_api.h>
#endif

namespace ferry::test {

#ifdef FERRY_TEST_CUDA

namespace {

constexpr std::chrono::seconds kPatience{60};

void check(cudaError_t status, const char* what) {
  require(status == cudaSuccess, std::string(what) + ": " + cudaGetErrorString(status));
}

cudaStream_t stream_of(void* stream) {
  return static_cast<cudaStream_t>(stream);
}

}  // namespace

Stream::Stream() {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  stream_ = stream;
}

Stream::~Stream() {
  cudaStreamDestroy(stream_of(stream_));
}

void order(void* before, void* after) {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate");
  const cudaError_t recorded = cudaEventRecord(event, stream_of(before));
  const cudaError_t waits = cudaStreamWaitEvent(stream_of(after), event, 0);
  cudaEventDestroy(event);
  check(recorded, "cudaEventRecord");
  check(waits, "cudaStreamWaitEvent");
}

void delay(void* stream, std::chrono::microseconds time) {
  const auto sleep = [](void* microseconds) {
    std::this_thread::sleep_for(std::chrono::microseconds(reinterpret_cast<std::intptr_t>(microseconds)));
  };
  check(cudaLaunchHostFunc(stream_of(stream), sleep, reinterpret_cast<void*>(time.count())), "cudaLaunchHostFunc");
}

bool is_idle(void* stream) {
  const cudaError_t status = cudaStreamQuery(stream_of(stream));
  if (status == cudaErrorNotReady) return false;
  check(status, "cudaStreamQuery");
  return true;
}

void wait_for(void* stream) {
  const auto end = std::chrono::steady_clock::now() + kPatience;
  while (!is_idle(stream)) {
    require(std::chrono::steady_clock::now() < end, "a stream does not come to its end");
    std::this_thread::yield();
  }
}

Graph::Graph(void* stream, const std::function<void()>& calls) {
  // Only this thread: those of other ranks go on meanwhile.
  check(cudaStreamBeginCapture(stream_of(stream), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  cudaGraph_t graph = nullptr;
  try {
    calls();
  } catch (...) {
    cudaStreamEndCapture(stream_of(stream), &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    throw;
  }
  check(cudaStreamEndCapture(stream_of(stream), &graph), "cudaStreamEndCapture");
  cudaGraphExec_t made = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&made, graph, 0);
  cudaGraphDestroy(graph);
  check(status, "cudaGraphInstantiate");
  graph_ = made;
  check(cudaGraphUpload(made, stream_of(stream)), "cudaGraphUpload");
  wait_for(stream);
}

Graph::~Graph() {
  cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph_));
}

void Graph::replay(void* stream) const {
  check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph_), stream_of(stream)), "cudaGraphLaunch");
}

#else

namespace {

[[noreturn]] void no_cuda() {
  throw Failure("this build has no CUDA");
}

}  // namespace

Stream::Stream() {
  no_cuda();
}
Stream::~Stream() = default;
void order(void*, void*) {
  no_cuda();
}
void delay(void*, std::chrono::microseconds) {
  no_cuda();
}
bool is_idle(void*) {
  no_cuda();
}
void wait_for(void*) {
  no_cuda();
}
Graph::Graph(void*, const std::function<void()>&) {
  no_cuda();
}
Graph::~Graph() = default;
void Graph::replay(void*) const {
  no_cuda();
}

#endif

}  // namespace ferry::test
