// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
#include "cuda/device_memory.h"

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>

#include "bootstrap/fd.h"
#include "cuda/check.h"
#include "cuda/driver.h"
#include "ferry/error.h"

namespace ferry::cuda {
namespace {

/// The driver's functions.
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
  decltype(&cuDeviceGetAttribute) attribute;

  Driver() {
    find_driver_function("cuMemCreate", create);
    find_driver_function("cuMemRelease", release);
    find_driver_function("cuMemExportToShareableHandle", export_handle);
    find_driver_function("cuMemImportFromShareableHandle", import_handle);
    find_driver_function("cuMemAddressReserve", reserve);
    find_driver_function("cuMemAddressFree", free_address);
    find_driver_function("cuMemMap", map);
    find_driver_function("cuMemUnmap", unmap);
    find_driver_function("cuMemSetAccess", set_access);
    find_driver_function("cuMemGetAllocationGranularity", granularity);
    find_driver_function("cuGetErrorString", error_string);
    find_driver_function("cuDeviceGetAttribute", attribute);
  }

  void check(CUresult status, const char* what) const {
    if (status == CUDA_SUCCESS) return;
    const char* text = nullptr;
    error_string(status, &text);
    const ErrorCode code = status == CUDA_ERROR_OUT_OF_MEMORY ? ErrorCode::kOverflow : ErrorCode::kInternal;
    throw Error(code, fmt::format("{}: {}", what, text == nullptr ? "unknown error" : text));
  }
};

static_assert(sizeof(CUmemFabricHandle) == sizeof(FabricHandle));

/// By what a peer may map an allocation; nothing of it for one that came from a peer.
struct Exported {
  bootstrap::Fd fd;
  std::optional<FabricHandle> fabric;
};

/// A mapped allocation.
class Mapping final : public DeviceMemory {
 public:
  Mapping(std::shared_ptr<const Driver> driver, int device, CUmemGenericAllocationHandle handle, std::size_t bytes,
          std::size_t granularity, Exported exported)
      : driver_(std::move(driver)), device_(device), handle_(handle), bytes_(bytes), exported_(std::move(exported)) {
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
  int fd() const noexcept override { return exported_.fd.get(); }
  const std::optional<FabricHandle>& fabric_handle() const noexcept override { return exported_.fabric; }

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
  const Exported exported_;
  CUdeviceptr address_ = 0;
  bool mapped_ = false;
};

class VirtualMemories final : public DeviceMemories {
 public:
  explicit VirtualMemories(int device) : driver_(std::make_shared<Driver>()), device_(device) {
    why_no_fabric_ = try_fabric();
    const CUmemAllocationProp properties = allocation(shared_by());
    driver_->check(driver_->granularity(&granularity_, &properties, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED),
                   "cuMemGetAllocationGranularity");
  }

  std::shared_ptr<DeviceMemory> allocate(std::size_t bytes) override {
    const DeviceScope scope(device_);
    const std::size_t rounded = round_up(bytes);
    const CUmemGenericAllocationHandle handle = create(rounded, shared_by());
    auto memory = std::make_shared<Mapping>(driver_, device_, handle, rounded, granularity_, export_all(handle));
    cudaStream_t stream = nullptr;  // of its own: the default stream would wait for those of other ranks
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
    check(cudaMemsetAsync(memory->data(), 0, rounded, stream), "cudaMemset of a window");
    check(cudaStreamSynchronize(stream), "cudaMemset of a window");
    check(cudaStreamDestroy(stream), "cudaStreamDestroy");
    return memory;
  }

  std::shared_ptr<DeviceMemory> map(const Shareable& shared, const std::optional<FabricHandle>& fabric,
                                    std::size_t bytes) override {
    const DeviceScope scope(device_);
    if (fabric && why_no_fabric_.empty()) {
      try {
        CUmemFabricHandle name;
        std::memcpy(&name, fabric->data(), sizeof(name));
        return import(&name, CU_MEM_HANDLE_TYPE_FABRIC, bytes);
      } catch (const Error& error) {
        why_no_fabric_ = fmt::format("a peer's handle: {}", error.what());
      }
    }
    return import(reinterpret_cast<void*>(static_cast<std::intptr_t>(shared.fd())),
                  CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, bytes);
  }

  std::string describe() const override {
    if (why_no_fabric_.empty()) return "by fabric handles";
    return fmt::format("by file descriptors; not by fabric handles: {}", why_no_fabric_);
  }

 private:
  static constexpr auto kDescriptor = static_cast<unsigned>(CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
  static constexpr auto kFabric = static_cast<unsigned>(CU_MEM_HANDLE_TYPE_FABRIC);

  /// Every window has a descriptor, too: a peer that cannot import the fabric handle maps that.
  unsigned shared_by() const { return why_no_fabric_.empty() ? kDescriptor | kFabric : kDescriptor; }

  CUmemAllocationProp allocation(unsigned handle_types) const {
    CUmemAllocationProp properties{};
    properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location = {CU_MEM_LOCATION_TYPE_DEVICE, {device_}};
    properties.requestedHandleTypes = static_cast<CUmemAllocationHandleType>(handle_types);
    return properties;
  }

  CUmemGenericAllocationHandle create(std::size_t bytes, unsigned handle_types) const {
    const CUmemAllocationProp properties = allocation(handle_types);
    CUmemGenericAllocationHandle handle;
    const CUresult created = driver_->create(&handle, bytes, &properties, 0);
    driver_->check(created, fmt::format("ferry: {} bytes of device memory for a window: cuMemCreate", bytes).c_str());
    return handle;
  }

  Exported export_all(CUmemGenericAllocationHandle handle) const {
    try {
      int fd = -1;
      driver_->check(driver_->export_handle(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
                     "cuMemExportToShareableHandle");
      Exported exported{.fd = bootstrap::Fd(fd), .fabric = {}};
      if (why_no_fabric_.empty()) exported.fabric = export_fabric(handle);
      return exported;
    } catch (...) {
      driver_->release(handle);
      throw;
    }
  }
  FabricHandle export_fabric(CUmemGenericAllocationHandle handle) const {
    CUmemFabricHandle name;
    driver_->check(driver_->export_handle(&name, handle, CU_MEM_HANDLE_TYPE_FABRIC, 0),
                   "cuMemExportToShareableHandle (fabric)");
    FabricHandle out;
    std::memcpy(out.data(), &name, sizeof(name));
    return out;
  }

  /// A device may support such handles where the machine lacks what they need (an IMEX channel, a fabric manager), so one is
  /// made. Empty, or why it cannot be.
  std::string try_fabric() const {
    int supported = 0;
    driver_->check(driver_->attribute(&supported, CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED, device_),
                   "cuDeviceGetAttribute");
    if (supported == 0) return "the GPU or its driver has none";
    try {
      const CUmemAllocationProp properties = allocation(kDescriptor | kFabric);
      std::size_t bytes = 0;
      driver_->check(driver_->granularity(&bytes, &properties, CU_MEM_ALLOC_GRANULARITY_MINIMUM),
                     "cuMemGetAllocationGranularity");
      const CUmemGenericAllocationHandle handle = create(bytes, kDescriptor | kFabric);
      const std::shared_ptr<void> release(nullptr, [&](void*) { driver_->release(handle); });
      export_fabric(handle);
    } catch (const Error& error) {
      return error.what();
    }
    return {};
  }

  std::shared_ptr<DeviceMemory> import(void* what, CUmemAllocationHandleType type, std::size_t bytes) const {
    CUmemGenericAllocationHandle handle;
    driver_->check(driver_->import_handle(&handle, what, type), "cuMemImportFromShareableHandle");
    return std::make_shared<Mapping>(driver_, device_, handle, round_up(bytes), granularity_, Exported{});
  }

  std::size_t round_up(std::size_t bytes) const {
    return (std::max<std::size_t>(bytes, 1) + granularity_ - 1) / granularity_ * granularity_;
  }

  std::shared_ptr<const Driver> driver_;
  const int device_;
  std::string
      why_no_fabric_;  ///< empty: handles of both kinds are made, and fabric handles are what peers' memory is mapped by
  std::size_t granularity_ = 0;
};

}  // namespace

std::unique_ptr<DeviceMemories> make_device_memories(int device) {
  const DeviceScope scope(device);
  check(cudaFree(nullptr), "ferry: making a CUDA context");
  return std::make_unique<VirtualMemories>(device);
}

}  // namespace ferry::cuda
