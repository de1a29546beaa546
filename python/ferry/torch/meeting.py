# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""Whatever knows the ranks of a job, as a meeting place."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

import ferry


@dataclass(frozen=True)
class Peers:
    """The ranks that belong together and an all-gather of Python objects among them; used while groups are made."""

    rank: int
    size: int
    all_gather: Callable[[Any], list[Any]]
    """Everybody's object, by rank. Collective."""


def peers_of(group: Any = None) -> Peers:
    """The ranks of a process group of PyTorch, of any backend, or of a communicator of mpi4py.

    group: a ``torch.distributed.ProcessGroup``; None for the default one; an object with ``Get_rank``, ``Get_size`` and
    ``allgather``; or Peers, returned as they are. Raises ferry.Error("invalid_argument") for anything else, and for
    None before ``init_process_group``.
    """
    if isinstance(group, Peers):
        return group
    if all(hasattr(group, name) for name in ("Get_rank", "Get_size", "allgather")):
        return Peers(group.Get_rank(), group.Get_size(), lambda mine: list(group.allgather(mine)))
    if group is None:
        if not dist.is_initialized():
            raise ferry.Error(
                "ferry.torch.peers_of: argument group: seen None without a default process group, expected "
                "torch.distributed.init_process_group() before, a process group, or a communicator of mpi4py",
                code="invalid_argument",
            )
        group = dist.group.WORLD
    if not all(hasattr(group, name) for name in ("rank", "size")):
        raise ferry.Error(
            f"ferry.torch.peers_of: argument group: seen {group!r}, expected a torch.distributed.ProcessGroup, an "
            f"object "
            "with Get_rank, Get_size and allgather, or None",
            code="invalid_argument",
        )
    size = group.size()

    def all_gather(mine: Any) -> list[Any]:
        everybodys: list[Any] = [None] * size
        dist.all_gather_object(everybodys, mine, group=group)
        return everybodys

    return Peers(group.rank(), size, all_gather)


def meet(group: Any = None) -> ferry.Meeting:
    """A meeting place of the ranks of ``group`` (see peers_of), for ferry.Group. torchrun's ranks need nothing else
    than an initialised process group; its own timeout applies."""
    peers = peers_of(group)
    return ferry.meet_through(peers.rank, peers.size, peers.all_gather)
