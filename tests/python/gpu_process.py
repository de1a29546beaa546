# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""One rank, on the GPU of its number; test_cuda.py starts it with ferry.launch."""

import os

import ferry
import gpu_ranks
import torch
from gpu_ranks import CONFIG, GpuRank, Layer
from moe_cases import Case

LIMITS = CONFIG | {"max_latency_tokens": 16}


def main() -> None:
    device = int(os.environ["LOCAL_RANK"])
    with (
        gpu_ranks.on_gpu(device) as stream,
        ferry.Group(ferry.meet_from_environment(), **LIMITS) as group,  # on the thread's current GPU
    ):
        assert group.config.device == device
        rank = GpuRank(group, device, stream)
        for seed in range(4):
            layout = ("rank_major", "expert_major", "expert_padded")[seed % 3]
            tokens = [(5 * seed + 3 * r) % 9 for r in range(group.size)]
            gpu_ranks.run_case(rank, Case([group.size], 8, tokens, 3, 136, "throughput", layout, seed=seed))
        gpu_ranks.run_side_stream(rank)
        gpu_ranks.run_latency(rank)
        gpu_ranks.run_graph(rank)
        # Calls one after the other, with nothing between them on the host.
        layers = [Layer(rank, seed) for seed in range(20)]
        outs = [layer.run()[1] for layer in layers]
        for layer, out in zip(layers, outs, strict=True):
            layer.check(out)
        group.check()
        torch.cuda.synchronize()
    print(f"rank {group.rank} is well", flush=True)


if __name__ == "__main__":
    main()
