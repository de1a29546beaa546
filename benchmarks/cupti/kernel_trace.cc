// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Kernels by CUPTI's activity records. CUPTI asks for memory and gives it back by callbacks without an argument, so that what they
// share is one object of the program.
#include "kernel_trace.h"

#include <cupti.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <utility>

namespace ferry::bench {
namespace {

constexpr std::size_t kBufferBytes = std::size_t{4} << 20;

/// Later records of kernels begin as this one does.
using Kernel = CUpti_ActivityKernel9;

void check(CUptiResult result, const char* what) {
  if (result == CUPTI_SUCCESS) return;
  const char* text = "unknown";
  cuptiGetResultString(result, &text);
  throw std::runtime_error(std::string(what) + ": " + text);
}

struct Noted {
  std::mutex mutex;
  std::vector<KernelRecord> records;
};
Noted& noted() {
  static Noted all;
  return all;
}

void CUPTIAPI give_buffer(std::uint8_t** buffer, std::size_t* size, std::size_t* max_records) {
  *buffer = static_cast<std::uint8_t*>(std::aligned_alloc(64, kBufferBytes));
  *size = *buffer == nullptr ? 0 : kBufferBytes;
  *max_records = 0;  // as many as fit
}

void CUPTIAPI take_buffer(CUcontext, std::uint32_t, std::uint8_t* buffer, std::size_t, std::size_t valid_bytes) {
  const std::lock_guard lock(noted().mutex);
  CUpti_Activity* record = nullptr;
  while (cuptiActivityGetNextRecord(buffer, valid_bytes, &record) == CUPTI_SUCCESS) {
    if (record->kind != CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) continue;
    const auto* kernel = reinterpret_cast<const Kernel*>(record);
    noted().records.push_back({.name = kernel->name,
                               .begin_ns = static_cast<std::int64_t>(kernel->start),
                               .end_ns = static_cast<std::int64_t>(kernel->end),
                               .blocks = std::int64_t{kernel->gridX} * kernel->gridY * kernel->gridZ,
                               .device = kernel->deviceId,
                               .stream = kernel->streamId});
  }
  std::free(buffer);
}

}  // namespace

std::string KernelTrace::why_not() {
  return {};
}

std::uint32_t KernelTrace::number_of(cudaStream_t stream) {
  std::uint32_t number = 0;
  check(cuptiGetStreamIdEx(nullptr, stream, 0, &number), "cuptiGetStreamIdEx");
  return number;
}

void KernelTrace::start() {
  check(cuptiActivityRegisterCallbacks(give_buffer, take_buffer), "cuptiActivityRegisterCallbacks");
  check(cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL), "cuptiActivityEnable");
}

std::vector<KernelRecord> KernelTrace::stop() {
  check(cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED), "cuptiActivityFlushAll");
  check(cuptiActivityDisable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL), "cuptiActivityDisable");
  const std::lock_guard lock(noted().mutex);
  std::vector<KernelRecord> records = std::exchange(noted().records, {});
  std::sort(records.begin(), records.end(),
            [](const KernelRecord& a, const KernelRecord& b) { return a.begin_ns < b.begin_ns; });
  return records;
}

}  // namespace ferry::bench
