// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Several proxy threads for one rank: an engine of engines, each with a provider, a proxy and rings of its own. A peer belongs
// to one of them, so every order that the contract promises inside (channel, peer) holds as before.
#pragma once

#include <memory>
#include <vector>

#include "net/engine.h"

namespace ferry::net {

/// At least two engines of the same kind. All ranks must have the same number.
std::unique_ptr<Engine> make_split_engine(const EngineConfig& config, std::vector<std::unique_ptr<Engine>> engines);

}  // namespace ferry::net
