// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What a group that spans nodes keeps on its device for the network, beside its windows: who receives for whom, and how far its
// commands are.
#pragma once

#include <memory>

#include "backend/runtime.h"
#include "cuda/group_memory.h"
#include "cuda/network_args.h"

namespace ferry::cuda {

class NetworkMemory {
 public:
  /// The runtime has an engine with a ring for kernels.
  NetworkMemory(const Runtime& runtime, GroupMemory& memory);

  /// Makes the tables anew for these windows. No kernel of the group may be running.
  void adopt(const Windows& windows);
  const NetworkArgs& args() const { return args_; }
  /// [R] as GroupArgs::windows for latency mode: of ranks of other nodes the outbox, as if it were their windows.
  std::byte* const* latency_windows() const { return reinterpret_cast<std::byte* const*>(latency_windows_.get()); }
  /// Before the engine goes: waits, for at most 1 s, until what kernels that are over have commanded is carried out. Peers may still
  /// wait for it.
  void drain() const;

 private:
  const Runtime& runtime_;
  GroupMemory& memory_;
  std::shared_ptr<std::byte> state_, tables_, scratch_, latency_windows_;
  NetworkArgs args_;
};

}  // namespace ferry::cuda
