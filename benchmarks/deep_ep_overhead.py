# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""What the deep_ep package costs over Ferry's own calls: the same dispatch and combine, with the same reduction.

    python -m ferry.launch --ranks 4 benchmarks/deep_ep_overhead.py --device cuda [--json FILE]

Host: time of a call until it returns. On GPUs also the device: calls captured into a CUDA graph, replayed, time by
events of the slowest rank. Needs deep_ep importable (pip install ./python/deep_ep, or python/deep_ep in PYTHONPATH).
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import deep_ep
import ferry.torch
import torch
import torch.distributed as dist
from ferry.torch import as_tensor


@dataclass
class Setting:
    device: torch.device
    tokens: int
    hidden: int
    experts: int
    top_k: int
    rounds: int
    x: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor

    @property
    def stream(self) -> Any:
        return ferry.torch.current_stream(self.device)


Cycle = Callable[[], Any]
"""One dispatch and one combine; returns what a graph must keep."""


def own_normal(s: Setting) -> Cycle:
    group = ferry.Group(
        ferry.torch.meet(),
        num_experts=s.experts,
        max_tokens=s.tokens,
        max_latency_tokens=0,
        max_top_k=s.top_k,
        hidden=s.hidden,
        recv_rows=dist.get_world_size() * s.tokens,
        backend="cuda" if s.device.type == "cuda" else "host",
    )

    def cycle() -> Any:
        options = {"num_sms": deep_ep.Buffer.num_sms, "stream": s.stream}
        arrived = group.dispatch(s.x, s.ids, s.weights, host_counts=False, output="owned", **options)
        combined = group.combine(arrived.payload[0], arrived.handle, **options)
        return arrived, as_tensor(combined.out), group

    return cycle


def shim_normal(s: Setting) -> Cycle:
    buffer = deep_ep.Buffer(dist.group.WORLD, num_nvl_bytes=1 << 20)
    per_rank, per_node, per_expert, in_rank, _ = buffer.get_dispatch_layout(s.ids, s.experts)

    def cycle() -> Any:
        sent = buffer.dispatch(
            s.x,
            num_tokens_per_rank=per_rank,
            num_tokens_per_rdma_rank=per_node,
            is_token_in_rank=in_rank,
            num_tokens_per_expert=per_expert,
            topk_idx=s.ids,
            topk_weights=s.weights,
            num_worst_tokens=dist.get_world_size() * s.tokens,
        )
        return sent, buffer.combine(sent[0], sent[4]), buffer

    return cycle


def own_low_latency(s: Setting) -> Cycle:
    group = ferry.Group(
        ferry.torch.meet(),
        num_experts=s.experts,
        max_tokens=1,
        max_latency_tokens=s.tokens,
        max_top_k=s.top_k,
        hidden=s.hidden,
        recv_rows=1,
        backend="cuda" if s.device.type == "cuda" else "host",
    )
    shape = (s.experts // dist.get_world_size(), dist.get_world_size() * s.tokens, s.hidden)
    y = torch.zeros(shape, dtype=torch.bfloat16, device=s.device)

    def cycle() -> Any:
        options = {"mode": "latency", "layout": "expert_padded", "codec": "fp8_f32", "host_counts": False}
        pending = group.dispatch_send(s.x, s.ids, expert_capacity=shape[1], output="owned", stream=s.stream, **options)
        arrived = pending.receive()
        combined = group.combine(y, arrived.handle, reduction="flat", weights=s.weights, stream=s.stream)
        return arrived, as_tensor(combined.out), group

    return cycle


def shim_low_latency(s: Setting) -> Cycle:
    buffer = deep_ep.Buffer(dist.group.WORLD, low_latency_mode=True)
    shape = (s.experts // dist.get_world_size(), dist.get_world_size() * s.tokens, s.hidden)
    y = torch.zeros(shape, dtype=torch.bfloat16, device=s.device)

    def cycle() -> Any:
        recv, count, handle, _, hook = buffer.low_latency_dispatch(
            s.x, s.ids, s.tokens, s.experts, use_fp8=True, return_recv_hook=True
        )
        hook()
        out, _, hook = buffer.low_latency_combine(y, s.ids, s.weights, handle, return_recv_hook=True)
        hook()
        return recv, count, handle, out, buffer

    return cycle


CASES = {"normal": (own_normal, shim_normal), "low_latency": (own_low_latency, shim_low_latency)}


def slowest(value: float, device: torch.device) -> float:
    held = torch.tensor([value], dtype=torch.float64, device=device)
    dist.all_reduce(held, op=dist.ReduceOp.MAX)
    return held.item()


def host_us(cycle: Cycle, s: Setting) -> float:
    """Until the calls return: on a GPU what launching takes, on the CPU all of it."""
    times = []
    for _ in range(s.rounds):
        dist.barrier()
        start = time.perf_counter()
        kept = cycle()
        times.append(slowest((time.perf_counter() - start) * 1e6, s.device))
        if s.device.type == "cuda":
            torch.cuda.synchronize()
        del kept
    return statistics.median(times)


def device_us(cycle: Cycle, s: Setting) -> float:
    """Of a replayed graph."""
    torch.cuda.synchronize()
    dist.barrier()
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")
        kept = cycle()
        graph.capture_end()
    times = []
    for _ in range(s.rounds):
        torch.cuda.synchronize()
        dist.barrier()
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        with torch.cuda.stream(stream):
            graph.replay()  # ranks meet here; the next one is timed
            first.record()
            for _ in range(10):
                graph.replay()
            last.record()
        torch.cuda.synchronize()
        times.append(slowest(first.elapsed_time(last) * 100, s.device))
    del kept
    return statistics.median(times)


def setting(arguments: argparse.Namespace, case: str, device: torch.device) -> Setting:
    generator = torch.Generator().manual_seed(dist.get_rank())
    tokens = arguments.tokens if case == "normal" else arguments.latency_tokens
    x = torch.randn((tokens, arguments.hidden), generator=generator).to(torch.bfloat16).to(device)
    scores = torch.rand((tokens, arguments.experts), generator=generator)
    ids = scores.argsort(1)[:, : arguments.top_k].contiguous().to(device)
    weights = torch.rand((tokens, arguments.top_k), generator=generator).to(device)
    return Setting(
        device, tokens, arguments.hidden, arguments.experts, arguments.top_k, arguments.rounds, x, ids, weights
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--tokens", type=int, default=4096, help="per rank, normal mode")
    parser.add_argument("--latency-tokens", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=7168)
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--json", help="appends a line per case")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    torch.set_num_threads(1)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    for case in [arguments.only] if arguments.only else CASES:
        s = setting(arguments, case, device)
        row: dict[str, Any] = {"case": case, "ranks": dist.get_world_size(), "device": device.type, "tokens": s.tokens}
        for name, make in zip(("ferry", "deep_ep"), CASES[case], strict=True):
            cycle = make(s)
            for _ in range(3):
                kept = cycle()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                del kept
            row[f"{name}_host_us"] = host_us(cycle, s)
            if device.type == "cuda":
                row[f"{name}_device_us"] = device_us(cycle, s)
            del cycle
        if dist.get_rank() == 0:
            print(json.dumps(row))
            if arguments.json:
                with open(arguments.json, "a") as file:
                    print(json.dumps(row), file=file)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
