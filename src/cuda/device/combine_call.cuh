// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What surrounds the rows of a combine: when they may be written, how peers learn that they may be read, and how the call is
// filed. Done by combine_send, or by combine_recv where combine_send has nothing else to do.
#pragma once

#include "cuda/device/wait.cuh"

namespace ferry::cuda {

/// Rows, notes and weights of this flight's last combine must have been read by everybody. All threads of a block.
__device__ inline bool wait_until_read(const GroupArgs& group, std::uint64_t epoch) {
  const std::uint64_t before = group.state->combine_epoch[group.flight];
  return before == 0 ||
         wait_everybody(group, FaultStep::kCombineSend, epoch, DeviceSignal::kCombineRead, total_of(before));
}

/// Tells the peers where the rows are and that they may be read. All threads of one block.
__device__ inline void announce_rows(const CombineArgsOnDevice& a, std::uint64_t epoch) {
  const GroupArgs& group = a.group;
  for (int peer = static_cast<int>(threadIdx.x); peer < group.num_ranks; peer += static_cast<int>(blockDim.x)) {
    if (group.windows[peer] == nullptr) continue;
    *reinterpret_cast<CombineNote*>(group.windows[peer] + group.layout.note_at(group.flight, group.rank)) = {
        epoch, group.digest, a.rows_offset, a.sent_stride};
    post(group, DeviceSignal::kCombineReady, peer, total_of(epoch));
  }
}

/// Who next hands the combine input out must wait for the readers of this combine. After announce_rows, one thread.
__device__ inline void file_input(const CombineArgsOnDevice& a, std::uint64_t epoch) {
  if (a.source != RowSource::kInPlace) return;
  a.group.state->input_epoch[a.input_flight] = epoch;
  a.group.state->input_flight[a.input_flight] = a.group.flight;
}

/// One thread of the last block, after everything else of the call that reads the state.
__device__ inline void file_combine(const CombineArgsOnDevice& a, std::uint64_t epoch) {
  a.group.state->combine_epoch[a.group.flight] = epoch;
  a.group.state->epoch = epoch;
}

}  // namespace ferry::cuda
