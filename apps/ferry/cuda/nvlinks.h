// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// NVLinks of a GPU, from NVML, which is opened at run time.
#pragma once

#include <memory>
#include <string>

namespace ferry::app {

struct NvLinks {
  int active = -1;     ///< links, -1 if unknown
  std::string reason;  ///< why unknown
};

class Nvml {
 public:
  Nvml();
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;
  ~Nvml();

  /// `pci_bus_id` as cudaDeviceGetPCIBusId writes it: NVML counts all GPUs of the machine, CUDA those that it may see.
  NvLinks links_of(const std::string& pci_bus_id) const;

 private:
  struct Functions;
  std::unique_ptr<Functions> functions_;
  std::string reason_;
};

}  // namespace ferry::app
