# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""vLLM's prepare and finalize over deep_ep: high throughput, low latency and V2, in vLLM's order of calls.

python -m ferry.launch --ranks 4 examples/torch/21_vllm.py [--device cuda]
"""

from collections.abc import Callable
from typing import Any

import deep_ep
import job
import torch
from job import EXPERTS, HIDDEN, TOP_K, Batch, Job

BUFFER_BYTES = 64 << 20
DEFAULT_CONFIG_RANKS = {2, 4, 8, 16, 24, 32, 64, 128, 144, 160}


class HighThroughput:
    """deepep_high_throughput: received rows are weighted and summed by the experts' side, one row per token comes
    back."""

    def __init__(self, ranks: Job) -> None:
        self.ranks = ranks
        self.rank_expert_offset = ranks.rank * ranks.local_experts
        self.buffer = deep_ep.Buffer(
            group=ranks.cpu_group,
            num_nvl_bytes=BUFFER_BYTES,
            num_rdma_bytes=0,
            low_latency_mode=False,
            num_qps_per_rank=1,
            explicitly_destroy=True,
        )
        self.is_async = ranks.device.type == "cuda"

    def _config(self, get: Callable[[int], Any]) -> Any:
        return get(self.ranks.size) if self.ranks.size in DEFAULT_CONFIG_RANKS else None

    def prepare_async(self, a1: Any, topk_weights: torch.Tensor, topk_ids: torch.Tensor) -> Callable[[], tuple]:
        """a1: rows, or (fp8 rows, scales): block quantisation comes before the dispatch."""
        previous = deep_ep.Buffer.capture()
        per_rank, per_node, per_expert, in_rank, event = self.buffer.get_dispatch_layout(
            topk_idx=topk_ids,
            num_experts=EXPERTS,
            previous_event=previous,
            async_finish=False,
            allocate_on_comm_stream=False,
        )
        token_data, ids, weights, counts, self.handle, event = self.buffer.dispatch(
            x=a1,
            handle=None,
            num_tokens_per_rank=per_rank,
            num_tokens_per_rdma_rank=per_node,
            is_token_in_rank=in_rank,
            num_tokens_per_expert=per_expert,
            topk_idx=topk_ids,
            topk_weights=topk_weights,
            expert_alignment=1,
            config=self._config(deep_ep.Buffer.get_dispatch_config),
            previous_event=previous,
            async_finish=self.is_async,
            allocate_on_comm_stream=False,
        )

        def receive() -> tuple:
            if event.event is not None:
                event.current_stream_wait()
            rows, scales = token_data if isinstance(token_data, tuple) else (token_data, None)
            # Ids are local, -1 for "not mine"; the experts' kernels want global ones, another rank's for those.
            elsewhere = EXPERTS - 1 if self.rank_expert_offset == 0 else 0
            global_ids = torch.where(ids == -1, elsewhere, ids + self.rank_expert_offset)
            return rows, scales, counts, global_ids, weights

        return receive

    def finalize(self, output: torch.Tensor, fused_expert_output: torch.Tensor) -> None:
        combined, _, event = self.buffer.combine(
            x=fused_expert_output,
            handle=self.handle,
            topk_weights=None,
            config=self._config(deep_ep.Buffer.get_combine_config),
            previous_event=deep_ep.Buffer.capture(),
            async_finish=self.is_async,
            allocate_on_comm_stream=False,
        )
        if event.event is not None:
            event.current_stream_wait()
        output.copy_(combined, non_blocking=True)

    def experts(self, rows: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """weight_and_reduce_impl: experts of this rank alone."""
        is_mine = ids // self.ranks.local_experts == self.ranks.rank
        # A row's slots elsewhere carry weight 0.
        scale = (torch.where(is_mine, job.factors(rows.device)[ids], 0.0) * weights).sum(1)
        return (rows.float() * scale[:, None]).to(torch.bfloat16)


class LowLatency:
    """deepep_low_latency: a block of rows per expert; weights are applied in combine; hooks let two micro-batches
    overlap."""

    def __init__(self, ranks: Job, max_tokens: int) -> None:
        self.ranks, self.max_tokens = ranks, max_tokens
        num_bytes = deep_ep.Buffer.get_low_latency_rdma_size_hint(
            num_max_dispatch_tokens_per_rank=max_tokens, hidden=HIDDEN, num_ranks=ranks.size, num_experts=EXPERTS
        )
        self.buffer = deep_ep.Buffer(
            group=ranks.cpu_group,
            num_nvl_bytes=BUFFER_BYTES,
            num_rdma_bytes=num_bytes,
            low_latency_mode=True,
            num_qps_per_rank=ranks.local_experts,
            allow_nvlink_for_low_latency_mode=True,
            allow_mnnvl=False,
            explicitly_destroy=True,
            enable_shrink=True,
        )
        self.buffer.get_local_buffer_tensor(dtype=torch.int8, use_rdma_buffer=True).zero_()

    def prepare_async(self, a1: torch.Tensor, topk_ids: torch.Tensor, use_fp8: bool) -> tuple[Callable, Callable]:
        expert_x, counts, self.handle, _, hook = self.buffer.low_latency_dispatch(
            a1,
            topk_ids,
            self.max_tokens,
            EXPERTS,
            use_fp8=use_fp8,
            round_scale=False,
            use_ue8m0=False,
            async_finish=False,
            return_recv_hook=True,
        )
        return hook, lambda: (expert_x, counts)

    def finalize_async(
        self, output: torch.Tensor, y: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor
    ) -> Callable[[], None]:
        _, _, hook = self.buffer.low_latency_combine(
            y,
            topk_ids,
            topk_weights,
            self.handle,
            async_finish=False,
            zero_copy=False,
            return_recv_hook=True,
            out=output,
        )
        return hook

    def experts(self, expert_x: Any) -> torch.Tensor:
        """Scales come with strides for GEMMs; dequantising wants them dense."""
        rows = job.from_fp8(expert_x[0], expert_x[1].contiguous()) if isinstance(expert_x, tuple) else expert_x
        first = self.ranks.rank * self.ranks.local_experts
        mine = job.factors(rows.device)[first : first + self.ranks.local_experts]
        return (rows.float() * mine[:, None, None]).to(torch.bfloat16)

    def active_ranks(self) -> list[int]:
        mask = torch.zeros(self.ranks.size, dtype=torch.int32, device=self.ranks.device)
        self.buffer.low_latency_query_mask_buffer(mask)
        self.buffer.low_latency_clean_mask_buffer()
        return [rank for rank in range(self.ranks.size) if mask[rank] == 0]


class Elastic:
    """deepep_v2: expanded rows with counts on the host for prefill; no host wait for decode, which is captured."""

    def __init__(self, ranks: Job, max_tokens: int) -> None:
        self.ranks, self.max_tokens = ranks, max_tokens
        self.buffer = deep_ep.ElasticBuffer(
            group=ranks.device_group,
            num_max_tokens_per_rank=max_tokens,
            hidden=HIDDEN,
            num_topk=TOP_K,
            use_fp8_dispatch=False,
            allow_hybrid_mode=False,
            prefer_overlap_with_compute=True,
            allow_multiple_reduction=True,
            num_cpu_timeout_secs=1800,
            num_gpu_timeout_secs=1800,
            explicitly_destroy=True,
        )
        self.num_sms = self.buffer.get_theoretical_num_sms(num_experts=EXPERTS, num_topk=TOP_K)
        first = ranks.rank * ranks.local_experts
        self.mine = job.factors(ranks.device)[first : first + ranks.local_experts]

    def run(self, batch: Batch, is_decode: bool) -> torch.Tensor:
        bucket = 1 << (max(self.max_tokens, 1) - 1).bit_length()
        recv_x, ids, weights, handle, _ = self.buffer.dispatch(
            x=batch.x,
            topk_idx=batch.topk_ids,
            topk_weights=batch.topk_weights,
            num_experts=EXPERTS,
            num_max_tokens_per_rank=bucket,
            do_expand=not is_decode,
            do_cpu_sync=not is_decode,
            async_with_compute_stream=False,
        )
        y = (
            self.decode_experts(recv_x, ids, weights, handle)
            if is_decode
            else self.prefill_experts(recv_x, weights, handle)
        )
        out, _, event = self.buffer.combine(y, handle, async_with_compute_stream=True, allocate_on_comm_stream=True)
        event.current_stream_wait()
        return out

    def prefill_experts(self, rows: torch.Tensor, weights: torch.Tensor, handle: Any) -> torch.Tensor:
        counts = torch.tensor(handle.num_recv_tokens_per_expert_list, device=rows.device)
        scale = self.mine.repeat_interleave(counts) * weights
        return (rows.float() * scale[:, None]).to(torch.bfloat16)

    def decode_experts(self, rows: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, handle: Any) -> torch.Tensor:
        """Nobody on the host knows how many rows there are; ids beyond them are made -1, in place."""
        num_rows = handle.psum_num_recv_tokens_per_scaleup_rank[-1]
        ids.masked_fill_(torch.arange(ids.shape[0], device=ids.device)[:, None] >= num_rows, -1)
        scale = torch.where(ids >= 0, self.mine[ids.clamp(min=0)] * weights, 0.0).sum(1)
        return (rows.float() * scale[:, None]).to(torch.bfloat16)


def main() -> None:
    with job.start(__doc__) as ranks:
        # High throughput, bf16 and block fp8; a rank without tokens takes part.
        throughput = HighThroughput(ranks)
        for seed, quantise in enumerate((False, True)):
            batch = Batch.make(ranks, 0 if ranks.rank == 1 and not quantise else 37 + ranks.rank, seed)
            a1 = job.to_fp8(batch.x) if quantise else batch.x
            rows, scales, _, ids, weights = throughput.prepare_async(a1, batch.topk_weights, batch.topk_ids)()
            rows = rows if scales is None else job.from_fp8(rows, scales)
            out = torch.empty_like(batch.x)
            throughput.finalize(out, throughput.experts(rows, ids, weights))
            job.check(out, batch, 0.1 if quantise else 0.03)
        throughput.buffer.destroy()

        # Low latency: two micro-batches, each with its own manager, one sends while the other computes.
        halves = [LowLatency(ranks, max_tokens=64) for _ in range(2)]
        batches = [Batch.make(ranks, 16 + ranks.rank, seed) for seed in (3, 4)]
        outs = [torch.empty_like(batch.x) for batch in batches]
        for use_fp8 in (False, True):
            started = [half.prepare_async(b.x, b.topk_ids, use_fp8) for half, b in zip(halves, batches, strict=True)]
            hooks = []
            for half, batch, out, (hook, receiver) in zip(halves, batches, outs, started, strict=True):
                hook()
                expert_x, _ = receiver()
                hooks.append(half.finalize_async(out, half.experts(expert_x), batch.topk_weights, batch.topk_ids))
            for hook, out, batch in zip(hooks, outs, batches, strict=True):
                hook()
                job.check(out, batch, 0.1 if use_fp8 else 0.03)
        assert halves[0].active_ranks() == list(range(ranks.size))
        for half in halves:
            half.buffer.destroy()

        elastic = Elastic(ranks, max_tokens=48)
        for seed, is_decode in enumerate((False, True), start=5):
            batch = Batch.make(ranks, 33 + ranks.rank, seed)
            job.check(elastic.run(batch, is_decode), batch)
        elastic.buffer.destroy()
        print(f"rank {ranks.rank}: vLLM's three ways are well")


if __name__ == "__main__":
    main()
