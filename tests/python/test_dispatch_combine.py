# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""Dispatch and combine against the NumPy reference: generated cases, ranks as threads."""

import functools
from dataclasses import dataclass, replace

import ferry
import ml_dtypes
import moe_reference as ref
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rank_threads import run_ranks

LEGAL = [
    ("throughput", "rank_major"),
    ("throughput", "expert_major"),
    ("throughput", "expert_padded"),
    ("latency", "rank_major"),
    ("latency", "expert_padded"),
]


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


@st.composite
def cases(draw: st.DrawFn) -> Case:
    node_sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3).filter(lambda sizes: sum(sizes) <= 4))
    mode, layout = draw(st.sampled_from(LEGAL))
    codec = draw(st.sampled_from(["none", "none", "fp8_f32", "fp8_ue8m0"]))
    dtype = "bf16" if codec != "none" else draw(st.sampled_from(list(ref.DTYPES)))
    is_expert_layout = layout != "rank_major"
    return Case(
        node_sizes=node_sizes,
        num_experts=draw(st.integers(1, 9)),
        tokens=draw(st.lists(st.integers(0, 6), min_size=sum(node_sizes), max_size=sum(node_sizes))),
        top_k=draw(st.integers(1, 5)),
        hidden=draw(st.sampled_from([8, 24, 64, 136, 264])),
        mode=mode,
        layout=layout,
        dtype=dtype,
        id_dtype=draw(st.sampled_from([np.int32, np.int64])),
        codec=codec,
        scale_block=draw(st.sampled_from([128, 32])),
        alignment=draw(st.sampled_from([1, 4, 8])) if layout == "expert_major" else 1,
        zero_padding=draw(st.booleans()) if layout == "expert_major" else False,
        host_counts=draw(st.booleans()),
        output=draw(st.sampled_from(["window", "owned"])),
        rule=draw(
            st.builds(
                ref.Rule,
                st.sampled_from(["choice", "rank", "node"] if is_expert_layout else ["rank", "node"]),
                st.booleans(),
            )
        ),
        weighting=draw(st.sampled_from(["none", "dispatch", "given"])) if is_expert_layout else "none",
        num_biases=draw(st.integers(0, 2)),
        strided=draw(st.booleans()),
        split=draw(st.booleans()),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


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
    assert [result.handle.source_token(i) for i in range(n)] == [token for _, token in expected.sources]


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


def run_rank(case: Case, problem: ref.Problem, group: ferry.Group) -> None:
    rank = group.rank
    blocks = [send_blocks(case, problem, r) for r in range(problem.num_ranks)]
    arguments, options = dispatch_arguments(case, problem, rank)
    assert group.why_not(*arguments, **options) == ""
    if case.split:
        result = group.dispatch_send(*arguments, **options).receive()
    else:
        result = group.dispatch(*arguments, **options)
    assert (result.layout, result.handle.layout, result.handle.mode) == (case.layout, case.layout, case.mode)
    assert (result.handle.num_tokens, result.handle.top_k) == (case.tokens[rank], case.top_k)
    check = check_rank_major if case.layout == "rank_major" else check_experts
    check(case, problem, result, rank, blocks)

    y = run_experts(case, problem, result, rank)
    arguments = combine_arguments(case, problem, rank)
    assert group.why_not(x=y, handle=result.handle, **arguments) == ""
    if case.split:
        combined = group.combine_send(y, result.handle, **arguments).receive()
    else:
        combined = group.combine(y, result.handle, **arguments)
    check_combine(case, problem, rank, np.asarray(combined.out))


def run_case(case: Case) -> None:
    problem = make_problem(case)
    run_ranks(
        problem.num_ranks,
        lambda group: run_rank(case, problem, group),
        num_experts=case.num_experts,
        max_tokens=8,
        max_latency_tokens=8,
        max_top_k=5,
        hidden=264,
        topology=case.node_sizes,
        dtype="fp32",
        test_seed=case.seed,
        test_max_signal_delay_ns=100_000 * (case.seed % 2),
    )


@given(cases())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_generated_cases(case: Case) -> None:
    run_case(case)


CHOSEN = Case([2, 1], 7, [5, 0, 6], 3, 136, "throughput", "rank_major")


@pytest.mark.parametrize(("mode", "layout"), LEGAL)
@pytest.mark.parametrize("codec", ["none", "fp8_f32", "fp8_ue8m0"])
def test_every_layout_and_codec(mode: str, layout: str, codec: str) -> None:
    run_case(replace(CHOSEN, mode=mode, layout=layout, codec=codec))


@pytest.mark.parametrize("group", ["choice", "rank", "node"])
@pytest.mark.parametrize("last_choice", [False, True])
@pytest.mark.parametrize("weighting", ["none", "dispatch", "given"])
def test_every_reduction(group: str, last_choice: bool, weighting: str) -> None:
    """In float32 with many terms, where the order of the sum shows in the bits."""
    case = Case([1, 2, 2], 10, [8, 7, 8, 6, 8], 5, 64, "throughput", "expert_major", dtype="fp32", num_biases=1, seed=1)
    run_case(replace(case, rule=ref.Rule(group, last_choice), weighting=weighting))


def test_a_repeated_expert_may_overflow_its_block() -> None:
    def body(group: ferry.Group) -> None:
        x, ids = np.zeros((16, 16), np.float32), np.zeros((16, 2), np.int32)
        with pytest.raises(ferry.Error) as caught:
            group.dispatch(x, ids, layout="expert_padded")
        assert caught.value.code == "overflow"
        assert caught.value.needed_rows == 32
        assert group.dispatch(x, ids, layout="expert_padded", expert_capacity=32).expert_counts.tolist() == [32]

    run_ranks(1, body, num_experts=1)


@pytest.mark.parametrize("tokens", [[0, 0, 0], [1, 1, 1], [8, 8, 8]])
def test_extreme_counts(tokens: list[int]) -> None:
    run_case(replace(CHOSEN, tokens=tokens, layout="expert_major", alignment=8, zero_padding=True))


def test_more_blocks_ride_along() -> None:
    """fp8 rows as bytes or ml_dtypes, their scales and further bytes: moved bit for bit, documented strides."""

    def body(group: ferry.Group) -> None:
        rng = np.random.default_rng(group.rank)
        row = rng.integers(0, 255, (4, 48), dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)
        scales = rng.random((7, 4), dtype=np.float32).T  # column-major, as GEMMs like them
        exponents = rng.integers(0, 255, (4, 3), dtype=np.uint8)
        ids = np.full((4, 1), (group.rank + 1) % group.size, dtype=np.int64)
        sent = [row, scales, ferry.typed(exponents, "ue8m0")]
        result = group.dispatch(sent, ids)
        assert [b.dtype for b in result.payload] == ["fp8_e4m3", "fp32", "ue8m0"]
        assert [b.strides for b in result.payload] == [(48, 1), (8, 1), (16, 1)]
        source = np.random.default_rng((group.rank - 1) % group.size)
        assert same_bits(np.asarray(result.payload[0]).view(np.uint8), source.integers(0, 255, (4, 48), dtype=np.uint8))
        assert same_bits(np.asarray(result.payload[1]), source.random((7, 4), dtype=np.float32).T)
        assert same_bits(np.asarray(result.payload[2]).view(np.uint8), source.integers(0, 255, (4, 3), dtype=np.uint8))

    run_ranks(2, body, num_experts=2, extra_bytes=64)


def test_cached_dispatch_and_returned_weights() -> None:
    """The backward pass: a dispatch along a handle, and top-k weights that come home."""

    def body(group: ferry.Group) -> None:
        rng = np.random.default_rng(group.rank)
        ids = rng.integers(-1, 8, (6, 3)).astype(np.int32)
        weights = rng.random((6, 3), dtype=np.float32)
        first = group.dispatch(rng.random((6, 16), dtype=np.float32), ids, weights, layout="expert_major")
        kept = np.array(first.topk_weights)
        gradient = rng.random((6, 64), dtype=np.float32)
        again = group.dispatch(gradient, topk_weights=weights, handle=first.handle, layout="expert_major")
        assert again.expert_counts.tolist() == first.expert_counts.tolist()
        assert np.array_equal(np.asarray(again.topk_weights), kept)
        back = group.combine(again.payload[0], again.handle, reduction="flat", topk_weights=again.topk_weights)
        assert np.array_equal(np.asarray(back.topk_weights), np.where(ids >= 0, weights, 0))
        times = (ids >= 0).sum(axis=1, keepdims=True).astype(np.float32)
        assert np.allclose(np.asarray(back.out), gradient * times, rtol=1e-6)

    run_ranks(3, body)


def test_out_is_written_and_returned() -> None:
    def body(group: ferry.Group) -> None:
        x = np.full((3, 16), group.rank + 1, dtype=np.float32)
        result = group.dispatch(x, np.zeros((3, 1), dtype=np.int32), layout="expert_major")
        wide = np.full((3, 20), np.float32(-1))
        out = wide[:, 2:18]
        combined = group.combine(result.payload[0], result.handle, out=out)
        assert combined.out is out
        assert np.array_equal(out, x)
        assert (wide[:, :2] == -1).all() and (wide[:, 18:] == -1).all()

    run_ranks(2, body)


def test_replicas() -> None:
    """Two copies of one expert, used in turns."""
    placement = ferry.Placement.explicit_map([[(0, 0), (1, 0)]], 2)
    assert [placement.choose_slot(0, 0, t) for t in range(4)] == [0, 1, 0, 1]

    def body(group: ferry.Group) -> list[int]:
        x = np.arange(4, dtype=np.float32)[:, None] + np.zeros((1, 16), dtype=np.float32)
        result = group.dispatch(x, np.zeros((4, 1), dtype=np.int32))
        return np.asarray(result.payload[0])[:, 0].tolist()

    assert run_ranks(2, body, placement=placement, num_experts=1, max_slots=2) == [[0, 2, 1, 3], [1, 3, 0, 2]]
