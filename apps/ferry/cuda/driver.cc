// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// See driver.h.
#include "driver.h"

#include <fmt/format.h>

#include <stdexcept>

namespace ferry::app {
namespace {

template <typename Function>
void find(const char* name, Function& function) {
  constexpr unsigned kVersion = 12000;
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
  const cudaError_t status = cudaGetDriverEntryPointByVersion(name, &found, kVersion, cudaEnableDefault, &result);
  if (status != cudaSuccess || found == nullptr)
    throw std::runtime_error(fmt::format("this driver has no {}; expected a driver for CUDA 12 or later", name));
  function = reinterpret_cast<Function>(found);
}

}  // namespace

Driver::Driver() {
  find("cuDeviceGetAttribute", attribute);
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

void Driver::check(CUresult status, const char* what) const {
  if (status == CUDA_SUCCESS) return;
  const char* text = nullptr;
  error_string(status, &text);
  throw std::runtime_error(fmt::format("{}: {}", what, text == nullptr ? "unknown error" : text));
}

void check_cuda(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(fmt::format("{}: {}", what, cudaGetErrorString(status)));
}

CUmemAllocationProp allocation_on(int device, CUmemAllocationHandleType handles) {
  CUmemAllocationProp properties{};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.location = {CU_MEM_LOCATION_TYPE_DEVICE, {device}};
  properties.requestedHandleTypes = handles;
  return properties;
}

}  // namespace ferry::app
