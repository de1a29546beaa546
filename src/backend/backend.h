// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The seam between the API and a backend: the seven steps. The API checks arguments, makes the call and runs the steps in
// order; a backend carries them out on its windows.
#pragma once

#include <memory>

#include "backend/call.h"
#include "backend/runtime.h"

namespace ferry {

class Backend {
 public:
  virtual ~Backend() = default;
  virtual const char* name() const noexcept = 0;

  /// Fixes the row of every token; throughput mode exchanges counts for it.
  virtual void route(DispatchCall& call) = 0;
  virtual void dispatch_send(DispatchCall& call) = 0;
  /// Hands on what has arrived for others; never waits. True once nothing more will come.
  virtual bool dispatch_forward(DispatchCall& call) = 0;
  virtual void dispatch_recv(DispatchCall& call) = 0;
  virtual void combine_send(CombineCall& call) = 0;
  /// As dispatch_forward.
  virtual bool combine_forward(CombineCall& call) = 0;
  virtual void combine_recv(CombineCall& call) = 0;
};

/// Defined in src/host.
std::unique_ptr<Backend> make_host_backend(Runtime& runtime);

}  // namespace ferry
