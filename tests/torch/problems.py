# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""Inputs of all ranks, and what deep_ep's contract says of them; every rank knows everything, so it can check
itself."""

from dataclasses import dataclass

import torch
from ranks import distinct_ids


def row_sum(start: torch.Tensor, rows: list[torch.Tensor], weights: list[float] | None = None) -> torch.Tensor:
    """bf16 of float32 sums in the order of the list."""
    total = start.float().clone()
    for index, row in enumerate(rows):
        # A product of float32 and bf16 is exact in float64, and so, for these sizes, is the rounding of the fused add.
        total = (
            total + row.float() if weights is None else (total.double() + row.double() * float(weights[index])).float()
        )
    return total.to(torch.bfloat16)


@dataclass(frozen=True)
class Problem:
    tokens: list[int]
    experts: int
    top_k: int
    hidden: int
    x: list[torch.Tensor]
    ids: list[torch.Tensor]
    weights: list[torch.Tensor]

    @classmethod
    def make(cls, tokens: list[int], experts: int = 8, top_k: int = 3, hidden: int = 64, seed: int = 0) -> "Problem":
        generator = torch.Generator().manual_seed(seed)
        x = [torch.randn((t, hidden), generator=generator).to(torch.bfloat16) for t in tokens]
        ids = [distinct_ids(generator, t, top_k, experts) for t in tokens]
        weights = [torch.rand((t, top_k), generator=generator) for t in tokens]
        return cls(tokens, experts, top_k, hidden, x, ids, weights)

    @property
    def ranks(self) -> int:
        return len(self.tokens)

    @property
    def local(self) -> int:
        return self.experts // self.ranks

    def owners(self, rank: int, token: int) -> list[int]:
        """Rank of each choice, -1 for none."""
        return [-1 if e < 0 else e // self.local for e in self.ids[rank][token].tolist()]

    def arrivals(self, rank: int) -> list[tuple[int, int]]:
        """(source, token) of each row of a rank: source ascending, then token."""
        return [(s, t) for s in range(self.ranks) for t in range(self.tokens[s]) if rank in self.owners(s, t)]

    def counts(self, rank: int) -> list[int]:
        """Choices of each local expert."""
        ids = torch.cat(self.ids).flatten() - rank * self.local
        return [int((ids == e).sum()) for e in range(self.local)]

    def local_ids(self, rank: int, source: int, token: int) -> torch.Tensor:
        ids = self.ids[source][token] - rank * self.local
        return torch.where((ids >= 0) & (ids < self.local), ids, -1)

    def expert_rows(self, rank: int) -> list[list[tuple[int, int, int]]]:
        """For each local expert the (source, token, choice) of its rows."""
        return [
            [
                (s, t, k)
                for s in range(self.ranks)
                for t in range(self.tokens[s])
                for k in range(self.top_k)
                if self.ids[s][t, k] == rank * self.local + e
            ]
            for e in range(self.local)
        ]

    def stack(self, per_rank: list[torch.Tensor], sources: list[tuple[int, int]]) -> torch.Tensor:
        shape = (len(sources), *per_rank[0].shape[1:])
        return torch.stack([per_rank[s][t] for s, t in sources]) if sources else per_rank[0].new_empty(shape)


def factor(number: int) -> float:
    """Large ones cancel: what is added between a number and its negative is lost, so that the order of a sum shows."""
    return (2.0**24, 0.7 + 0.21 * number, -(2.0**24), 0.4 + 0.13 * number)[number % 4]


def sum_rank(row: torch.Tensor, rank: int) -> torch.Tensor:
    """What the experts of a rank together make of a row in these tests."""
    return (row.float() * factor(rank)).to(torch.bfloat16)


def one_expert(row: torch.Tensor, expert: int) -> torch.Tensor:
    return (row.float() * factor(expert)).to(torch.bfloat16)


def same(got: torch.Tensor, expected: torch.Tensor) -> None:
    """The same bits."""
    assert got.shape == expected.shape and got.dtype == expected.dtype, (got.shape, got.dtype, expected.shape)
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = kinds[got.element_size()] if got.dtype != torch.bool else torch.bool
    assert torch.equal(got.cpu().contiguous().view(bits), expected.cpu().contiguous().view(bits)), (got, expected)
