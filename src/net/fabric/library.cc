// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
#include "net/fabric/library.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include "core/check.h"
#include "net/engine.h"

namespace ferry::net {
namespace fabric {
namespace {

struct Opened {
  Library library{};
  std::string why_not;
};

template <class Function>
bool find(void* handle, const char* symbol, Function& function, std::string& why_not) {
  function = reinterpret_cast<Function>(::dlsym(handle, symbol));
  if (function == nullptr) why_not = fmt::format("libfabric.so.1 has no {}", symbol);
  return function != nullptr;
}

Opened open_now() {
  Opened opened;
  void* handle = ::dlopen("libfabric.so.1", RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    opened.why_not = fmt::format("{}; install libfabric {}.{} or newer (Debian: libfabric1)", ::dlerror(),
                                 FI_MAJOR(kApiVersion), FI_MINOR(kApiVersion));
    return opened;
  }
  Library& library = opened.library;
  std::string& why_not = opened.why_not;
  const bool complete =
      find(handle, "fi_version", library.version, why_not) && find(handle, "fi_getinfo", library.getinfo, why_not) &&
      find(handle, "fi_freeinfo", library.freeinfo, why_not) && find(handle, "fi_dupinfo", library.dupinfo, why_not) &&
      find(handle, "fi_fabric", library.fabric, why_not) && find(handle, "fi_strerror", library.strerror, why_not);
  if (!complete) return opened;
  const std::uint32_t version = library.version();
  if (FI_VERSION_LT(version, kApiVersion)) {
    why_not = fmt::format("libfabric {}.{} found, {}.{} or newer needed", FI_MAJOR(version), FI_MINOR(version),
                          FI_MAJOR(kApiVersion), FI_MINOR(kApiVersion));
  }
  return opened;
}

const Opened& opened() {
  static const Opened once = open_now();  // a fact about the process: no group owns it, none changes it
  return once;
}

}  // namespace

const Library* open_library(std::string& why_not) {
  why_not = opened().why_not;
  return why_not.empty() ? &opened().library : nullptr;
}

void InfoDeleter::operator()(fi_info* info) const {
  opened().library.freeinfo(info);
}

std::string describe_error(const char* what, long status) {
  const int number = static_cast<int>(status < 0 ? -status : status);
  return fmt::format("{}: {} ({})", what, opened().library.strerror(number), status);
}

void check_status(const char* what, long status) {
  if (status < 0) refuse_unsupported("ferry::net::make_engine", "network", describe_error(what, status));
}

}  // namespace fabric

std::string network_library(std::string& why_not) {
  const fabric::Library* library = fabric::open_library(why_not);
  if (library == nullptr) return {};
  return fmt::format("{}.{}", FI_MAJOR(library->version()), FI_MINOR(library->version()));
}

}  // namespace ferry::net
