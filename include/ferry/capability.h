// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What this build on this machine can do.
#pragma once

#include <string>
#include <vector>

namespace ferry {

struct Capability {
  std::string name;  ///< "backend host", "network loopback", "locked memory", ...
  bool usable = false;
  std::string detail;  ///< what was found, or the reason why not
  std::string fix;     ///< what would help; empty if usable
};

/// Looks at the machine; starts nothing and leaves nothing behind.
std::vector<Capability> capabilities();

/// "0.1.0"
const char* version() noexcept;

}  // namespace ferry
