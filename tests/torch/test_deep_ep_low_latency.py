# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""deep_ep V1, low-latency mode: sections 3.8 and 3.9 of the contract, bit for bit."""

import pytest
import torch
from deep_ep import Buffer, Config
from problems import Problem, one_expert, row_sum, same
from ranks import run_ranks

TMAX, HIDDEN, EXPERTS = 8, 512, 6
FORMATS = {
    "bf16": {"use_fp8": False},
    "fp8": {"use_fp8": True},
    "fp8-round": {"use_fp8": True, "round_scale": True},
    "fp8-ue8m0": {"use_fp8": True, "round_scale": True, "use_ue8m0": True},
}


def make(comm, **arguments):
    return Buffer(comm, low_latency_mode=True, num_qps_per_rank=2, **({"timeout": 20.0} | arguments))


def problem_of(tokens, **arguments):
    return Problem.make(tokens, **({"experts": EXPERTS, "hidden": HIDDEN} | arguments))


def put(problem, rank, device):
    return problem.x[rank].to(device), problem.ids[rank].to(device), problem.weights[rank].to(device)


def send(buffer, problem, device, **arguments):
    x, ids, _ = put(problem, buffer.rank, device)
    return buffer.low_latency_dispatch(x, ids, TMAX, problem.experts, **arguments)


def quantised(rows, round_scale):
    """e4m3 data and the factors to multiply it with, [N, H / 128], by the contract's formulas."""
    blocks = rows.float().view(rows.shape[0], rows.shape[1] // 128, 128)
    amax = blocks.abs().amax(2).clamp(min=1e-4)
    if round_scale:
        factor = torch.exp2(torch.ceil(torch.log2(amax.double() / 448))).float()
        scaled = blocks / factor[..., None]
    else:
        factor = amax * (torch.tensor(1.0) / 448.0)
        # A division: PyTorch makes a reciprocal of number / tensor.
        scaled = blocks * (torch.full_like(amax, 448) / amax)[..., None]
    data = scaled.clamp(-448, 448).to(torch.float8_e4m3fn)
    return data.view(rows.shape), factor


def packed(factors):
    """Exponent bytes, four per int32, the first in the lowest byte."""
    exponent = (factors.contiguous().view(torch.int32) >> 23) & 255
    shifts = torch.tensor([0, 8, 16, 24], dtype=torch.int32)
    return (exponent.view(exponent.shape[0], exponent.shape[1] // 4, 4) << shifts).sum(2).to(torch.int32)


def check_arrival(problem, rank, recv, count, chosen):
    sources = problem.expert_rows(rank)
    assert count.dtype == torch.int32 and count.tolist() == [len(rows) for rows in sources]
    slots = problem.ranks * TMAX
    data, scales = recv if chosen["use_fp8"] else (recv, None)
    assert data.shape == (problem.local, slots, problem.hidden) and data.is_contiguous()
    for e, rows in enumerate(sources):
        sent = problem.stack(problem.x, [(s, t) for s, t, _ in rows])
        if scales is None:
            same(data[e, : len(rows)], sent)
            continue
        wanted, factors = quantised(sent, chosen.get("round_scale", False))
        same(data[e, : len(rows)].view(torch.uint8), wanted.view(torch.uint8))
        same(scales[e, : len(rows)], packed(factors) if chosen.get("use_ue8m0") else factors)
    if scales is not None:
        width = problem.hidden // (512 if chosen.get("use_ue8m0") else 128)
        assert scales.dtype == (torch.int32 if chosen.get("use_ue8m0") else torch.float32)
        assert scales.shape == (problem.local, slots, width) and scales.stride() == (width * slots, 1, slots)


def experts(problem, rank, count, slots, device):
    """What the experts make of the rows, at the rows' places; elsewhere NaN, which nobody may read."""
    y = torch.full((problem.local, slots, problem.hidden), float("nan"), dtype=torch.bfloat16)
    for e, rows in enumerate(problem.expert_rows(rank)):
        for place, (s, t, _) in enumerate(rows):
            y[e, place] = one_expert(problem.x[s][t], rank * problem.local + e)
    return y.to(device)


def check_sums(problem, rank, out, left_out=()):
    for t in range(problem.tokens[rank]):
        live = [
            (k, e) for k, e in enumerate(problem.ids[rank][t].tolist()) if e >= 0 and e // problem.local not in left_out
        ]
        rows = [one_expert(problem.x[rank][t], e) for _, e in live]
        weights = [problem.weights[rank][t, k] for k, _ in live]
        same(out[t], row_sum(torch.zeros(problem.hidden), rows, weights))
    assert out.shape == (problem.tokens[rank], problem.hidden) and out.dtype == torch.bfloat16


@pytest.mark.parametrize("hook", [False, True], ids=["whole", "hook"])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("tokens", [[5], [8, 0], [3, 8, 1]], ids=str)
def test_cycle(device, tokens, form, hook):
    problem, chosen = problem_of(tokens), FORMATS[form]

    def body(comm):
        buffer = make(comm)
        rank = buffer.rank
        _, ids, weights = put(problem, rank, device)
        for _ in range(3):
            recv, count, handle, event, receive = send(buffer, problem, device, return_recv_hook=hook, **chosen)
            assert event.event is None and callable(receive) == hook
            if hook:
                receive()
            check_arrival(problem, rank, recv, count, chosen)
            y = experts(problem, rank, count, problem.ranks * TMAX, device)
            out, event, receive = buffer.low_latency_combine(y, ids, weights, handle, return_recv_hook=hook)
            if hook:
                receive()
            check_sums(problem, rank, out)

    run_ranks(len(tokens), body, device)


def test_handle(device):
    problem = problem_of([7, 4, 0])

    def body(comm):
        buffer = make(comm)
        _, _, handle, _, hook = send(buffer, problem, device, use_fp8=False, return_recv_hook=True)
        early = handle[0]
        assert handle[1].shape == (problem.local, problem.ranks)  # of nothing yet
        hook()
        assert isinstance(handle, tuple) and len(handle) == 5
        assert early.data_ptr() == handle[0].data_ptr()
        assert handle[2:] == (TMAX, HIDDEN, EXPERTS)
        src_info, layout_range = handle[0], handle[1]
        slots = problem.ranks * TMAX
        assert (src_info.shape, src_info.dtype) == ((problem.local, slots), torch.int32)
        assert (layout_range.shape, layout_range.dtype) == ((problem.local, problem.ranks), torch.int64)
        for e, rows in enumerate(problem.expert_rows(buffer.rank)):
            assert src_info[e, : len(rows)].tolist() == [t for _, t, _ in rows]
            for source in range(problem.ranks):
                begin, count = divmod(int(layout_range[e, source]), 1 << 32)
                assert count == sum(s == source for s, _, _ in rows)
                assert begin == sum(s < source for s, _, _ in rows)

    run_ranks(3, body, device)


def test_statistics(device):
    problem = problem_of([7, 4])

    def body(comm):
        buffer = make(comm)
        _, ids, weights = put(problem, buffer.rank, device)
        counts = torch.full((problem.local,), 10, dtype=torch.int32, device=device)
        waits = torch.zeros(2, dtype=torch.int64, device=device)
        returned = torch.zeros(2, dtype=torch.int64, device=device)
        for _ in range(2):
            recv, count, handle, _, _ = send(
                buffer,
                problem,
                device,
                use_fp8=False,
                cumulative_local_expert_recv_stats=counts,
                dispatch_wait_recv_cost_stats=waits,
            )
            buffer.low_latency_combine(recv, ids, weights, handle, combine_wait_recv_cost_stats=returned)
        assert counts.tolist() == [10 + 2 * count for count in problem.counts(buffer.rank)]
        assert (waits >= 0).all() and (returned >= 0).all()
        if device == "cpu":
            assert int(waits.sum() + returned.sum()) > 0

    run_ranks(2, body, device)


def test_waiting_is_charged_to_the_late_rank():
    import time

    problem = problem_of([4, 4])

    def body(comm):
        buffer = make(comm)
        waits = torch.zeros(2, dtype=torch.int64)
        send(buffer, problem, "cpu", dispatch_wait_recv_cost_stats=waits)
        before = waits.clone()
        comm.allgather(None)
        if buffer.rank == 1:
            time.sleep(0.3)
        send(buffer, problem, "cpu", dispatch_wait_recv_cost_stats=waits)
        if buffer.rank == 0:
            assert waits[1] - before[1] > 100_000_000, waits  # nanoseconds

    run_ranks(2, body)


def test_asynchronous(device):
    problem = problem_of([6, 2])

    def body(comm):
        buffer = make(comm)
        _, ids, weights = put(problem, buffer.rank, device)
        recv, count, handle, event, hook = send(buffer, problem, device, use_fp8=False, async_finish=True)
        assert hook is None and event.event is not None and any(t is recv for t in event.extra_tensors)
        event.current_stream_wait()
        check_arrival(problem, buffer.rank, recv, count, FORMATS["bf16"])
        y = experts(problem, buffer.rank, count, 2 * TMAX, device)
        out, event, _ = buffer.low_latency_combine(y, ids, weights, handle, async_finish=True)
        with event:
            pass
        check_sums(problem, buffer.rank, out)
        for call in (
            lambda: send(buffer, problem, device, async_finish=True, return_recv_hook=True),
            lambda: buffer.low_latency_combine(y, ids, weights, handle, False, False, True, True),
        ):
            with pytest.raises(RuntimeError, match="async_finish and return_recv_hook"):
                call()

    run_ranks(2, body, device)


def test_hooks_are_called_once(device):
    problem = problem_of([6, 2])

    def body(comm):
        buffer = make(comm)
        _, ids, weights = put(problem, buffer.rank, device)
        recv, _, handle, _, hook = send(buffer, problem, device, use_fp8=False, return_recv_hook=True)
        with pytest.raises(RuntimeError, match="hook"):
            buffer.low_latency_combine(recv, ids, weights, handle)
        hook()
        with pytest.raises(RuntimeError, match="second time"):
            hook()

    run_ranks(2, body, device)


def test_out_and_empty_rows(device):
    problem = problem_of([6, 2])

    def body(comm):
        buffer = make(comm)
        x, ids, weights = put(problem, buffer.rank, device)
        nowhere = torch.full_like(ids, -1)
        recv, count, handle, _, _ = buffer.low_latency_dispatch(x, nowhere, TMAX, EXPERTS, use_fp8=False)
        assert count.tolist() == [0] * problem.local
        out = torch.full_like(x, 7)
        got, _, _ = buffer.low_latency_combine(recv, nowhere, weights, handle, out=out)
        assert got is out and (out == 0).all()
        wrong = torch.empty((x.shape[0] + 1, HIDDEN), dtype=torch.bfloat16, device=device)
        with pytest.raises(RuntimeError, match="argument out"):
            buffer.low_latency_combine(recv, nowhere, weights, handle, out=wrong)

    run_ranks(2, body, device)


def test_zero_copy(device):
    problem = problem_of([6, 3])

    def body(comm):
        buffer = make(comm)
        _, ids, weights = put(problem, buffer.rank, device)
        for _ in range(2):
            recv, count, handle, _, _ = send(buffer, problem, device, use_fp8=False)
            y = experts(problem, buffer.rank, count, 2 * TMAX, device)
            memory = buffer.get_next_low_latency_combine_buffer(handle)
            width = HIDDEN + 2 * (HIDDEN // 128)
            assert memory.shape == y.shape and memory.dtype == torch.bfloat16
            assert memory.stride() == (2 * TMAX * width, width, 1)
            assert buffer.get_next_low_latency_combine_buffer(handle).data_ptr() == memory.data_ptr()
            memory.copy_(y)
            # The contents of x are not looked at.
            out, _, _ = buffer.low_latency_combine(torch.zeros_like(y), ids, weights, handle, zero_copy=True)
            check_sums(problem, buffer.rank, out)
        with pytest.raises(RuntimeError, match="use_logfmt and zero_copy"):
            buffer.low_latency_combine(recv, ids, weights, handle, use_logfmt=True, zero_copy=True)

    run_ranks(2, body, device)


def test_logfmt(device):
    """Within the codec's 2.21 % of what bf16 rows give, and not the same; rows that do not fit travel as bf16."""
    problem = problem_of([6, 3])

    def body(comm):
        buffer = make(comm)
        _, ids, weights = put(problem, buffer.rank, device)
        for _ in range(2):
            _, count, handle, _, _ = send(buffer, problem, device, use_fp8=False)
            y = experts(problem, buffer.rank, count, 2 * TMAX, device)

            def combine(rows, weights=weights, handle=handle, **options):
                return buffer.low_latency_combine(rows, ids, weights, handle, **options)[0].float()

            small = y * 2.0**-30
            exact, coded = combine(small), combine(small, use_logfmt=True)
            sizes = combine(small.abs(), weights.abs())
            # Both sums are rounded to bf16, and so are the sizes.
            assert ((coded - exact).abs() <= 0.0221 * sizes * 1.01 + 2.0**-8 * sizes).all()
            assert not torch.equal(coded, exact)
            large = y + torch.where(y < 0, -1.0, 1.0).to(y.dtype)
            assert torch.equal(combine(large, use_logfmt=True), combine(large))

    run_ranks(2, body, device)


def test_other_shapes_between_calls(device):
    """Different most tokens, hidden sizes, experts and formats on one buffer, and normal calls in turn."""

    def body(comm):
        buffer = make(comm, num_nvl_bytes=1 << 20)
        for seed, (tmax, hidden, count) in enumerate([(4, 512, 4), (16, 2048, 8), (4, 8192, 4), (600, 128, 4)]):
            problem = Problem.make([3, 4], experts=count, hidden=hidden, seed=seed)
            x, ids, weights = put(problem, buffer.rank, device)
            recv, n, handle, _, _ = buffer.low_latency_dispatch(x, ids, tmax, count, use_fp8=False)
            assert recv.shape == (count // 2, 2 * tmax, hidden)
            y = experts(problem, buffer.rank, n, 2 * tmax, device)
            check_sums(problem, buffer.rank, buffer.low_latency_combine(y, ids, weights, handle)[0])
            layout = buffer.get_dispatch_layout(ids, count)
            sent = buffer.dispatch(
                x,
                num_tokens_per_rank=layout[0],
                num_tokens_per_expert=layout[2],
                is_token_in_rank=layout[3],
                topk_idx=ids,
                topk_weights=weights,
                config=Config(4),
            )
            same(sent[0], problem.stack(problem.x, problem.arrivals(buffer.rank)))
            assert buffer.clean_low_latency_buffer(tmax, hidden, count) is None

    run_ranks(2, body, device)


def test_scales_of_a_width_that_packs_badly(device):
    """640 channels: five scales, two packs; the original refuses."""
    problem = Problem.make([3, 3], experts=4, hidden=640)

    def body(comm):
        buffer = make(comm)
        arguments = {"use_fp8": True, "round_scale": True, "use_ue8m0": True}
        (data, scales), *_ = send(buffer, problem, device, **arguments)
        rows = problem.expert_rows(buffer.rank)[0]
        wanted, factors = quantised(problem.stack(problem.x, [(s, t) for s, t, _ in rows]), True)
        same(data[0, : len(rows)].view(torch.uint8), wanted.view(torch.uint8))
        wide = torch.zeros((len(rows), 8))
        wide[:, :5] = factors
        same(scales[0, : len(rows)], packed(wide))

    run_ranks(2, body, device)


def test_refusals():
    problem = problem_of([4])

    def body(comm):
        buffer, normal = make(comm), Buffer(comm)
        x, ids, weights = put(problem, 0, "cpu")
        cases = [
            ({"x": x.float()}, "bfloat16"),
            ({"topk_idx": ids.int()}, "expected scalar type Long"),
            ({"num_max_dispatch_tokens_per_rank": 3}, "at most"),
            ({"use_ue8m0": True}, "round_scale"),
            ({"cumulative_local_expert_recv_stats": torch.zeros(6)}, "cumulative_local_expert_recv_stats"),
            ({"dispatch_wait_recv_cost_stats": torch.zeros((1, 1))}, "dispatch_wait_recv_cost_stats"),
        ]
        good = {"x": x, "topk_idx": ids, "num_max_dispatch_tokens_per_rank": TMAX, "num_experts": EXPERTS}
        for wrong, seen in cases:
            with pytest.raises(RuntimeError, match=seen):
                buffer.low_latency_dispatch(**(good | wrong))
        with pytest.raises(RuntimeError, match="low_latency_mode=True"):
            normal.low_latency_dispatch(**good)
        recv, _, handle, _, _ = buffer.low_latency_dispatch(**good, use_fp8=False)
        for wrong, seen in [
            ({"x": recv[:, 1:]}, "argument x"),
            ({"topk_idx": ids[1:]}, "topk_idx"),
            ({"topk_weights": weights.double()}, "topk_weights"),
            ({"combine_wait_recv_cost_stats": torch.zeros(1)}, "combine_wait_recv_cost_stats"),
        ]:
            arguments = {"x": recv, "topk_idx": ids, "topk_weights": weights, "handle": handle} | wrong
            with pytest.raises(RuntimeError, match=seen):
                buffer.low_latency_combine(**arguments)

    run_ranks(1, body)
    with pytest.raises(RuntimeError, match="multiple of the 2 ranks"):
        run_ranks(
            2,
            lambda comm: make(comm).low_latency_dispatch(
                torch.zeros((1, 512), dtype=torch.bfloat16), torch.zeros((1, 1), dtype=torch.int64), TMAX, 3
            ),
        )


def test_masks(device):
    """Rank 2 is left out by the others, and taken back by all."""
    problem = problem_of([5, 3, 4])

    def body(comm):
        buffer = make(comm, enable_shrink=True)
        rank = buffer.rank
        _, ids, weights = put(problem, rank, device)
        status = torch.full((3,), 9, dtype=torch.int32, device=device)
        send(buffer, problem, device, use_fp8=False)
        if rank < 2:
            buffer.low_latency_update_mask_buffer(2, True)
            buffer.low_latency_query_mask_buffer(status)
            assert status.tolist() == [0, 0, 1]
            recv, count, handle, _, _ = send(buffer, problem, device, use_fp8=False)
            rows = [[r for r in rows if r[0] < 2] for rows in problem.expert_rows(rank)]
            assert count.tolist() == [len(r) for r in rows]
            assert all(int(v) & 0xFFFFFFFF == 0 for v in handle[1][:, 2])
            y = torch.zeros((problem.local, 3 * TMAX, HIDDEN), dtype=torch.bfloat16)
            for e, expert in enumerate(rows):
                for place, (s, t, _) in enumerate(expert):
                    y[e, place] = one_expert(problem.x[s][t], rank * problem.local + e)
            out, _, _ = buffer.low_latency_combine(y.to(device), ids, weights, handle)
            check_sums(problem, rank, out, left_out=(2,))
        comm.allgather(None)
        if rank < 2:
            buffer.low_latency_clean_mask_buffer()
            buffer.low_latency_query_mask_buffer(status)
            assert status.tolist() == [0, 0, 0]
        else:
            # The rank that was left out says that it is back.
            next(iter(buffer._lanes.of_mode("latency"))).group.unmask(2)
        recv, count, _, _, _ = send(buffer, problem, device, use_fp8=False)
        check_arrival(problem, rank, recv, count, FORMATS["bf16"])

    run_ranks(3, body, device)


def test_masks_need_shrink():
    def body(comm):
        buffer = make(comm)
        for call in (
            lambda: buffer.low_latency_update_mask_buffer(0, True),
            lambda: buffer.low_latency_query_mask_buffer(torch.zeros(1, dtype=torch.int32)),
            lambda: buffer.low_latency_clean_mask_buffer(),
        ):
            with pytest.raises(RuntimeError, match="Shrink mode must be enabled"):
                call()
        shrinking = make(comm, enable_shrink=True)
        with pytest.raises(RuntimeError, match="argument rank"):
            shrinking.low_latency_update_mask_buffer(1, True)
        with pytest.raises(RuntimeError, match="mask_status"):
            shrinking.low_latency_query_mask_buffer(torch.zeros(2))

    run_ranks(1, body)


@pytest.mark.parametrize("shrink", [True, False])
@pytest.mark.filterwarnings("ignore:deep_ep")
def test_a_rank_that_does_not_come(shrink):
    """With enable_shrink it is masked and the call completes; without, the call ends in an error that names it."""
    problem = problem_of([5, 3, 4])

    def body(comm):
        buffer = make(comm, enable_shrink=shrink, timeout=1.5)
        rank = buffer.rank
        _, ids, weights = put(problem, rank, "cpu")
        send(buffer, problem, "cpu", use_fp8=False)
        if rank == 2:
            comm.allgather(None)
            return
        if not shrink:
            with pytest.raises(RuntimeError, match="rank 2"):
                send(buffer, problem, "cpu", use_fp8=False)
            comm.allgather(None)
            return
        recv, count, handle, _, hook = send(buffer, problem, "cpu", use_fp8=False, return_recv_hook=True)
        hook()
        status = torch.zeros(3, dtype=torch.int32)
        buffer.low_latency_query_mask_buffer(status)
        assert status.tolist() == [0, 0, 1]
        assert count.tolist() == [sum(s < 2 for s, _, _ in rows) for rows in problem.expert_rows(rank)]
        out, _, _ = buffer.low_latency_combine(recv, ids, weights, handle)
        assert out.isfinite().all()
        comm.allgather(None)

    run_ranks(3, body)


def test_graph_of_a_cycle():
    """Captured and replayed with direct calls in turn."""
    from ranks import need

    need("cuda", 2)
    problem = problem_of([6, 3])

    def body(comm):
        buffer = make(comm)
        x, ids, weights = put(problem, buffer.rank, "cuda")

        def cycle():
            recv, _, handle, _, hook = buffer.low_latency_dispatch(
                x, ids, TMAX, EXPERTS, use_fp8=False, return_recv_hook=True
            )
            hook()
            out, _, hook = buffer.low_latency_combine(recv, ids, weights, handle, return_recv_hook=True)
            hook()
            return out, recv, handle

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
