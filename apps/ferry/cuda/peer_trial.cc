// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// See peer_trial.h.
#include "peer_trial.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

namespace ferry::app {
namespace {

constexpr std::chrono::seconds kDeadline{5};
constexpr std::size_t kCopied = 1 << 16;

/// An allocation, mapped for one GPU.
class Mapping {
 public:
  /// New memory of `device`.
  Mapping(const Driver& driver, int device) : driver_(driver), device_(device) {
    find_size(device);
    const CUmemAllocationProp properties = allocation_on(device, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
    driver_.check(driver_.create(&handle_, bytes_, &properties, 0), "cuMemCreate");
    map();
  }
  /// What `fd` stands for, memory of GPU `owner`, for `device`.
  Mapping(const Driver& driver, int device, int owner, int fd) : driver_(driver), device_(device) {
    find_size(owner);
    check_cuda(cudaSetDevice(device), "cudaSetDevice");
    driver_.check(driver_.import_handle(&handle_, reinterpret_cast<void*>(static_cast<std::intptr_t>(fd)),
                                        CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
                  "cuMemImportFromShareableHandle");
    map();
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() { drop(); }

  std::byte* data() const { return reinterpret_cast<std::byte*>(address_); }
  int share() const {
    int fd = -1;
    driver_.check(driver_.export_handle(&fd, handle_, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
                  "cuMemExportToShareableHandle");
    return fd;
  }

 private:
  void find_size(int owner) {
    const CUmemAllocationProp properties = allocation_on(owner, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
    driver_.check(driver_.granularity(&granularity_, &properties, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED),
                  "cuMemGetAllocationGranularity");
    bytes_ = (std::max<std::size_t>(2 * kCopied, 1) + granularity_ - 1) / granularity_ * granularity_;
  }
  void map() {
    try {
      driver_.check(driver_.reserve(&address_, bytes_, granularity_, 0, 0), "cuMemAddressReserve");
      driver_.check(driver_.map(address_, bytes_, 0, handle_, 0), "cuMemMap");
      mapped_ = true;
      CUmemAccessDesc access{};
      access.location = {CU_MEM_LOCATION_TYPE_DEVICE, {device_}};
      access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
      driver_.check(driver_.set_access(address_, bytes_, &access, 1), "cuMemSetAccess (peer access)");
    } catch (...) {
      drop();
      throw;
    }
  }
  void drop() noexcept {
    if (mapped_) driver_.unmap(address_, bytes_);
    if (address_ != 0) driver_.free_address(address_, bytes_);
    driver_.release(handle_);
  }

  const Driver& driver_;
  const int device_;
  CUmemGenericAllocationHandle handle_ = 0;
  std::size_t granularity_ = 1;
  std::size_t bytes_ = 0;
  CUdeviceptr address_ = 0;
  bool mapped_ = false;
};

/// A stream of one GPU whose work has a deadline.
class Stream {
 public:
  explicit Stream(int device) : device_(device) {
    check_cuda(cudaSetDevice(device_), "cudaSetDevice");
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { cudaStreamDestroy(stream_); }

  void copy(void* to, const void* from, const char* what) const {
    check_cuda(cudaSetDevice(device_), "cudaSetDevice");
    check_cuda(cudaMemcpyAsync(to, from, kCopied, cudaMemcpyDefault, stream_), what);
    const auto deadline = std::chrono::steady_clock::now() + kDeadline;
    cudaError_t status = cudaErrorNotReady;
    while ((status = cudaStreamQuery(stream_)) == cudaErrorNotReady) {
      if (std::chrono::steady_clock::now() > deadline)
        throw std::runtime_error(fmt::format("{}: not done after {} s", what, kDeadline.count()));
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    check_cuda(status, what);
  }

 private:
  const int device_;
  cudaStream_t stream_ = nullptr;
};

/// Closed on every way out.
struct Descriptor {
  int fd;
  ~Descriptor() { ::close(fd); }
};

std::vector<std::uint8_t> pattern(int owner, int user, int which) {
  std::vector<std::uint8_t> bytes(kCopied);
  for (std::size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<std::uint8_t>(i * 7 + i / 251 + static_cast<std::size_t>(owner * 16 + user * 4 + which));
  return bytes;
}

}  // namespace

std::string try_window(const Driver& driver, int owner, int user) {
  const Stream at_owner(owner);
  const Mapping window(driver, owner);
  const Descriptor shared{window.share()};
  const Stream at_user(user);
  const Mapping peer(driver, user, owner, shared.fd);
  void* local_memory = nullptr;
  check_cuda(cudaMalloc(&local_memory, kCopied), "cudaMalloc");
  const std::unique_ptr<void, cudaError_t (*)(void*)> local(local_memory, cudaFree);

  const std::vector<std::uint8_t> there = pattern(owner, user, 1), here = pattern(owner, user, 2);
  std::vector<std::uint8_t> seen(kCopied);
  at_owner.copy(window.data(), there.data(), "filling the window");
  at_user.copy(local.get(), peer.data(), "reading the window from the other GPU");
  at_user.copy(seen.data(), local.get(), "copying to the host");
  if (seen != there) throw std::runtime_error("reading the window from the other GPU: other bytes than were written");
  at_user.copy(local.get(), here.data(), "copying to the GPU");
  at_user.copy(peer.data() + kCopied, local.get(), "writing the window from the other GPU");
  at_owner.copy(seen.data(), window.data() + kCopied, "copying to the host");
  if (seen != here) throw std::runtime_error("writing the window from the other GPU: other bytes arrived");
  return fmt::format("a window was shared, mapped, read and written ({} KiB each way)", kCopied / 1024);
}

std::string why_no_fabric_memory(const Driver& driver, int device) {
  const CUmemAllocationProp properties = allocation_on(device, CU_MEM_HANDLE_TYPE_FABRIC);
  std::size_t bytes = 0;
  CUmemGenericAllocationHandle handle = 0;
  try {
    driver.check(driver.granularity(&bytes, &properties, CU_MEM_ALLOC_GRANULARITY_MINIMUM),
                 "cuMemGetAllocationGranularity");
    driver.check(driver.create(&handle, bytes, &properties, 0), "cuMemCreate");
    CUmemFabricHandle fabric{};
    const CUresult shared = driver.export_handle(&fabric, handle, CU_MEM_HANDLE_TYPE_FABRIC, 0);
    driver.release(handle);
    driver.check(shared, "cuMemExportToShareableHandle");
  } catch (const std::exception& error) {
    return error.what();
  }
  return {};
}

}  // namespace ferry::app
