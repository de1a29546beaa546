# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""What the adapters of this folder share: a process group, a small problem, experts whose results anybody can
compute."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

EXPERTS, TOP_K, HIDDEN = 8, 4, 512


@dataclass
class Job:
    device: torch.device
    cpu_group: dist.ProcessGroup
    """gloo, as vLLM's."""
    device_group: dist.ProcessGroup
    """NCCL on GPUs, as Megatron's and SGLang's."""

    @property
    def rank(self) -> int:
        return dist.get_rank()

    @property
    def size(self) -> int:
        return dist.get_world_size()

    @property
    def local_experts(self) -> int:
        return EXPERTS // self.size


@contextmanager
def start(description: str) -> Iterator[Job]:
    """One rank of a job of python -m ferry.launch or torchrun; without a launcher one rank alone."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    device = torch.device(parser.parse_args().device)
    torch.set_num_threads(1)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    alone = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", **alone)
    cpu_group = dist.new_group(backend="gloo")
    yield Job(device, cpu_group, dist.group.WORLD)
    dist.barrier()
    dist.destroy_process_group()


@dataclass
class Batch:
    x: torch.Tensor
    """[T, H] bf16."""
    topk_ids: torch.Tensor
    """[T, K] int64, distinct."""
    topk_weights: torch.Tensor
    """[T, K] float32."""

    @classmethod
    def make(cls, job: Job, tokens: int, seed: int = 0) -> "Batch":
        generator = torch.Generator().manual_seed(100 * seed + job.rank)
        x = torch.randn((tokens, HIDDEN), generator=generator).to(torch.bfloat16)
        ids = torch.rand((tokens, EXPERTS), generator=generator).argsort(1)[:, :TOP_K].contiguous()
        weights = torch.softmax(torch.rand((tokens, TOP_K), generator=generator), dim=1)
        return cls(x.to(job.device), ids.to(job.device), weights.to(job.device))


def factors(device: torch.device) -> torch.Tensor:
    """Expert e multiplies with factors[e]."""
    return torch.linspace(0.5, 2, EXPERTS, device=device)


def expected(batch: Batch) -> torch.Tensor:
    """The layer's result in float32."""
    scale = (factors(batch.x.device)[batch.topk_ids] * batch.topk_weights).sum(1)
    return batch.x.float() * scale[:, None]


def check(got: torch.Tensor, batch: Batch, tolerance: float = 0.03) -> None:
    """bf16 rows that were rounded once per hop; fp8 on the way loses more."""
    torch.testing.assert_close(got.float(), expected(batch), rtol=tolerance, atol=tolerance)


def to_fp8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Data and float32 scales of 128 channels, as engines quantise before a dispatch."""
    blocks = x.float().view(x.shape[0], x.shape[1] // 128, 128)
    scales = blocks.abs().amax(2).clamp(min=1e-4) / 448
    return (blocks / scales[..., None]).to(torch.float8_e4m3fn).view(x.shape), scales


def from_fp8(data: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return (data.float() * scales.repeat_interleave(128, dim=-1)).to(torch.bfloat16)
