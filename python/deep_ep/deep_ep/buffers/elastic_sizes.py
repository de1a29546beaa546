# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""Sizes and SM counts of V2, as its users compute them. Ferry's own memory is what ferry.memory_plan says."""

import math
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ferry.torch
import torch

from deep_ep import domains
from deep_ep.checks import require, require_python
from deep_ep.config import align

MIB_2 = 2 << 20
_DEFAULT_TOP_K = 32
_FORWARD_CHUNK_TOKENS = 8 * 160
SMS_WITHOUT_GPU = 132
"""device_sms() where there is no GPU: those of an H100 or H200."""


def align32(value: int) -> int:
    return align(value, 32)


@dataclass(frozen=True)
class Moe:
    """The numbers that a buffer is sized by."""

    num_max_tokens: int
    hidden: int
    num_topk: int
    use_fp8_dispatch: bool

    @property
    def top_k(self) -> int:
        return self.num_topk or _DEFAULT_TOP_K

    @property
    def dispatch_token_bytes(self) -> int:
        element = 1 if self.use_fp8_dispatch else 2
        packs = -(-self.hidden // 32) if self.use_fp8_dispatch else 0
        return align32(self.hidden * element) + align32(4 * packs) + align32(8 * self.top_k + 4 * (1 + self.top_k))

    @property
    def combine_token_bytes(self) -> int:
        return align32(2 * self.hidden) + align32(8 * self.top_k)


def moe_buffer_bytes(
    moe: Moe, physical: tuple[int, int], logical: tuple[int, int], allow_multiple_reduction: bool
) -> int:
    """The original's buffer for dispatch and combine."""
    require(-(-moe.hidden // 32) * 4 <= moe.hidden, f"argument hidden: seen {moe.hidden}, expected at least 4")
    scaleout, scaleup = logical
    ranks, tokens, top_k = scaleout * scaleup, moe.num_max_tokens, moe.top_k
    per_choice = 1 if allow_multiple_reduction else top_k
    if scaleout == 1:
        staged = 0 if scaleup == physical[1] else 1
        dispatch = moe.dispatch_token_bytes * tokens * (staged + ranks)
        layers = min(ranks, top_k) if allow_multiple_reduction else top_k
        combine = moe.combine_token_bytes * tokens * (layers + staged * ranks * per_choice)
    else:
        forwarded = scaleout * (tokens + _FORWARD_CHUNK_TOKENS)
        dispatch = moe.dispatch_token_bytes * (scaleup * scaleout * tokens + tokens + forwarded)
        up = min(scaleup, top_k) if allow_multiple_reduction else top_k
        out = min(scaleout, top_k) if allow_multiple_reduction else top_k
        combine = moe.combine_token_bytes * (up * scaleout * tokens + out * tokens + per_choice * forwarded)
    return align(max(dispatch, combine), MIB_2)


def is_batch(shapes: Sequence) -> bool:
    return isinstance(shapes[0], tuple)


class SizeHints:
    """The static size helpers of ElasticBuffer."""

    @staticmethod
    def get_buffer_size_hint(
        group: Any,
        num_max_tokens_per_rank: int,
        hidden: int,
        num_topk: int = 0,
        use_fp8_dispatch: bool = False,
        allow_hybrid_mode: bool = True,
        allow_multiple_reduction: bool = True,
    ) -> int:
        moe = Moe(num_max_tokens_per_rank, hidden, num_topk, bool(use_fp8_dispatch))
        logical = domains.get_logical_domain_size(group, allow_hybrid_mode)
        return moe_buffer_bytes(moe, domains.get_physical_domain_size(group), logical, bool(allow_multiple_reduction))

    @staticmethod
    def get_engram_storage_size_hint(
        num_entries: int, hidden: int, num_max_tokens_per_rank: int, dtype: torch.dtype = torch.bfloat16
    ) -> tuple[int, int]:
        entry = align32(hidden * dtype.itemsize)
        return align(entry * num_max_tokens_per_rank, MIB_2), align(entry * num_entries, MIB_2)

    @staticmethod
    def get_pp_buffer_size_hint(num_max_tensor_bytes: int, num_max_inflight_tensors: int) -> int:
        return align(align32(num_max_tensor_bytes) * num_max_inflight_tensors * 4, MIB_2)

    @staticmethod
    def get_agrs_num_max_session_bytes(group: Any, shapes: Sequence, dtype: torch.dtype) -> int:
        ranks = ferry.torch.peers_of(group).size
        batch = shapes if is_batch(shapes) else [shapes]
        return sum(align32(ranks * math.prod(shape) * dtype.itemsize) for shape in batch)

    @staticmethod
    def get_agrs_buffer_size_hint(group: Any, num_max_session_bytes: int) -> int:
        return align(num_max_session_bytes, MIB_2)


def device_sms() -> int:
    if not torch.cuda.is_available():
        return SMS_WITHOUT_GPU
    return torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count


def nvlink_gb_per_s() -> float:
    """0.9 of what the links of the first GPU add up to; 0 if nobody can say."""
    try:
        shown = subprocess.run(["nvidia-smi", "nvlink", "-s"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0.0
    first_gpu = re.split(r"^GPU 1:", shown.stdout, flags=re.MULTILINE)[0]
    return 0.9 * sum(float(rate) for rate in re.findall(r"([\d.]+) GB/s", first_gpu))


def expected_groups(num_groups: int, num_experts: int, num_topk: int) -> float:
    """How many of num_groups equal groups of experts K distinct experts hit, on average."""
    require_python(
        num_experts % num_groups == 0,
        f"argument num_experts: seen {num_experts}, expected a multiple of {num_groups} groups",
    )
    missed = math.comb(num_experts - num_experts // num_groups, num_topk) / math.comb(num_experts, num_topk)
    return num_groups * (1 - missed)


@dataclass(frozen=True)
class Traffic:
    """In units of the bytes that one rank receives."""

    read: float
    write: float
    rdma: float
    nvlink: float


def traffic_of(physical: tuple[int, int], logical: tuple[int, int], num_experts: int, num_topk: int) -> Traffic:
    scaleout, scaleup = logical
    ranks = scaleout * scaleup
    per_rank = 1 / expected_groups(ranks, num_experts, num_topk)
    if scaleout > 1:
        nodes = expected_groups(scaleout, num_experts, num_topk)
        return Traffic(
            read=per_rank + nodes * per_rank,
            write=per_rank + per_rank * nodes / scaleout + 1,
            rdma=per_rank * nodes * (1 - 1 / scaleout),
            nvlink=1 - 1 / scaleup,
        )
    near = physical[1] / ranks
    return Traffic(
        read=per_rank,
        write=(per_rank if physical[0] > 1 else 0) + near,
        rdma=(ranks - physical[1]) / ranks,
        nvlink=near * (1 - 1 / physical[1]),
    )


@dataclass(frozen=True)
class Rates:
    """GB/s: of the network, of NVLink, of what one SM reads and writes."""

    rdma: float
    nvlink: float
    sm_read: float
    sm_write: float


def suggested_sms(traffic: Traffic, rates: Rates, scaleout: int, prefer_overlap: bool, num_sms: int) -> int:
    is_network_bound = (
        scaleout > 1 and rates.rdma > 0 and traffic.rdma * max(rates.nvlink, 1e-9) > traffic.nvlink * rates.rdma
    )
    bound, rate = (traffic.rdma, rates.rdma) if is_network_bound else (traffic.nvlink, rates.nvlink)
    if bound == 0:
        wanted = float(num_sms)
    else:
        wanted = rate / bound * max(traffic.read / rates.sm_read, traffic.write / rates.sm_write)
    even = align(max(4, math.ceil(1.25 * wanted)), 2)
    return min(even if prefer_overlap else max(even, 64), num_sms)
