// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Tensors on a GPU for tests of the cuda backend: copies of host tensors, and host copies of results. Without CUDA in the build
// every function but num_devices() throws.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "ferry/ferry.h"

namespace ferry::test {

/// 0 without CUDA or GPU.
int num_devices();
void use_device(int device);
/// Why tests of what only a GPU has cannot run now; empty if they can (FERRY_TEST_BACKEND is cuda, ranks are threads, a GPU is
/// there).
std::string why_no_gpu();

/// Device memory of one rank, given back with the object; its stream is the calling thread's own.
class DeviceCopies {
 public:
  DeviceCopies();
  ~DeviceCopies();
  DeviceCopies(const DeviceCopies&) = delete;
  DeviceCopies& operator=(const DeviceCopies&) = delete;

  void* stream() const;
  /// Until the stream has nothing left to do.
  void wait() const;
  /// The same elements at the same strides on the device.
  Tensor to_device(const Tensor& host);
  /// The same on the host; waits for the stream.
  Tensor to_host(const Tensor& device);
  /// Overwrites the elements of `device` (those of a row side by side, strides as they are) with those of a tensor of equal shape
  /// there.
  void copy_rows(const Tensor& device, const Tensor& from);
  /// Overwrites bytes there with bytes of the host.
  void write(void* device, const void* host, std::size_t bytes);

 private:
  bool in_use_ = false;
  std::vector<std::unique_ptr<std::byte[]>> copies_;
};

}  // namespace ferry::test
