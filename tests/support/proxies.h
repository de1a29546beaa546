// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>

namespace ferry::test {

/// How long a proxy of stall_proxies stands still.
inline constexpr std::chrono::seconds kProxyStall{2};

/// Makes all network proxies of this process stand still for kProxyStall, as threads do that get no core; returns how many there
/// are. They take SIGPROF, one of the few signals that do not pass them by.
int stall_proxies();

/// Proxies of this process that stood still since the last stall_proxies.
int stalled_proxies();

}  // namespace ferry::test
