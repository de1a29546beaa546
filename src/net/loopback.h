// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Windows of this machine, written with plain copies, or by the copy engines of a GPU: how pretend nodes reach each other.
// make_loopback() is in engine.h.
#pragma once

#include <cstdint>
#include <memory>

#include "net/carrier.h"
#include "net/copy_engines.h"

namespace ferry::net {

/// `engines`: for windows on GPUs; may be null. `bytes_per_second`: of a link that this rank's puts seem to leave by; 0: none.
std::unique_ptr<Carrier> make_loopback_carrier(std::shared_ptr<CopyEngines> engines = nullptr,
                                               std::uint64_t bytes_per_second = 0);

}  // namespace ferry::net
