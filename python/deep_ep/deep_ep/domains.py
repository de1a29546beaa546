# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""Which ranks form a node, as V2 asks it: (RDMA ranks, NVLink ranks) and (scale-out ranks, scale-up ranks)."""

from functools import lru_cache
from typing import Any

import ferry
import ferry.torch

from deep_ep.checks import require


def node_sizes(peers: ferry.torch.Peers) -> list[int]:
    """What Ferry finds: nodes of FERRY_NODE_SIZE ranks if that is set, else one per machine. Collective."""
    meeting = ferry.meet_through(peers.rank, peers.size, peers.all_gather)
    with ferry.Group(
        meeting, num_experts=peers.size, max_tokens=1, max_latency_tokens=0, max_top_k=1, hidden=8
    ) as group:
        topology = group.topology
        sizes = [topology.node_size(node) for node in range(topology.num_nodes)]
        peers.all_gather(None)
    return sizes


def physical(sizes: list[int]) -> tuple[int, int]:
    require(
        len(set(sizes)) == 1,
        f"nodes of different sizes {sizes}: deep_ep's domains must be equal; ferry.Group serves any sizes",
    )
    return len(sizes), sizes[0]


def logical(sizes: list[int], allow_hybrid_mode: bool) -> tuple[int, int]:
    return physical(sizes) if allow_hybrid_mode else (1, sum(sizes))


@lru_cache(maxsize=64)
def _sizes_of(group: Any) -> tuple[int, ...]:
    return tuple(node_sizes(ferry.torch.peers_of(group)))


def get_physical_domain_size(group: Any) -> tuple[int, int]:
    """(RDMA ranks, NVLink ranks). Collective the first time that a group is asked for."""
    return physical(list(_sizes_of(group)))


def get_logical_domain_size(group: Any, allow_hybrid_mode: bool = True) -> tuple[int, int]:
    """(scale-out ranks, scale-up ranks). Collective the first time that a group is asked for."""
    return logical(list(_sizes_of(group)), bool(allow_hybrid_mode))
