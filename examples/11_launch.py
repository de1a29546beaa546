# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""Ranks as processes: latency mode with work between sending and receiving.

    python -m ferry.launch --ranks 4 --node-size 2 examples/11_launch.py

torchrun --nproc-per-node 4 works as well: it sets the same variables. Without either, this is one rank alone.
"""

import ferry
import numpy as np

EXPERTS, TOP_K, TOKENS, HIDDEN = 8, 2, 4, 64


def main() -> None:
    meeting = ferry.meet_from_environment()
    with ferry.Group(
        meeting, num_experts=EXPERTS, max_tokens=TOKENS, max_top_k=TOP_K, hidden=HIDDEN, dtype="fp32"
    ) as group:
        rng = np.random.default_rng(group.rank)
        x = rng.standard_normal((TOKENS, HIDDEN), dtype=np.float32)
        ids = np.array([rng.permutation(EXPERTS)[:TOP_K] for _ in range(TOKENS)])

        pending = group.dispatch_send(x, ids, mode="latency", layout="expert_padded")
        shared = x * 2  # a shared expert computes while the rows travel
        arrived = pending.receive()

        y = np.asarray(arrived.payload[0])  # the experts here change nothing
        combined = group.combine(y, arrived.handle, reduction="per_node", bias=shared)
        assert np.allclose(combined.out, (2 + TOP_K) * x)

        counts = arrived.expert_counts.tolist()
        nodes = group.topology.describe()
        print(f"rank {group.rank} of {group.size} on nodes {nodes}: rows per expert {counts}, verified")


if __name__ == "__main__":
    main()
