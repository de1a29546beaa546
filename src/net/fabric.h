// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Providers of libfabric, as far as the rest of the engine sees them. Where Ferry was built without libfabric's headers,
// no_fabric/ says so.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "net/carrier.h"
#include "net/engine.h"

namespace ferry::net {

/// True for tcp, shm, verbs and efa.
bool is_fabric_network(const std::string& network);

/// Throws Error(unsupported | invalid_argument) with the reason.
std::unique_ptr<Carrier> make_fabric_carrier(const EngineConfig& config);

std::vector<Provider> find_fabric_networks();

}  // namespace ferry::net
