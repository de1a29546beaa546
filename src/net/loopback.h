// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Windows of this machine, written with plain copies: how pretend nodes reach each other. make_loopback() is in
// engine.h.
#pragma once

#include <memory>

#include "net/carrier.h"

namespace ferry::net {

std::unique_ptr<Carrier> make_loopback_carrier();

}  // namespace ferry::net
