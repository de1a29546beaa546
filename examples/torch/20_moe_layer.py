# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""A mixture-of-experts layer that trains over several ranks, the same layer in one process, and the time of its
exchange against all_to_all_single.

    python -m ferry.launch --ranks 2 examples/torch/20_moe_layer.py [--tokens 4096 --hidden 1024]

torchrun works as well. On GPUs (one per rank) add --device cuda. Without a launcher this is one rank alone.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import ferry.torch
import torch
import torch.distributed as dist
from torch import nn

EXPERTS, TOP_K = 8, 2


class MoE(nn.Module):
    """Top-k experts, each two matrices with a ReLU between. With a group, a rank holds its share of the experts."""

    def __init__(self, hidden: int, group: ferry.torch.Group | None = None, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def weights(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator) / shape[-2] ** 0.5

        local = EXPERTS if group is None else EXPERTS // group.size
        mine = slice(0, EXPERTS) if group is None else slice(group.rank * local, (group.rank + 1) * local)
        self.group = group
        self.router = nn.Parameter(weights(hidden, EXPERTS))
        self.up = nn.Parameter(weights(EXPERTS, hidden, 2 * hidden)[mine].clone())
        self.down = nn.Parameter(weights(EXPERTS, 2 * hidden, hidden)[mine].clone())

    def expert(self, index: int, rows: torch.Tensor) -> torch.Tensor:
        return torch.relu(rows @ self.up[index]) @ self.down[index]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, ids = torch.topk(torch.softmax(x @ self.router, dim=1), TOP_K)
        if self.group is None:
            return self.in_one_process(x, ids, weights)
        rows, routing = self.group.dispatch(x, ids, weights, layout="expert_major")
        blocks = rows.split(routing.expert_counts.tolist())
        y = torch.cat([self.expert(index, block) for index, block in enumerate(blocks)])
        return self.group.combine(y * routing.row_weights[:, None], routing)

    def in_one_process(self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x)
        for index in range(EXPERTS):
            token, choice = torch.nonzero(ids == index, as_tuple=True)
            out = out.index_add(0, token, self.expert(index, x[token]) * weights[token, choice][:, None])
        return out


def train(
    layer: MoE, batches: list[torch.Tensor], share: slice, all_reduce: Callable[[torch.Tensor], None]
) -> list[float]:
    """Learns to reverse its input, by plain gradient descent; a rank sees its share of every batch. Returns the
    losses."""
    losses = []
    for batch in batches:
        x = batch[share]
        # The mean over the whole batch, so that gradients of all ranks add up to those of one process.
        loss = (layer(x) - x.flip(1)).square().sum() / batch.numel()
        layer.zero_grad()
        loss.backward()
        all_reduce(layer.router.grad)  # every rank holds the router; experts are held once
        total = loss.detach().clone()
        all_reduce(total)
        losses.append(total.item())
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter -= 3.0 * parameter.grad
    return losses


def compare_training(group: ferry.torch.Group, device: torch.device, hidden: int, steps: int) -> None:
    generator = torch.Generator().manual_seed(7)
    batches = [torch.randn((48 * group.size, hidden), generator=generator).to(device) for _ in range(steps)]
    share = slice(48 * group.rank, 48 * (group.rank + 1))
    spread = train(MoE(hidden, group).to(device), batches, share, dist.all_reduce)
    alone = train(MoE(hidden).to(device), batches, slice(None), lambda value: None)
    # The difference is that of float32 sums in another order, which training makes larger.
    worst = max(abs(a - b) / b for a, b in zip(spread, alone, strict=True))
    assert worst < 1e-4, worst
    assert spread[-1] < 0.7 * spread[0], spread
    if group.rank == 0:
        print(
            f"loss {spread[0]:.4f} -> {spread[-1]:.4f} in {steps} steps; one process: {alone[-1]:.4f}; "
            f"largest difference {worst:.1e}"
        )


class AllToAll:
    """The same exchange with all_to_all_single: rows sorted by expert, counts first, one row per choice."""

    def __init__(self, size: int) -> None:
        self.size = size

    def dispatch(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        self.order = torch.argsort(ids.flatten(), stable=True)
        counts = torch.bincount(ids.flatten(), minlength=EXPERTS)
        arriving = torch.empty_like(counts)
        dist.all_to_all_single(arriving, counts)
        per_source = arriving.view(self.size, -1)
        self.sent = counts.view(self.size, -1).sum(1).tolist()
        self.arrived = per_source.sum(1).tolist()
        received = x.new_empty((sum(self.arrived), x.shape[1]))
        dist.all_to_all_single(received, x[self.order // TOP_K], self.arrived, self.sent)
        expert = torch.arange(per_source.shape[1], device=x.device).repeat(self.size)
        self.by_expert = torch.argsort(expert.repeat_interleave(per_source.flatten()), stable=True)
        return received[self.by_expert]

    def combine(self, y: torch.Tensor) -> torch.Tensor:
        rows = torch.empty_like(y)
        rows[self.by_expert] = y
        back = y.new_empty((sum(self.sent), y.shape[1]))
        dist.all_to_all_single(back, rows, self.sent, self.arrived)
        per_choice = torch.empty_like(back)
        per_choice[self.order] = back
        return per_choice.view(-1, TOP_K, y.shape[1]).sum(1)


def seconds(call: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Median over rounds of the slowest rank."""
    times = []
    for _ in range(rounds):
        dist.barrier()
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        took = torch.tensor([time.perf_counter() - start], device=device)
        dist.all_reduce(took, op=dist.ReduceOp.MAX)
        times.append(took.item())
    return statistics.median(times)


def compare_times(group: ferry.torch.Group, device: torch.device, tokens: int, hidden: int, rounds: int) -> None:
    generator = torch.Generator().manual_seed(group.rank)
    x = torch.randn((tokens, hidden), generator=generator).to(device)
    ids = torch.rand((tokens, EXPERTS), generator=generator).argsort(1)[:, :TOP_K].contiguous().to(device)
    other = AllToAll(group.size)
    rows, routing = group.dispatch(x, ids, layout="expert_major")
    theirs = other.dispatch(x, ids)
    assert torch.equal(rows, theirs)
    torch.testing.assert_close(group.combine(rows, routing), other.combine(theirs))
    calls = {
        "dispatch": (lambda: group.dispatch(x, ids, layout="expert_major"), lambda: other.dispatch(x, ids)),
        "combine": (lambda: group.combine(rows, routing), lambda: other.combine(theirs)),
    }
    for name, (ours, others) in calls.items():
        ferry_s, other_s = seconds(ours, device, rounds), seconds(others, device, rounds)
        if group.rank == 0:
            print(
                f"{name}, {tokens} tokens x {hidden} float32, top-{TOP_K}, {group.size} ranks on {device.type}: "
                f"{ferry_s * 1e3:.2f} ms, all_to_all_single {other_s * 1e3:.2f} ms: {other_s / ferry_s:.2f} times as "
                "long"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--tokens", type=int, default=512, help="per rank, of the comparison of times")
    parser.add_argument("--hidden", type=int, default=256, help="of the comparison of times")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    alone = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", **alone)
    with ferry.torch.Group(
        device=device.type,
        num_experts=EXPERTS,
        max_tokens=max(arguments.tokens, 48),
        max_latency_tokens=0,
        max_top_k=TOP_K,
        hidden=max(arguments.hidden, 32),
        dtype="fp32",
    ) as group:
        compare_training(group, device, 32, arguments.steps)
        compare_times(group, device, arguments.tokens, arguments.hidden, arguments.rounds)
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
