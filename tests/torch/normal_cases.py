# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""What the tests of V1's normal mode share."""

import torch
from deep_ep import Buffer, Config
from problems import row_sum, same, sum_rank

SMS = 6
CHANNELS = SMS // 2
CONFIG = Config(SMS, 6, 256, 6, 128)
UNEVEN = [9, 0]


def make(comm, **arguments):
    return Buffer(comm, num_nvl_bytes=1 << 20, timeout=20.0, **arguments)


def put(problem, rank, device):
    return problem.x[rank].to(device), problem.ids[rank].to(device), problem.weights[rank].to(device)


def lay_out(buffer, ids, experts):
    per_rank, per_node, per_expert, in_rank, _ = buffer.get_dispatch_layout(ids, experts)
    return {
        "num_tokens_per_rank": per_rank,
        "num_tokens_per_rdma_rank": per_node,
        "num_tokens_per_expert": per_expert,
        "is_token_in_rank": in_rank,
    }


def send(buffer, problem, device, x=None, **arguments):
    mine, ids, weights = put(problem, buffer.rank, device)
    layout = lay_out(buffer, ids, problem.experts)
    choices = {"topk_idx": ids, "topk_weights": weights, **layout, "config": CONFIG}
    return buffer.dispatch(mine if x is None else x, **(choices | arguments))


def check_arrival(problem, rank, recv_x, recv_ids, recv_weights, sources):
    same(recv_x, problem.stack(problem.x, sources))
    ids = [problem.local_ids(rank, s, t) for s, t in sources]
    same(recv_ids, torch.stack(ids) if ids else torch.empty((0, problem.top_k), dtype=torch.int64))
    weights = [torch.where(i >= 0, problem.weights[s][t], 0.0) for i, (s, t) in zip(ids, sources, strict=True)]
    same(recv_weights, torch.stack(weights) if weights else torch.empty((0, problem.top_k)))


def combined(problem, rank, token, biases=(), node_ranks=None):
    """Ranks ascending; with node_ranks first inside each node."""
    row, ranks = problem.x[rank][token], sorted(set(problem.owners(rank, token)) - {-1})
    start = sum((bias[token].float() for bias in biases), torch.zeros(problem.hidden))
    rows = [sum_rank(row, r) for r in ranks]
    if node_ranks is None:
        return row_sum(start, rows)
    nodes = sorted({r // node_ranks for r in ranks})
    zero = torch.zeros(problem.hidden)
    by_node = [row_sum(zero, [y for y, r in zip(rows, ranks, strict=True) if r // node_ranks == n]) for n in nodes]
    return row_sum(start, by_node)


def check_sums(problem, rank, out, biases=(), node_ranks=None):
    expected = [combined(problem, rank, t, biases, node_ranks) for t in range(problem.tokens[rank])]
    same(out, torch.stack(expected) if expected else torch.empty((0, problem.hidden), dtype=torch.bfloat16))
