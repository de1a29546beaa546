# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""What the tests of V2 share."""

import pytest
import torch
from deep_ep import ElasticBuffer
from problems import one_expert, row_sum, same, sum_rank

TMAX = 16
NODES = pytest.mark.parametrize("node_size", [0, 2], ids=["one-node", "two-nodes"])


def make(comm, **arguments):
    return ElasticBuffer(
        comm,
        **(
            {"num_max_tokens_per_rank": TMAX, "hidden": 64, "num_cpu_timeout_secs": 20, "num_gpu_timeout_secs": 20}
            | arguments
        ),
    )


def put(problem, rank, device):
    return problem.x[rank].to(device), problem.ids[rank].to(device), problem.weights[rank].to(device)


def send(buffer, problem, device, x=None, **arguments):
    mine, ids, weights = put(problem, buffer.rank_idx, device)
    given = {"topk_idx": ids, "topk_weights": weights, "num_experts": problem.experts} | arguments
    return buffer.dispatch(mine if x is None else x, **given)


def arrivals(problem, rank, node_size=0, deterministic=False):
    """Rows of one per token: by source rank; between nodes by the source's rank in its node first."""
    rows = problem.arrivals(rank)
    return sorted(rows, key=lambda row: row[0] % node_size) if node_size and not deterministic else rows


def slots(problem, rank, source, token):
    """Top-k slots of a token at a rank."""
    return [k for k, owner in enumerate(problem.owners(source, token)) if owner == rank]


def set_nodes(monkeypatch, node_size):
    if node_size:
        monkeypatch.setenv("FERRY_NODE_SIZE", str(node_size))


def expert_places(problem, rank, alignment):
    """(row, expert, source, token, choice) of each expanded row, and the number of rows with padding."""
    places, start = [], 0
    for e, rows in enumerate(problem.expert_rows(rank)):
        places += [(start + i, e, *row) for i, row in enumerate(rows)]
        start += -(-len(rows) // alignment) * alignment
    return places, start


def by_key(entries, key):
    """Grouped reduce: rows of equal key in order, in float32, rounded; at the place of the group's last row."""
    groups = {}
    for place, name, row in entries:
        groups.setdefault(key(name), []).append((place, name, row))
    sums = [
        (rows[-1][0], rows[-1][1], row_sum(torch.zeros_like(rows[0][2]), [row for _, _, row in rows]))
        for rows in groups.values()
    ]
    return sorted(sums, key=lambda entry: entry[0])


def check_sums(problem, rank, out, expand, multiple=True, node_size=0, biases=()):
    for t in range(problem.tokens[rank]):
        row, ids = problem.x[rank][t], problem.ids[rank][t].tolist()
        if expand:
            entries = [(k, e // problem.local, one_expert(row, e)) for k, e in enumerate(ids) if e >= 0]
            if multiple:
                entries = by_key(entries, lambda owner: owner)
        else:
            last = {owner: k for k, owner in enumerate(problem.owners(rank, t)) if owner >= 0}
            entries = sorted((k, owner, sum_rank(row, owner)) for owner, k in last.items())
        if multiple and node_size:
            entries = by_key(entries, lambda owner: owner // node_size)
        start = sum((bias[t].float() for bias in biases), torch.zeros(problem.hidden))
        same(out[t], row_sum(start, [row for _, _, row in entries]))
    assert out.shape == (problem.tokens[rank], problem.hidden)


def expert_results(problem, rank, rows, alignment=1):
    y = torch.full((rows, problem.hidden), float("nan"), dtype=torch.bfloat16)
    for place, e, s, t, _ in expert_places(problem, rank, alignment)[0]:
        y[place] = one_expert(problem.x[s][t], rank * problem.local + e)
    return y
