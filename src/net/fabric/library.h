// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// libfabric, opened at run time. Its objects carry tables of functions, so only these few symbols are looked up; the inline
// functions of its headers do the rest.
#pragma once

#include <rdma/fabric.h>

#include <memory>
#include <string>

namespace ferry::net::fabric {

/// The interface that the code was written for and asks providers for.
constexpr std::uint32_t kApiVersion = FI_VERSION(1, 17);

struct Library {
  std::uint32_t (*version)();
  int (*getinfo)(std::uint32_t version, const char* node, const char* service, std::uint64_t flags,
                 const fi_info* hints, fi_info** info);
  void (*freeinfo)(fi_info* info);
  fi_info* (*dupinfo)(const fi_info* info);
  int (*fabric)(fi_fabric_attr* attr, fid_fabric** fabric, void* context);
  const char* (*strerror)(int error_number);
};

/// Null, with the reason, if it is not there or too old. Once opened it stays: providers do not survive being unloaded.
const Library* open_library(std::string& why_not);

struct InfoDeleter {
  void operator()(fi_info* info) const;
};
using Info = std::unique_ptr<fi_info, InfoDeleter>;

/// An object of libfabric that is closed with its owner.
template <class Object>
struct FidCloser {
  void operator()(Object* object) const { fi_close(&object->fid); }
};
template <class Object>
using Fid = std::unique_ptr<Object, FidCloser<Object>>;

/// "cannot open the endpoint: No such device (-19)"
std::string describe_error(const char* what, long status);
/// Throws Error(unsupported) if status is negative.
void check_status(const char* what, long status);

}  // namespace ferry::net::fabric
