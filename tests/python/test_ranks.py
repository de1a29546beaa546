# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""Ranks as threads, as multiprocessing workers and through the launcher; and what one thread may do to another."""

import gc
import multiprocessing
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

import ferry
import numpy as np
import pytest
from ferry.launch import find_port_pair
from rank_threads import SMALL, ids_for, run_ranks, run_threads

CONFIG = {"num_experts": 8, "max_tokens": 16, "max_latency_tokens": 0, "hidden": 64, "dtype": "fp32", "timeout": 30.0}


def round_trip(group: ferry.Group) -> None:
    """Every token to two experts and back: the sum is twice the token."""
    x = np.random.default_rng(group.rank).random((8, 64), dtype=np.float32)
    result = group.dispatch(x, ids_for(group, 8))
    chosen = (np.asarray(result.topk_ids) >= 0).sum(axis=1, keepdims=True).astype(np.float32)
    combined = group.combine(np.asarray(result.payload[0]) * chosen, result.handle)
    assert np.array_equal(np.asarray(combined.out), 2 * x)


# Ranks as processes.


def tcp_worker(rank: int, size: int, port: int, answers: "multiprocessing.Queue[tuple[int, str]]") -> None:
    try:
        with ferry.Group(ferry.meet_over_tcp(rank, size, port=port, token="secret"), **CONFIG) as group:
            for _ in range(3):
                round_trip(group)
            assert group.statistics().epoch >= 6
        answers.put((rank, "ok"))
    except BaseException as error:
        answers.put((rank, repr(error)))


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_multiprocessing(method: str) -> None:
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    port = find_port_pair()
    workers = [context.Process(target=tcp_worker, args=(rank, 3, port, answers), daemon=True) for rank in range(3)]
    for worker in workers:
        worker.start()
    got = sorted(answers.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join(timeout=20)
    assert got == [(0, "ok"), (1, "ok"), (2, "ok")]
    assert [worker.exitcode for worker in workers] == [0, 0, 0]


def lost_worker(rank: int, port: int, answers: "multiprocessing.Queue[tuple[int, str]]") -> None:
    group = ferry.Group(ferry.meet_over_tcp(rank, 2, port=port), **CONFIG)
    round_trip(group)
    if rank == 1:
        answers.put((1, "going"))
        answers.close()
        answers.join_thread()
        os._exit(3)
    try:
        round_trip(group)
        answers.put((0, "no error"))
    except ferry.Error as error:
        answers.put((0, f"{error.code} {[peer.rank for peer in error.peers]}"))


def test_a_lost_process() -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    port = find_port_pair()
    workers = [context.Process(target=lost_worker, args=(rank, port, answers), daemon=True) for rank in range(2)]
    for worker in workers:
        worker.start()
    assert sorted(answers.get(timeout=30) for _ in workers) == [(0, "peer_lost [1]"), (1, "going")]
    for worker in workers:
        worker.join(timeout=20)


SCRIPT = """
import sys
import numpy as np
import ferry
meeting = ferry.meet_from_environment()
with ferry.Group(meeting, num_experts=6, max_tokens=8, max_latency_tokens=0, hidden=16, dtype="fp32") as group:
    x = np.full((2, 16), group.rank, dtype=np.float32)
    result = group.dispatch(x, np.full((2, 1), (group.rank + 1) % group.size * (6 // group.size), dtype=np.int64))
    first = np.asarray(result.payload[0])[:, 0].tolist()
    sys.stdout.write(f"{group.rank} {group.topology.describe()} {first}\\n")  # one piece
"""


def test_launcher(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "ferry.launch", "--ranks", "3", "--node-size", "2", str(script)]
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["0 2+1 [2.0, 2.0]", "1 2+1 [0.0, 0.0]", "2 2+1 [1.0, 1.0]"]


def test_one_rank_alone_without_variables(tmp_path: Path) -> None:
    environment = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("0 1 [0.0, 0.0]\n", 0), done.stderr


# A lent all-gather.


class Gather:
    """An all-gather among threads, in Python."""

    def __init__(self, size: int) -> None:
        self.parts: list[bytes] = [b""] * size
        self.barrier = threading.Barrier(size)

    def for_rank(self, rank: int):
        def all_gather(mine: bytes) -> list[bytes]:
            assert isinstance(mine, bytes)
            self.parts[rank] = mine
            self.barrier.wait(20)
            parts = list(self.parts)
            self.barrier.wait(20)
            return parts

        return all_gather


def test_meet_through_a_python_callable() -> None:
    gather = Gather(3)

    def body(rank: int) -> None:
        with ferry.Group(ferry.meet_through(rank, 3, gather.for_rank(rank)), **SMALL) as group:
            assert (group.rank, group.size) == (rank, 3)
            round_trip(group)

    run_threads([lambda rank=rank: body(rank) for rank in range(3)])


@pytest.mark.parametrize(
    ("answer", "words"),
    [([b"x"], "sequence of 1"), (b"ab", "bytes"), ([1, 2], "int"), (7, "int"), (["a", "b"], "str")],
)
def test_an_all_gather_that_answers_nonsense(answer, words: str) -> None:
    with pytest.raises(ferry.Error, match=words):
        ferry.meet_through(0, 2, lambda mine: answer).all_gather(b"x")


def test_an_all_gather_that_raises() -> None:
    def all_gather(mine: bytes) -> list[bytes]:
        raise LookupError("no such job")

    with pytest.raises(LookupError, match="no such job"):
        ferry.meet_through(0, 2, all_gather).all_gather(b"x")
    with pytest.raises((LookupError, ferry.Error), match="no such job"):
        ferry.Group(ferry.meet_through(0, 2, all_gather), **SMALL)


def test_meetings_gather_bytes() -> None:
    meetings = ferry.meet_in_process(3)
    assert [(m.rank, m.size) for m in meetings] == [(0, 3), (1, 3), (2, 3)]
    gathered = run_threads([lambda m=m: m.all_gather(b"x" * m.rank) for m in meetings])
    assert gathered == [[b"", b"x", b"xx"]] * 3


# Threads.


def test_waits_release_the_gil() -> None:
    """Two ranks of one process can only meet if a waiting one lets the other run; and a third thread runs meanwhile."""
    ticks = 0
    stop = threading.Event()

    def count() -> None:
        nonlocal ticks
        while not stop.is_set():
            ticks += 1
            time.sleep(0.001)

    counter = threading.Thread(target=count)
    counter.start()

    def body(group: ferry.Group) -> int:
        round_trip(group)
        before = ticks
        if group.rank == 1:
            time.sleep(0.3)
        round_trip(group)
        return ticks - before

    waited = run_ranks(2, body)[0]
    stop.set()
    counter.join()
    assert waited > 20


def test_a_second_thread_gets_an_error() -> None:
    entered = threading.Event()
    tried = threading.Event()

    def body(group: ferry.Group) -> None:
        if group.rank == 1:
            assert tried.wait(20)
            round_trip(group)
            return
        seen: queue.Queue[ferry.Error] = queue.Queue()

        def intrude() -> None:
            entered.wait(20)
            time.sleep(0.2)
            for call in (group.check, group.statistics, group.close, lambda: round_trip(group)):
                try:
                    call()
                except ferry.Error as error:
                    seen.put(error)
            tried.set()

        other = threading.Thread(target=intrude)
        other.start()
        entered.set()
        round_trip(group)
        other.join()
        errors = [seen.get_nowait() for _ in range(4)]
        assert {error.code for error in errors} == {"invalid_argument"}
        assert "another thread" in str(errors[0])
        group.check()

    run_ranks(2, body)


# Owners and lifetimes.


def test_results_outlive_the_group() -> None:
    def body(group: ferry.Group) -> tuple:
        x = np.full((4, 64), group.rank + 1, dtype=np.float32)
        result = group.dispatch(x, ids_for(group, 4))
        combined = group.combine(result.payload[0], result.handle)
        rows = np.asarray(result.payload[0])
        return (
            rows,
            rows.copy(),
            np.asarray(combined.out),
            combined.out.tolist(),
            np.asarray(result.handle.source_offsets),
        )

    kept = run_ranks(2, body)
    gc.collect()
    for rows, rows_then, out, out_then, offsets in kept:
        assert np.array_equal(rows, rows_then)
        assert out.tolist() == out_then
        assert offsets.tolist()[-1] == len(rows)
        rows[:] = 0  # mapped and ours


def test_owned_results_stay() -> None:
    def body(group: ferry.Group) -> None:
        results = []
        for call in range(5):
            x = np.full((4, 64), call, dtype=np.float32)
            results.append(np.asarray(group.dispatch(x, ids_for(group, 4), output="owned").payload[0]))
        for call, rows in enumerate(results):
            assert (rows == call).all()

    run_ranks(2, body)


def test_closed_groups() -> None:
    def body(group: ferry.Group) -> None:
        round_trip(group)
        group.close()
        group.close()
        with pytest.raises(ferry.Error) as caught:
            group.dispatch(np.zeros((1, 64), np.float32), np.zeros((1, 1), np.int32))
        assert caught.value.code == "invalid_argument"

    run_ranks(2, body)


def test_split_phases_and_order_of_receives() -> None:
    def body(group: ferry.Group) -> None:
        x = [np.full((4, 64), 10 * call + group.rank, dtype=np.float32) for call in range(2)]
        pending = [group.dispatch_send(x[call], ids_for(group, 4)) for call in range(2)]
        assert all(p.valid for p in pending)
        for array in x:
            array[:] = -1  # the inputs are ours again
        results = [pending[1].receive(), pending[0].receive()][::-1]
        for call, result in enumerate(results):
            assert (np.asarray(result.payload[0]) // 10 == call).all()
        with pytest.raises(ferry.Error) as caught:
            pending[0].receive()
        assert caught.value.code == "invalid_argument"
        assert not pending[0].valid
        sums = [group.combine_send(r.payload[0], r.handle) for r in results]
        outs = [sums[1].receive().out, sums[0].receive().out][::-1]
        assert [np.asarray(out).shape for out in outs] == [(4, 64)] * 2

    run_ranks(2, body)


def test_dropped_pending_calls_harm_nobody() -> None:
    def body(group: ferry.Group) -> None:
        for _ in range(8):
            x = np.ones((4, 64), dtype=np.float32)
            group.dispatch_send(x, ids_for(group, 4))
            result = group.dispatch(x, ids_for(group, 4))
            bias, out = np.zeros((4, 64), np.float32), np.zeros((4, 64), np.float32)
            group.combine_send(result.payload[0], result.handle, bias=bias, out=out)
            del bias, out
            gc.collect()
            np.ones((4, 64), np.float32)  # would take the place of what was freed
        round_trip(group)

    run_ranks(2, body)


def test_masks() -> None:
    def body(group: ferry.Group) -> None:
        round_trip(group)
        if group.rank == 2:
            return
        group.mask(2)
        assert group.masked() == [False, False, True]
        x = np.ones((4, 64), dtype=np.float32)
        ids = np.tile(np.array([[0, 7]], dtype=np.int32), (4, 1))  # expert 7 lives on rank 2
        weights = np.full((4, 2), 0.5, dtype=np.float32)
        result = group.dispatch(x, ids, weights, renormalise=True, layout="expert_major")
        combined = group.combine(result.payload[0], result.handle, weights="dispatch")
        assert (np.asarray(combined.out) == 1).all()

    run_ranks(3, body)


def test_statistics_and_trace() -> None:
    def body(group: ferry.Group) -> None:
        round_trip(group)
        assert [trace.step for trace in group.last_trace()][-1] == "combine_recv"
        statistics = group.statistics()
        assert statistics.epoch == 2
        assert len(statistics.wait_ns) == group.size
        plan = ferry.memory_plan(group.config, group.topology, group.rank)
        assert statistics.window_bytes == plan.total_bytes
        assert sum(region.bytes for region in plan.regions) <= plan.total_bytes
        assert all(region.name for region in plan.regions)

    run_ranks(2, body)


@pytest.mark.parametrize(("nodes", "network"), [([2], "none"), ([1, 1], "loopback")])
def test_names_of_what_was_chosen(nodes: list[int], network: str) -> None:
    def body(group: ferry.Group) -> None:
        assert group.backend_name == "host"
        assert group.network_name == network

    run_ranks(2, body, topology=nodes, backend="host")


def test_a_group_over_tcp_and_options_that_cannot_be_honoured() -> None:
    usable = {one.name: one for one in ferry.capabilities()}["network tcp"]
    if not usable.usable:
        pytest.skip(usable.detail)

    def body(group: ferry.Group) -> None:
        assert group.network_name == "tcp"
        assert group.config.proxy_threads == 2
        x = np.full((3, 64), group.rank + 1, dtype=np.float32)
        result = group.dispatch(x, ids_for(group, 3))
        assert len(result.payload[0]) > 0

    run_ranks(2, body, topology=[1, 1], network="tcp", proxy_threads=2)
    with pytest.raises(ferry.Error, match="traffic class"):
        run_ranks(2, body, topology=[1, 1], network="tcp", traffic_class="low_latency")
    with pytest.raises(ferry.Error, match="no_such_card"):
        run_ranks(2, body, topology=[1, 1], network="tcp", nics=["no_such_card"])


def test_traffic_plan() -> None:
    config = ferry.GroupConfig(num_experts=8, hidden=64)
    plan = ferry.traffic_plan(config, ferry.Topology.split(8, 2), "per_node", 100, 2)
    assert plan.dispatch_node_bytes > 0 and plan.dispatch_network_bytes > 0
    alone = ferry.traffic_plan(config, ferry.Topology.single_node(1), ferry.Reduction.flat(), 100, 2)
    assert (alone.dispatch_node_bytes, alone.dispatch_network_bytes) == (0, 0)
