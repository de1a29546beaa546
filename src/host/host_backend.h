// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The host backend: the readable specification of the seven steps. Each step is a .cc file of its name.
#pragma once

#include <memory>

#include "backend/backend.h"
#include "backend/runtime.h"

namespace ferry::host {

void route(Runtime& runtime, DispatchCall& call);
void dispatch_send(Runtime& runtime, DispatchCall& call);
bool dispatch_forward(Runtime& runtime, DispatchCall& call);
void dispatch_recv(Runtime& runtime, DispatchCall& call);
void combine_send(Runtime& runtime, CombineCall& call);
bool combine_forward(Runtime& runtime, CombineCall& call);
void combine_recv(Runtime& runtime, CombineCall& call);

}  // namespace ferry::host
