// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The engine around any provider: channels, windows and one proxy thread.
#pragma once

#include <memory>

#include "net/carrier.h"
#include "net/engine.h"

namespace ferry::net {

/// With `shuffle_seed` or `max_post_delay_ns` the shuffle stands in between. Throws Error(invalid_argument) for a
/// configuration that cannot be.
std::unique_ptr<Engine> make_proxy_engine(const EngineConfig& config, std::unique_ptr<Carrier> carrier);

}  // namespace ferry::net
