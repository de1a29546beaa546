// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The parts of a call that only groups over several nodes have: what they cannot do yet, and the launches beside those of one node.
// Forwarding belongs to the send half: all ranks start sends in the same order, so ranks cannot wait for each other in a circle
// whatever the order in which they receive.
#include <fmt/format.h>

#include "cuda/cuda_backend.h"

namespace ferry::cuda {

std::string CudaBackend::why_not_across(const DispatchCall& call) const {
  if (!spans_nodes()) return {};
  if (call.top_k > kMaxTopK)
    return fmt::format("across nodes the cuda backend takes top-k up to {}, not {}", kMaxTopK, call.top_k);
  return {};
}

std::string CudaBackend::why_not_across(const CombineCall& call) const {
  if (!spans_nodes() || call.handle.mode() != Mode::kLatency) return {};
  const Reduction::Group group = call.args.reduction.group;
  if (group == Reduction::Group::kNode)
    return "across nodes the cuda backend sums per rank or flat in latency mode; use reduction per_rank, or backend "
           "host";
  if (call.args.weighting == CombineArgs::Weighting::kGiven && group != Reduction::Group::kChoice)
    return "across nodes the cuda backend sends no weights ahead in latency mode; give them to dispatch and use "
           "weighting "
           "from_dispatch, or reduction flat, or backend host";
  return {};
}

void CudaBackend::stage(const DispatchCall& call, SendArgs args, cudaStream_t stream) {
  args.own_blocks = 0;
  CallShape shape = shape_of(call, call.num_tokens, call.top_k, call.args.num_sms);
  shape.num_blocks = args.num_blocks;
  shape.num_ranks = runtime_.topology.num_nodes();  // receivers are nodes
  launch_dispatch_stage(args, network_->args(), call.cached.valid(), plan_dispatch_send(shape, limits_), stream);
}

void CudaBackend::forward(const DispatchCall& call, const SendArgs& args, cudaStream_t stream) {
  ForwardArgs forwards;
  forwards.group = args.group;
  forwards.network = network_->args();
  forwards.top_k = args.top_k;
  forwards.num_blocks = args.num_blocks;
  forwards.row_bytes = args.row_bytes;
  for (int b = 0; b < args.num_blocks; ++b) {
    forwards.begin[b] = args.blocks[b].begin;
    forwards.padded[b] = args.blocks[b].padded;
  }
  forwards.handle = args.handle;
  forwards.write_records = !call.cached.valid() || call.args.topk_weights.present();
  CallShape shape = shape_of(call, call.num_tokens, call.top_k, call.args.num_sms);
  shape.recv_tokens = forwards.network.num_sources * config_.limits.max_tokens;
  Launch launch = plan_over_rows(shape, limits_);
  launch.shared_bytes = forward_shared_bytes(args.group.num_ranks, args.num_blocks, forwards.network.num_sources);
  launch_dispatch_forward(forwards, launch, stream);
}

void CudaBackend::forward(const CombineCall& call, CombineArgsOnDevice args, cudaStream_t stream) {
  const std::int64_t most = network_->args().num_sources * config_.limits.max_tokens;
  args.own_in_place = false;  // that is for this rank's own tokens
  args.out = call.windows->device(runtime_.rank) + runtime_.device_layout.network.return_staging_at(call.flight);
  args.out_stride = args.sent_stride;
  if (args.reduction.group != Reduction::Group::kNode) launch_number_forwarded(args, network_->args(), stream);
  launch_combine_forward(args, network_->args(),
                         plan_combine_recv(shape_of(call, most, call.top_k, call.args.num_sms), limits_), stream);
}

}  // namespace ferry::cuda
