// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
#include "cuda/device_memory.h"

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <cstdint>

#include "bootstrap/fd.h"
#include "cuda/check.h"
#include "ferry/error.h"

namespace ferry::cuda {
namespace {

/// The driver's functions, found at run time through the runtime library: nothing links against libcuda.
struct Driver {
  decltype(&cuMemCreate) create;
  decltype(&cuMemRelease) release;
  decltype(&cuMemExportToShareableHandle) export_handle;
  decltype(&cuMemImportFromShareableHandle) import_handle;
  decltype(&cuMemAddressReserve) reserve;
  decltype(&cuMemAddressFree) free_address;
  decltype(&cuMemMap) map;
  decltype(&cuMemUnmap) unmap;
  decltype(&cuMemSetAccess) set_access;
  decltype(&cuMemGetAllocationGranularity) granularity;
  decltype(&cuGetErrorString) error_string;

  Driver() {
    find("cuMemCreate", create);
    find("cuMemRelease", release);
    find("cuMemExportToShareableHandle", export_handle);
    find("cuMemImportFromShareableHandle", import_handle);
    find("cuMemAddressReserve", reserve);
    find("cuMemAddressFree", free_address);
    find("cuMemMap", map);
    find("cuMemUnmap", unmap);
    find("cuMemSetAccess", set_access);
    find("cuMemGetAllocationGranularity", granularity);
    find("cuGetErrorString", error_string);
  }

  void check(CUresult status, const char* what) const {
    if (status == CUDA_SUCCESS) return;
    const char* text = nullptr;
    error_string(status, &text);
    const ErrorCode code = status == CUDA_ERROR_OUT_OF_MEMORY ? ErrorCode::kOverflow : ErrorCode::kInternal;
    throw Error(code, fmt::format("{}: {}", what, text == nullptr ? "unknown error" : text));
  }

 private:
  template <typename Function>
  static void find(const char* name, Function& function) {
    constexpr unsigned kVersion = 12000;
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
    const cudaError_t status = cudaGetDriverEntryPointByVersion(name, &found, kVersion, cudaEnableDefault, &result);
    if (status != cudaSuccess || found == nullptr) {
      throw Error(ErrorCode::kUnsupported,
                  fmt::format("ferry: this driver has no {}; expected a driver for CUDA 12 or later", name));
    }
    function = reinterpret_cast<Function>(found);
  }
};

/// A mapped allocation.
class Mapping final : public DeviceMemory {
 public:
  Mapping(std::shared_ptr<const Driver> driver, int device, CUmemGenericAllocationHandle handle, std::size_t bytes,
          std::size_t granularity, bootstrap::Fd fd)
      : driver_(std::move(driver)), device_(device), handle_(handle), bytes_(bytes), fd_(std::move(fd)) {
    try {
      driver_->check(driver_->reserve(&address_, bytes_, granularity, 0, 0), "cuMemAddressReserve");
      driver_->check(driver_->map(address_, bytes_, 0, handle_, 0), "cuMemMap");
      mapped_ = true;
      CUmemAccessDesc access{};
      access.location = {CU_MEM_LOCATION_TYPE_DEVICE, {device}};
      access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
      driver_->check(driver_->set_access(address_, bytes_, &access, 1), "cuMemSetAccess (peer access)");
    } catch (...) {
      drop();
      throw;
    }
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() override { drop(); }

  std::byte* data() const noexcept override { return reinterpret_cast<std::byte*>(address_); }
  std::size_t size() const noexcept override { return bytes_; }
  int fd() const noexcept override { return fd_.get(); }

 private:
  void drop() noexcept {
    int before = 0;
    cudaGetDevice(&before);
    cudaSetDevice(device_);
    if (mapped_) driver_->unmap(address_, bytes_);
    if (address_ != 0) driver_->free_address(address_, bytes_);
    driver_->release(handle_);
    cudaSetDevice(before);
  }

  std::shared_ptr<const Driver> driver_;
  const int device_;
  CUmemGenericAllocationHandle handle_;
  const std::size_t bytes_;
  bootstrap::Fd fd_;
  CUdeviceptr address_ = 0;
  bool mapped_ = false;
};

class VirtualMemories final : public DeviceMemories {
 public:
  explicit VirtualMemories(int device) : driver_(std::make_shared<Driver>()), device_(device) {
    const CUmemAllocationProp properties = properties_of(device);
    driver_->check(driver_->granularity(&granularity_, &properties, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED),
                   "cuMemGetAllocationGranularity");
  }

  std::shared_ptr<DeviceMemory> allocate(std::size_t bytes) override {
    const DeviceScope scope(device_);
    const std::size_t rounded = round_up(bytes);
    const CUmemAllocationProp properties = properties_of(device_);
    CUmemGenericAllocationHandle handle;
    const CUresult created = driver_->create(&handle, rounded, &properties, 0);
    driver_->check(created, fmt::format("ferry: {} bytes of device memory for a window: cuMemCreate", rounded).c_str());
    int fd = -1;
    const CUresult exported = driver_->export_handle(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
    if (exported != CUDA_SUCCESS) driver_->release(handle);
    driver_->check(exported, "cuMemExportToShareableHandle");
    auto memory = std::make_shared<Mapping>(driver_, device_, handle, rounded, granularity_, bootstrap::Fd(fd));
    cudaStream_t stream = nullptr;  // of its own: the default stream would wait for those of other ranks
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
    check(cudaMemsetAsync(memory->data(), 0, rounded, stream), "cudaMemset of a window");
    check(cudaStreamSynchronize(stream), "cudaMemset of a window");
    check(cudaStreamDestroy(stream), "cudaStreamDestroy");
    return memory;
  }

  std::shared_ptr<DeviceMemory> map(const Shareable& shared, std::size_t bytes) override {
    const DeviceScope scope(device_);
    CUmemGenericAllocationHandle handle;
    driver_->check(driver_->import_handle(&handle, reinterpret_cast<void*>(static_cast<std::intptr_t>(shared.fd())),
                                          CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
                   "cuMemImportFromShareableHandle");
    return std::make_shared<Mapping>(driver_, device_, handle, round_up(bytes), granularity_, bootstrap::Fd());
  }

 private:
  static CUmemAllocationProp properties_of(int device) {
    CUmemAllocationProp properties{};
    properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location = {CU_MEM_LOCATION_TYPE_DEVICE, {device}};
    properties.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    return properties;
  }
  std::size_t round_up(std::size_t bytes) const {
    return (std::max<std::size_t>(bytes, 1) + granularity_ - 1) / granularity_ * granularity_;
  }

  std::shared_ptr<const Driver> driver_;
  const int device_;
  std::size_t granularity_ = 0;
};

}  // namespace

std::unique_ptr<DeviceMemories> make_device_memories(int device) {
  const DeviceScope scope(device);
  check(cudaFree(nullptr), "ferry: making a CUDA context");
  return std::make_unique<VirtualMemories>(device);
}

}  // namespace ferry::cuda
