// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Device memory for windows: the driver's virtual-memory API, whose allocations travel between processes as fabric handles where
// the platform has them, as file descriptors otherwise, and are gone with the last process that holds one.
#pragma once

#include <memory>

#include "backend/device_memory.h"

namespace ferry::cuda {

/// On `device`. Throws Error(unsupported) where the driver or the device lacks the virtual-memory API.
std::unique_ptr<DeviceMemories> make_device_memories(int device);

}  // namespace ferry::cuda
