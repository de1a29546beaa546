// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The part of a window that is device memory, as the runtime sees it when windows are opened: memory that a backend makes and
// that peers map.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>

#include "bootstrap/mesh.h"

namespace ferry {

/// The name of memory in the GPUs' own network: plain bytes, which need no descriptor and no socket.
using FabricHandle = std::array<std::byte, 64>;

/// This rank's device memory, or a peer's as it is mapped here. Mapped until the object goes.
class DeviceMemory : public Shareable {
 public:
  virtual std::byte* data() const noexcept = 0;
  virtual std::size_t size() const noexcept = 0;
  /// Of memory that this rank made, where the platform has such handles.
  virtual const std::optional<FabricHandle>& fabric_handle() const noexcept = 0;
};

class DeviceMemories {
 public:
  virtual ~DeviceMemories() = default;
  /// Zeroed, and shareable with every peer. Throws Error(overflow | internal).
  virtual std::shared_ptr<DeviceMemory> allocate(std::size_t bytes) = 0;
  /// Maps what a peer shares, by its fabric handle if it has one and this rank can, else by its descriptor; the peer's claim of at
  /// least `bytes` is checked where the platform can.
  virtual std::shared_ptr<DeviceMemory> map(const Shareable& shared, const std::optional<FabricHandle>& fabric,
                                            std::size_t bytes) = 0;
  /// By which handles memory is shared and mapped, and why not by others.
  virtual std::string describe() const = 0;
};

}  // namespace ferry
