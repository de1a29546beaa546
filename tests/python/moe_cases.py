# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""Cases of a dispatch and a combine, and what must come out, by the NumPy reference; for every backend."""

import functools
from dataclasses import dataclass

import ferry
import ml_dtypes
import moe_reference as ref
import numpy as np


@dataclass(frozen=True)
class Case:
    node_sizes: list[int]
    num_experts: int
    tokens: list[int]
    top_k: int
    hidden: int
    mode: str
    layout: str
    dtype: str = "bf16"
    id_dtype: type = np.int32
    codec: str = "none"
    scale_block: int = 128
    alignment: int = 1
    zero_padding: bool = False
    host_counts: bool = True
    output: str = "window"
    rule: ref.Rule = ref.Rule()
    weighting: str = "none"
    num_biases: int = 0
    strided: bool = False
    split: bool = False
    seed: int = 0


def make_ids(case: Case, rng: np.random.Generator, num_tokens: int) -> np.ndarray:
    """Negative and repeated ids are legal. A repeated one takes two rows, which the default capacity of expert_padded
    does not promise: there they are distinct."""
    shape = (num_tokens, case.top_k)
    if case.layout != "expert_padded":
        return rng.integers(-2, case.num_experts, shape).astype(case.id_dtype)
    ids = np.full(shape, -1, dtype=case.id_dtype)
    for row in ids:
        places = rng.permutation(case.top_k)[: rng.integers(0, min(case.top_k, case.num_experts) + 1)]
        row[places] = rng.permutation(case.num_experts)[: len(places)]
    return ids


def make_problem(case: Case) -> ref.Problem:
    rng = np.random.default_rng(case.seed)
    dtype = ref.DTYPES[case.dtype]
    return ref.Problem(
        node_sizes=case.node_sizes,
        num_experts=case.num_experts,
        x=[rng.standard_normal((t, case.hidden), dtype=np.float32).astype(dtype) for t in case.tokens],
        ids=[make_ids(case, rng, t) for t in case.tokens],
        weights=[rng.random((t, case.top_k), dtype=np.float32) for t in case.tokens],
    )


def make_biases(case: Case, rank: int) -> list[np.ndarray]:
    rng = np.random.default_rng([case.seed, rank])
    shape = (case.tokens[rank], case.hidden)
    dtypes = [np.float32, ref.DTYPES[case.dtype]]
    return [rng.standard_normal(shape, dtype=np.float32).astype(d) for d in dtypes[: case.num_biases]]


def spread(array: np.ndarray) -> np.ndarray:
    """The same values with other strides: every second row and, where rows are not what is read as a whole, column."""
    wide = np.zeros((2 * array.shape[0], array.shape[1] + 8), dtype=array.dtype)
    wide[::2, : array.shape[1]] = array
    return wide[::2, : array.shape[1]]


def same_bits(got: np.ndarray, expected: np.ndarray) -> bool:
    bits = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[expected.dtype.itemsize]
    return (
        got.dtype == expected.dtype
        and got.shape == expected.shape
        and np.array_equal(np.ascontiguousarray(got).view(bits), np.ascontiguousarray(expected).view(bits))
    )


def expert_output(rows: np.ndarray, expert: np.ndarray | int) -> np.ndarray:
    """What "experts" make of rows: each multiplies with its own factor, rounded to the dtype."""
    factor = np.asarray(expert, dtype=np.float32) * np.float32(0.37) + np.float32(0.7)
    return (rows.astype(np.float32) * factor).astype(rows.dtype)


def send_blocks(case: Case, problem: ref.Problem, rank: int) -> list[np.ndarray]:
    """The payload blocks of a rank's tokens as they arrive: the rows, or data and scales."""
    x = problem.x[rank]
    if case.codec == "none":
        return [x]
    data, scales = ref.fp8_rows(x, case.scale_block, case.codec == "fp8_ue8m0")
    if case.codec == "fp8_ue8m0":
        scales = scales.astype(ml_dtypes.float8_e8m0fnu)
    return [data, scales]


def gather(blocks_by_rank: list[list[np.ndarray]], sources: list[tuple[int, int]]) -> list[np.ndarray]:
    return [
        np.array([blocks_by_rank[rank][b][token] for rank, token in sources], dtype=first.dtype).reshape(
            -1, first.shape[1]
        )
        for b, first in enumerate(blocks_by_rank[0])
    ]


def check_rank_major(case: Case, problem: ref.Problem, result: ferry.DispatchResult, rank: int, blocks: list) -> None:
    expected = ref.rank_major(problem, rank)
    n = len(expected.sources)
    assert result.num_rows.tolist() == [n]
    assert result.source_offsets.tolist() == expected.source_offsets
    for got, want in zip(result.payload, gather(blocks, expected.sources), strict=True):
        assert same_bits(np.asarray(got)[:n], want)
    assert same_bits(np.asarray(result.topk_ids)[:n], expected.ids)
    assert same_bits(np.asarray(result.topk_weights)[:n], expected.weights)
    if case.host_counts:
        assert result.payload[0].shape == (n, case.hidden)


def rows_of_expert(case: Case, block: np.ndarray, local: int, count: int, offsets: list[int]) -> np.ndarray:
    return block[offsets[local] : offsets[local] + count] if case.layout == "expert_major" else block[local, :count]


def check_experts(case: Case, problem: ref.Problem, result: ferry.DispatchResult, rank: int, blocks: list) -> None:
    experts = ref.expert_rows(problem, rank)
    counts = [len(rows) for rows in experts]
    padded = [ref.aligned(count, case.alignment) for count in counts]
    offsets = [sum(padded[:i]) for i in range(len(padded) + 1)]
    assert result.expert_counts.tolist() == counts
    if case.host_counts:
        assert result.host_expert_counts == padded
    if case.layout == "expert_major":
        assert result.expert_offsets.tolist() == offsets
        if case.host_counts:
            assert result.payload[0].shape == (offsets[-1], case.hidden)
    for local, rows in enumerate(experts):
        wanted = gather(blocks, [(row.source, row.token) for row in rows])
        for got, want in zip(result.payload, wanted, strict=True):
            assert same_bits(rows_of_expert(case, np.asarray(got), local, len(rows), offsets), want)
        weights = np.array([problem.weights[row.source][row.token, row.choice] for row in rows], dtype=np.float32)
        assert same_bits(rows_of_expert(case, np.asarray(result.topk_weights), local, len(rows), offsets), weights)
        if case.zero_padding:
            for got in result.payload:
                bits = np.asarray(got)[offsets[local] + len(rows) : offsets[local + 1]].astype(np.float32)
                # A UE8M0 byte of 0 means 2 ** -127.
                assert (bits <= np.float32(2.0**-127)).all()


def decoded(case: Case, result: ferry.DispatchResult) -> np.ndarray:
    """The rows that the experts get, in the dtype that they compute in."""
    rows = np.asarray(result.payload[0])
    if case.codec == "none":
        return rows
    scales = np.repeat(np.asarray(result.payload[1]).astype(np.float32), case.scale_block, axis=-1)[..., : case.hidden]
    with np.errstate(all="ignore"):  # rows beyond the real ones hold anything
        return (rows.astype(np.float32) * scales).astype(ml_dtypes.bfloat16)


def run_experts(case: Case, problem: ref.Problem, result: ferry.DispatchResult, rank: int) -> np.ndarray:
    rows = decoded(case, result)
    experts = np.array(problem.local_experts(rank))
    with np.errstate(all="ignore"):
        if case.layout == "rank_major":
            # The sum over the rank's experts, as one row: any function of the row and its local ids will do.
            chosen = (np.asarray(result.topk_ids) >= 0).sum(axis=1)
            return expert_output(rows, chosen[:, None])
        if case.layout == "expert_padded":
            return expert_output(rows, experts[:, None, None])
        ends = np.array(result.expert_offsets.tolist()[1:])
        owner = (
            np.minimum(np.searchsorted(ends, np.arange(len(rows)), side="right"), len(experts) - 1)
            if len(experts)
            else []
        )
        return expert_output(rows, experts[owner][:, None] if len(experts) else np.zeros((len(rows), 1)))


def reference_rows(case: Case, problem: ref.Problem, rank: int) -> np.ndarray:
    """What an expert sees of a rank's tokens."""
    if case.codec == "none":
        return problem.x[rank]
    data, scales = ref.fp8_rows(problem.x[rank], case.scale_block, case.codec == "fp8_ue8m0")
    return (data.astype(np.float32) * np.repeat(scales, case.scale_block, axis=1)[:, : case.hidden]).astype(
        ml_dtypes.bfloat16
    )


def combined_token(
    case: Case, problem: ref.Problem, rank: int, token: int, row: np.ndarray, bias: np.ndarray
) -> np.ndarray:
    chosen = [(k, int(e)) for k, e in enumerate(problem.ids[rank][token]) if e >= 0]
    if not chosen:
        return bias.astype(row.dtype)
    owners = [problem.owner(e) for _, e in chosen]
    if case.layout == "rank_major":
        # One row per rank; it stands at the place of the rank's last choice.
        last = {owner: i for i, owner in enumerate(owners)}
        ranks = sorted(last, key=last.get)
        rows = [expert_output(row, owners.count(owner)) for owner in ranks]
        return ref.combine_choices(problem, rows, ranks, case.rule, bias)
    rows = [expert_output(row, e) for _, e in chosen]
    weights = None if case.weighting == "none" else [problem.weights[rank][token, k] for k, _ in chosen]
    return ref.combine_choices(problem, rows, owners, case.rule, bias, weights)


def check_combine(case: Case, problem: ref.Problem, rank: int, out: np.ndarray) -> None:
    rows = reference_rows(case, problem, rank)
    biases = make_biases(case, rank)
    assert out.shape == rows.shape
    for token, row in enumerate(rows):
        bias = functools.reduce(
            np.add, [b[token].astype(np.float32) for b in biases], np.zeros(case.hidden, np.float32)
        )
        assert same_bits(out[token], combined_token(case, problem, rank, token, row, bias)), (
            f"rank {rank}, token {token}"
        )


def dispatch_arguments(case: Case, problem: ref.Problem, rank: int) -> tuple[tuple, dict]:
    cut = spread if case.strided else (lambda array: array)
    arguments = (cut(problem.x[rank]), cut(problem.ids[rank]), cut(problem.weights[rank]))
    names = "mode layout codec scale_block alignment zero_padding host_counts output".split()
    return arguments, {name: getattr(case, name) for name in names}


def combine_arguments(case: Case, problem: ref.Problem, rank: int) -> dict:
    biases = make_biases(case, rank)
    return {
        "reduction": ferry.Reduction(case.rule.group, "last_choice" if case.rule.last_choice else "ascending"),
        "weights": {"none": None, "dispatch": "dispatch", "given": problem.weights[rank]}[case.weighting],
        "bias": [None, biases[0] if biases else None, tuple(biases)][case.num_biases],
    }
