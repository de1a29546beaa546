// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// See nvlinks.h. NVML's header is not part of every CUDA toolkit, so the few functions are declared here as it does.
#include "nvlinks.h"

#include <dlfcn.h>
#include <fmt/format.h>

namespace ferry::app {
namespace {

using Device = void*;
constexpr int kSuccess = 0;
constexpr unsigned kMaxLinks = 18;  // NVML_NVLINK_MAX_LINKS

template <class Function>
bool find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(::dlsym(library, name));
  return function != nullptr;
}

}  // namespace

struct Nvml::Functions {
  void* library = nullptr;
  int (*init)() = nullptr;
  int (*shutdown)() = nullptr;
  const char* (*error_string)(int) = nullptr;
  int (*by_bus_id)(const char*, Device*) = nullptr;
  int (*link_state)(Device, unsigned, unsigned*) = nullptr;
};

Nvml::Nvml() {
  void* const library = ::dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* const why = ::dlerror();
    reason_ = why == nullptr ? "libnvidia-ml.so.1 cannot be opened" : why;
    return;
  }
  auto functions = std::make_unique<Functions>();
  functions->library = library;
  const bool all = find(library, "nvmlInit_v2", functions->init) &&
                   find(library, "nvmlShutdown", functions->shutdown) &&
                   find(library, "nvmlErrorString", functions->error_string) &&
                   find(library, "nvmlDeviceGetHandleByPciBusId_v2", functions->by_bus_id) &&
                   find(library, "nvmlDeviceGetNvLinkState", functions->link_state);
  const int started = all ? functions->init() : kSuccess;
  if (all && started == kSuccess) {
    functions_ = std::move(functions);
    return;
  }
  reason_ = all ? fmt::format("NVML: {}", functions->error_string(started)) : "libnvidia-ml.so.1 lacks a function";
  ::dlclose(library);
}

Nvml::~Nvml() {
  if (!functions_) return;
  functions_->shutdown();
  ::dlclose(functions_->library);
}

NvLinks Nvml::links_of(const std::string& pci_bus_id) const {
  if (!functions_) return {.reason = reason_};
  Device device = nullptr;
  if (const int status = functions_->by_bus_id(pci_bus_id.c_str(), &device); status != kSuccess)
    return {.reason = fmt::format("NVML: {}", functions_->error_string(status))};
  NvLinks links{.active = 0, .reason = {}};
  for (unsigned link = 0; link < kMaxLinks; ++link) {
    unsigned active = 0;
    // A link that the GPU does not have is an error here.
    if (functions_->link_state(device, link, &active) == kSuccess && active != 0) ++links.active;
  }
  return links;
}

}  // namespace ferry::app
