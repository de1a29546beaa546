// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Small trials of the ways that windows take between GPUs.
#pragma once

#include <string>

#include "driver.h"

namespace ferry::app {

/// Memory of GPU `owner` is exported as a file descriptor, imported, mapped by GPU `user`, read and written by copies with a
/// deadline. Says what was done; throws std::runtime_error with the step that failed. Leaves nothing behind.
std::string try_window(const Driver& driver, int owner, int user);

/// Empty if memory with a fabric handle can be made, else why not.
std::string why_no_fabric_memory(const Driver& driver, int device);

}  // namespace ferry::app
