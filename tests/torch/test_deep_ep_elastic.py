# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""deep_ep V2: sections 4.5 to 4.9 of the contract, bit for bit."""

import time

import pytest
import torch
from deep_ep import ElasticBuffer, EPHandle
from deep_ep.checks import require
from elastic_cases import (
    NODES,
    TMAX,
    arrivals,
    check_sums,
    expert_places,
    expert_results,
    make,
    put,
    send,
    set_nodes,
    slots,
)
from problems import Problem, same, sum_rank
from ranks import run_ranks

# 4.6, without expansion.


@NODES
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("sync", [True, False])
def test_rows_of_ranks(device, monkeypatch, node_size, deterministic, sync):
    if node_size and device == "cuda":
        pytest.skip("not run across nodes on GPUs so far")
    set_nodes(monkeypatch, node_size)
    problem = Problem.make([9, 4, 13, 5], experts=12, top_k=4)

    def body(comm):
        buffer = make(comm, deterministic=deterministic)
        rank = buffer.rank_idx
        x, ids, weights, handle, event = send(buffer, problem, device, do_cpu_sync=sync)
        sources = arrivals(problem, rank, node_size, deterministic)
        n = len(sources)
        assert x.shape[0] == ids.shape[0] == weights.shape[0] == (n if sync else 4 * TMAX)
        same(x[:n], problem.stack(problem.x, sources))
        same(ids[:n], torch.stack([problem.local_ids(rank, s, t) for s, t in sources]))
        same(weights[:n], problem.stack(problem.weights, sources))  # verbatim, also where the id is -1
        assert event.event is None and ids.dtype == torch.int64
        check_rank_handle(problem, buffer, handle, sources, sync)
        y = torch.full_like(x, float("nan"))
        y[:n] = sum_rank(x[:n], rank)
        out, out_weights, _ = buffer.combine(y, handle, topk_weights=weights)
        check_sums(problem, rank, out, expand=False, node_size=node_size)
        same(out_weights, torch.where(problem.ids[rank] >= 0, problem.weights[rank], 0.0))
        again = buffer.dispatch(put(problem, rank, device)[0] * 2, handle=handle)
        same(again[0][:n], problem.stack([rows * 2 for rows in problem.x], sources))
        same(again[1][:n], ids[:n])
        assert again[2] is None and again[3] is handle and again[0].shape == x.shape

    run_ranks(4, body, device)


def check_rank_handle(problem, buffer, handle, sources, sync):
    rank, scaleup = buffer.rank_idx, buffer.num_scaleup_ranks
    counts = problem.counts(rank)
    assert isinstance(handle, EPHandle) and handle.do_expand is False
    named = (handle.num_experts, handle.expert_alignment, handle.num_max_tokens_per_rank)
    assert named == (problem.experts, 1, TMAX) and handle.num_sms >= 4
    same(handle.topk_idx, problem.ids[rank])
    worst = problem.ranks * TMAX
    assert handle.num_recv_tokens == (len(sources) if sync else worst)
    assert handle.num_expanded_tokens == (sum(counts) if sync else worst * min(problem.top_k, problem.local))
    assert handle.num_recv_tokens_per_expert_list == (counts if sync else [])
    same(handle.num_unaligned_recv_tokens_per_expert, torch.tensor(counts, dtype=torch.int32))
    same(handle.psum_num_recv_tokens_per_expert, torch.tensor(counts).cumsum(0).to(torch.int32))
    ends = [sum(s % scaleup <= up for s, _ in sources) for up in range(scaleup)]
    same(handle.psum_num_recv_tokens_per_scaleup_rank, torch.tensor(ends, dtype=torch.int32))
    table = handle.recv_src_metadata
    assert table.shape == ((len(sources) if sync else worst), problem.top_k + 2) and table.dtype == torch.int32
    seen = dict.fromkeys(range(scaleup), 0)
    for row, (s, t) in enumerate(sources):
        in_block = seen[s % scaleup]
        seen[s % scaleup] += 1
        first = s % scaleup if buffer.num_scaleout_ranks == 1 else in_block
        expected = [s * TMAX + t, first * problem.top_k + max(slots(problem, rank, s, t))]
        assert table[row, :2].tolist() == expected
    check_destinations(problem, rank, handle)
    assert handle.token_metadata_at_forward is None and handle.channel_linked_list is None


def check_destinations(problem, rank, handle):
    table = handle.dst_buffer_slot_idx
    assert table.shape == (problem.tokens[rank], problem.top_k) and table.dtype == torch.int32
    seen = dict.fromkeys(range(problem.ranks), 0)
    for t in range(problem.tokens[rank]):
        expected = [-1] * problem.top_k
        for owner in sorted(set(problem.owners(rank, t)) - {-1}):
            expected[max(slots(problem, owner, rank, t))] = rank * TMAX + seen[owner]
            seen[owner] += 1
        assert table[t].tolist() == expected


def test_without_weights(device):
    problem = Problem.make([5, 6])

    def body(comm):
        buffer = make(comm)
        recv_x, ids, weights, handle, _ = send(buffer, problem, device, topk_weights=None)
        assert weights is None and ids.shape == (recv_x.shape[0], problem.top_k)
        out, out_weights, _ = buffer.combine(sum_rank(recv_x, buffer.rank_idx), handle)
        assert out_weights is None
        check_sums(problem, buffer.rank_idx, out, expand=False)

    run_ranks(2, body, device)


def test_tables_may_be_rewritten(device):
    """vLLM rewrites recv_topk_idx in place; callers overwrite recv_src_metadata."""
    problem = Problem.make([5, 6])

    def body(comm):
        buffer = make(comm)
        recv_x, ids, _, handle, _ = send(buffer, problem, device)
        ids[ids == -1] = problem.experts
        handle.recv_src_metadata = None
        handle.psum_num_recv_tokens_per_expert = 5
        assert handle.recv_src_metadata is None and handle.psum_num_recv_tokens_per_expert == 5
        check_sums(problem, buffer.rank_idx, buffer.combine(sum_rank(recv_x, buffer.rank_idx), handle)[0], expand=False)

    run_ranks(2, body, device)


# 4.6, with expansion.


@NODES
@pytest.mark.parametrize("alignment", [1, 4])
@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("padding", [True, False])
def test_rows_of_experts(device, monkeypatch, node_size, alignment, sync, padding):
    if node_size and device == "cuda":
        pytest.skip("not run across nodes on GPUs so far")
    set_nodes(monkeypatch, node_size)
    problem = Problem.make([9, 4, 13, 5], experts=8, top_k=4)

    def body(comm):
        buffer = make(comm)
        rank = buffer.rank_idx
        x, ids, weights, handle, _ = send(
            buffer,
            problem,
            device,
            do_expand=True,
            do_cpu_sync=sync,
            expert_alignment=alignment,
            do_zero_padding=padding,
        )
        places, total = expert_places(problem, rank, alignment)
        worst = 4 * TMAX * min(problem.top_k, problem.local) + (alignment - 1) * problem.local
        assert ids is None and x.shape[0] == weights.shape[0] == (total if sync else -(-worst // alignment) * alignment)
        for place, _, s, t, k in places:
            same(x[place], problem.x[s][t])
            assert weights[place] == problem.weights[s][t, k]
        if padding:
            gaps = sorted(set(range(total)) - {place for place, *_ in places})
            assert (x[gaps] == 0).all() and (weights[gaps] == 0).all()
        check_expert_handle(problem, buffer, handle, alignment, sync, x.shape[0])
        y = expert_results(problem, rank, x.shape[0], alignment).to(device)
        out, out_weights, _ = buffer.combine(y, handle, topk_weights=weights)
        check_sums(problem, rank, out, expand=True, node_size=node_size)
        same(out_weights, torch.where(problem.ids[rank] >= 0, problem.weights[rank], 0.0))

    run_ranks(4, body, device)


def check_expert_handle(problem, buffer, handle, alignment, sync, rows):
    rank = buffer.rank_idx
    counts = problem.counts(rank)
    aligned = [-(-count // alignment) * alignment for count in counts]
    assert handle.do_expand is True and handle.expert_alignment == alignment
    assert handle.num_recv_tokens_per_expert_list == (aligned if sync else [])
    assert handle.num_expanded_tokens == rows
    starts = [sum(aligned[:e]) for e in range(problem.local)]
    ends = [start + count for start, count in zip(starts, counts, strict=True)]
    same(handle.psum_num_recv_tokens_per_expert, torch.tensor(ends, dtype=torch.int32))
    same(handle.num_unaligned_recv_tokens_per_expert, torch.tensor(counts, dtype=torch.int32))
    sources = problem.arrivals(rank)
    table = handle.recv_src_metadata
    assert table.shape == (len(sources), problem.top_k + 2)
    where = {(s, t, k): place for place, _, s, t, k in expert_places(problem, rank, alignment)[0]}
    scaleup, seen = buffer.num_scaleup_ranks, dict.fromkeys(range(buffer.num_scaleup_ranks), 0)
    for row, (s, t) in enumerate(sources):
        in_block = seen[s % scaleup]
        seen[s % scaleup] += 1
        first = s if buffer.num_scaleout_ranks == 1 else in_block
        key = [s * TMAX + t, first * problem.top_k + max(slots(problem, rank, s, t))]
        assert table[row].tolist() == key + [where.get((s, t, k), -1) for k in range(problem.top_k)]
    check_destinations(problem, rank, handle)


def test_cached_expansion(device):
    """The pattern of backward passes: positions as recorded, other rows, new weights."""
    problem = Problem.make([7, 6])

    def body(comm):
        buffer = make(comm)
        rank = buffer.rank_idx
        _, _, _, handle, _ = send(buffer, problem, device, do_expand=True, expert_alignment=2)
        other = Problem.make([7, 6], seed=5)
        x, _, weights = put(other, rank, device)
        recv_x, ids, recv_weights, same_handle, _ = buffer.dispatch(
            x,
            handle=handle,
            topk_weights=weights,
            do_expand=True,
            num_experts=8,
            expert_alignment=2,
            num_max_tokens_per_rank=TMAX,
            do_cpu_sync=False,
        )
        assert ids is None and same_handle is handle
        for place, _, s, t, k in expert_places(problem, rank, 2)[0]:
            same(recv_x[place], other.x[s][t])
            assert recv_weights[place] == other.weights[s][t, k]
        assert buffer.dispatch(x, handle=handle, do_expand=True)[2] is None

    run_ranks(2, body, device)


def test_cached_weights_without_expansion(device):
    problem, other = Problem.make([7, 6]), Problem.make([7, 6], seed=5)

    def body(comm):
        buffer = make(comm)
        rank = buffer.rank_idx
        handle = send(buffer, problem, device)[3]
        x, _, weights = put(other, rank, device)
        recv_x, _, recv_weights, _, _ = buffer.dispatch(x, handle=handle, topk_weights=weights)
        same(recv_x, problem.stack(other.x, problem.arrivals(rank)))
        same(recv_weights, problem.stack(other.weights, problem.arrivals(rank)))

    run_ranks(2, body, device)


def test_more_rows_than_expected(device):
    """All choices at one rank: its groups grow."""
    problem = Problem.make([TMAX, TMAX], experts=16, top_k=6)
    ids = [torch.arange(6).repeat(TMAX, 1) for _ in range(2)]
    problem = Problem(problem.tokens, 16, 6, problem.hidden, problem.x, ids, problem.weights)

    def body(comm):
        buffer = make(comm)
        rank = buffer.rank_idx
        x, _, _, handle, _ = send(buffer, problem, device, do_expand=True)
        assert x.shape[0] == (2 * TMAX * 6 if rank == 0 else 0)
        y = expert_results(problem, rank, x.shape[0]).to(device)
        check_sums(problem, rank, buffer.combine(y, handle)[0], expand=True)

    run_ranks(2, body, device)


# 4.6: scales, other options.


@pytest.mark.parametrize("expand", [False, True])
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.int32])
@pytest.mark.parametrize("column_major", [False, True])
def test_scales(device, expand, scale_dtype, column_major):
    problem = Problem.make([7, 6], hidden=128)
    generator = torch.Generator().manual_seed(3)
    scales = [torch.randint(0, 1 << 20, (t, 5), generator=generator).to(scale_dtype) for t in problem.tokens]
    data = [x.to(torch.float8_e4m3fn).view(torch.uint8) for x in problem.x]

    def body(comm):
        buffer = make(comm, use_fp8_dispatch=True)
        rank = buffer.rank_idx
        given = (data[rank].view(torch.float8_e4m3fn).to(device), scales[rank].to(device).t().contiguous().t())
        arguments = {"do_expand": expand, "use_tma_aligned_col_major_sf": column_major}
        (rows, got), *_ = send(buffer, problem, device, x=given, **arguments)
        assert rows.dtype == torch.float8_e4m3fn and got.dtype == scale_dtype
        sources = problem.arrivals(rank)
        if expand:
            sources = [(s, t) for _, _, s, t, _ in expert_places(problem, rank, 1)[0]]
        same(rows.view(torch.uint8), problem.stack(data, sources))
        same(got, problem.stack(scales, sources))
        assert got.stride() == ((1, -(-len(sources) // 4) * 4) if column_major else (5, 1))

    run_ranks(2, body, device)


def test_statistics_accumulate_unaligned_counts(device):
    problem = Problem.make([7, 6])

    def body(comm):
        buffer = make(comm)
        stats = torch.full((problem.local,), 3, dtype=torch.int32, device=device)
        for _ in range(2):
            handle = send(
                buffer, problem, device, cumulative_local_expert_recv_stats=stats, do_expand=True, expert_alignment=8
            )[3]
        assert stats.tolist() == [3 + 2 * count for count in problem.counts(buffer.rank_idx)]
        with pytest.raises(RuntimeError, match="cumulative_local_expert_recv_stats"):
            buffer.dispatch(problem.x[0], handle=handle, do_expand=True, cumulative_local_expert_recv_stats=stats)

    run_ranks(2, body, device)


def test_handle_keeps_or_copies_ids(device):
    problem = Problem.make([4, 4])

    def body(comm):
        buffer = make(comm)
        ids = problem.ids[buffer.rank_idx].to(device)
        copied = send(buffer, problem, device, topk_idx=ids)[3]
        kept = send(buffer, problem, device, topk_idx=ids, do_handle_copy=False)[3]
        assert kept.topk_idx is ids and copied.topk_idx is not ids
        same(copied.topk_idx, ids)

    run_ranks(2, body, device)


def test_rows_of_other_types(device):
    problem = Problem.make([4, 5])

    def body(comm):
        buffer = make(comm)
        for dtype in (torch.float16, torch.float64, torch.int16):
            typed = [(x * 8).to(dtype) for x in problem.x]
            got = send(buffer, problem, device, x=typed[buffer.rank_idx].to(device))[0]
            same(got, problem.stack(typed, problem.arrivals(buffer.rank_idx)))

    run_ranks(2, body, device)


def test_events_and_streams(device):
    problem = Problem.make([4, 5])

    def body(comm):
        buffer = make(comm)
        recv_x, _, _, handle, event = send(buffer, problem, device, async_with_compute_stream=True)
        assert event.event is not None
        event.current_stream_wait()
        recv_x, _, _, handle, event = send(
            buffer,
            problem,
            device,
            previous_event=ElasticBuffer.capture(),
            previous_event_before_epilogue=ElasticBuffer.capture(),
            allocate_on_comm_stream=True,
            async_with_compute_stream=1,
        )
        with event:
            pass
        out, _, done = buffer.combine(
            sum_rank(recv_x, buffer.rank_idx), handle, async_with_compute_stream=True, allocate_on_comm_stream=True
        )
        done.current_stream_wait(release_handle=True)
        check_sums(problem, buffer.rank_idx, out, expand=False)
        with pytest.raises(RuntimeError, match="allocate_on_comm_stream"):
            send(buffer, problem, device, previous_event=ElasticBuffer.capture())
        with pytest.raises(RuntimeError, match="EventHandle"):
            send(buffer, problem, device, previous_event=event, allocate_on_comm_stream=True)
        assert send(buffer, problem, device, allocate_on_comm_stream=True)[4].event is None

    run_ranks(2, body, device)


def test_barrier_waits_for_all():
    def body(comm):
        buffer = make(comm)
        buffer.barrier()
        comm.allgather(None)
        start = time.monotonic()
        if buffer.rank_idx == 1:
            time.sleep(0.3)
        buffer.barrier()
        assert time.monotonic() - start > 0.29

    run_ranks(3, body)


def test_limits_of_the_original_that_are_none_here(device):
    problem = Problem.make([3, 4], experts=2500, top_k=36, hidden=96)

    def body(comm):
        buffer = make(comm)
        x, _, _, handle, _ = send(buffer, problem, device, num_sms=6)
        assert handle.num_sms == 6
        check_sums(problem, buffer.rank_idx, buffer.combine(sum_rank(x, buffer.rank_idx), handle)[0], expand=False)

    run_ranks(2, body, device)


def test_dispatch_refuses():
    problem = Problem.make([4])

    def body(comm):
        buffer = make(comm)
        x, ids, weights = put(problem, 0, "cpu")
        handle = send(buffer, problem, "cpu")[3]
        good = {"x": x, "topk_idx": ids, "num_experts": 8}
        cached = {"topk_idx": None, "num_experts": None, "handle": handle}
        cases = [
            (AssertionError, {"topk_idx": None}, "topk_idx"),
            (AssertionError, {"handle": handle}, "topk_idx"),
            (AssertionError, {"num_experts": None}, "num_experts"),
            (AssertionError, {"do_zero_padding": True}, "do_expand"),
            (RuntimeError, {"topk_idx": ids.int()}, "expected scalar type Long"),
            (RuntimeError, {"topk_weights": weights[1:]}, "topk_weights"),
            (RuntimeError, {"x": x.t().contiguous().t()}, "contiguous"),
            (RuntimeError, {"x": (x, torch.zeros((4, 2), dtype=torch.float64))}, "4-byte"),
            (RuntimeError, {"num_max_tokens_per_rank": 3}, "at most 3"),
            (RuntimeError, {"expert_alignment": 0}, "expert_alignment"),
            (RuntimeError, {"num_sms": 100_000}, "num_sms"),
            (RuntimeError, {"num_qps": 100}, "num_allocated_qps"),
            (RuntimeError, cached | {"do_cpu_sync": True}, "do_cpu_sync"),
            (RuntimeError, cached | {"num_experts": 16}, "as the handle's"),
            (RuntimeError, cached | {"expert_alignment": 2}, "as the handle's"),
            (RuntimeError, cached | {"num_max_tokens_per_rank": 2}, "as the handle's"),
            (RuntimeError, cached | {"do_expand": True}, "do_expand"),
            (RuntimeError, cached | {"handle": EPHandle(topk_idx=ids, num_experts=8)}, "no dispatch made"),
        ]
        for kind, wrong, seen in cases:
            with pytest.raises(kind, match=seen):
                buffer.dispatch(**(good | wrong))
        nameless = make(comm, num_bytes=2 << 20, num_max_tokens_per_rank=0)
        with pytest.raises(RuntimeError, match="num_max_tokens_per_rank"):
            nameless.dispatch(**good)
        buffer.dispatch(x, handle=handle)  # num_sms and num_experts come from the handle

    run_ranks(1, body)


# 4.7


def test_handles_are_plain_objects():
    names = "do_expand num_experts expert_alignment num_max_tokens_per_rank num_sms topk_idx num_recv_tokens".split()
    handle = EPHandle(*range(16))
    assert [getattr(handle, name) for name in names] == list(range(7))
    assert handle.channel_linked_list == 15 and handle.cached_recv_src_metadata_before_sort is None
    handle.num_sms = 99
    assert handle.num_sms == 99
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = handle.nothing_of_the_kind
    for wrong in ((range(17), {}), ((), {"nothing": 1}), ((1,), {"do_expand": 2})):
        with pytest.raises(TypeError):
            EPHandle(*wrong[0], **wrong[1])
    with pytest.raises(RuntimeError, match="text"):
        require(False, "text")


# 4.9


@NODES
@pytest.mark.parametrize("expand", [False, True])
@pytest.mark.parametrize("multiple", [False, True])
@pytest.mark.parametrize("num_biases", [0, 1, 2])
def test_sums(device, monkeypatch, node_size, expand, multiple, num_biases):
    """Both reduction rules, bit for bit; many choices of one rank, so that the order shows."""
    if node_size and device == "cuda":
        pytest.skip("not run across nodes on GPUs so far")
    set_nodes(monkeypatch, node_size)
    problem = Problem.make([6, 9, 0, 4], experts=16, top_k=8)
    generator = torch.Generator().manual_seed(4)
    biases = [
        [torch.randn((t, problem.hidden), generator=generator).to(torch.bfloat16) for _ in range(num_biases)]
        for t in problem.tokens
    ]

    def body(comm):
        buffer = make(comm, allow_multiple_reduction=multiple)
        rank = buffer.rank_idx
        x, _, _, handle, _ = send(buffer, problem, device, do_expand=expand)
        y = expert_results(problem, rank, x.shape[0]).to(device) if expand else sum_rank(x, rank)
        given = [bias.to(device) for bias in biases[rank]]
        bias = [None, *given[:1], tuple(given)][num_biases]
        out, _, _ = buffer.combine(y, handle, bias=bias)
        check_sums(problem, rank, out, expand, multiple, node_size, biases[rank])

    run_ranks(4, body, device)


def test_weights_without_intermediate_sums(device):
    """Expanded rows, one reduction, weights: the original traps."""
    problem = Problem.make([6, 9])

    def body(comm):
        buffer = make(comm, allow_multiple_reduction=False)
        rank = buffer.rank_idx
        x, _, weights, handle, _ = send(buffer, problem, device, do_expand=True)
        _, back, _ = buffer.combine(x, handle, topk_weights=weights)
        same(back, torch.where(problem.ids[rank] >= 0, problem.weights[rank], 0.0))

    run_ranks(2, body, device)


def test_a_rank_that_does_not_come():
    problem = Problem.make([6, 9])

    def body(comm):
        buffer = make(comm, num_cpu_timeout_secs=1, num_gpu_timeout_secs=0.5)
        send(buffer, problem, "cpu")
        if buffer.rank_idx == 0:
            start = time.monotonic()
            with pytest.raises(RuntimeError, match="rank 1"):
                send(buffer, problem, "cpu")
            assert 0.9 < time.monotonic() - start < 10
        comm.allgather(None)

    run_ranks(2, body)


def test_combine_refuses():
    problem = Problem.make([4])

    def body(comm):
        buffer = make(comm)
        x, _, weights, handle, _ = send(buffer, problem, "cpu")
        for wrong, seen in [
            ({"x": x.float()}, "bfloat16"),
            ({"x": x[1:]}, "argument x"),
            ({"topk_weights": weights[:, 1:]}, "topk_weights"),
            ({"bias": torch.zeros((4, 64))}, r"bias\[0\]"),
            ({"num_sms": 100_000}, "num_sms"),
        ]:
            with pytest.raises(RuntimeError, match=seen):
                buffer.combine(**({"x": x, "handle": handle} | wrong))

    run_ranks(1, body)


def test_graph_without_host_counts():
    from ranks import need

    need("cuda", 2)
    problem = Problem.make([6, 9])

    def body(comm):
        buffer = make(comm)
        x, ids, weights = put(problem, buffer.rank_idx, "cuda")

        def cycle():
            recv_x, recv_ids, _, handle, _ = buffer.dispatch(x, ids, weights, num_experts=8, do_cpu_sync=False)
            out, _, event = buffer.combine(recv_x, handle, async_with_compute_stream=True, allocate_on_comm_stream=True)
            event.current_stream_wait()
            return out, recv_x, recv_ids, handle

        expected = cycle()[0].clone()
        torch.cuda.synchronize()
        comm.allgather(None)
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        kept = cycle()
        graph.capture_end()
        for _ in range(3):
            graph.replay()
            same(cycle()[0], expected)
        same(kept[0], expected)

    run_ranks(2, body, "cuda")
