// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
#include "cuda/usual_calls.h"

namespace ferry::cuda {
namespace {

constexpr int kMostRanks = 32;                ///< a lane knows one
constexpr std::int64_t kMostItems = 1 << 20;  ///< what Division divides
/// What units() can say of slots and returns, which lie before the results.
constexpr std::int64_t kMostBytes = std::int64_t{16} << 32;

bool on_vectors(const void* data, std::int64_t stride) {
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && stride % 16 == 0;
}

std::uint32_t units(std::int64_t bytes) {
  return static_cast<std::uint32_t>(bytes / 16);
}

/// Not of groups that mask who is late, nor of calls that count what they wait for.
bool is_usual(const GroupArgs& group, const LatencySize& size) {
  if (group.auto_masks != 0 || group.wait_ns != nullptr) return false;
  if (group.layout.latency.results >= kMostBytes) return false;
  return size.top_k == kUsualTopK && size.num_ranks <= kMostRanks && size.num_local > 0;
}

/// One block of bf16 rows that become fp8 with float32 scales of 128 channels, or of rows that go as they are.
bool is_usual_payload(const LatencyDispatchArgs& args) {
  const BlockArgs& x = args.blocks[0];
  if (x.row_stride < 0 || x.row_stride / 16 > INT32_MAX) return false;
  if (args.codec == Codec::kNone) return args.num_blocks == 1 && x.in_pieces && x.bytes == x.padded;
  return args.codec == Codec::kFp8F32 && args.scale_block == 128 && args.num_blocks == 2 && x.element_stride == 2 &&
         x.width % 16 == 0 && on_vectors(x.data, x.row_stride);
}

}  // namespace

bool is_even(const Placement& placement) {
  const int local = placement.num_slots() / placement.num_ranks();
  if (placement.num_slots() != placement.num_experts() || local * placement.num_ranks() != placement.num_slots())
    return false;
  for (int slot = 0; slot < placement.num_slots(); ++slot) {
    if (placement.expert_of_slot(slot) != slot || placement.rank_of_slot(slot) != slot / local) return false;
  }
  return true;
}

bool is_usual(const LatencyDispatchArgs& args, const LatencySize& size, const DeviceLimits& limits) {
  return is_usual(args.group, size) && args.shape.layout == Layout::kExpertPadded && args.ids != nullptr &&
         args.write_handle && args.ids_stride[0] == kUsualTopK && args.ids_stride[1] == 1 && args.weights != nullptr &&
         args.weights_stride[0] == kUsualTopK && args.weights_stride[1] == 1 && args.handle.weights != nullptr &&
         !args.renormalise && args.counts == nullptr && args.recv_counts.total == nullptr &&
         args.shape.capacity * size.num_local <= INT32_MAX && is_usual_payload(args) &&
         size.num_ranks * args.group.layout.latency.max_tokens * (args.format.pieces() + 1) < kMostItems &&
         usual_dispatch_shared_bytes(size) <= static_cast<std::size_t>(limits.shared_bytes);
}

bool is_usual(const CombineArgsOnDevice& args, const LatencySize& size) {
  const bool by_rank =
      args.reduction.group == Reduction::Group::kRank && args.reduction.order == Reduction::Order::kAscending;
  return is_usual(args.group, size) && args.layout == Layout::kExpertPadded && args.dtype == DType::kBf16 && by_rank &&
         args.codec == Codec::kNone && args.weigh == CombineArgsOnDevice::Weigh::kFromDispatch &&
         args.topk_weights == nullptr && args.out_weights == nullptr && args.bias[0] == nullptr &&
         args.bias[1] == nullptr && args.hidden % 8 == 0 &&
         args.expert_stride == args.expert_capacity * args.row_stride && on_vectors(args.x, args.row_stride) &&
         on_vectors(args.out, args.out_stride) && args.row_stride >= 0 && args.row_stride / 16 <= INT32_MAX &&
         args.out_stride >= 0 && args.out_stride / 16 <= INT32_MAX &&
         args.max_rows * wire::div_up(args.hidden / 8, wire::kPieceVectors) < kMostItems;
}

void launch_usual(const LatencyDispatchArgs& args, Phase phase, const LatencyWork& work, const LatencySize& size,
                  const DeviceLimits& limits, cudaStream_t stream) {
  const GroupArgs& group = args.group;
  const LatencyLayout& layout = group.layout.latency;
  const bool coded = args.codec != Codec::kNone;
  const UsualDispatchArgs usual{.call = args,
                                .slots = {.first = units(layout.slot_at(group.flight, 0, 0)),
                                          .writer = units(layout.max_tokens * layout.slot_bytes),
                                          .slot = units(layout.slot_bytes),
                                          .piece_begin = units(args.format.record_bytes),
                                          .piece = units(coded ? args.format.coded_piece_bytes : wire::kPieceBytes),
                                          .row = units(args.blocks[0].row_stride)},
                                .by_local = Division(size.num_local),
                                .by_parts = Division(args.format.pieces() + 1),
                                .by_pieces = Division(args.format.pieces())};
  Launch launch = plan_latency_dispatch(work, size, limits);
  launch.shared_bytes = usual_dispatch_shared_bytes(size);
  launch_usual_dispatch(usual, phase, launch, stream);
}

void launch_usual(const CombineArgsOnDevice& args, Phase phase, const LatencyWork& work, const LatencySize& size,
                  const DeviceLimits& limits, cudaStream_t stream) {
  const LatencyLayout& layout = args.group.layout.latency;
  const UsualCombineArgs usual{.call = args,
                               .returns = units(layout.return_at(args.group.flight, 0, 0, 0)),
                               .token = units(layout.max_top_k * layout.return_bytes),
                               .place = units(layout.return_bytes),
                               .row = units(args.row_stride),
                               .out_row = units(args.out_stride),
                               .by_local = Division(size.num_local),
                               .by_pieces = Division(wire::div_up(args.hidden / 8, wire::kPieceVectors))};
  launch_usual_combine(usual, phase, plan_latency_combine(work, size, limits), stream);
}

}  // namespace ferry::cuda
