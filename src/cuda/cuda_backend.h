// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The CUDA backend: launches the steps of a call on the caller's stream and makes their results.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/handle_layout.h"
#include "cuda/group_memory.h"
#include "cuda/network_memory.h"
#include "cuda/policy.h"

namespace ferry::cuda {

class CudaBackend final : public Backend {
 public:
  CudaBackend(Runtime& runtime, const GroupConfig& config, int device);
  ~CudaBackend() override;

  const char* name() const noexcept override { return "cuda"; }
  std::string why_not_mode(const DispatchCall& call) const override;
  std::string why_not(const DispatchCall& call) const override;
  std::string why_not(const CombineCall& call) const override;
  void check_faults() override;
  void note_late(std::vector<std::uint64_t>& late) const override;
  void forget_late(int rank) override { memory_->late()[rank] = 0; }
  void adopt(const std::shared_ptr<Windows>& windows) override;
  void settle(bool abandon) override;
  void give_up() override;
  Tensor combine_input(const Windows& windows, const Handle& handle, DType dtype, std::int64_t elements) override;

  std::vector<std::byte> device_identity() const override;
  void share_device(int num_ranks) override { limits_.sharers = num_ranks; }

  void route(DispatchCall& call) override;
  void dispatch_send(DispatchCall& call) override;
  bool dispatch_forward(DispatchCall&) override { return true; }
  void dispatch_recv(DispatchCall& call) override;
  void combine_send(CombineCall& call) override;
  bool combine_forward(CombineCall&) override { return true; }
  void combine_recv(CombineCall& call) override;

 private:
  /// Makes the call's stream follow the group's last call.
  cudaStream_t follow(void* stream);
  /// What later calls on other streams follow.
  void mark(cudaStream_t stream);
  /// `wait_ns`: the caller's statistics, if any.
  GroupArgs group_args(const Call& call, const Placement& placement, const Tensor& wait_ns = {});
  void make_handle(DispatchCall& call);
  void wait_for_counts(const DispatchCall& call);
  /// Decides where the rows of a dispatch will stay.
  void take_rows_at(DispatchCall& call);
  /// Owned rows: gives back memory that was taken for rows that did not come, and copies rows that found no room where peers
  /// write out of the window.
  void own_rows(DispatchCall& call, std::int64_t num_rows, cudaStream_t stream);
  void make_result(DispatchCall& call, cudaStream_t stream);
  /// Memory for the ids and weights beside the rows of a result, and its tensors.
  struct Choices {
    void* ids = nullptr;
    float* weights = nullptr;
    bool wide_ids = false;
  };
  Choices make_choices(DispatchCall& call);
  /// The tensors that views of a handle and rows at `rows` are.
  void make_tensors(DispatchCall& call, const std::array<std::byte*, wire::kMaxBlocks>& rows);

  // Between nodes: cuda_network.cc.
  bool spans_nodes() const { return network_ != nullptr; }
  std::string why_not_across(const DispatchCall& call) const;
  std::string why_not_across(const CombineCall& call) const;
  /// Stages and puts the rows for other nodes; before dispatch_send's own kernel.
  void stage(const DispatchCall& call, SendArgs args, cudaStream_t stream);
  /// Hands on rows of other nodes, and ends the send.
  void forward(const DispatchCall& call, const SendArgs& args, cudaStream_t stream);
  void forward(const CombineCall& call, CombineArgsOnDevice args, cudaStream_t stream);

  // Latency mode: cuda_latency.cc.
  std::string why_not_latency_mode(const DispatchCall& call) const;
  LatencySize latency_size(std::int64_t num_tokens, int top_k, const HandleHeader& header) const;
  /// The arguments of a dispatch's kernels; made once, used by both halves.
  LatencyDispatchArgs& latency_args(DispatchCall& call);
  LatencyDispatchArgs make_latency_args(DispatchCall& call);
  /// One node, nobody left out, and experts lie evenly: one of the conditions of usual calls.
  bool is_common(const Windows& windows, const Placement& placement);
  void launch(DispatchCall& call, Phase phase, cudaStream_t stream);
  void launch_before(const GroupArgs& group, LatencyKind kind, Phase phase, cudaStream_t stream);
  void receive_latency(DispatchCall& call);
  std::byte* owned_block(DispatchCall& call, std::int64_t bytes);
  void launch(const CombineCall& call, const CombineArgsOnDevice& args, Phase phase, cudaStream_t stream);
  std::byte* allocate(Call& call, ResultMemory& memory, std::int64_t bytes);
  CombineArgsOnDevice combine_args(const CombineCall& call);
  CallShape shape_of(const Call& call, std::int64_t num_tokens, int top_k, int num_sms) const;
  void spoil_tags(const Windows& windows);
  bool has_fault() const;
  [[noreturn]] void raise_fault();

  Runtime& runtime_;
  const GroupConfig config_;
  const int device_;
  DeviceLimits limits_;
  std::unique_ptr<GroupMemory> memory_;
  std::unique_ptr<NetworkMemory> network_;  ///< null on one node
  std::weak_ptr<Windows> windows_;
  std::shared_ptr<Pool> owned_;  ///< where peers write rows of owned results; of the current windows

  /// Where the rows of a dispatch are, by block of the payload.
  struct RowsPlace {
    std::array<std::byte*, wire::kMaxBlocks> at{};
    std::vector<std::shared_ptr<std::byte>> owned;  ///< a block's memory each; empty: in the receive window
    std::int64_t most = 0;                          ///< rows that the memory was taken for
  };
  static RowsPlace& rows_of(const DispatchCall& call) { return *static_cast<RowsPlace*>(call.backends.get()); }
  /// Refuses the second half of a call whose windows were made anew in between: its kernels' state is gone.
  void require_windows(const Call& call, const char* step) const;
  /// The placement that was looked at last.
  struct SeenPlacement {
    std::uint64_t digest = 0;
    int num_slots = 0;
    bool is_even = false;
  };
  SeenPlacement seen_placement_;
  cudaEvent_t last_ = nullptr;
  cudaStream_t last_stream_ = nullptr;
  bool has_last_ = false;
};

/// A block of the caller's payload, as `block` of the wire row.
BlockArgs block_args(const Tensor& tensor, const wire::Block& block);
/// The arrays of a handle that lies at `base`.
HandleArgs handle_args(std::byte* base, const HandleHeader& header);
bool is_capturing(cudaStream_t stream);

}  // namespace ferry::cuda
