# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""Ferry's groups behind a buffer. A buffer of deep_ep is made without knowing what it will carry, so a group is made
when the first call says it, and a larger one when a call needs more; handles keep the group that made them."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import ferry
import ferry.torch
import numpy as np
import torch

from deep_ep.checks import require

_COMBINE_BYTES = 2


@dataclass(frozen=True)
class Needs:
    """What a call asks of its group. Grows by the maximum of each field."""

    tokens: int = 1
    top_k: int = 1
    row_bytes: int = 16
    """Of the data of a row, at dispatch and at combine."""
    extra_bytes: int = 0
    """Of everything that travels beside the row."""
    recv_rows: int = 1
    latency_tokens: int = 0

    def covers(self, other: "Needs") -> bool:
        return all(getattr(self, f.name) >= getattr(other, f.name) for f in fields(self))

    def joined(self, other: "Needs") -> "Needs":
        return Needs(**{f.name: max(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)})


def rounded(tokens: int) -> int:
    """Token counts grow in powers of two, so that a slowly growing batch makes few groups."""
    return 1 << max(tokens - 1, 0).bit_length()


def _all_ranks_see(error: ferry.Error) -> bool:
    """Errors that every rank gets in the same call, so that all may go on together. Ranks in different calls are a
    mismatch, too, but one that each sees at its own time; both backends word the two differently."""
    return error.code == "overflow" or (error.code == "mismatch" and "gave other arguments" in str(error))


@dataclass
class Lane:
    """The group for one number of experts, device and mode."""

    peers: ferry.torch.Peers
    num_experts: int
    device: torch.device
    topology: list[int] | None
    timeout: float
    group: ferry.Group | None = None
    limits: Needs = field(default_factory=Needs)
    masked: set[int] = field(default_factory=set)
    auto_masks: int = 0

    def ensure(self, needs: Needs) -> ferry.Group:
        """Collective when it grows; so all ranks must ask alike, or go through with_room."""
        if self.group is None or not self.limits.covers(needs):
            self._grow(needs)
        return self.group

    def with_room(self, needs: Needs, call: Callable[[ferry.Group], Any], host_counts: bool) -> Any:
        """Makes a call whose needs only this rank knows. A rank that needs more makes another call instead, which all
        ranks get to know as a mismatch before any row moves; then all of them grow and make the call again. Ranks on
        GPUs whose host does not wait for counts (host_counts) would get to know too late."""
        if self.group is None:
            self._grow(needs)
        require(
            host_counts or self.device.type == "cpu" or self.limits.covers(needs),
            f"a call without host counts needs {needs}, the group holds {self.limits}; make the largest call first",
        )
        while True:
            fits = self.limits.covers(needs)
            try:
                if fits:
                    return call(self.group)
                self._announce()
            except ferry.Error as error:
                if not _all_ranks_see(error):
                    raise
                if error.code == "overflow":
                    needs = needs.joined(Needs(recv_rows=error.needed_rows + error.needed_rows // 4))
                before = self.limits
                self._grow(needs)
                if before == self.limits:  # nobody wanted to grow: the mismatch was one
                    raise
            else:
                self._grow(needs)

    def _announce(self) -> None:
        """A call that differs from every other in its widths."""
        nothing = np.zeros((0, 1), np.uint8)
        if self.device.type == "cuda":
            nothing = torch.zeros((0, 1), dtype=torch.uint8, device=self.device)
        ids = nothing.astype(np.int32) if isinstance(nothing, np.ndarray) else nothing.to(torch.int32)
        self.group.dispatch(nothing, ids)

    def _grow(self, needs: Needs) -> None:
        everybodys = self.peers.all_gather((self.num_experts, self.device.type, needs.joined(self.limits)))
        for rank, (num_experts, kind, _) in enumerate(everybodys):
            require(
                (num_experts, kind) == (self.num_experts, self.device.type),
                f"rank {rank} makes a call with {num_experts} experts on {kind}, this rank with {self.num_experts} on "
                f"{self.device.type}; all ranks must make the same calls",
            )
        wanted = everybodys[0][2]
        for _, _, other in everybodys[1:]:
            wanted = wanted.joined(other)
        if self.group is not None and wanted == self.limits:
            return
        require(
            not self.masked,
            f"a call needs {wanted}, the group holds {self.limits}, and a larger one cannot be made while ranks "
            f"{sorted(self.masked)} are masked; make the largest call first",
        )
        self.limits = wanted
        self.group = self._make(wanted)

    def _make(self, limits: Needs) -> ferry.Group:
        meeting = ferry.meet_through(self.peers.rank, self.peers.size, self.peers.all_gather)
        on_gpu = self.device.type == "cuda"
        return ferry.Group(
            meeting,
            num_experts=self.num_experts,
            max_tokens=limits.tokens,
            max_latency_tokens=limits.latency_tokens,
            max_top_k=limits.top_k,
            hidden=-(-limits.row_bytes // _COMBINE_BYTES),
            dtype="bf16",
            extra_bytes=limits.extra_bytes,
            recv_rows=limits.recv_rows,
            topology=self.topology,
            backend="cuda" if on_gpu else "host",
            device=self.device.index if on_gpu and self.device.index is not None else -1,
            timeout=self.timeout,
            auto_masks=self.auto_masks,
        )

    def close(self) -> None:
        if self.group is not None:
            self.group.close()
            self.group = None


class Lanes:
    """All groups of a buffer."""

    def __init__(self, peers: ferry.torch.Peers, topology: list[int] | None, timeout: float) -> None:
        self.peers = peers
        self._topology, self._timeout = topology, timeout
        self._lanes: dict[tuple[str, int, str], Lane] = {}

    def lane(self, mode: str, num_experts: int, device: torch.device) -> Lane:
        require(num_experts > 0, f"argument num_experts: seen {num_experts}, expected above 0")
        require(
            num_experts % self.peers.size == 0,
            f"argument num_experts: seen {num_experts}, expected a multiple of the {self.peers.size} ranks",
        )
        key = (mode, num_experts, str(device))
        if key not in self._lanes:
            self._lanes[key] = Lane(self.peers, num_experts, device, self._topology, self._timeout)
        return self._lanes[key]

    def of_mode(self, mode: str) -> list[Lane]:
        return [lane for (kind, _, _), lane in self._lanes.items() if kind == mode]

    def close(self) -> None:
        for lane in self._lanes.values():
            lane.close()
