# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""Dispatch and combine of a whole group in one process: NumPy, written from the contracts alone, slow on purpose."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

DTYPES = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16, "fp32": np.float32}


@dataclass(frozen=True)
class Choice:
    """Token `token` of rank `source` chose, as its choice number `choice`, an expert here."""

    source: int
    token: int
    choice: int


@dataclass(frozen=True)
class Problem:
    """What all ranks dispatch. Lists are by rank."""

    node_sizes: list[int]
    num_experts: int
    x: list[np.ndarray]
    ids: list[np.ndarray]
    weights: list[np.ndarray]

    @property
    def num_ranks(self) -> int:
        return sum(self.node_sizes)

    def node_of(self, rank: int) -> int:
        return int(np.searchsorted(np.cumsum(self.node_sizes), rank, side="right"))

    def local_experts(self, rank: int) -> range:
        """Global ids of a rank's experts: contiguous, the first ranks take one more each if a rest is left."""
        base, rest = divmod(self.num_experts, self.num_ranks)
        first = rank * base + min(rank, rest)
        return range(first, first + base + (rank < rest))

    def owner(self, expert: int) -> int:
        return next(rank for rank in range(self.num_ranks) if expert in self.local_experts(rank))


@dataclass(frozen=True)
class RankMajor:
    sources: list[tuple[int, int]]
    """(source rank, source token) of each row."""
    ids: np.ndarray
    weights: np.ndarray
    source_offsets: list[int]


def rank_major(problem: Problem, rank: int) -> RankMajor:
    mine = problem.local_experts(rank)
    sources, ids, weights, offsets = [], [], [], [0]
    for source in range(problem.num_ranks):
        for token, chosen in enumerate(problem.ids[source]):
            is_mine = np.array([int(e) in mine for e in chosen], dtype=bool)
            if is_mine.any():
                sources.append((source, token))
                ids.append(np.where(is_mine, chosen - mine.start, -1))
                weights.append(np.where(is_mine, problem.weights[source][token], np.float32(0)))
        offsets.append(len(sources))
    top_k = problem.ids[0].shape[1]
    return RankMajor(
        sources,
        np.array(ids, dtype=problem.ids[0].dtype).reshape(-1, top_k),
        np.array(weights, dtype=np.float32).reshape(-1, top_k),
        offsets,
    )


def expert_rows(problem: Problem, rank: int) -> list[list[Choice]]:
    """For each local expert its rows, by (source rank, source token, choice)."""
    return [
        [
            Choice(source, token, choice)
            for source in range(problem.num_ranks)
            for token, chosen in enumerate(problem.ids[source])
            for choice, e in enumerate(chosen)
            if e == expert
        ]
        for expert in problem.local_experts(rank)
    ]


def aligned(count: int, alignment: int) -> int:
    return -(-count // alignment) * alignment


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """float32 a * b + c with one rounding: the product is exact in float64, and rounding the sum to odd there keeps the
    rounding to float32 that follows from being a second one."""
    product = a.astype(np.float64) * b.astype(np.float64)
    c = np.broadcast_to(c, product.shape).astype(np.float64)
    total = product + c
    part = total - product
    error = (product - (total - part)) + (c - part)
    bits = total.view(np.int64)
    to_odd = (error != 0) & (bits & 1 == 0)
    away = (error > 0) == (total > 0)
    return np.where(to_odd, bits + np.where(away, 1, -1), bits).view(np.float64).astype(np.float32)


def add_up(
    start: np.ndarray, terms: list[np.ndarray], dtype: np.dtype, weights: list[np.float32] | None = None
) -> np.ndarray:
    """One stage of a reduction."""
    total = start.astype(np.float32)
    for i, term in enumerate(terms):
        row = term.astype(np.float32)
        total = total + row if weights is None else fma(weights[i], row, total)
    return total.astype(dtype)


def grouped(keys: list[int], last_choice: bool) -> list[list[int]]:
    """Positions of equal keys; groups by ascending key, or by their last position."""
    groups = {key: [i for i, k in enumerate(keys) if k == key] for key in keys}
    order = sorted(groups, key=(lambda key: groups[key][-1]) if last_choice else None)
    return [groups[key] for key in order]


@dataclass(frozen=True)
class Rule:
    group: str = "rank"
    last_choice: bool = False


def combine_choices(
    problem: Problem,
    rows: list[np.ndarray],
    owners: list[int],
    rule: Rule,
    bias: np.ndarray,
    weights: list[np.float32] | None = None,
) -> np.ndarray:
    """One token: the rows of its live choices in ascending order, the ranks they come from, and its bias in float32."""
    dtype = rows[0].dtype
    if rule.group == "choice":
        return add_up(bias, rows, dtype, weights)
    zero = np.zeros_like(bias)
    by_rank = grouped(owners, rule.last_choice)
    sums = [add_up(zero, [rows[i] for i in g], dtype, weights and [weights[i] for i in g]) for g in by_rank]
    if rule.group == "node":
        # Ranks of a node stay in their order; nodes follow each other by number or by their last choice.
        nodes = [problem.node_of(owners[g[-1]]) for g in by_rank]
        last = {node: max(g[-1] for g, n in zip(by_rank, nodes, strict=True) if n == node) for node in nodes}
        order = sorted(set(nodes), key=last.get if rule.last_choice else None)
        sums = [add_up(zero, [s for s, n in zip(sums, nodes, strict=True) if n == node], dtype) for node in order]
    return add_up(bias, sums, dtype)


def fp8_rows(x: np.ndarray, block: int, power_of_two: bool) -> tuple[np.ndarray, np.ndarray]:
    """The fp8 codecs: e4m3 data and the scales to multiply them with, as float32."""
    x = x.astype(np.float32)
    num_blocks = -(-x.shape[1] // block)
    data = np.zeros(x.shape, dtype=ml_dtypes.float8_e4m3fn)
    scales = np.zeros((x.shape[0], num_blocks), dtype=np.float32)
    for b in range(num_blocks):
        part = x[:, b * block : (b + 1) * block]
        amax = np.maximum(np.float32(1e-4), np.abs(part).max(axis=1, initial=0))
        if power_of_two:
            scale = np.exp2(np.ceil(np.log2(amax.astype(np.float64) / 448))).astype(np.float32)
            scaled = part / scale[:, None]
        else:
            scale = amax * (np.float32(1) / np.float32(448))
            scaled = part * (np.float32(448) / amax)[:, None]
        data[:, b * block : (b + 1) * block] = np.clip(scaled, -448, 448).astype(ml_dtypes.float8_e4m3fn)
        scales[:, b] = scale
    return data, scales
