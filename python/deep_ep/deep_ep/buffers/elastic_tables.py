# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""The tables of V2's handles, from what travelled beside the rows."""

from dataclasses import dataclass

import torch

from deep_ep.rows import NOTE_RANK, NOTE_TOKEN


def align_tensor(counts: torch.Tensor, alignment: int) -> torch.Tensor:
    return (counts + (alignment - 1)) // alignment * alignment


def keys_of(notes: torch.Tensor, num_max_tokens: int) -> torch.Tensor:
    """int64: source rank * Tmax + token."""
    return notes[:, NOTE_RANK].to(torch.int64) * num_max_tokens + notes[:, NOTE_TOKEN]


def last_local_slot(ids: torch.Tensor) -> torch.Tensor:
    """The highest top-k slot that selects a local expert; ids: [N, K] local ids, negative elsewhere."""
    slots = torch.arange(ids.shape[1], device=ids.device)
    return torch.where(ids >= 0, slots, 0).amax(dim=1) if ids.shape[1] else ids.new_zeros(ids.shape[0])


@dataclass(frozen=True)
class Domains:
    scaleout: int
    scaleup: int

    def source_column(self, source: torch.Tensor) -> torch.Tensor:
        """What column 1 of recv_src_metadata is K times of: the source's scale-up rank; between nodes, how many tokens
        of the same scale-up rank came before."""
        scaleup = source.to(torch.int64) % self.scaleup
        if self.scaleout == 1:
            return scaleup
        same = torch.nn.functional.one_hot(scaleup, self.scaleup)
        return (same.cumsum(0) - same).gather(1, scaleup[:, None])[:, 0]


def metadata_of_ranks(notes: torch.Tensor, ids: torch.Tensor, num_max_tokens: int, domains: Domains) -> torch.Tensor:
    """recv_src_metadata [N, K + 2] of a result with one row per token; columns from 2 on mean nothing."""
    top_k = ids.shape[1]
    table = torch.full((notes.shape[0], top_k + 2), -1, dtype=torch.int32, device=notes.device)
    table[:, 0] = keys_of(notes, num_max_tokens)
    table[:, 1] = domains.source_column(notes[:, NOTE_RANK]) * top_k + last_local_slot(ids)
    return table


def metadata_of_experts(
    notes: torch.Tensor, ids: torch.Tensor, expert: torch.Tensor, num_max_tokens: int, domains: Domains
) -> torch.Tensor:
    """recv_src_metadata of an expanded result: one row per token, ordered by source, with the place of each of its
    choices. notes [rows, 4], ids [rows, K] (local, negative elsewhere), expert [rows] (-1: no row)."""
    row = torch.nonzero(expert >= 0).flatten()
    keys = keys_of(notes[row], num_max_tokens)
    tokens, token_of_row = torch.unique(keys, return_inverse=True)
    top_k = ids.shape[1]
    table = torch.full((tokens.shape[0], top_k + 2), -1, dtype=torch.int32, device=notes.device)
    slot = (ids[row] == expert[row][:, None]).to(torch.int32).argmax(dim=1)
    table[:, 0] = tokens
    source = domains.source_column(tokens // num_max_tokens)
    table[token_of_row, 1] = (source[token_of_row] * top_k + last_local_slot(ids[row])).to(torch.int32)
    table[token_of_row, 2 + slot] = row.to(torch.int32)
    return table


def expert_of_rows(num_rows: int, offsets: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """int64 [rows]: the local expert of each row; -1 for padding and beyond the end."""
    row = torch.arange(num_rows, device=offsets.device)
    expert = torch.searchsorted(offsets[1:].to(torch.int64).contiguous(), row, right=True).clamp(
        max=counts.shape[0] - 1
    )
    return torch.where(row - offsets[expert] < counts[expert], expert, -1)


def destination_slots(topk_idx: torch.Tensor, rank: int, local_experts: int, num_ranks: int, num_max_tokens: int):
    """dst_buffer_slot_idx [T, K] int32: my_rank * Tmax + how many of my tokens went to that rank before, at the
    highest slot of each destination rank; else -1."""
    num_tokens, top_k = topk_idx.shape
    owner = torch.where(topk_idx >= 0, topk_idx // local_experts, num_ranks)
    goes = topk_idx.new_zeros((num_tokens, num_ranks + 1), dtype=torch.int32).scatter_(1, owner, 1)
    before = (goes.cumsum(0) - goes).to(torch.int64)
    slots = torch.full((num_tokens, top_k), -1, dtype=torch.int32, device=topk_idx.device)
    for k in range(top_k):
        is_last = (owner[:, k + 1 :] != owner[:, k : k + 1]).all(dim=1) & (topk_idx[:, k] >= 0)
        place = rank * num_max_tokens + before.gather(1, owner[:, k : k + 1])[:, 0]
        slots[:, k] = torch.where(is_last, place, -1)
    return slots


def column_major(scales: torch.Tensor) -> torch.Tensor:
    """The same values with strides (1, rows rounded up to 4)."""
    rows, packs = scales.shape
    stride = -(-rows // 4) * 4
    wide = torch.empty((packs, stride), dtype=scales.dtype, device=scales.device)
    out = wide.t()[:rows]
    out.copy_(scales)
    return out
