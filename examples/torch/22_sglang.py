# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""SGLang's dispatcher over deep_ep: dispatch_a, dispatch_b, combine_a, combine_b, for prefill and decode on one buffer.

python -m ferry.launch --ranks 4 examples/torch/22_sglang.py [--device cuda]
"""

from typing import Any

import job
import torch
from deep_ep import Buffer, Config
from job import EXPERTS, HIDDEN, Batch, Job

MAX_TOKENS = 64
CONFIG_JSON = {
    "num_sms": 20,
    "num_max_nvl_chunked_send_tokens": 6,
    "num_max_nvl_chunked_recv_tokens": 256,
    "num_max_rdma_chunked_send_tokens": 6,
    "num_max_rdma_chunked_recv_tokens": 128,
}


class SharedBuffer:
    """One buffer of the process serves both modes; it is cleaned when normal mode gives way to low latency."""

    _buffer: Buffer | None = None
    _is_low_latency = False
    config = Config(**CONFIG_JSON)

    @classmethod
    def get(cls, ranks: Job, low_latency: bool) -> Buffer:
        if cls._buffer is None:
            hidden_bytes = HIDDEN * 2
            nvl = cls.config.get_nvl_buffer_size_hint(hidden_bytes, ranks.size)
            rdma = max(
                cls.config.get_rdma_buffer_size_hint(hidden_bytes, ranks.size),
                Buffer.get_low_latency_rdma_size_hint(MAX_TOKENS, HIDDEN, ranks.size, EXPERTS),
            )
            cls._buffer = Buffer(
                ranks.device_group,
                nvl,
                rdma,
                low_latency_mode=True,
                num_qps_per_rank=max(Buffer.num_sms, EXPERTS // ranks.size),
                allow_mnnvl=True,
            )
        if low_latency and not cls._is_low_latency:
            cls._buffer.clean_low_latency_buffer(MAX_TOKENS, HIDDEN, EXPERTS)
        cls._is_low_latency = low_latency
        assert cls._buffer.group_size == ranks.size
        return cls._buffer


class NormalDispatcher:
    def __init__(self, ranks: Job) -> None:
        self.ranks = ranks
        self.async_finish = True

    def dispatch_a(self, batch: Batch) -> None:
        self.batch, self.previous_event = batch, Buffer.capture()

    def dispatch_b(self) -> tuple:
        buffer, batch = SharedBuffer.get(self.ranks, low_latency=False), self.batch
        per_rank, per_node, per_expert, in_rank, previous = buffer.get_dispatch_layout(
            batch.topk_ids,
            EXPERTS,
            previous_event=self.previous_event,
            async_finish=self.async_finish,
            allocate_on_comm_stream=self.previous_event is not None,
        )
        rows, ids, weights, counts, self.handle, event = buffer.dispatch(
            job.to_fp8(batch.x),
            topk_idx=batch.topk_ids,
            topk_weights=batch.topk_weights,
            num_tokens_per_rank=per_rank,
            num_tokens_per_rdma_rank=per_node,
            is_token_in_rank=in_rank,
            num_tokens_per_expert=per_expert,
            previous_event=previous,
            async_finish=self.async_finish,
            allocate_on_comm_stream=(previous is not None) and self.async_finish,
            expert_alignment=128,
            config=SharedBuffer.config,
        )
        event.current_stream_wait()
        return *rows, ids, weights, counts

    def combine_a(self, y: torch.Tensor) -> None:
        self.y, self.previous_event = y, Buffer.capture()

    def combine_b(self) -> torch.Tensor:
        out, _, event = SharedBuffer.get(self.ranks, low_latency=False).combine(
            self.y,
            self.handle,
            async_finish=self.async_finish,
            previous_event=self.previous_event,
            allocate_on_comm_stream=self.previous_event is not None,
            config=SharedBuffer.config,
        )
        event.current_stream_wait()
        return out


class LowLatencyDispatcher:
    def __init__(self, ranks: Job, return_recv_hook: bool) -> None:
        self.ranks, self.return_recv_hook = ranks, return_recv_hook

    def dispatch_a(self, batch: Batch) -> None:
        self.batch = batch
        self.recv, self.masked_m, self.handle, self.event, self.hook = SharedBuffer.get(
            self.ranks, low_latency=True
        ).low_latency_dispatch(
            batch.x,
            batch.topk_ids,
            MAX_TOKENS,
            EXPERTS,
            use_fp8=True,
            round_scale=True,
            use_ue8m0=False,
            async_finish=not self.return_recv_hook,
            return_recv_hook=self.return_recv_hook,
        )

    def _wait(self) -> None:
        self.hook() if self.return_recv_hook else self.event.current_stream_wait()

    def dispatch_b(self) -> tuple:
        self._wait()
        # On average so many rows an expert.
        expected_m = (self.batch.topk_ids.numel() * self.ranks.size + EXPERTS) // EXPERTS
        return *self.recv, self.masked_m, expected_m

    def combine_a(self, y: torch.Tensor) -> None:
        self.out, self.event, self.hook = SharedBuffer.get(self.ranks, low_latency=True).low_latency_combine(
            x=y,
            topk_idx=self.batch.topk_ids,
            topk_weights=self.batch.topk_weights,
            handle=self.handle,
            async_finish=not self.return_recv_hook,
            return_recv_hook=self.return_recv_hook,
        )

    def combine_b(self) -> torch.Tensor:
        self._wait()
        return self.out


def my_factors(ranks: Job) -> torch.Tensor:
    first = ranks.rank * ranks.local_experts
    return job.factors(ranks.device)[first : first + ranks.local_experts]


def prefill(ranks: Job, batch: Batch) -> torch.Tensor:
    dispatcher = NormalDispatcher(ranks)
    dispatcher.dispatch_a(batch)
    data, scales, ids, weights, counts = dispatcher.dispatch_b()
    assert all(count % 128 == 0 for count in counts)
    scale = torch.where(ids >= 0, my_factors(ranks)[ids.clamp(min=0)] * weights, 0.0).sum(1)
    dispatcher.combine_a((job.from_fp8(data, scales).float() * scale[:, None]).to(torch.bfloat16))
    return dispatcher.combine_b()


def decode(ranks: Job, batches: list[Batch], hook: bool) -> list[torch.Tensor]:
    """One batch after the other: on one buffer a call is received before the next one starts. Between _a and _b the
    rows travel, and other work may run."""

    def experts(arrived: tuple) -> torch.Tensor:
        data, scales, masked_m, _ = arrived
        row = torch.arange(data.shape[1], device=data.device)
        y = job.from_fp8(data, scales.contiguous()).float() * my_factors(ranks)[:, None, None]
        return torch.where((row < masked_m[:, None])[..., None], y, 0.0).to(torch.bfloat16)

    outs: list[Any] = []
    for batch in batches:
        dispatcher = LowLatencyDispatcher(ranks, hook)
        dispatcher.dispatch_a(batch)
        dispatcher.combine_a(experts(dispatcher.dispatch_b()))
        outs.append(dispatcher.combine_b())
    return outs


def main() -> None:
    with job.start(__doc__) as ranks:
        for seed in range(2):
            batch = Batch.make(ranks, 29 + ranks.rank, seed)
            job.check(prefill(ranks, batch), batch, 0.1)
            batches = [Batch.make(ranks, 7 + ranks.rank, 10 + seed), Batch.make(ranks, 12, 20 + seed)]
            for hook in (True, False):
                for out, sent in zip(decode(ranks, batches, hook), batches, strict=True):
                    job.check(out, sent, 0.1)
        print(f"rank {ranks.rank}: SGLang's dispatcher is well")


if __name__ == "__main__":
    main()
