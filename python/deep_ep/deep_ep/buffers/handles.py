# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""V1's handles: tuples whose positions are contract. What combine needs is Ferry's handle; the tensors at the
positions are made when somebody looks at them."""

import functools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ferry
import torch
from ferry.torch import as_tensor

from deep_ep.checks import require
from deep_ep.rows import NOTE_RANK, NOTE_TOKEN, NOTE_TOKENS


@dataclass
class Sent:
    """What a dispatch leaves for combine and for cached dispatches."""

    group: ferry.Group
    handle: ferry.Handle
    num_tokens: int
    num_rows: int
    """Rows of recv_x, as shaped."""
    channels: int
    num_experts: int
    has_ids: bool
    """Made from topk_idx; else from is_token_in_rank alone."""


class LazyTuple(tuple):
    """A tuple whose items are made at the first look at one of them. Its items know what they belong to, so that a
    plain tuple of them serves as well (see sent_of)."""

    def __new__(cls, makers: list[Callable[[], Any]], sent: Any, own: range, is_live: bool = False) -> "LazyTuple":
        """own: the positions whose tensors are made for this handle alone. is_live: items are made at every look, since
        what they are made of is still to come, or comes anew with each replay of a graph."""
        made = super().__new__(cls, [None] * len(makers))
        made._own, made._is_live = own, is_live
        made._makers = makers
        made._items = [None] * len(makers)
        made._lock = threading.Lock()
        made.sent = sent
        return made

    def _item(self, index: int) -> Any:
        with self._lock:
            if self._makers[index] is not None:
                item = self._makers[index]()
                if index in self._own and isinstance(item, torch.Tensor):
                    item._deep_ep_sent = self.sent
                if self._is_live:
                    return item
                self._items[index], self._makers[index] = item, None
        return self._items[index]

    def __getitem__(self, index: Any) -> Any:
        places = range(len(self))[index]
        return tuple(self._item(i) for i in places) if isinstance(index, slice) else self._item(places)

    def __iter__(self) -> Iterator[Any]:
        return (self._item(index) for index in range(len(self)))

    def __add__(self, other: Any) -> tuple:
        return tuple(iter(self)) + tuple(other)

    def __reduce__(self) -> Any:
        raise TypeError("a handle of deep_ep belongs to the buffer of this process and cannot be pickled")


def sent_of(function: str, handle: Any) -> Any:
    """What a handle stands for, also where it went through a plain tuple. The caller's own tensors (is_token_in_rank)
    may occur in several handles, so they are not asked."""
    if isinstance(handle, LazyTuple):
        return handle.sent
    for item in handle if isinstance(handle, (tuple, list)) else ():
        sent = getattr(item, "_deep_ep_sent", None)
        if sent is not None:
            return sent
    require(
        False,
        f"{function}: argument handle: seen {type(handle).__name__}, expected what dispatch of this buffer returned",
    )


def token_channels(num_tokens: int, channels: int) -> int:
    """Tokens of a channel: V1 cuts the tokens of a rank into equal slices."""
    return max(-(-num_tokens // max(channels, 1)), 1)


def prefix_over_channels(is_sent: torch.Tensor, channels: int) -> torch.Tensor:
    """[G, C] int32 from [T, G] bool: tokens for each destination in the channels up to and with c."""
    num_tokens, num_groups = is_sent.shape
    per_channel = token_channels(num_tokens, channels)
    counts = is_sent.new_zeros((per_channel * channels, num_groups), dtype=torch.int32)
    counts[:num_tokens] = is_sent
    return counts.view(channels, per_channel, num_groups).sum(1).cumsum(0).to(torch.int32).t().contiguous()


def queue_positions(is_sent: torch.Tensor, channels: int) -> torch.Tensor:
    """[T, G] int32: how many tokens of its channel go to that destination before it; -1 where it does not go."""
    num_tokens, num_groups = is_sent.shape
    per_channel = token_channels(num_tokens, channels)
    counts = is_sent.new_zeros((per_channel * channels, num_groups), dtype=torch.int32)
    counts[:num_tokens] = is_sent
    before = counts.view(channels, per_channel, num_groups).cumsum(1).reshape(-1, num_groups)[:num_tokens] - 1
    return torch.where(is_sent, before, -1).to(torch.int32)


def channel_starts(notes: torch.Tensor, source_offsets: torch.Tensor, channels: int) -> torch.Tensor:
    """[R, C] int32: where channel c of a source starts inside that source's rows."""
    num_ranks, num_rows = source_offsets.shape[0] - 1, notes.shape[0]
    starts = torch.zeros((num_ranks, channels), dtype=torch.int32, device=notes.device)
    if num_rows == 0:
        return starts
    row = torch.arange(num_rows, device=notes.device)
    source = torch.searchsorted(source_offsets[1:].contiguous(), row.to(torch.int32), right=True)
    real = source < num_ranks
    tokens = torch.where(real, notes[:, NOTE_TOKENS].to(torch.int64), 1)
    per_channel = ((tokens + channels - 1) // channels).clamp(min=1)
    channel = torch.where(real, notes[:, NOTE_TOKEN].to(torch.int64), 0) // per_channel
    counts = torch.zeros((num_ranks + 1, channels), dtype=torch.int32, device=notes.device)
    counts.index_put_((source, channel), torch.ones_like(row, dtype=torch.int32), accumulate=True)
    counts = counts[:num_ranks]
    return (counts.cumsum(1) - counts).to(torch.int32)


@dataclass
class Arrival:
    """What the tables of a handle are made of."""

    rank: int
    num_ranks: int
    channels: int
    is_token_in_rank: torch.Tensor
    notes: torch.Tensor
    """[N, 4] int32, as shaped."""
    source_offsets: torch.Tensor
    """int32 [R + 1]."""
    result: ferry.DispatchResult

    def rank_counts(self) -> torch.Tensor:
        """int32 [R, R]: tokens from i to j; -1 where this rank does not know."""
        if self.result.rank_counts is not None:
            return as_tensor(self.result.rank_counts)
        counts = torch.full((self.num_ranks, self.num_ranks), -1, dtype=torch.int32, device=self.notes.device)
        counts[self.rank] = self.is_token_in_rank.sum(0)
        counts[:, self.rank] = self.source_offsets[1:] - self.source_offsets[:-1]
        return counts


def intranode_handle(sent: Sent, arrival: Arrival) -> LazyTuple:
    """The six of V1 inside a node."""
    a = arrival
    return LazyTuple(
        [
            lambda: prefix_of_counts(a.rank_counts()),
            lambda: prefix_over_channels(a.is_token_in_rank, a.channels),
            lambda: channel_starts(a.notes, a.source_offsets, a.channels),
            lambda: a.notes[:, NOTE_TOKEN].contiguous(),
            lambda: a.is_token_in_rank,
            lambda: queue_positions(a.is_token_in_rank, a.channels),
        ],
        sent,
        own=range(4),
    )


def prefix_of_counts(counts: torch.Tensor) -> torch.Tensor:
    """Inclusive over sources; a column with an unknown count stays -1."""
    known = (counts >= 0).all(dim=0, keepdim=True)
    return torch.where(known, counts.cumsum(0), -1).to(torch.int32)


def per_node(is_token_in_rank: torch.Tensor, node_ranks: int) -> torch.Tensor:
    """[T, nodes] bool."""
    num_tokens, num_ranks = is_token_in_rank.shape
    return is_token_in_rank.view(num_tokens, num_ranks // node_ranks, node_ranks).any(dim=2)


def source_bitmap(is_local: torch.Tensor) -> torch.Tensor:
    """int32 bits of a node's ranks."""
    bits = 1 << torch.arange(is_local.shape[1], dtype=torch.int32, device=is_local.device)
    return (is_local.to(torch.int32) * bits).sum(1).to(torch.int32)


def node_bitmaps(is_token_in_rank: torch.Tensor, node_ranks: int) -> torch.Tensor:
    """[T, nodes] int32: which ranks of each node hold the token."""
    num_nodes = is_token_in_rank.shape[1] // node_ranks
    nodes = is_token_in_rank.view(is_token_in_rank.shape[0], num_nodes, node_ranks)
    return torch.stack([source_bitmap(nodes[:, node]) for node in range(num_nodes)], dim=1)


def internode_handle(sent: Sent, arrival: Arrival, node_ranks: int, bitmaps: torch.Tensor) -> LazyTuple:
    """The ten of V1 between nodes. bitmaps: uint8 [N, nodes], of the rows received. Positions 3, 4 and 9 are about
    rows that this rank hands on for others, which Ferry keeps in its own handle: they are -1, -1 and empty."""
    a = arrival
    nodes, node = a.num_ranks // node_ranks, a.rank // node_ranks
    on_node = functools.lru_cache(maxsize=1)(lambda: per_node(a.is_token_in_rank, node_ranks))

    def unknown(*shape: int) -> torch.Tensor:
        return torch.full(shape, -1, dtype=torch.int32, device=a.notes.device)

    def source_meta() -> torch.Tensor:
        source = a.notes[:, NOTE_RANK] // node_ranks
        return torch.stack([source, bitmaps[:, node].to(torch.int32)], dim=1).to(torch.int32).view(torch.uint8)

    return LazyTuple(
        [
            lambda: a.is_token_in_rank,
            lambda: prefix_over_channels(on_node(), a.channels),
            lambda: prefix_over_channels(a.is_token_in_rank, a.channels),
            lambda: unknown(nodes, a.channels),
            lambda: unknown(nodes),
            lambda: channel_starts(a.notes, a.source_offsets, a.channels) + a.source_offsets[:-1, None],
            lambda: a.source_offsets[1:].contiguous(),
            source_meta,
            lambda: queue_positions(on_node(), a.channels),
            lambda: unknown(0, node_ranks),
        ],
        sent,
        own=range(1, 10),
    )
