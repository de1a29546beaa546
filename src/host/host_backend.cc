// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
#include "host/host_backend.h"

#include "ferry/error.h"

namespace ferry::host {
namespace {

class HostBackend final : public Backend {
 public:
  explicit HostBackend(Runtime& runtime) : runtime_(runtime) {}
  const char* name() const noexcept override { return "host"; }
  Tensor combine_input(const Windows&, const Handle&, DType, std::int64_t) override {
    throw Error(
        ErrorCode::kUnsupported,
        "ferry::Group::combine_input: the host backend reads the experts' rows from any tensor; give it to combine");
  }
  void route(DispatchCall& call) override { host::route(runtime_, call); }
  void dispatch_send(DispatchCall& call) override { host::dispatch_send(runtime_, call); }
  bool dispatch_forward(DispatchCall& call) override { return host::dispatch_forward(runtime_, call); }
  void dispatch_recv(DispatchCall& call) override { host::dispatch_recv(runtime_, call); }
  void combine_send(CombineCall& call) override { host::combine_send(runtime_, call); }
  bool combine_forward(CombineCall& call) override { return host::combine_forward(runtime_, call); }
  void combine_recv(CombineCall& call) override { host::combine_recv(runtime_, call); }

 private:
  Runtime& runtime_;
};

}  // namespace

}  // namespace ferry::host

namespace ferry {

std::unique_ptr<Backend> make_host_backend(Runtime& runtime) {
  return std::make_unique<host::HostBackend>(runtime);
}

}  // namespace ferry
