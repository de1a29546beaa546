// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The driver's functions that the doctor needs, found at run time: nothing links against libcuda.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

namespace ferry::app {

struct Driver {
  decltype(&cuDeviceGetAttribute) attribute;
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

  /// Throws std::runtime_error naming a function that the driver lacks.
  Driver();
  /// Throws std::runtime_error if `status` is an error.
  void check(CUresult status, const char* what) const;
};

/// The same for the runtime.
void check_cuda(cudaError_t status, const char* what);

/// What an allocation of virtual memory on `device` is.
CUmemAllocationProp allocation_on(int device, CUmemAllocationHandleType handles);

}  // namespace ferry::app
