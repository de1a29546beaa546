// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// Launches of the steps. Each .cu file but copy.cu holds the step of its name; the host step of the same name says what it does.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/args.h"
#include "cuda/latency_args.h"
#include "cuda/network_args.h"

namespace ferry::cuda {

/// Blocks and threads of a launch.
struct Launch {
  int blocks = 1;
  int threads = 512;
  std::size_t shared_bytes = 0;
};

/// Room for the static variables of kernels beside their dynamic shared memory.
inline constexpr int kStaticSharedBytes = 1024;

/// Shared memory of the route kernel for this many keys (ranks + slots), experts and warps.
std::size_t route_shared_bytes(int keys, int num_experts, int warps);
inline constexpr int kMostCombineWarps = 12;
/// Shared memory of combine_recv and of dispatch_send.
std::size_t combine_shared_bytes(int warps, int num_ranks, int top_k);
std::size_t send_shared_bytes(int warps, int num_ranks, int num_blocks, int top_k);

void launch_route(const RouteArgs& args, const Launch& launch, cudaStream_t stream);
void launch_dispatch_send(const SendArgs& args, const Launch& launch, cudaStream_t stream);
void launch_dispatch_recv(const ReceiveArgs& args, const Launch& launch, cudaStream_t stream);
void launch_combine_send(const CombineArgsOnDevice& args, const Launch& launch, cudaStream_t stream);
void launch_combine_recv(const CombineArgsOnDevice& args, const Launch& launch, cudaStream_t stream);

// Of groups that span nodes; top-k up to kMaxTopK.
void launch_route(const RouteArgs& args, const NetworkArgs& network, const Launch& launch, cudaStream_t stream);
/// Before launch_dispatch_send. `cached`: the handle has the numbers of rows already.
void launch_dispatch_stage(const SendArgs& args, const NetworkArgs& network, bool cached, const Launch& launch,
                           cudaStream_t stream);
/// After launch_dispatch_send, whose arguments said that more follows.
void launch_dispatch_forward(const ForwardArgs& args, const Launch& launch, cudaStream_t stream);
/// Weights for ranks of other nodes, and from them: before launch_combine_send.
void launch_weights_across(const CombineArgsOnDevice& args, const NetworkArgs& network, const Launch& launch,
                           cudaStream_t stream);
/// Where rows that go back one by one have their places: before launch_combine_forward, and before launch_combine_recv.
void launch_number_forwarded(const CombineArgsOnDevice& args, const NetworkArgs& network, cudaStream_t stream);
void launch_number_returned(const CombineArgsOnDevice& args, const NetworkArgs& network, cudaStream_t stream);
/// After launch_combine_send.
void launch_combine_forward(const CombineArgsOnDevice& args, const NetworkArgs& network, const Launch& launch,
                            cudaStream_t stream);
void launch_combine_recv(const CombineArgsOnDevice& args, const NetworkArgs& network, const Launch& launch,
                         cudaStream_t stream);
/// Around the kernels of latency mode's halves: before those that send, after them, and before those that receive.
void launch_latency_credits(const GroupArgs& group, const NetworkArgs& network, LatencyKind kind, cudaStream_t stream);
void launch_latency_ship(const LatencyDispatchArgs& args, const NetworkArgs& network, cudaStream_t stream);
void launch_latency_ship(const CombineArgsOnDevice& args, const NetworkArgs& network, cudaStream_t stream);
void launch_latency_await(const GroupArgs& group, const NetworkArgs& network, LatencyKind kind, cudaStream_t stream);
std::size_t forward_shared_bytes(int num_ranks, int num_blocks, int num_sources);

inline constexpr int kLatencyThreads = 256;
/// What the shared memory of latency kernels depends on.
struct LatencySize {
  int num_experts = 0, num_slots = 0, num_ranks = 1, num_local = 0, top_k = 1;
  std::int64_t choices = 0;  ///< T * K
};
std::size_t latency_dispatch_shared_bytes(const LatencySize& size, int warps);
std::size_t latency_combine_shared_bytes(const LatencySize& size, int warps);
void launch_latency_dispatch(const LatencyDispatchArgs& args, Phase phase, const Launch& launch, cudaStream_t stream);
void launch_latency_combine(const CombineArgsOnDevice& args, Phase phase, const Launch& launch, cudaStream_t stream);
/// Usual calls: latency/usual.cuh.
std::size_t usual_dispatch_shared_bytes(const LatencySize& size);
void launch_usual_dispatch(const UsualDispatchArgs& args, Phase phase, const Launch& launch, cudaStream_t stream);
void launch_usual_combine(const UsualCombineArgs& args, Phase phase, const Launch& launch, cudaStream_t stream);

/// Copies inside the device, addresses multiples of 16; by a kernel, because a copy engine's queue may hold up other ranks' copies.
void launch_copy(void* to, const void* from, std::int64_t bytes, int blocks, cudaStream_t stream);

/// Loads every kernel and raises its limits: a kernel that is loaded while another one waits could wait for it.
void prepare_kernels();
/// One kernel of them, with up to so many bytes of dynamic shared memory.
void prepare_kernel(const void* kernel, int dynamic_bytes);

}  // namespace ferry::cuda
