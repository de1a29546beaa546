# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""A group of ranks for PyTorch: dispatch and combine of tensors, with gradients, also inside torch.compile."""

import itertools
from typing import Any, NamedTuple

import torch

import ferry
from ferry.torch import ops
from ferry.torch.meeting import meet

_keys = itertools.count(1)


class Routing(NamedTuple):
    """What a dispatch says about its rows, and what combine needs to bring them back."""

    row_weights: torch.Tensor
    """float32: rank_major [N, K], 0 where the id is -1; expert_major [N]; [0] without weights. Has gradients."""
    topk_ids: torch.Tensor
    """rank_major: [N, K] local expert ids, -1 elsewhere; else [0]."""
    expert_counts: torch.Tensor
    """int32 [E_local], without padding."""
    expert_offsets: torch.Tensor
    """expert_major: int32 [E_local + 1], first row of each expert, aligned; else [0]."""
    ticket: torch.Tensor
    """int64 [1] on the CPU: stands for the handle and keeps it."""
    num_tokens: int
    """T: tokens that this rank sent."""

    @property
    def handle(self) -> ferry.Handle:
        return ops.sent_of(self.ticket).handle


class Group:
    """One rank's end of a ferry.Group that meets through a process group.

    Group(process_group=None, *, device=None, **config): ``process_group`` as ferry.torch.meet takes it. ``device``:
    "cpu", or "cuda" for the current GPU; None: "cuda" where ``torch.cuda.is_available()``. ``config``: the keywords of
    ferry.GroupConfig. Collective. Raises what ferry.Group raises.

    Every rank makes the same sequence of calls, backward passes included. Calls go to the current stream; results own
    their memory. Tensors lie on the group's device.
    """

    def __init__(self, process_group: Any = None, *, device: str | None = None, **config: Any) -> None:
        kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if kind.type == "cuda":
            config.setdefault("device", torch.cuda.current_device() if kind.index is None else kind.index)
        config.setdefault("backend", "cuda" if kind.type == "cuda" else "host")
        self.ferry = ferry.Group(meet(process_group), **config)
        self.rank = self.ferry.rank
        self.size = self.ferry.size
        self.key = f"group {next(_keys)}"
        plan = ferry.memory_plan(self.ferry.config, self.ferry.topology, self.rank)
        tokens = self.size * self.ferry.config.max_tokens
        self._capacity = {"expert_major": plan.recv_rows, "rank_major": min(plan.recv_rows, tokens)}
        ops.groups[self.key] = self

    def capacity(self, layout: str) -> int:
        """Rows that a dispatch without host counts returns."""
        return self._capacity[layout]

    def dispatch(
        self,
        x: torch.Tensor,
        topk_ids: torch.Tensor,
        topk_weights: torch.Tensor | None = None,
        *,
        layout: str = "rank_major",
        alignment: int = 1,
        host_counts: bool = True,
        num_sms: int = 0,
    ) -> tuple[torch.Tensor, Routing]:
        """Sends the rows of x [T, H] to the ranks of their experts.

        topk_ids: [T, K] int32 or int64, global ids, negative = none. topk_weights: [T, K] float32, travel along.
        layout: "rank_major" or "expert_major" (blocks aligned to ``alignment``, padding zeroed). host_counts=False:
        rows are shaped to capacity(layout), the host waits for nothing, and the call can be captured into a CUDA graph.

        Returns (rows [N, H], Routing). Differentiable in x and topk_weights: the gradient of a token is the sum over
        its rows in the order of "per_rank"; rows beyond the real ones are not read.
        """
        if layout not in self._capacity:
            raise ferry.Error(
                f"ferry.torch.Group.dispatch: argument layout: seen {layout!r}, expected 'rank_major' or "
                f"'expert_major'",
                code="invalid_argument",
                argument="layout",
            )
        outputs = torch.ops.ferry.dispatch(x, topk_ids, topk_weights, self.key, layout, alignment, host_counts, num_sms)
        return outputs[0], Routing(*outputs[1:], x.shape[0])

    def combine(
        self, rows: torch.Tensor, routing: Routing, *, reduction: str = "per_rank", num_sms: int = 0
    ) -> torch.Tensor:
        """Brings rows [N, H] (bf16, fp16 or fp32), in the layout of the dispatch, back to their tokens and sums them:
        [T, H].

        reduction: "flat" (expert_major only), "per_rank" or "per_node". Rows are not weighted: multiply them with
        ``routing.row_weights``, whose gradients then travel back to topk_weights. Differentiable in rows.
        """
        return torch.ops.ferry.combine(rows, routing.ticket, self.key, routing.num_tokens, reduction, num_sms)

    def close(self) -> None:
        """As ferry.Group.close."""
        self.ferry.close()

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
