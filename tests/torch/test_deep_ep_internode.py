# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""deep_ep V1, normal mode between nodes: section 3.7 of the contract, bit for bit."""

import pytest
import torch
from deep_ep import Buffer
from normal_cases import CHANNELS, CONFIG, check_arrival, check_sums, lay_out, make, put, send
from problems import Problem, same, sum_rank
from ranks import run_ranks


@pytest.mark.parametrize("worst", [0, 200])
def test_internode_cycle(worst):
    """16 ranks, nodes of 8."""
    problem = Problem.make([5, 0, 3, 2, 6, 1, 1, 4] * 2, experts=32, top_k=5, hidden=32)

    def body(comm):
        buffer = make(comm, num_rdma_bytes=1 << 20)
        rank = buffer.rank
        layout = lay_out(buffer, put(problem, rank, "cpu")[1], problem.experts)
        on_node = [
            [any(o // 8 == n for o in problem.owners(rank, t) if o >= 0) for n in range(2)]
            for t in range(problem.tokens[rank])
        ]
        same(
            layout["num_tokens_per_rdma_rank"],
            torch.tensor(on_node, dtype=torch.int32).view(-1, 2).sum(0).to(torch.int32),
        )
        x, ids, weights, counts, handle, _ = send(buffer, problem, "cpu", num_worst_tokens=worst, **layout)
        sources = problem.arrivals(rank)
        n = len(sources)
        check_arrival(problem, rank, x[:n], ids[:n], weights[:n], sources)
        assert counts == ([] if worst else problem.counts(rank))
        assert x.shape[0] == (worst or n) and (ids[n:] == -1).all()
        check_internode_handle(problem, rank, handle, layout, sources, x.shape[0])
        biases = [torch.full((problem.tokens[rank], 32), 0.5, dtype=torch.bfloat16)]
        out, out_weights, _ = buffer.combine(
            sum_rank(x, rank), handle, topk_weights=weights if not worst else None, bias=biases[0], config=CONFIG
        )
        check_sums(problem, rank, out, biases, node_ranks=8)
        if not worst:
            same(out_weights, torch.where(problem.ids[rank] >= 0, problem.weights[rank], 0.0))
        again = buffer.dispatch(problem.x[rank], handle=handle, config=CONFIG)
        same(again[0][:n], x[:n])

    run_ranks(16, body)


def check_internode_handle(problem, rank, handle, layout, sources, rows):
    assert isinstance(handle, tuple) and len(handle) == 10
    assert handle[0] is layout["is_token_in_rank"]
    shapes = [(2, CHANNELS), (16, CHANNELS), (2, CHANNELS), (2,), (16, CHANNELS), (16,), (rows, 8)]
    assert [tuple(item.shape) for item in handle[1:8]] == shapes
    n, tokens = len(sources), problem.tokens[rank]
    ends = [sum(s <= i for s, _ in sources) for i in range(16)]
    assert handle[-4].tolist() == ends

    def channel(source, token):
        return token // max(-(-problem.tokens[source] // CHANNELS), 1)

    for s in range(16):
        came = [channel(s, t) for source, t in sources if source == s]
        start = ends[s] - len(came)
        assert handle[5][s].tolist() == [start + sum(c < i for c in came) for i in range(CHANNELS)]
    for t in range(tokens):
        for node in range(2):
            goes = [any(o // 8 == node for o in problem.owners(rank, b) if o >= 0) for b in range(tokens)]
            before = sum(goes[b] for b in range(t) if channel(rank, b) == channel(rank, t))
            assert int(handle[8][t, node]) == (before if goes[t] else -1)
    meta = handle[7][:n].contiguous().view(torch.int32).view(n, 2)
    for row, (s, t) in enumerate(sources):
        bits = sum(1 << (o % 8) for o in set(problem.owners(s, t)) if o // 8 == rank // 8 and o >= 0)
        assert meta[row].tolist() == [s // 8, bits]
    sent = [set(problem.owners(rank, t)) - {-1} for t in range(tokens)]
    for dst in range(16):
        places = [channel(rank, t) for t in range(tokens) if dst in sent[t]]
        assert handle[2][dst].tolist() == [sum(c <= i for c in places) for i in range(CHANNELS)]
    for node in range(2):
        places = [channel(rank, t) for t in range(tokens) if any(o // 8 == node for o in sent[t])]
        assert handle[1][node].tolist() == [sum(c <= i for c in places) for i in range(CHANNELS)]
    assert handle[7].dtype == torch.uint8 and handle[9].shape[1] == 8
    # What this rank hands on for others stays in Ferry's own handle.
    assert (handle[3] == -1).all() and (handle[4] == -1).all() and handle[9].shape[0] == 0


def test_internode_names():
    assert Buffer.internode_dispatch is Buffer.dispatch and Buffer.internode_combine is Buffer.combine
    with pytest.raises(AssertionError, match="num_tokens_per_rdma_rank"):

        def body(comm):
            problem = Problem.make([1] * 16, experts=16, top_k=1, hidden=16)
            buffer = make(comm)
            layout = lay_out(buffer, problem.ids[buffer.rank], 16)
            buffer.dispatch(problem.x[buffer.rank], **(layout | {"num_tokens_per_rdma_rank": None}))

        run_ranks(16, body)
