// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The part of a window that is device memory, as the runtime sees it when windows are opened: memory that a backend makes and
// that peers map.
#pragma once

#include <cstddef>
#include <memory>

#include "bootstrap/mesh.h"

namespace ferry {

/// This rank's device memory, or a peer's as it is mapped here. Mapped until the object goes.
class DeviceMemory : public Shareable {
 public:
  virtual std::byte* data() const noexcept = 0;
  virtual std::size_t size() const noexcept = 0;
};

class DeviceMemories {
 public:
  virtual ~DeviceMemories() = default;
  /// Zeroed, and shareable with every peer. Throws Error(overflow | internal).
  virtual std::shared_ptr<DeviceMemory> allocate(std::size_t bytes) = 0;
  /// Maps what a peer shares; the peer's claim of at least `bytes` is checked where the platform can.
  virtual std::shared_ptr<DeviceMemory> map(const Shareable& shared, std::size_t bytes) = 0;
};

}  // namespace ferry
