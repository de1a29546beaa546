# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""Dispatch and combine against the NumPy reference: generated cases, ranks as threads."""

import gc
import weakref
from dataclasses import replace

import ferry
import ml_dtypes
import moe_reference as ref
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moe_cases import (
    Case,
    check_combine,
    check_experts,
    check_rank_major,
    combine_arguments,
    dispatch_arguments,
    make_problem,
    run_experts,
    same_bits,
    send_blocks,
)
from rank_threads import run_ranks

LEGAL = [
    ("throughput", "rank_major"),
    ("throughput", "expert_major"),
    ("throughput", "expert_padded"),
    ("latency", "rank_major"),
    ("latency", "expert_padded"),
]


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
    if case.layout == "rank_major":
        tokens = [token for _, token in ref.rank_major(problem, rank).sources]
        assert [result.handle.source_token(i) for i in range(len(tokens))] == tokens

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


def aligned_bytes(num_bytes: int) -> np.ndarray:
    whole = np.zeros(num_bytes + 16, np.uint8)
    begin = -whole.ctypes.data % 16
    return whole[begin : begin + num_bytes]


def test_handles_in_lent_memory() -> None:
    """The caller's memory holds the handle, and stays for as long as anything needs it."""

    def body(group: ferry.Group) -> None:
        x = np.full((3, 16), group.rank + 1, dtype=np.float32)
        ids = np.full((3, 1), group.rank, dtype=np.int32)
        sent = (x, ids, np.ones((3, 1), np.float32))
        needed = group.handle_bytes(*sent, layout="expert_major")
        kept = []
        for split in (False, True):
            memory = aligned_bytes(needed)
            gone = weakref.ref(memory)
            if split:
                result = group.dispatch_send(*sent, layout="expert_major", handle_memory=memory).receive()
            else:
                result = group.dispatch(*sent, layout="expert_major", handle_memory=memory)
            assert bytes(result.handle) == memory.tobytes()[: result.handle.nbytes]
            kept.append((result.handle, gone))
            del memory, result
        gc.collect()
        assert all(gone() is not None for _, gone in kept)
        handle, gone = kept.pop()
        again = group.dispatch(2 * x, handle=handle, layout="expert_major")
        assert np.array_equal(np.asarray(group.combine(again.payload[0], again.handle).out), 2 * x)
        del handle
        gc.collect()
        assert gone() is not None, "the second dispatch shares the handle"
        del again
        for _ in range(group.config.num_flights):  # the group itself lets go of calls whose flights it takes again
            other = group.dispatch(x, ids)
            group.combine(other.payload[0], other.handle)
        gc.collect()
        assert gone() is None

    run_ranks(2, body, num_experts=2)


def test_memory_that_cannot_hold_a_handle() -> None:
    def body(group: ferry.Group) -> None:
        x, ids = np.zeros((3, 16), np.float32), np.zeros((3, 1), np.int32)
        needed = group.handle_bytes(x, ids)
        room = aligned_bytes(4 * needed)
        readonly = room.copy()
        readonly.flags.writeable = False
        for words, memory in {
            f"handle_memory is {needed - 16} bytes, expected at least {needed}": room[: needed - 16],
            "at a multiple of 16 bytes": room[8:],
            "with gaps": room[::2],
            "in another order": room[: 2 * needed].reshape(2, needed).T,
            "read-only": readonly,
            "an empty array": room[:0],
        }.items():
            with pytest.raises(ferry.Error, match=words) as caught:
                group.dispatch(x, ids, handle_memory=memory)
            assert (caught.value.code, caught.value.argument) == ("invalid_argument", "handle_memory")
        assert "at least" in group.why_not(x, ids, handle_memory=room[: needed - 16])
        for memory in (room.view(np.int64).reshape(4, -1, 1), room[16:]):
            assert group.dispatch(x, ids, handle_memory=memory).handle.num_tokens == 3

    run_ranks(1, body)


def test_the_host_has_no_combine_input() -> None:
    def body(group: ferry.Group) -> None:
        assert group.statistics().device_memory == ""
        handle = group.dispatch(np.zeros((3, 16), np.float32), np.zeros((3, 1), np.int32)).handle
        with pytest.raises(ferry.Error, match="give it to combine") as caught:
            group.combine_input(handle, "fp32", 16)
        assert caught.value.code == "unsupported"
        with pytest.raises(ferry.Error, match="dtype is") as caught:
            group.combine_input(handle, "int32", 16)
        with pytest.raises(ferry.Error, match="elements is 0, expected 1 to"):
            group.combine_input(handle, "fp32", 0)

    run_ranks(1, body)


@pytest.mark.parametrize("split", [False, True], ids=["one", "halves"])
@pytest.mark.parametrize("reduction", ["per_rank", "flat"])
@pytest.mark.parametrize(("codec", "error"), [("fp8_f32", 1 / 16 + 2**-15), (ferry.Codec.LOGFMT10, 0.0221)])
def test_combine_in_fewer_bits(codec: str, error: float, reduction: str, split: bool) -> None:
    """One expert a token, whose row comes back alone: within the codec's bound, and rounded to bf16 once."""

    def body(group: ferry.Group) -> None:
        rng = np.random.default_rng(group.rank)
        x = np.ldexp(rng.uniform(-1, 1, (6, 776)), -rng.integers(0, 30, (6, 776))).astype(ml_dtypes.bfloat16)
        x[1] = 0
        x[2] *= 64  # logfmt10 leaves such rows as they are
        arrived = group.dispatch(x, rng.integers(0, 4, (6, 1)), mode="latency", layout="expert_padded")
        arguments = {"reduction": reduction, "codec": codec}
        if split:
            combined = group.combine_send(arrived.payload[0], arrived.handle, **arguments).receive()
        else:
            combined = group.combine(arrived.payload[0], arrived.handle, **arguments)
        exact, out = x.astype(np.float64), np.asarray(combined.out).astype(np.float64)
        floor = 2.0**-31 if codec == "logfmt10" else 64 * 2.0**-18  # of what is small in its group
        assert (np.abs(out - exact) <= (error + 2**-8) * np.abs(exact) + floor).all()
        assert not np.array_equal(out[0], exact[0])
        if codec == "logfmt10":
            assert np.array_equal(out[1:3], exact[1:3])

    run_ranks(2, body, hidden=776, dtype="bf16", num_experts=4)


@pytest.mark.parametrize("mode", ["latency", "throughput"])
def test_payload_goes_to_arrays_of_the_caller(mode: str) -> None:
    """expert_padded: real rows and nothing else, with any strides, when the call is received."""

    def body(group: ferry.Group) -> None:
        rng = np.random.default_rng(group.rank)
        x = rng.standard_normal((5, 256), dtype=np.float32).astype(ml_dtypes.bfloat16)
        tags = np.arange(10, dtype=np.int32).reshape(5, 2) + 100 * group.rank
        ids = np.array([rng.permutation(8)[:3] for _ in range(5)])
        options = {"mode": mode, "layout": "expert_padded", "codec": "fp8_f32", "expert_capacity": 12}
        wanted = group.dispatch([x, tags], ids, **options)
        data = np.full((4, 12, 256), 99, np.uint8)
        scales = np.full((4, 2, 12), np.float32(-1)).transpose(0, 2, 1)
        notes = np.full((4, 12, 2), -1, np.int32)
        out = [ferry.typed(data, "fp8_e4m3"), scales, notes]
        pending = group.dispatch_send([x, tags], ids, out=out, **options)
        assert (data == 99).all() and (scales == -1).all() and (notes == -1).all()
        arrived = pending.receive()
        assert all(got is given for got, given in zip(arrived.payload, out, strict=True))
        for e, count in enumerate(arrived.expert_counts.tolist()):
            expected = [np.asarray(block)[e, :count] for block in wanted.payload]
            assert same_bits(data[e, :count], expected[0].view(np.uint8))
            assert same_bits(scales[e, :count], expected[1])
            assert same_bits(notes[e, :count], expected[2])
            assert (data[e, count:] == 99).all() and (scales[e, count:] == -1).all() and (notes[e, count:] == -1).all()
        y = np.asarray(wanted.payload[0]).astype(ml_dtypes.bfloat16)
        assert np.asarray(group.combine(y, arrived.handle).out).shape == x.shape

    run_ranks(2, body, hidden=256, dtype="bf16", extra_bytes=32)


def test_arrays_for_the_payload_are_checked() -> None:
    def body(group: ferry.Group) -> None:
        x, ids = np.zeros((2, 16), np.float32), np.zeros((2, 1), np.int32)
        out = np.zeros((8, 4, 16), np.float32)
        options = {"layout": "expert_padded", "expert_capacity": 4}
        assert group.why_not(x, ids, out=[out], **options) == ""
        cases = [
            ({"out": []}, ""),  # none given
            ({"out": [out, out]}, "2 tensors"),
            ({"out": [out[:, :3]]}, "[8, 4, 16] fp32"),
            ({"out": [out.astype(np.float16)]}, "[8, 4, 16] fp32"),
            ({"out": [out], "layout": "rank_major"}, "only expert_padded"),
        ]
        for wrong, said in cases:
            reason = group.why_not(x, ids, **(options | wrong))
            assert said in reason and bool(said) == bool(reason), (wrong, reason)
        with pytest.raises(TypeError):
            group.dispatch(x, ids, out=7, **options)
        out.flags.writeable = False
        with pytest.raises(ferry.Error, match=r"out\[0\]"):
            group.dispatch(x, ids, out=[out], **options)

    run_ranks(1, body)


def test_replicas() -> None:
    """Two copies of one expert, used in turns."""
    placement = ferry.Placement.explicit_map([[(0, 0), (1, 0)]], 2)
    assert [placement.choose_slot(0, 0, t) for t in range(4)] == [0, 1, 0, 1]

    def body(group: ferry.Group) -> list[int]:
        x = np.arange(4, dtype=np.float32)[:, None] + np.zeros((1, 16), dtype=np.float32)
        result = group.dispatch(x, np.zeros((4, 1), dtype=np.int32))
        return np.asarray(result.payload[0])[:, 0].tolist()

    assert run_ranks(2, body, placement=placement, num_experts=1, max_slots=2) == [[0, 2, 1, 3], [1, 3, 0, 2]]
