# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""deep_ep V1, normal mode: sections 3.4 to 3.7 of the contract, bit for bit."""

import pytest
import torch
from deep_ep import Buffer, Config, EventHandle, EventOverlap
from deep_ep.buffers import handles
from normal_cases import CHANNELS, CONFIG, SMS, check_arrival, check_sums, lay_out, make, put, send
from problems import Problem, same, sum_rank
from ranks import run_ranks

# 3.5


def test_layout(device):
    problem = Problem.make([7, 0, 5], experts=6)

    def body(comm):
        buffer = make(comm)
        x, ids, _ = put(problem, buffer.rank, device)
        per_rank, per_node, per_expert, in_rank, event = buffer.get_dispatch_layout(ids, problem.experts)
        owners = [problem.owners(buffer.rank, t) for t in range(x.shape[0])]
        same(in_rank, torch.tensor([[r in o for r in range(3)] for o in owners], dtype=torch.bool).view(-1, 3))
        same(per_rank, in_rank.sum(0).to(torch.int32))
        flat = ids.flatten().tolist()
        same(per_expert, torch.tensor([flat.count(e) for e in range(6)], dtype=torch.int32))
        assert per_node is None and in_rank.is_contiguous() and event.event is None
        asked = buffer.get_dispatch_layout(
            topk_idx=ids,
            num_experts=6,
            previous_event=Buffer.capture(),
            async_finish=True,
            allocate_on_comm_stream=True,
        )
        assert asked[4].event is not None
        asked[4].current_stream_wait()
        same(asked[3], in_rank)
        twice = torch.tensor([[1, 1, -1]], device=device)
        assert buffer.get_dispatch_layout(twice, 6)[2].tolist() == [0, 2, 0, 0, 0, 0]

    run_ranks(3, body, device)


def test_tensors_that_require_gradients(device):
    """As autograd functions hand them over."""
    problem = Problem.make([5, 3])

    def body(comm):
        buffer = make(comm)
        x, _, weights = put(problem, buffer.rank, device)
        choices = {"topk_weights": weights.requires_grad_()}
        recv_x, _, recv_weights, _, handle, _ = send(buffer, problem, device, x.requires_grad_(), **choices)
        assert not recv_x.requires_grad and not recv_weights.requires_grad
        y = torch.stack([sum_rank(row, buffer.rank) for row in recv_x.cpu()]).to(device).requires_grad_()
        bias = torch.zeros_like(x).requires_grad_()
        out, _, _ = buffer.combine(y, handle, recv_weights.requires_grad_(), bias=(bias, bias), config=CONFIG)
        check_sums(problem, buffer.rank, out)
        assert not out.requires_grad

    run_ranks(2, body, device)


def test_layout_refuses():
    def body(comm):
        buffer = make(comm)
        ids = torch.zeros((2, 2), dtype=torch.int64)
        with pytest.raises(RuntimeError, match="expected scalar type Long but found Int"):
            buffer.get_dispatch_layout(ids.to(torch.int32), 4)
        with pytest.raises(RuntimeError, match="contiguous"):
            buffer.get_dispatch_layout(torch.zeros((2, 4), dtype=torch.int64)[:, ::2], 4)
        with pytest.raises(RuntimeError, match="num_experts"):
            buffer.get_dispatch_layout(ids, 0)

    run_ranks(1, body)


# 3.4


def test_events_and_streams(device):
    problem = Problem.make([4, 6])

    def body(comm):
        buffer = make(comm)
        x, ids, weights = put(problem, buffer.rank, device)
        *layout, event = buffer.get_dispatch_layout(ids, problem.experts, async_finish=True)
        names = ["num_tokens_per_rank", "num_tokens_per_rdma_rank", "num_tokens_per_expert", "is_token_in_rank"]
        arguments = dict(zip(names, layout, strict=True)) | {"topk_idx": ids, "topk_weights": weights}
        for before in (None, EventOverlap(), event, EventHandle()):  # a bare handle says nothing in V1
            sent = buffer.dispatch(x, previous_event=before, **arguments)
            assert sent[5].event is None
        sent = buffer.dispatch(
            x,
            previous_event=EventOverlap(EventHandle()),
            async_finish=True,
            allocate_on_comm_stream=True,
            **arguments,
        )
        assert sent[5].event is not None
        with sent[5]:
            pass
        out, _, done = buffer.combine(sent[0], sent[4], previous_event=sent[5], async_finish=True)
        done.current_stream_wait()
        assert out.shape == x.shape
        for wrong in ({}, {"async_finish": True}, {"previous_event": Buffer.capture()}):
            with pytest.raises(RuntimeError, match="allocate_on_comm_stream"):
                buffer.dispatch(x, allocate_on_comm_stream=True, **wrong, **arguments)
        if device == "cuda":
            with (
                torch.cuda.stream(buffer.get_comm_stream()),
                pytest.raises(RuntimeError, match="cannot wait for itself"),
            ):
                buffer.dispatch(x, **arguments)

    run_ranks(2, body, device)


def test_deterministic_fill_is_refused():
    def body(comm):
        buffer = make(comm, low_latency_mode=True)
        x = torch.zeros((1, 64), dtype=torch.bfloat16)
        calls = [
            lambda: buffer.dispatch(x, ()),
            lambda: buffer.combine(x, ()),
            lambda: buffer.low_latency_dispatch(x, None, 1, 1),
            lambda: buffer.low_latency_combine(x, None, None, ()),
        ]
        torch.use_deterministic_algorithms(True)
        try:
            assert torch.utils.deterministic.fill_uninitialized_memory
            for call in calls:
                with pytest.raises(AssertionError, match="fill_uninitialized_memory"):
                    call()
            torch.utils.deterministic.fill_uninitialized_memory = False
            with pytest.raises(RuntimeError, match="argument handle"):
                buffer.combine(x, ())
        finally:
            torch.use_deterministic_algorithms(False)
            torch.utils.deterministic.fill_uninitialized_memory = True

    run_ranks(1, body)


# 3.6.1 and 3.6.2


@pytest.mark.parametrize("tokens", [[5], [9, 0], [3, 8, 1], [6, 0, 2, 11]], ids=str)
@pytest.mark.parametrize("alignment", [1, 4])
def test_cycle(device, tokens, alignment):
    """Any number of ranks, also those that the original refuses."""
    problem = Problem.make(tokens, experts=12)

    def body(comm):
        buffer = make(comm)
        rank = buffer.rank
        x, ids, weights, counts, handle, event = send(buffer, problem, device, expert_alignment=alignment)
        sources = problem.arrivals(rank)
        check_arrival(problem, rank, x, ids, weights, sources)
        assert counts == [-(-count // alignment) * alignment for count in problem.counts(rank)]
        assert all(type(count) is int for count in counts) and event.event is None
        out, out_weights, _ = buffer.combine(sum_rank(x, rank), handle, config=CONFIG)
        check_sums(problem, rank, out)
        assert out_weights is None

    run_ranks(len(tokens), body, device)


def test_two_runs_give_the_same_bits(device):
    problem = Problem.make([20, 31])

    def body(comm):
        buffer = make(comm)
        one, two = send(buffer, problem, device), send(buffer, problem, device)
        for a, b in zip((*one[:3], *one[4]), (*two[:3], *two[4]), strict=True):
            same(a, b)

    run_ranks(2, body, device)


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.int32])
@pytest.mark.parametrize("column_major", [False, True])
def test_rows_with_scales(device, scale_dtype, column_major):
    problem = Problem.make([6, 3], hidden=128)
    generator = torch.Generator().manual_seed(3)
    scales = [torch.randint(0, 1 << 20, (t, 7), generator=generator).to(scale_dtype) for t in problem.tokens]

    def body(comm):
        buffer = make(comm)
        data = [x.to(torch.float8_e4m3fn) for x in problem.x]
        mine = scales[buffer.rank].to(device)
        if column_major:
            mine = mine.t().contiguous().t()
            assert mine.shape[0] < 2 or not mine.is_contiguous()
        sent = send(buffer, problem, device, x=(data[buffer.rank].to(device), mine))
        sources = problem.arrivals(buffer.rank)
        same(sent[0][0], problem.stack([d.view(torch.uint8) for d in data], sources).view(torch.float8_e4m3fn))
        same(sent[0][1], problem.stack(scales, sources))
        assert sent[0][1].is_contiguous()
        again = buffer.dispatch((data[buffer.rank].to(device), mine), handle=sent[4], config=CONFIG)
        same(again[0][0], sent[0][0])
        same(again[0][1], sent[0][1])

    run_ranks(2, body, device)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.uint8])
def test_rows_of_other_types(device, dtype):
    problem = Problem.make([4, 5])

    def body(comm):
        buffer = make(comm)
        typed = [(x * 8).to(dtype) for x in problem.x]
        sent = send(buffer, problem, device, x=typed[buffer.rank].to(device))
        same(sent[0], problem.stack(typed, problem.arrivals(buffer.rank)))

    run_ranks(2, body, device)


def test_without_choices(device):
    """is_token_in_rank alone routes; counts are the caller's, not checked against it."""
    problem = Problem.make([6, 4])

    def body(comm):
        buffer = make(comm)
        x, ids, _ = put(problem, buffer.rank, device)
        layout = lay_out(buffer, ids, problem.experts)
        layout["num_tokens_per_expert"] = layout["num_tokens_per_expert"] + 1
        recv, recv_ids, recv_weights, counts, handle, _ = buffer.dispatch(
            x, **layout, config=CONFIG, expert_alignment=2
        )
        same(recv, problem.stack(problem.x, problem.arrivals(buffer.rank)))
        assert recv_ids is None and recv_weights is None
        assert counts == [-(-(count + 2) // 2) * 2 for count in problem.counts(buffer.rank)]
        weights = torch.ones((recv.shape[0], 5), device=device) * (1 + buffer.rank)
        out, out_weights, _ = buffer.combine(sum_rank(recv, buffer.rank), handle, weights, config=CONFIG)
        check_sums(problem, buffer.rank, out)
        sums = [float(sum({1 + r for r in set(problem.owners(buffer.rank, t)) - {-1}})) for t in range(x.shape[0])]
        same(out_weights, torch.tensor(sums)[:, None].expand(-1, 5).contiguous())

    run_ranks(2, body, device)


def test_repeated_experts_count_twice(device):
    def body(comm):
        buffer = make(comm)
        ids = torch.tensor([[1, 1], [0, -1]], device=device)
        x = torch.ones((2, 64), dtype=torch.bfloat16, device=device)
        layout = lay_out(buffer, ids, 2)
        sent = buffer.dispatch(x, topk_idx=ids, topk_weights=torch.ones((2, 2), device=device), **layout)
        assert sent[3] == [1, 2] and sent[0].shape == (2, 64)
        assert sent[1].tolist() == [[1, 1], [0, -1]]

    run_ranks(1, body, device)


@pytest.mark.parametrize("extra", [0, 13])
def test_worst_case_tokens(device, extra):
    problem = Problem.make([7, 5, 2], experts=6)

    def body(comm):
        buffer = make(comm)
        rank, total = buffer.rank, sum(problem.tokens)
        x, ids, weights, counts, handle, _ = send(buffer, problem, device, num_worst_tokens=total + extra)
        sources = problem.arrivals(rank)
        n = len(sources)
        assert counts == [] and x.shape[0] == ids.shape[0] == weights.shape[0] == total + extra
        check_arrival(problem, rank, x[:n], ids[:n], weights[:n], sources)
        assert (ids[n:] == -1).all()
        assert int(handle[0][2, rank]) == n
        y = torch.full_like(x, float("nan"))  # what lies beyond the real rows is never read
        y[:n] = sum_rank(x[:n], rank)
        out, _, _ = buffer.combine(y, handle, config=CONFIG)
        check_sums(problem, rank, out)
        again = buffer.dispatch(put(problem, rank, device)[0], handle=handle, config=CONFIG)
        same(again[0][:n], x[:n])
        assert again[0].shape == x.shape

    run_ranks(3, body, device)


def test_cached_dispatch(device):
    problem = Problem.make([7, 4])

    def body(comm):
        buffer = make(comm)
        x, ids, weights = put(problem, buffer.rank, device)
        handle = send(buffer, problem, device)[4]
        other = [x * 2 for x in problem.x]
        cached = buffer.dispatch(other[buffer.rank].to(device), handle=handle, config=Config(SMS, 5, 100, 5, 90))
        same(cached[0], problem.stack(other, problem.arrivals(buffer.rank)))
        assert cached[1:5] == (None, None, None, None) and cached[5].event is None
        with pytest.raises(AssertionError, match="topk_idx"):
            buffer.dispatch(x, handle=handle, topk_idx=ids, topk_weights=weights)
        with pytest.raises(RuntimeError, match="tokens"):
            buffer.dispatch(torch.cat([x, x]), handle=handle, config=CONFIG)
        with pytest.raises(RuntimeError, match="SMs"):
            buffer.dispatch(x, handle=handle, config=Config(SMS + 2))
        with pytest.raises(RuntimeError, match="SMs"):
            buffer.combine(cached[0], handle, config=Config(SMS + 2))

    run_ranks(2, body, device)


def test_handle_positions(device):
    problem = Problem.make([11, 5, 8], experts=6)

    def body(comm):
        buffer = make(comm)
        rank, ranks = buffer.rank, problem.ranks
        layout = lay_out(buffer, put(problem, rank, device)[1], problem.experts)
        handle = send(buffer, problem, device, **layout)[4]
        assert isinstance(handle, tuple) and len(handle) == 6
        prefix, channel_prefix, recv_channel_prefix, src_idx, in_rank, head = handle
        arrivals = [problem.arrivals(r) for r in range(ranks)]
        expected = [[sum(s <= i for s, _ in arrivals[j]) for j in range(ranks)] for i in range(ranks)]
        column = torch.tensor(expected, dtype=torch.int32)
        if device == "cpu":
            same(prefix, column)
        else:  # the CUDA backend does not say what others send to others: those columns are -1
            same(prefix[:, rank], column[:, rank])
        assert in_rank is layout["is_token_in_rank"]
        same(src_idx, torch.tensor([t for _, t in arrivals[rank]], dtype=torch.int32))

        def channel(source, token):
            return token // -(-problem.tokens[source] // CHANNELS)

        goes = [[r in problem.owners(rank, t) for r in range(ranks)] for t in range(problem.tokens[rank])]
        for r in range(ranks):
            places = [channel(rank, t) for t, row in enumerate(goes) if row[r]]
            assert channel_prefix[r].tolist() == [sum(c <= i for c in places) for i in range(CHANNELS)]
            came = [channel(r, t) for s, t in arrivals[rank] if s == r]
            assert recv_channel_prefix[r].tolist() == [sum(c < i for c in came) for i in range(CHANNELS)]
        for t, row in enumerate(goes):
            for r in range(ranks):
                before = sum(goes[b][r] for b in range(t) if channel(rank, b) == channel(rank, t))
                assert int(head[t, r]) == (before if row[r] else -1)
        dtypes = {item.dtype for item in handle} - {torch.bool}
        assert dtypes == {torch.int32} and channel_prefix.shape == (ranks, CHANNELS)

    run_ranks(3, body, device)


def test_handles_survive_plain_tuples(device):
    problem = Problem.make([5, 5])

    def body(comm):
        buffer = make(comm)
        recv, *_, handle, _ = send(buffer, problem, device)
        plain = (*handle,)
        assert type(plain) is tuple
        check_sums(problem, buffer.rank, buffer.combine(sum_rank(recv, buffer.rank), plain, config=CONFIG)[0])
        assert handle[-1] is handle[5] and handle[1:3][0] is handle[1] and (handle + (1,))[3] is handle[3]
        with pytest.raises(RuntimeError, match="argument handle"):
            buffer.combine(recv, (1, 2, 3), config=CONFIG)
        with pytest.raises(TypeError, match="pickled"):
            __import__("pickle").dumps(handle)

    run_ranks(2, body, device)


@pytest.mark.parametrize("num_biases", [1, 2])
def test_combine_with_bias_and_weights(device, num_biases):
    problem = Problem.make([8, 6, 0], experts=6)
    generator = torch.Generator().manual_seed(9)
    biases = [
        [torch.randn((t, problem.hidden), generator=generator).to(torch.bfloat16) for _ in range(num_biases)]
        for t in problem.tokens
    ]

    def body(comm):
        buffer = make(comm)
        rank = buffer.rank
        recv, _, recv_weights, _, handle, _ = send(buffer, problem, device)
        mine = [bias.to(device) for bias in biases[rank]]
        bias = mine[0] if num_biases == 1 else tuple(mine)
        # Not 0 where a choice is another rank's: the sum is over all ranks' rows.
        grads = recv_weights + 1
        out, weights, _ = buffer.combine(sum_rank(recv, rank), handle, topk_weights=grads, bias=bias, config=CONFIG)
        check_sums(problem, rank, out, biases[rank])
        for t in range(problem.tokens[rank]):
            owners = problem.owners(rank, t)
            ranks = sorted(set(owners) - {-1})
            total = torch.zeros(problem.top_k)
            for r in ranks:
                is_mine = torch.tensor([owner == r for owner in owners])
                total = total + torch.where(is_mine, problem.weights[rank][t], 0.0) + 1 * (1 if r >= 0 else 0)
            torch.testing.assert_close(weights[t].cpu(), total, rtol=1e-6, atol=1e-6)

    run_ranks(3, body, device)


def test_weights_that_travel_back_are_those_sent(device):
    """The pattern of backward passes: exact, since every other rank adds 0."""
    problem = Problem.make([8, 6])

    def body(comm):
        buffer = make(comm)
        recv, _, recv_weights, _, handle, _ = send(buffer, problem, device)
        _, weights, _ = buffer.combine(recv, handle, topk_weights=recv_weights, config=CONFIG)
        same(weights, torch.where(problem.ids[buffer.rank] >= 0, problem.weights[buffer.rank], 0.0))

    run_ranks(2, body, device)


def test_nothing_received(device):
    """vLLM: x of shape [0, H] must work in combine; tokens that go nowhere get the bias, or 0."""

    def body(comm):
        buffer = make(comm)
        x = torch.ones((3, 64), dtype=torch.bfloat16, device=device)
        ids = torch.tensor([[0], [-1], [0]], device=device)
        layout = lay_out(buffer, ids, 2)
        weights = torch.ones((3, 1), device=device)
        recv, *_, handle, _ = buffer.dispatch(x, topk_idx=ids, topk_weights=weights, **layout)
        assert recv.shape == ((6 - 2) if buffer.rank == 0 else 0, 64)
        bias = torch.full_like(x, 3)
        assert buffer.combine(recv, handle)[0][:, 0].tolist() == [1, 0, 1]
        assert buffer.combine(recv, handle, bias=bias)[0][:, 0].tolist() == [4, 3, 4]

    run_ranks(2, body, device)


def test_growing_batches(device):
    """A rank whose batch is larger than all before makes the groups of all ranks grow; older handles still work."""
    batches = [Problem.make(tokens, seed=seed) for seed, tokens in enumerate([[3, 2], [70, 2], [1, 300], [300, 300]])]

    def body(comm):
        buffer = make(comm)
        kept = []
        for problem in batches:
            recv, ids, weights, _, handle, _ = send(buffer, problem, device)
            check_arrival(problem, buffer.rank, recv, ids, weights, problem.arrivals(buffer.rank))
            kept.append((problem, recv, handle))
        for problem, recv, handle in kept:
            check_sums(problem, buffer.rank, buffer.combine(sum_rank(recv, buffer.rank), handle, config=CONFIG)[0])

    run_ranks(2, body, device)


def test_a_rank_that_does_not_come():
    """The wait ends at the buffer's own deadline, in an error that names the rank; other threads run meanwhile."""
    problem = Problem.make([4, 4])

    def body(comm):
        buffer = Buffer(comm, timeout=1.0)
        send(buffer, problem, "cpu")
        if buffer.rank == 0:
            with pytest.raises(RuntimeError, match="rank 1"):
                send(buffer, problem, "cpu")
        comm.allgather(None)

    run_ranks(2, body)


def test_ranks_that_make_different_calls():
    """No growing: an error that says so, on both."""
    problem = Problem.make([4, 4])

    def body(comm):
        buffer = make(comm)
        recv, *_, handle, _ = send(buffer, problem, "cpu")
        with pytest.raises(RuntimeError, match="different calls|has gone on|is in call"):
            if buffer.rank == 0:
                send(buffer, problem, "cpu")
            else:
                buffer.combine(recv, handle, config=CONFIG)
        comm.allgather(None)

    run_ranks(2, body)


def test_limits_of_the_original_that_are_none_here(device):
    """H = 8192 in bf16, K above 32, more than 128 local experts, any number of ranks without a config."""
    problem = Problem.make([3, 4, 2], experts=600, top_k=40, hidden=8192)

    def body(comm):
        buffer = make(comm)
        recv, ids, weights, _, handle, _ = send(buffer, problem, device, config=None)
        check_arrival(problem, buffer.rank, recv, ids, weights, problem.arrivals(buffer.rank))
        check_sums(problem, buffer.rank, buffer.combine(sum_rank(recv, buffer.rank), handle)[0])

    run_ranks(3, body, device)


def test_dispatch_refuses():
    problem = Problem.make([4])

    def body(comm):
        buffer = make(comm)
        x, ids, weights = put(problem, 0, "cpu")
        layout = lay_out(buffer, ids, problem.experts)
        good = {"topk_idx": ids, "topk_weights": weights, **layout}
        for name in ("num_tokens_per_rank", "is_token_in_rank", "num_tokens_per_expert"):
            with pytest.raises(AssertionError, match=name):
                buffer.dispatch(x, **(good | {name: None}))
        cases = [
            ({"x": x.t().contiguous().t()}, "contiguous"),
            ({"x": (x, torch.zeros((4, 1)))}, "one byte"),
            ({"x": (x.view(torch.uint8), torch.zeros((3, 1)))}, r"x\[1\]"),
            ({"x": (x.view(torch.uint8), torch.zeros((4, 1), dtype=torch.float64))}, r"x\[1\]"),
            ({"topk_weights": None}, "both or neither"),
            ({"topk_idx": ids.to(torch.int32)}, "expected scalar type Long"),
            ({"topk_weights": weights.double()}, "topk_weights"),
            ({"is_token_in_rank": layout["is_token_in_rank"].int()}, "is_token_in_rank"),
            ({"expert_alignment": 0}, "expert_alignment"),
            ({"config": Config(7)}, "even"),
            ({"num_worst_tokens": 4, "topk_idx": None, "topk_weights": None}, "num_worst_tokens"),
        ]
        for wrong, seen in cases:
            arguments = {"x": x} | good | wrong
            with pytest.raises(RuntimeError, match=seen):
                buffer.dispatch(**arguments)

    run_ranks(1, body)


def test_combine_refuses():
    problem = Problem.make([4])

    def body(comm):
        buffer = make(comm)
        recv, *_, handle, _ = send(buffer, problem, "cpu")
        cases = [
            ({"x": recv.float()}, "bfloat16"),
            ({"x": recv[1:]}, "argument x"),
            ({"bias": torch.zeros((4, 64))}, r"bias\[0\]"),
            ({"bias": torch.zeros((3, 64), dtype=torch.bfloat16)}, r"bias\[0\]"),
            ({"topk_weights": torch.zeros((recv.shape[0], 3), dtype=torch.float64)}, "topk_weights"),
        ]
        for wrong, seen in cases:
            with pytest.raises(RuntimeError, match=seen):
                buffer.combine(**({"x": recv, "handle": handle, "config": CONFIG} | wrong))

    run_ranks(1, body)


def test_tables_of_no_rows():
    notes = torch.empty((0, 4), dtype=torch.int32)
    assert handles.channel_starts(notes, torch.zeros(3, dtype=torch.int32), 2).tolist() == [[0, 0], [0, 0]]
