# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""Megatron's fused dispatch and combine over deep_ep, with their backward passes, against autograd in one process.

python -m ferry.launch --ranks 4 examples/torch/23_megatron.py [--device cuda]
"""

from typing import Any

import job
import torch
from deep_ep import Buffer
from deep_ep.utils import EventHandle, EventOverlap
from job import EXPERTS, HIDDEN, TOP_K, Batch, Job

_buffer: Buffer | None = None


def get_buffer(group: Any, hidden_bytes: int) -> Buffer:
    """One buffer of the process, made anew when it must be larger."""
    global _buffer
    nvl, rdma = 0, 0
    for config in (Buffer.get_dispatch_config(group.size()), Buffer.get_combine_config(group.size())):
        nvl = max(config.get_nvl_buffer_size_hint(hidden_bytes, group.size()), nvl)
        rdma = max(config.get_rdma_buffer_size_hint(hidden_bytes, group.size()), rdma)
    if _buffer is None or _buffer.group != group or _buffer.num_nvl_bytes < nvl or _buffer.num_rdma_bytes < rdma:
        _buffer = Buffer(group, nvl, rdma)
    return _buffer


class FusedDispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, topk_idx, topk_probs, num_experts, group, async_finish=False, allocate_on_comm_stream=False):
        previous = EventOverlap(EventHandle()) if async_finish else None
        buffer = get_buffer(group, x.size(1) * max(x.element_size(), 2))
        per_rank, per_node, per_expert, in_rank, event = buffer.get_dispatch_layout(
            topk_idx,
            num_experts,
            previous_event=previous,
            async_finish=async_finish,
            allocate_on_comm_stream=allocate_on_comm_stream,
        )
        recv_x, recv_idx, recv_probs, counts, handle, after = buffer.dispatch(
            x,
            topk_idx=topk_idx,
            topk_weights=topk_probs,  # float32
            num_tokens_per_rank=per_rank,
            num_tokens_per_rdma_rank=per_node,
            is_token_in_rank=in_rank,
            num_tokens_per_expert=per_expert,
            previous_event=event,  # empty where nothing is asynchronous
            async_finish=async_finish,
            allocate_on_comm_stream=allocate_on_comm_stream,
        )
        if async_finish:
            after.current_stream_wait()
        ctx.group, ctx.handle = group, handle
        ctx.async_finish, ctx.allocate_on_comm_stream = async_finish, allocate_on_comm_stream
        return recv_x, recv_idx, recv_probs, torch.tensor(counts), handle

    @staticmethod
    def backward(ctx, grad_output, grad_idx, grad_probs, grad_counts, grad_handle):
        buffer = get_buffer(ctx.group, grad_output.size(1) * max(grad_output.element_size(), 2))
        previous = EventOverlap(EventHandle()) if ctx.async_finish else None
        grad_x, grad_weights, after = buffer.combine(
            grad_output.contiguous(),
            ctx.handle,
            topk_weights=grad_probs.float(),
            previous_event=previous,
            async_finish=ctx.async_finish,
            allocate_on_comm_stream=ctx.allocate_on_comm_stream,
        )
        if ctx.async_finish:
            after.current_stream_wait()
        return grad_x, None, grad_weights, None, None, None, None


class FusedCombine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group, handle, async_finish=False, allocate_on_comm_stream=False):
        previous = EventOverlap(EventHandle()) if async_finish else None
        buffer = get_buffer(group, x.size(1) * max(x.element_size(), 2))
        combined, _, after = buffer.combine(
            x,
            handle=handle,
            async_finish=async_finish,
            previous_event=previous,
            allocate_on_comm_stream=allocate_on_comm_stream,
        )
        if async_finish:
            after.current_stream_wait()
        ctx.group, ctx.handle = group, handle
        ctx.async_finish, ctx.allocate_on_comm_stream = async_finish, allocate_on_comm_stream
        return combined, None

    @staticmethod
    def backward(ctx, grad_output, event):
        previous = EventOverlap(EventHandle()) if ctx.async_finish else None
        buffer = get_buffer(ctx.group, grad_output.size(1) * max(grad_output.element_size(), 2))
        grad_x, _, _, _, _, after = buffer.dispatch(
            grad_output.contiguous(),
            handle=ctx.handle,
            previous_event=previous,
            async_finish=ctx.async_finish,
            allocate_on_comm_stream=ctx.allocate_on_comm_stream,
        )
        if ctx.async_finish:
            after.current_stream_wait()
        return grad_x, None, None, None, None


def layer(ranks: Job, x: torch.Tensor, ids: torch.Tensor, probs: torch.Tensor, factors: torch.Tensor, is_async: bool):
    """Dispatch, experts (a learnt factor each), combine."""
    on = (is_async, is_async)
    rows, recv_ids, recv_probs, counts, handle = FusedDispatch.apply(x, ids, probs, EXPERTS, ranks.device_group, *on)
    assert int(counts.sum()) == int((recv_ids >= 0).sum())
    mine = factors[ranks.rank * ranks.local_experts :][: ranks.local_experts]
    scale = torch.where(recv_ids >= 0, mine[recv_ids.clamp(min=0)] * recv_probs, 0.0).sum(1)
    y = (rows.float() * scale[:, None]).to(torch.bfloat16)
    return FusedCombine.apply(y, ranks.device_group, handle, *on)[0]


def main() -> None:
    with job.start(__doc__) as ranks:
        if ranks.size not in (2, 4, 8):
            print("Megatron asks for the default configs, which DeepEP has for 2, 4, 8, 16, ... ranks; start 2 or more")
            return
        for seed, is_async in enumerate((False, True)):
            batch = Batch.make(ranks, 24 + ranks.rank, seed)
            grad = torch.randn((batch.x.shape[0], HIDDEN), device=ranks.device)
            results = []
            for spread in (True, False):
                x, probs = batch.x.clone().requires_grad_(), batch.topk_weights.clone().requires_grad_()
                factors = job.factors(ranks.device).requires_grad_()
                if spread:
                    out = layer(ranks, x, batch.topk_ids, probs, factors, is_async)
                else:
                    out = x.float() * (factors[batch.topk_ids] * probs).sum(1, keepdim=True)
                (out.float() * grad).sum().backward()
                if not spread:
                    # An expert sees the tokens of all ranks.
                    torch.distributed.all_reduce(factors.grad)
                results.append((out.detach().float(), x.grad.float(), probs.grad, factors.grad))
            local = slice(ranks.rank * ranks.local_experts, (ranks.rank + 1) * ranks.local_experts)
            names = ("output", "gradient of x", "gradient of probabilities")
            for name, got, wanted in zip(names, *results, strict=False):
                torch.testing.assert_close(
                    got, wanted, rtol=0.05, atol=0.2, msg=lambda text, name=name: f"{name}: {text}"
                )
            torch.testing.assert_close(results[0][3][local], results[1][3][local], rtol=0.05, atol=1.0)
        print(f"rank {ranks.rank}: Megatron's pair is well (top-{TOP_K})")


if __name__ == "__main__":
    main()
