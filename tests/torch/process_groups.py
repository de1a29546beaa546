# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""One rank that torchrun started: groups that meet through process groups. test_ferry_torch.py runs it."""

import ferry.torch
import torch
import torch.distributed as dist


def check(process_group: object, num_experts: int) -> None:
    with ferry.torch.Group(
        process_group, device="cpu", num_experts=num_experts, max_tokens=8, max_top_k=1, hidden=16, dtype="fp32"
    ) as group:
        assert (group.rank, group.size) == (dist.get_rank(process_group), dist.get_world_size(process_group))
        x = torch.full((4, 16), float(group.rank))
        rows, routing = group.dispatch(x, torch.arange(4)[:, None] % num_experts)
        assert torch.equal(group.combine(rows + 1, routing), x + 1)
        dist.barrier(process_group)


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    check(None, 3)
    check(dist.group.WORLD, 6)
    last_two = dist.new_group([1, 2])
    if rank > 0:
        check(last_two, 4)
    dist.barrier()
    print(f"rank {rank} is well", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
