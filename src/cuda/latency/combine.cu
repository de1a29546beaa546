// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// The kernels of a combine in latency mode: its steps one after the other, or each half in a kernel of its own.
#include "cuda/kernels.h"
#include "cuda/latency/combine_recv.cuh"

namespace ferry::cuda {
namespace latency {
namespace {

extern __shared__ __align__(128) std::byte shared_bytes[];

/// Shared memory of a block: windows[R]; then rank_of_slot[S] while it sends, ReturnTerms of each warp while it receives.
struct CombineMemory {
  std::byte** windows;
  std::int32_t* rank_of_slot;
  ReturnTerms* terms;
  __device__ explicit CombineMemory(int ranks) : windows(reinterpret_cast<std::byte**>(shared_bytes)) {
    std::byte* behind = shared_bytes + windows_bytes(ranks);
    rank_of_slot = reinterpret_cast<std::int32_t*>(behind);
    terms = reinterpret_cast<ReturnTerms*>(behind);
  }
  FERRY_HD static std::size_t windows_bytes(int ranks) { return (static_cast<std::size_t>(ranks) * 8 + 15) / 16 * 16; }
};

/// Sends; false if the call ends here. All threads of a block.
template <DType kDType, Codec kCodec>
__device__ bool send(const CombineArgsOnDevice& a, Epochs& epochs) {
  const CombineMemory memory(a.group.num_ranks);
  const int tid = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const bool last_warp = blockIdx.x == gridDim.x - 1 && tid / 32 == threads / 32 - 1;
  ReturnSender<kDType, kCodec> sender(a, memory.windows, memory.rank_of_slot);
  // What needs no other load is asked for first, all of it; then comes the first wait.
  const Epochs next = next_epochs(a.group, LatencyKind::kCombine);
  Credits credits(a.group, LatencyKind::kCombine);
  sender.start();
  for (int slot = tid; slot < a.num_slots; slot += threads)
    __pipeline_memcpy_async(memory.rank_of_slot + slot, a.handle.rank_of_slot + slot, sizeof(std::int32_t));
  copy_windows(a.group, memory.windows);
  if (last_warp) give_credits(a.group, LatencyKind::kCombine, next);
  if (tid == 0) epochs = next;
  __syncthreads();
  if (tid == threads - 1) file_call(a.group, LatencyKind::kCombine, epochs);
  if (!credits.wait(FaultStep::kCombineSend, epochs, memory.windows)) return false;
  if (last_warp) send_notes(a, epochs);
  if (weights_go_ahead(a)) send_weights_ahead(a, epochs);
  return sender.send_all(epochs);
}

/// `good`: the call has not ended yet. All threads of a block; `epochs` are known after its next barrier.
template <DType kDType, Codec kCodec>
__device__ void receive(const CombineArgsOnDevice& a, const Epochs& epochs, bool good) {
  const CombineMemory memory(a.group.num_ranks);
  ReturnSummer<kDType, kCodec> summer(a, memory.windows, memory.terms[threadIdx.x / 32]);
  __syncthreads();  // what sending kept in this memory is not needed any more
  if (good) {
    if (blockIdx.x == gridDim.x - 1 && threadIdx.x / 32 == blockDim.x / 32 - 1) check_notes(a, epochs);
    summer.sum_all(epochs);
  }
  // Also after a failure: peers need not wait for a rank that reads nothing any more.
  file_read(a.group, LatencyKind::kCombine, epochs);
}

template <DType kDType, Codec kCodec, Phase kPhase>
__global__ void __launch_bounds__(kLatencyThreads, kCodec == Codec::kNone ? 0 : 1)
    latency_combine_kernel(const __grid_constant__ CombineArgsOnDevice a) {
  __shared__ Epochs epochs;
  bool good = true;
  if constexpr (kPhase == Phase::kReceive) {
    resume_call(a.group, LatencyKind::kCombine, epochs);
    copy_windows(a.group, CombineMemory(a.group.num_ranks).windows);
  } else {
    good = send<kDType, kCodec>(a, epochs);
  }
  if constexpr (kPhase != Phase::kSend) receive<kDType, kCodec>(a, epochs, good);
}

template <DType kDType, Codec kCodec>
const void* kernel_of(Phase phase) {
  return phase == Phase::kSend ? reinterpret_cast<const void*>(latency_combine_kernel<kDType, kCodec, Phase::kSend>)
         : phase == Phase::kReceive
             ? reinterpret_cast<const void*>(latency_combine_kernel<kDType, kCodec, Phase::kReceive>)
             : reinterpret_cast<const void*>(latency_combine_kernel<kDType, kCodec, Phase::kWhole>);
}
const void* kernel_of(DType dtype, Codec codec, Phase phase) {
  if (codec == Codec::kFp8F32) return kernel_of<DType::kBf16, Codec::kFp8F32>(phase);
  if (codec == Codec::kLogfmt10) return kernel_of<DType::kBf16, Codec::kLogfmt10>(phase);
  const void* kernel = nullptr;
  with_dtype(dtype, [&]<DType kDType>() { kernel = kernel_of<kDType, Codec::kNone>(phase); });
  return kernel;
}

}  // namespace
}  // namespace latency

std::size_t latency_combine_shared_bytes(const LatencySize& size, int warps) {
  return latency::CombineMemory::windows_bytes(size.num_ranks) +
         std::max(static_cast<std::size_t>(size.num_slots) * sizeof(std::int32_t),
                  static_cast<std::size_t>(warps) * sizeof(latency::ReturnTerms));
}

void launch_latency_combine(const CombineArgsOnDevice& args, Phase phase, const Launch& launch, cudaStream_t stream) {
  void* arguments[] = {const_cast<CombineArgsOnDevice*>(&args)};
  cudaLaunchKernel(latency::kernel_of(args.dtype, args.codec, phase), dim3(static_cast<unsigned>(launch.blocks)),
                   dim3(static_cast<unsigned>(launch.threads)), arguments, launch.shared_bytes, stream);
}

void prepare_latency_combine(int dynamic_bytes) {
  for (const Phase phase : {Phase::kSend, Phase::kReceive, Phase::kWhole}) {
    for (const DType dtype : {DType::kBf16, DType::kFp16, DType::kFp32})
      prepare_kernel(latency::kernel_of(dtype, Codec::kNone, phase), dynamic_bytes);
    for (const Codec codec : {Codec::kFp8F32, Codec::kLogfmt10})
      prepare_kernel(latency::kernel_of(DType::kBf16, codec, phase), dynamic_bytes);
  }
}

}  // namespace ferry::cuda
