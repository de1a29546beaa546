// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The group's device, streams and faults, and a dispatch up to its rows; what follows is in dispatch_result.cc, combine in
// cuda_combine.cc.
#include "cuda/cuda_backend.h"

#include <fmt/format.h>

#include <algorithm>
#include <thread>

#include "backend/handle_layout.h"
#include "backend/trace.h"
#include "core/check.h"
#include "cuda/check.h"
#include "cuda/device_memory.h"
#include "cuda/driver.h"
#include "cuda/faults.h"

namespace ferry::cuda {

int chosen_device(int device) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    throw Error(ErrorCode::kUnsupported,
                fmt::format("ferry::Group::create: backend cuda finds no GPU ({}); use backend host",
                            cudaGetErrorString(status)));
  }
  if (device < 0) check(cudaGetDevice(&device), "cudaGetDevice");
  if (device >= count) {
    refuse("ferry::Group::create", "device", fmt::to_string(device), fmt::format("-1 to {}", count - 1));
  }
  return device;
}

namespace {

DeviceLimits limits_of(int device) {
  DeviceLimits limits;
  check(cudaDeviceGetAttribute(&limits.num_sms, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  check(cudaDeviceGetAttribute(&limits.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "cudaDeviceGetAttribute");
  limits.shared_bytes -= kStaticSharedBytes;
  return limits;
}

GroupMemory::Sizes sizes_of(const GroupConfig& config, const Runtime& runtime) {
  const GroupLimits& limits = config.limits;
  const int num_slots = config.placement ? config.placement->num_slots() : limits.num_experts;
  GroupMemory::Sizes sizes;
  sizes.num_ranks = runtime.topology.num_ranks();
  sizes.num_flights = limits.num_flights;
  sizes.max_local_experts = std::max(num_slots, limits.max_slots);
  sizes.keys = sizes.num_ranks + static_cast<int>(sizes.max_local_experts);
  sizes.result_bytes = device_result_bytes(limits, sizes.max_local_experts, runtime.device_layout);
  return sizes;
}

bool is_in_pieces(const Tensor& tensor, const wire::Block& block) {
  const auto element = static_cast<std::int64_t>(dtype_bytes(tensor.dtype));
  const bool side_by_side = tensor.strides[1] == 1 || tensor.shape[1] <= 1;
  return side_by_side && block.bytes % 16 == 0 && tensor.strides[0] * element % 16 == 0 &&
         reinterpret_cast<std::uintptr_t>(tensor.data) % 16 == 0;
}

}  // namespace

BlockArgs block_args(const Tensor& tensor, const wire::Block& block) {
  const auto element = static_cast<std::int64_t>(dtype_bytes(tensor.dtype));
  return {.data = static_cast<const std::byte*>(tensor.data),
          .row_stride = tensor.strides[0] * element,
          .element_stride = tensor.strides[1] * element,
          .element_bytes = static_cast<std::int32_t>(element),
          .in_pieces = is_in_pieces(tensor, block),
          .begin = static_cast<std::int32_t>(block.offset),
          .bytes = static_cast<std::int32_t>(block.bytes),
          .padded = static_cast<std::int32_t>(block.padded),
          .width = static_cast<std::int32_t>(block.width)};
}

namespace {

/// Kernels would fault on memory that the device cannot reach, and take the whole context with them.
std::string why_not_here(const std::string& argument, const Tensor& tensor) {
  if (tensor.num_elements() == 0 || tensor.data == nullptr) return {};
  cudaPointerAttributes attributes{};
  const cudaError_t status = cudaPointerGetAttributes(&attributes, tensor.data);
  if (status == cudaSuccess && attributes.devicePointer != nullptr) return {};
  cudaGetLastError();
  return fmt::format("{} lies in host memory; the cuda backend takes tensors in device memory", argument);
}

}  // namespace

namespace {

/// Calls that were queued before the group is left are carried out, unless they wait for somebody who does not come.
bool ends_soon(cudaEvent_t event) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(1);
  while (cudaEventQuery(event) == cudaErrorNotReady) {
    if (std::chrono::steady_clock::now() > until) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
  return true;
}

}  // namespace

bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &status), "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}

HandleArgs handle_args(std::byte* base, const HandleHeader& header) {
  const HandleView view(base, header);
  return {.slots = view.slots(),
          .ranks = view.ranks(),
          .rows = view.rows(),
          .tokens = view.tokens(),
          .weights = header.has_weights != 0 ? view.weights() : nullptr,
          .tokens_to = view.tokens_to(),
          .choices_to = view.choices_to(),
          .tokens_to_node = view.tokens_to_node(),
          .rank_of_slot = view.rank_of_slot(),
          .source_offsets = view.source_offsets(),
          .expert_counts = view.expert_counts(),
          .expert_offsets = view.expert_offsets(),
          .records = view.records(),
          .forward_rows = view.forward_rows(),
          .forward_offsets = view.forward_offsets(),
          .forwarded = view.forwarded_records()};
}

CudaBackend::CudaBackend(Runtime& runtime, const GroupConfig& config, int device)
    : runtime_(runtime), config_(config), device_(chosen_device(device)) {
  const DeviceScope scope(device_);
  limits_ = limits_of(device_);
  runtime_.device_memories = make_device_memories(device_);
  memory_ = std::make_unique<GroupMemory>(device_, sizes_of(config_, runtime_));
  if (runtime_.engine) network_ = std::make_unique<NetworkMemory>(runtime_, *memory_);
  prepare_kernels();
  check(cudaEventCreateWithFlags(&last_, cudaEventDisableTiming), "cudaEventCreate");
}

CudaBackend::~CudaBackend() {
  try {
    settle(true);
  } catch (const Error&) {
    // The device is beyond help; its memory goes with the process.
  }
  cudaEventDestroy(last_);
}

void CudaBackend::settle(bool abandon) {
  if (abandon) owned_.reset();  // it would keep the windows; results keep what they need
  if (!has_last_) return;
  const DeviceScope scope(device_);
  if (abandon && !ends_soon(last_)) give_up();  // kernels that wait for peers leave at once
  check(cudaEventSynchronize(last_), "ferry: kernels of an earlier call");
  has_last_ = false;
  if (abandon && network_) network_->drain();
}

void CudaBackend::give_up() {
  *static_cast<volatile std::uint64_t*>(memory_->abort_word()) = 1;
}

std::string CudaBackend::why_not(const DispatchCall& call) const {
  if (call.args.host_counts && is_capturing(static_cast<cudaStream_t>(call.args.stream)))
    return "host_counts cannot be had while the stream is captured, the counts come when the graph runs; set "
           "host_counts = "
           "false and read them from the result's tensors";
  std::string reason = why_not_mode(call);
  for (std::size_t b = 0; reason.empty() && b < call.args.payload.size(); ++b)
    reason = why_not_here(fmt::format("payload[{}]", b), call.args.payload[b]);
  if (reason.empty()) reason = why_not_here("topk_ids", call.args.topk_ids);
  if (reason.empty()) reason = why_not_here("topk_weights", call.args.topk_weights);
  if (reason.empty()) reason = why_not_here("recv_counts", call.args.recv_counts);
  if (reason.empty()) reason = why_not_here("wait_ns", call.args.wait_ns);
  const std::span<std::byte> memory = call.args.handle_memory;
  const auto bytes = static_cast<std::int64_t>(memory.size());
  if (reason.empty()) reason = why_not_here("handle_memory", Tensor::contiguous(memory.data(), DType::kUint8, {bytes}));
  return reason;
}

std::string CudaBackend::why_not_mode(const DispatchCall& call) const {
  if (std::string reason = why_not_across(call); !reason.empty()) return reason;
  const bool latency = call.args.mode == Mode::kLatency;
  if (const int most = latency ? kMaxTopK : kWideTopK; call.top_k > most)
    return fmt::format("the cuda backend takes top-k up to {}, not {}, in {} mode", most, call.top_k,
                       ferry::name(call.args.mode));
  if (latency) return why_not_latency_mode(call);
  return why_not_route({.keys = runtime_.topology.num_ranks() + call.placement->num_slots(),
                        .num_experts = call.placement->num_experts()},
                       limits_);
}

std::string CudaBackend::why_not(const CombineCall& call) const {
  if (std::string reason = why_not_across(call); !reason.empty()) return reason;
  const DeviceLayout& layout = runtime_.device_layout;
  const std::int64_t row_bytes = wire::padded(call.row_bytes);
  const std::int64_t most = layout.combine_rows_stride / std::max<std::int64_t>(1, layout.recv_rows);
  if (row_bytes > most)
    return fmt::format("rows of {} bytes, the window holds {} a row (limits.hidden and dtype)", row_bytes, most);
  const CombineArgs& args = call.args;
  const std::pair<const char*, const Tensor*> tensors[] = {{"x", &args.x},
                                                           {"weights", &args.weights},
                                                           {"bias0", &args.bias0},
                                                           {"bias1", &args.bias1},
                                                           {"topk_weights", &args.topk_weights},
                                                           {"out", &args.out},
                                                           {"wait_ns", &args.wait_ns}};
  for (const auto& [argument, tensor] : tensors) {
    if (std::string reason = why_not_here(argument, *tensor); !reason.empty()) return reason;
  }
  return {};
}

void CudaBackend::raise_fault() {
  const Fault fault = *memory_->fault();
  // Kernels of the call that failed do nothing any more; once they are through, the record can be used again.
  settle(false);
  memory_->clear_fault();
  Error error = error_of(fault, runtime_.rank);
  const auto windows = windows_.lock();
  if (fault.kind == FaultKind::kTimeout && windows) {
    Call call;
    call.windows = windows;
    call.epoch = fault.epoch;
    const bool combine = fault.step == FaultStep::kCombineSend || fault.step == FaultStep::kCombineForward ||
                         fault.step == FaultStep::kCombineRecv;
    call.kind = combine ? CallKind::kCombine : CallKind::kDispatch;
    error.peers.at(0).activity = runtime_.explain_silence(call, error.step.c_str(), fault.peer);
  }
  throw error;
}

bool CudaBackend::has_fault() const {
  return static_cast<volatile Fault*>(memory_->fault())->kind != FaultKind::kNone;
}

void CudaBackend::check_faults() {
  if (has_fault()) raise_fault();
}

void CudaBackend::note_late(std::vector<std::uint64_t>& late) const {
  for (std::size_t rank = 0; rank < late.size(); ++rank) {
    if (const std::uint64_t epoch = memory_->late()[rank]; epoch != 0) late[rank] = epoch;
  }
}

/// Windows are empty: their packets have the tag 0. Where calls get there soon they are given another one, before peers write.
void CudaBackend::spoil_tags(const Windows& windows) {
  const LatencyLayout& layout = runtime_.device_layout.latency;
  constexpr std::uint32_t kSoon = 1u << 30;
  if (layout.max_tokens == 0 || 0u - static_cast<std::uint32_t>(windows.first_epoch) > kSoon) return;
  std::byte* own = windows.device(runtime_.rank);
  const std::int64_t end = layout.results, first = layout.notes;
  check(cudaMemset(own + first, 0x80, static_cast<std::size_t>(end - first)), "cudaMemset");
  check(cudaStreamSynchronize(nullptr), "cudaMemset");
}

void CudaBackend::adopt(const std::shared_ptr<Windows>& windows) {
  const DeviceScope scope(device_);
  settle(false);
  memory_->adopt(*windows);
  spoil_tags(*windows);
  if (network_) network_->adopt(*windows);
  windows_ = windows;
  const DeviceLayout& layout = runtime_.device_layout;
  owned_ = std::make_shared<Pool>(windows->device(runtime_.rank) + layout.owned,
                                  static_cast<std::size_t>(layout.owned_bytes), windows);
}

cudaStream_t CudaBackend::follow(void* handle) {
  auto* stream = static_cast<cudaStream_t>(handle);
  if (has_last_ && stream != last_stream_ && !is_capturing(stream))
    check(cudaStreamWaitEvent(stream, last_, 0), "cudaStreamWaitEvent");
  return stream;
}

void CudaBackend::mark(cudaStream_t stream) {
  check(cudaGetLastError(), "ferry: launching a kernel");
  if (is_capturing(stream)) return;
  check(cudaEventRecord(last_, stream), "cudaEventRecord");
  last_stream_ = stream;
  has_last_ = true;
}

CallShape CudaBackend::shape_of(const Call& call, std::int64_t num_tokens, int top_k, int num_sms) const {
  const auto live = static_cast<std::int64_t>(call.windows->live.size());
  return {.num_tokens = num_tokens,
          .recv_tokens = std::min(runtime_.device_layout.recv_tokens, live * config_.limits.max_tokens),
          .top_k = top_k,
          .keys = 0,
          .num_sms = num_sms,
          .num_ranks = runtime_.topology.num_ranks(),
          .live_ranks = static_cast<int>(live)};
}

GroupArgs CudaBackend::group_args(const Call& call, const Placement& placement, const Tensor& wait_ns) {
  return {.rank = runtime_.rank,
          .num_ranks = runtime_.topology.num_ranks(),
          .flight = call.flight,
          .windows = memory_->windows(),
          .members = memory_->members(),
          .own_window = call.windows->device(runtime_.rank),
          .state = memory_->state(),
          .fault = memory_->fault(),
          .abort_word = memory_->abort_word(),
          .layout = runtime_.device_layout,
          .placement = memory_->placement(placement),
          .timeout_ns = call.timeout.count(),
          .digest = call.digest,
          .auto_masks = call.masks_late ? config_.auto_masks : 0,
          .late = memory_->late(),
          .wait_ns = static_cast<std::int64_t*>(wait_ns.data),
          .delay_seed = static_cast<std::uint32_t>(config_.test.seed * 2654435761u + call.epoch),
          .max_delay_ns = static_cast<std::uint32_t>(config_.test.max_signal_delay_ns)};
}

std::byte* CudaBackend::allocate(Call&, ResultMemory& memory, std::int64_t bytes) {
  auto block = memory_->pool->allocate(static_cast<std::size_t>(std::max<std::int64_t>(bytes, 1)));
  memory.keep.push_back(block);
  return block.get();
}

/// Memory and shadow of the handle. A cached dispatch goes on with the handle it was given.
void CudaBackend::make_handle(DispatchCall& call) {
  if (call.cached.valid() && !call.args.topk_weights.present()) {
    auto shadow = std::make_shared<HandleShadow>(*call.cached.shadow());
    shadow->flight = call.flight;
    call.result.handle = Handle(call.cached.owner(), call.cached.mutable_bytes(), std::move(shadow));
    return;
  }
  const Placement& placement = *call.placement;
  auto shadow = std::make_shared<HandleShadow>();
  HandleHeader& header = shadow->header;
  header.group = runtime_.group;
  header.epoch = call.epoch;
  header.rails_digest = call.windows->rails.digest();
  header.placement_digest = placement.digest();
  header.rank = runtime_.rank;
  header.num_ranks = runtime_.topology.num_ranks();
  header.num_nodes = runtime_.topology.num_nodes();
  header.num_slots = placement.num_slots();
  header.layout = static_cast<std::int32_t>(call.shape.layout);
  header.mode = static_cast<std::int32_t>(call.args.mode);
  header.top_k = call.top_k;
  header.num_local_experts = placement.num_local_experts(runtime_.rank);
  header.has_weights = call.has_weights ? 1 : 0;
  header.membership = call.windows->membership.number;
  header.num_tokens = call.num_tokens;
  header.num_rows = call.windows->layout.recv_tokens(call.args.mode);
  header.num_expert_rows = call.shape.layout == Layout::kRankMajor     ? 0
                           : call.shape.layout == Layout::kExpertMajor ? runtime_.device_layout.recv_rows
                                                                       : call.shape.capacity * header.num_local_experts;
  header.expert_capacity = call.shape.layout == Layout::kExpertPadded ? call.shape.capacity : 0;
  header.alignment = call.shape.alignment;
  if (spans_nodes() && call.args.mode == Mode::kThroughput)
    header.num_forwarded = call.windows->layout.forward_sources() * config_.limits.max_tokens;
  header.total_bytes = HandleView::bytes_for(header);
  shadow->flight = call.flight;
  std::span<std::byte> memory = call.args.handle_memory;
  std::shared_ptr<const void> owner;
  if (memory.empty()) {
    auto block = memory_->pool->allocate(static_cast<std::size_t>(header.total_bytes));
    memory = {block.get(), static_cast<std::size_t>(header.total_bytes)};
    owner = std::move(block);
  }
  call.result.handle = Handle(std::move(owner), memory.first(static_cast<std::size_t>(header.total_bytes)), shadow);
}

void CudaBackend::route(DispatchCall& call) {
  StepScope step(call, "route");
  const DeviceScope scope(device_);
  cudaStream_t stream = follow(call.args.stream);
  make_handle(call);
  step.rows = call.num_tokens;
  if (call.args.mode == Mode::kLatency) return;  // by the kernel that sends
  const Handle& handle = call.result.handle;
  const bool new_weights = call.cached.valid() && call.args.topk_weights.present();
  RouteArgs args;
  args.group = group_args(call, *call.placement);
  args.num_tokens = call.num_tokens;
  args.top_k = call.top_k;
  args.shape = call.shape;
  args.handle = handle_args(handle.mutable_bytes().data(), handle.shadow()->header);
  args.cached = call.cached.valid();
  args.renormalise = call.args.renormalise;
  if (!args.cached) {
    const Tensor& ids = call.args.topk_ids;
    args.ids = ids.data;
    args.wide_ids = ids.dtype == DType::kInt64;
    args.ids_stride[0] = ids.strides[0];
    args.ids_stride[1] = ids.strides[1];
  }
  if (new_weights) {
    // The routing is the old handle's, the weights are new: all but the weights and records is copied.
    const HandleView from(call.cached.mutable_bytes().data(), header_of(call.cached));
    const HandleView to(handle.mutable_bytes().data(), handle.shadow()->header);
    const auto copy = [&](void* target, const void* source, std::int64_t count) {
      launch_copy(target, source, 4 * count, 1, stream);  // arrays are padded to 16 bytes
    };
    const HandleHeader& header = handle.shadow()->header;
    const std::int64_t choices = call.num_tokens * call.top_k;
    copy(to.slots(), from.slots(), choices);
    copy(to.ranks(), from.ranks(), choices);
    copy(to.rows(), from.rows(), choices);
    copy(to.tokens(), from.tokens(), choices);
    copy(to.forward_rows(), from.forward_rows(), call.num_tokens * header.num_nodes);
    copy(to.tokens_to(), from.tokens_to(), header.num_ranks);
    copy(to.choices_to(), from.choices_to(), header.num_ranks);
    copy(to.tokens_to_node(), from.tokens_to_node(), header.num_nodes);
    copy(to.rank_of_slot(), from.rank_of_slot(), header.num_slots);
    copy(to.source_offsets(), from.source_offsets(), header.num_ranks + 1);
    copy(to.expert_counts(), from.expert_counts(), header.num_local_experts);
    copy(to.expert_offsets(), from.expert_offsets(), header.num_local_experts + 1);
  }
  const Tensor& weights = call.args.topk_weights;
  if (weights.present()) {
    args.weights = static_cast<const float*>(weights.data);
    args.weights_stride[0] = weights.strides[0];
    args.weights_stride[1] = weights.strides[1];
  }
  CallShape shape = shape_of(call, call.num_tokens, call.top_k, call.args.num_sms);
  shape.keys = runtime_.topology.num_ranks() + call.placement->num_slots();
  shape.num_experts = call.placement->num_experts();
  const Launch launch = plan_route(shape, limits_);
  args.block_totals = memory_->route_scratch(static_cast<std::size_t>((launch.blocks + 3) / 4 * 4) *
                                             static_cast<std::size_t>(shape.keys) * 4);
  take_rows_at(call);
  for (int b = 0; b < call.format.num_blocks; ++b)
    args.rows_at[b] = rows_of(call).at[static_cast<std::size_t>(b)] - call.windows->device(runtime_.rank);
  args.num_rows = reinterpret_cast<std::int64_t*>(allocate(call, *call.memory, 8));
  call.result.num_rows = Tensor::contiguous(args.num_rows, DType::kInt64, {1});
  args.counts = call.args.host_counts ? memory_->counts(call.flight) : nullptr;
  args.ticket = call.epoch;
  if (spans_nodes()) {
    launch_route(args, network_->args(), launch, stream);
  } else {
    launch_route(args, launch, stream);
  }
  mark(stream);
}

void CudaBackend::dispatch_send(DispatchCall& call) {
  StepScope step(call, "dispatch_send");
  const DeviceScope scope(device_);
  auto* stream = static_cast<cudaStream_t>(call.args.stream);
  if (call.args.mode == Mode::kLatency) {
    if (!call.blocking || spans_nodes()) launch(call, Phase::kSend, stream);  // else one kernel does it all
    return;
  }
  const Handle& handle = call.result.handle;
  SendArgs args;
  args.group = group_args(call, *call.placement);
  args.num_tokens = call.num_tokens;
  args.top_k = call.top_k;
  args.num_blocks = call.format.num_blocks;
  args.row_bytes = static_cast<std::int32_t>(call.format.row_bytes);
  args.own_everywhere = call.shape.layout != Layout::kRankMajor;
  args.codec = call.args.codec;
  args.scale_block = call.args.scale_block;
  std::size_t wire_block = 0, first = 0;
  if (args.codec != Codec::kNone) {
    const Tensor& x = call.args.payload[0];
    args.blocks[0] = block_args(x, call.format[0]);
    args.blocks[1] = block_args(x, call.format[1]);
    args.blocks[0].in_pieces = args.blocks[1].in_pieces = false;
    wire_block = 2;
    first = 1;
  }
  for (std::size_t b = first; b < call.args.payload.size(); ++b, ++wire_block)
    args.blocks[wire_block] = block_args(call.args.payload[b], call.format[static_cast<int>(wire_block)]);
  args.handle = handle_args(handle.mutable_bytes().data(), handle.shadow()->header);
  args.has_weights = args.handle.weights != nullptr;
  CallShape shape = shape_of(call, call.num_tokens, call.top_k, call.args.num_sms);
  shape.num_blocks = args.num_blocks;
  shape.own_everywhere = args.own_everywhere;
  shape.live_ranks = static_cast<int>(call.windows->node_peers.size());
  const Launch launch = plan_dispatch_send(shape, limits_);
  // A codec is paid for each time a row is brought, so only rows that are copied as they are may be brought twice.
  if (args.codec == Codec::kNone) args.own_blocks = plan_own_blocks(shape, launch.blocks);
  args.more_follows = spans_nodes();
  if (spans_nodes()) stage(call, args, stream);
  launch_dispatch_send(args, launch, stream);
  if (spans_nodes()) forward(call, args, stream);
  mark(stream);
}

/// Waits until the route kernel has written the counts of this call for the host.
void CudaBackend::wait_for_counts(const DispatchCall& call) {
  volatile HostCounts* counts = memory_->counts(call.flight);
  // The kernel's own deadline comes first, unless the device never got to it.
  const auto deadline = std::chrono::steady_clock::now() + 2 * call.timeout + std::chrono::seconds(10);
  for (unsigned polls = 1; counts->ticket != call.epoch; ++polls) {
    if (polls % 256 != 0) continue;
    if (runtime_.aborted() || runtime_.abort_seen(*call.windows)) give_up();
    if (polls % 65536 == 0) std::this_thread::yield();
    if (std::chrono::steady_clock::now() < deadline) continue;
    check_faults();  // an earlier call's: it is why the device did not come to this one
    Error error(ErrorCode::kTimeout,
                fmt::format("route: rank {} in call {}: the device did not come to it", runtime_.rank, call.epoch));
    error.step = "route";
    error.epoch = call.epoch;
    throw error;
  }
  if (counts->failed != 0) {
    runtime_.check_aborted(call, "route", *call.windows);  // says who
    // Another block may have failed first and be writing its record still.
    while (!has_fault() && std::chrono::steady_clock::now() < deadline) {
    }
    check_faults();
    throw call_error(ErrorCode::kInternal, "route", call.epoch,
                     fmt::format("route: rank {} in call {} failed and does not say why", runtime_.rank, call.epoch));
  }
  HandleShadow& shadow = *call.result.handle.shadow();
  const std::int32_t num_ranks = shadow.header.num_ranks, num_local = shadow.header.num_local_experts;
  const auto* words = reinterpret_cast<const std::int32_t*>(memory_->counts(call.flight) + 1);
  shadow.source_offsets.assign(words, words + num_ranks + 1);
  shadow.expert_counts.assign(words + num_ranks + 1, words + num_ranks + 1 + num_local);
  shadow.expert_offsets.assign(words + num_ranks + 1 + num_local, words + num_ranks + 2 + 2 * num_local);
  shadow.header.num_rows = counts->num_rows;
  if (call.shape.layout != Layout::kRankMajor) shadow.header.num_expert_rows = counts->num_expert_rows;
  shadow.counts_known = true;
}

void CudaBackend::require_windows(const Call& call, const char* step) const {
  if (call.windows == windows_.lock()) return;
  throw call_error(ErrorCode::kMismatch, step, call.epoch,
                   fmt::format("{}: rank {} in call {}: the membership has changed since its first half", step,
                               runtime_.rank, call.epoch));
}

void CudaBackend::dispatch_recv(DispatchCall& call) {
  StepScope step(call, "dispatch_recv");
  // Peers are owed nothing (in latency mode, the flight's next call says that this one was read), and memory that the caller lent
  // for the handle may be gone.
  if (call.discard) return;
  require_windows(call, "dispatch_recv");
  const DeviceScope scope(device_);
  if (call.args.mode == Mode::kLatency) return receive_latency(call);
  cudaStream_t stream = follow(call.args.stream);
  if (call.args.host_counts) wait_for_counts(call);
  make_result(call, stream);
}

}  // namespace ferry::cuda

namespace ferry {

std::unique_ptr<Backend> make_cuda_backend(Runtime& runtime, const GroupConfig& config, int device) {
  return std::make_unique<cuda::CudaBackend>(runtime, config, device);
}

}  // namespace ferry
