# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""Errors say where, who and what was seen, and carry it in fields."""

import pickle
import threading
import time
from collections.abc import Callable

import ferry
import numpy as np
import pytest
from rank_threads import ids_for, run_ranks

X = np.zeros((4, 16), dtype=np.float32)
IDS = np.zeros((4, 2), dtype=np.int32)


class OnDevice:
    def __dlpack__(self, **arguments):
        raise AssertionError("nobody may ask for memory that the CPU cannot read")

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)


def refused(call: Callable[[ferry.Group], object], **config) -> ferry.Error:
    """The error that a call raises in a group of one."""

    def body(group: ferry.Group) -> ferry.Error:
        with pytest.raises(ferry.Error) as caught:
            call(group)
        # The group is as it was.
        assert group.dispatch(X, IDS).num_rows.tolist() == [4]
        return caught.value

    return run_ranks(1, body, **config)[0]


@pytest.mark.parametrize(
    ("call", "argument", "words"),
    [
        (lambda g: g.dispatch(X, IDS, mode="fast"), "mode", ['"fast"', '"throughput"', '"latency"']),
        (lambda g: g.dispatch(X, IDS, layout="rows"), "layout", ['"rank_major"', '"expert_major"', '"expert_padded"']),
        (lambda g: g.dispatch(X, IDS, codec="fp8"), "codec", ['"none"', '"fp8_f32"', '"fp8_ue8m0"']),
        (lambda g: g.dispatch(X, IDS, output="file"), "output", ['"window"', '"owned"']),
        (lambda g: g.dispatch(X, IDS, timeout=0), "timeout", ["0"]),
        (lambda g: g.dispatch(X, IDS, timeout=float("nan")), "timeout", ["nan"]),
        (lambda g: g.dispatch("x", IDS), "payload", ["str", "__dlpack__"]),
        (lambda g: g.dispatch([X, None], IDS), "payload[1]", ["NoneType"]),
        (lambda g: g.dispatch(X.astype(np.float64), IDS), "payload", ["float64", "ferry.typed"]),
        (lambda g: g.dispatch(X.view(np.uint16), IDS), "payload", ["uint16", "ferry.typed"]),
        (lambda g: g.dispatch(X, IDS.astype(np.float32)), "topk_ids", ["fp32", "int32"]),
        (lambda g: g.dispatch(X, IDS[:3]), "topk_ids", ["3"]),
        (lambda g: g.dispatch(X, IDS, IDS), "topk_weights", ["int32"]),
        (lambda g: g.dispatch(X), "topk_ids", []),
        (lambda g: g.dispatch([], IDS), "payload", []),
        (lambda g: g.dispatch(X, IDS + 8), "topk_ids", ["8"]),
        (lambda g: g.dispatch(np.zeros((17, 16), np.float32), np.zeros((17, 1), np.int32)), "payload", ["17", "16"]),
        (lambda g: g.dispatch(X, IDS, codec="fp8_f32", scale_block=128), None, ["bf16"]),
        (lambda g: g.dispatch(X, IDS, codec="logfmt10"), "codec", ["combine"]),
        (lambda g: g.dispatch(X, IDS, alignment=0, layout="expert_major"), "alignment", ["0"]),
        (lambda g: g.mask(5), "rank", ["5"]),
    ],
)
def test_misuse_of_dispatch(call, argument: str | None, words: list[str]) -> None:
    error = refused(call)
    assert error.code in ("invalid_argument", "unsupported"), str(error)
    if argument is not None:
        assert argument in error.argument, (error.argument, str(error))
    for word in words:
        assert word in str(error)


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"x": X[:3]}, "x"),
        ({"x": np.zeros((4, 16), np.int32)}, "x"),
        ({"reduction": "sum"}, "reduction"),
        ({"reduction": 3}, "reduction"),
        ({"reduction": "flat"}, "flat"),
        ({"weights": "gate"}, "weights"),
        ({"weights": np.zeros((4, 2), np.float32)}, "weight"),
        ({"bias": (X, X, X)}, "bias"),
        ({"bias": X[:2]}, "bias"),
        ({"out": np.broadcast_to(X[0], (4, 16))}, "out"),
        ({"out": np.zeros((4, 16), np.float16)}, "out"),
        ({"timeout": -1.0}, "timeout"),
        ({"codec": "logfmt"}, '"logfmt10"'),
        ({"codec": "logfmt10"}, "latency"),
        ({"codec": "fp8_ue8m0"}, "fp8_f32"),
    ],
)
def test_misuse_of_combine(arguments: dict, argument: str) -> None:
    def call(group: ferry.Group) -> None:
        result = group.dispatch(X, IDS)
        group.combine(**({"x": result.payload[0], "handle": result.handle} | arguments))

    error = refused(call)
    assert error.code in ("invalid_argument", "unsupported"), str(error)
    assert argument in error.argument or argument in str(error), (error.argument, str(error))


def test_memory_of_a_device() -> None:
    error = refused(lambda g: g.dispatch(OnDevice(), IDS))
    assert error.argument == "payload"
    assert "device" in str(error)


def test_wrong_kinds_are_type_errors() -> None:
    def body(group: ferry.Group) -> None:
        for call in (
            lambda: group.dispatch(),
            lambda: group.dispatch(X, IDS, speed=1),
            lambda: group.dispatch(X, IDS, handle="handle"),
            lambda: group.combine(X, None),
            lambda: group.mask("0"),
        ):
            with pytest.raises(TypeError):
                call()

    run_ranks(1, body)


def test_mode_by_size() -> None:
    """Ranks with different numbers of tokens come to the same mode, from what all of them know."""

    def body(group: ferry.Group) -> None:
        tokens = 4 if group.rank == 0 else 0
        x, ids = X[:tokens], IDS[:tokens]
        for max_tokens, layout, mode in [
            (4, "rank_major", "latency"),
            (5, "rank_major", "throughput"),
            (0, "rank_major", "throughput"),
            (4, "expert_major", "throughput"),
        ]:
            options = {"mode": "auto", "max_tokens": max_tokens, "layout": layout}
            assert group.mode_of(x, ids, **options) == mode
            result = group.dispatch(x, ids, **options)
            assert result.handle.mode == mode
            assert group.mode_of(x, handle=result.handle, mode="auto", layout=layout) == mode
        assert "max_tokens = 3" in group.why_not(X[:4], IDS[:4], mode="auto", max_tokens=3)
        assert "expert_major" in group.why_not(x, ids, mode="latency", layout="expert_major")

    run_ranks(2, body, num_experts=8, max_tokens=8, max_latency_tokens=4, max_top_k=4, hidden=64, dtype="fp32")


def test_why_not() -> None:
    def body(group: ferry.Group) -> None:
        assert group.why_not(X, IDS) == ""
        reason = group.why_not(X, IDS, mode="latency", layout="expert_major")
        assert "latency" in reason and "expert_padded" in reason
        result = group.dispatch(X, IDS)
        assert group.why_not(x=result.payload[0], handle=result.handle) == ""
        assert "flat" in group.why_not(x=result.payload[0], handle=result.handle, reduction="flat")
        assert group.handle_bytes(X, IDS) >= result.handle.nbytes == len(bytes(result.handle)) > 0

    run_ranks(1, body)


@pytest.mark.parametrize(
    ("keywords", "argument"),
    [
        ({"num_experts": 0}, "num_experts"),
        ({"num_experts": 8, "dtype": "fp64"}, "dtype"),
        ({"num_experts": 8, "topology": []}, "node_sizes"),
        ({"num_experts": 8, "topology": [2]}, "topology"),
        ({"num_experts": 8, "backend": "abacus"}, "backend"),
        ({"num_experts": 8, "network": "pigeons"}, "network"),
        ({"num_experts": 8, "max_tokens": -1}, "max_tokens"),
        ({"num_experts": 8, "num_flights": 0}, "num_flights"),
        ({"num_experts": 8, "timeout": -3.0}, "timeout"),
    ],
)
def test_misuse_of_group(keywords: dict, argument: str) -> None:
    with pytest.raises(ferry.Error) as caught:
        ferry.Group(ferry.meet_in_process(1)[0], **keywords)
    assert caught.value.code in ("invalid_argument", "unsupported")
    assert argument in caught.value.argument or argument in str(caught.value), (
        caught.value.argument,
        str(caught.value),
    )


def test_group_takes_a_config_or_keywords() -> None:
    config = ferry.GroupConfig(num_experts=8, max_tokens=4, hidden=64, max_latency_tokens=0)
    with ferry.Group(ferry.meet_in_process(1)[0], config) as group:
        assert group.config.max_tokens == 4
        assert (group.rank, group.size, group.topology.num_nodes, group.placement.num_experts) == (0, 1, 1, 8)
    with pytest.raises(ferry.Error, match="one or the other"):
        ferry.Group(ferry.meet_in_process(1)[0], config, num_experts=8)
    with pytest.raises(TypeError):
        ferry.Group(ferry.meet_in_process(1)[0], num_experts=8, experts=8)
    with pytest.raises(TypeError):
        ferry.Group(ferry.meet_in_process(1)[0])


def test_overflow_states_the_need() -> None:
    def body(group: ferry.Group) -> tuple[str, int]:
        with pytest.raises(ferry.Error) as caught:
            group.dispatch(np.zeros((8, 16), np.float32), np.zeros((8, 1), np.int32))
        return caught.value.code, caught.value.needed_rows

    assert run_ranks(2, body, recv_rows=10, num_experts=2) == [("overflow", 16)] * 2


def test_timeout_names_the_peer() -> None:
    late = threading.Event()

    def body(group: ferry.Group) -> ferry.Error | None:
        if group.rank == 1:
            assert late.wait(20)
            return None
        begin = time.monotonic()
        try:
            with pytest.raises(ferry.Error) as caught:
                group.dispatch(X, ids_for(group, 4), timeout=0.3)
        finally:
            late.set()
        assert 0.2 < time.monotonic() - begin < 10
        return caught.value

    error = run_ranks(2, body)[0]
    assert error.code is ferry.ErrorCode.TIMEOUT
    assert [peer.rank for peer in error.peers] == [1]
    assert error.peers[0].seen < error.peers[0].wanted
    assert error.epoch == 1
    assert error.step
    assert error.step in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.code, copy.step, copy.epoch, copy.peers) == (
        str(error),
        error.code,
        error.step,
        error.epoch,
        error.peers,
    )


def test_abort_from_another_thread() -> None:
    def body(group: ferry.Group) -> str | None:
        if group.rank == 1:
            time.sleep(0.2)
            return None
        threading.Timer(0.1, group.abort).start()
        with pytest.raises(ferry.Error) as caught:
            group.dispatch(X, ids_for(group, 4))
        with pytest.raises(ferry.Error) as again:
            group.check()
        assert again.value.code == "aborted"
        return caught.value.code

    assert run_ranks(2, body)[0] == "aborted"


def test_bootstrap_error() -> None:
    with pytest.raises(ferry.Error) as caught:
        ferry.meet_over_tcp(1, 2, port=1, timeout=0.3)
    assert caught.value.code in ("bootstrap", "timeout")
    with pytest.raises(ferry.Error) as caught:
        ferry.meet_over_tcp(0, 1, port=0)
    assert caught.value.argument == "port"
    with pytest.raises(ferry.Error, match="size"):
        ferry.meet_in_process(0)


def test_errors_are_runtime_errors() -> None:
    assert issubclass(ferry.Error, RuntimeError)
    assert {code.value for code in ferry.ErrorCode} == {
        "invalid_argument",
        "unsupported",
        "overflow",
        "timeout",
        "peer_lost",
        "mismatch",
        "aborted",
        "bootstrap",
        "internal",
    }
