# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""V1's normal mode, inside a node and between nodes: throughput mode of Ferry, rank-major."""

from dataclasses import dataclass
from typing import Any

import ferry
import ferry.torch
import torch
from ferry.torch import as_array, as_tensor

from deep_ep.buffers.handles import Arrival, Sent, internode_handle, intranode_handle, node_bitmaps, per_node, sent_of
from deep_ep.checks import require, require_ids, require_python, require_tensor
from deep_ep.config import NODE_RANKS, Config, align, channels_of, sms_of, topk_idx_t
from deep_ep.lanes import Lanes, Needs, rounded
from deep_ep.rows import NOTE_BYTES, Notes, detached, full_rows, padded, restore, row_bytes, split_input

_DISPATCH = "Buffer.dispatch"
_COMBINE = "Buffer.combine"


@dataclass(frozen=True)
class Layout:
    """What get_dispatch_layout returns, or what the caller counted instead."""

    num_tokens_per_rank: torch.Tensor | None = None
    num_tokens_per_rdma_rank: torch.Tensor | None = None
    is_token_in_rank: torch.Tensor | None = None
    num_tokens_per_expert: torch.Tensor | None = None


@dataclass(frozen=True)
class Choices:
    topk_idx: torch.Tensor | None = None
    topk_weights: torch.Tensor | None = None


def has_nodes(num_ranks: int) -> bool:
    """V1's two kinds of handles and sums. Numbers of ranks that it refuses (9, 12, ...) are one node here."""
    return num_ranks > NODE_RANKS and num_ranks % NODE_RANKS == 0


def count_layout(topk_idx: torch.Tensor, num_experts: int, num_ranks: int) -> Layout:
    """V1's layout of topk_idx [T, K]; no communication."""
    local = num_experts // num_ranks
    num_tokens, _ = topk_idx.shape
    chosen = torch.where(topk_idx >= 0, topk_idx, num_experts)
    per_expert = torch.bincount(chosen.flatten(), minlength=num_experts + 1)[:num_experts].to(torch.int32)
    in_rank = topk_idx.new_zeros((num_tokens, num_ranks + 1), dtype=torch.bool)
    in_rank.scatter_(1, (chosen // local).clamp(max=num_ranks), True)
    in_rank = in_rank[:, :num_ranks].contiguous()
    on_node = None
    if has_nodes(num_ranks):
        on_node = per_node(in_rank, NODE_RANKS).sum(0).to(torch.int32)
    return Layout(in_rank.sum(0).to(torch.int32), on_node, in_rank, per_expert)


class NormalMode:
    def __init__(self, lanes: Lanes) -> None:
        self.lanes = lanes
        self.rank, self.size = lanes.peers.rank, lanes.peers.size
        self._notes = Notes(self.rank)

    @property
    def is_internode(self) -> bool:
        return has_nodes(self.size)

    def dispatch(
        self, x: Any, layout: Layout, choices: Choices, alignment: int, num_worst_tokens: int, config: Config
    ) -> tuple:
        """The first five of the returned six."""
        data, scales = self._check_x(x)
        num_tokens = data.shape[0]
        in_rank, num_experts = self._check_layout(layout, num_tokens)
        self._check_choices(choices, num_tokens, num_worst_tokens)
        require(alignment >= 1, f"{_DISPATCH}: argument expert_alignment: seen {alignment}, expected 1 or more")
        ids = choices.topk_idx if choices.topk_idx is not None else self._ids_of_ranks(in_rank, num_experts)

        blocks = [as_array(data), *([] if scales is None else [as_array(scales)])]
        blocks.append(self._notes.of(num_tokens, data.device))
        if self.is_internode:
            blocks.append(node_bitmaps(in_rank, NODE_RANKS).to(torch.uint8))
        lane = self.lanes.lane("normal", num_experts, data.device)
        needs = self._needs(data, scales, ids.shape[1], max(num_tokens, -(-num_worst_tokens // self.size)))
        weights = None if choices.topk_weights is None else as_array(choices.topk_weights)

        def call(group: ferry.Group) -> tuple[ferry.Group, ferry.DispatchResult]:
            return group, group.dispatch(
                blocks,
                ids,
                weights,
                host_counts=num_worst_tokens == 0,
                output="owned",
                num_sms=sms_of(config),
                stream=ferry.torch.current_stream(data.device),
            )

        group, arrived = lane.with_room(needs, call, host_counts=num_worst_tokens == 0)
        sent = Sent(
            group=group,
            handle=arrived.handle,
            num_tokens=num_tokens,
            num_rows=num_worst_tokens or arrived.payload[0].shape[0],
            channels=channels_of(config),
            num_experts=num_experts,
            has_ids=choices.topk_idx is not None,
        )
        received = self._received_choices(arrived, sent, num_worst_tokens)
        counts = self._expert_counts(arrived, layout, sent, alignment) if num_worst_tokens == 0 else []
        recv_x = self._received_x(arrived, sent, data, scales)
        return recv_x, *received, counts, self._handle(arrived, sent, in_rank)

    def cached_dispatch(self, x: Any, handle: Any, config: Config) -> Any:
        """recv_x alone: everything else is None."""
        data, scales = self._check_x(x)
        sent: Sent = sent_of(_DISPATCH, handle)
        self._check_channels(_DISPATCH, sent, config)
        require(
            data.shape[0] == sent.num_tokens,
            f"{_DISPATCH}: argument x: seen {data.shape[0]} tokens, expected {sent.num_tokens}, as the handle's",
        )
        blocks = [as_array(data), *([] if scales is None else [as_array(scales)])]
        arrived = sent.group.dispatch(
            blocks,
            handle=sent.handle,
            output="owned",
            num_sms=sms_of(config),
            stream=ferry.torch.current_stream(data.device),
            host_counts=False,
        )
        return self._received_x(arrived, sent, data, scales)

    def combine(
        self, x: torch.Tensor, handle: Any, topk_weights: torch.Tensor | None, biases: tuple, config: Config
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        sent: Sent = sent_of(_COMBINE, handle)
        self._check_channels(_COMBINE, sent, config)
        require_tensor(_COMBINE, "x", x, (sent.num_rows, None), torch.bfloat16)
        given = [bias for bias in biases if bias is not None]
        for index, bias in enumerate(given):
            require_tensor(_COMBINE, f"bias[{index}]", bias, (sent.num_tokens, x.shape[1]), x.dtype)
        options: dict[str, Any] = {
            "reduction": "per_node" if self.is_internode else "per_rank",
            "num_sms": sms_of(config),
            "stream": ferry.torch.current_stream(x.device),
        }
        bias = [None, *given[:1], tuple(given)][len(given)]
        out = as_tensor(sent.group.combine(full_rows(x, sent.handle.num_rows), sent.handle, bias=bias, **options).out)
        weights = None
        if topk_weights is not None:
            require_tensor(_COMBINE, "topk_weights", topk_weights, (sent.num_rows, None), torch.float32)
            # The sum over all ranks' rows, so a combine of rows of K: the weights that travel back with rows are those
            # of each choice's own rank alone.
            options["reduction"] = "per_rank"
            weights = as_tensor(
                sent.group.combine(full_rows(topk_weights, sent.handle.num_rows), sent.handle, **options).out
            )
        return out, weights

    # Inputs.

    def _check_x(self, x: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        data, scales = detached(*split_input(x))
        require_tensor(_DISPATCH, "x", data, (None, None))
        if scales is None:
            return data, None
        require(
            data.element_size() == 1, f"{_DISPATCH}: argument x: seen {data.dtype} with scales, expected one byte each"
        )
        fits = scales.dim() == 2 and scales.shape[0] == data.shape[0] and scales.dtype in (torch.float32, torch.int32)
        require(
            fits,
            f"{_DISPATCH}: argument x[1]: seen {list(scales.shape)} {scales.dtype}, expected [{data.shape[0]}, S] "
            f"float32 "
            "or int32",
        )
        return data, scales

    def _check_layout(self, layout: Layout, num_tokens: int) -> tuple[torch.Tensor, int]:
        names = ["num_tokens_per_rank", "is_token_in_rank", "num_tokens_per_expert"]
        if self.is_internode:
            names.append("num_tokens_per_rdma_rank")
        for name in names:
            require_python(
                getattr(layout, name) is not None,
                f"{_DISPATCH}: argument {name}: seen None without a handle, expected what get_dispatch_layout returns",
            )
        require_tensor(_DISPATCH, names[0], layout.num_tokens_per_rank, (self.size,), torch.int32)
        require_tensor(_DISPATCH, names[1], layout.is_token_in_rank, (num_tokens, self.size), torch.bool)
        require_tensor(_DISPATCH, names[2], layout.num_tokens_per_expert, (None,), torch.int32)
        if self.is_internode:
            nodes = self.size // NODE_RANKS
            require_tensor(_DISPATCH, names[3], layout.num_tokens_per_rdma_rank, (nodes,), torch.int32)
        return layout.is_token_in_rank, layout.num_tokens_per_expert.shape[0]

    def _check_choices(self, choices: Choices, num_tokens: int, num_worst_tokens: int) -> None:
        ids, weights = choices.topk_idx, choices.topk_weights
        require(
            (ids is None) == (weights is None),
            f"{_DISPATCH}: arguments topk_idx and topk_weights: seen one of them, expected both or neither",
        )
        require(
            num_worst_tokens == 0 or ids is not None,
            f"{_DISPATCH}: argument num_worst_tokens: seen {num_worst_tokens} without topk_idx, expected topk_idx, too",
        )
        if ids is not None:
            require_ids(_DISPATCH, ids, topk_idx_t)
            require_tensor(_DISPATCH, "topk_idx", ids, (num_tokens, None))
            require_tensor(_DISPATCH, "topk_weights", weights, tuple(ids.shape), torch.float32)

    def _check_channels(self, function: str, sent: Sent, config: Config) -> None:
        require(
            channels_of(config) == sent.channels,
            f"{function}: argument config: seen {sms_of(config)} SMs, expected {2 * sent.channels}, as in the "
            "dispatch that "
            "made the handle",
        )

    def _ids_of_ranks(self, in_rank: torch.Tensor, num_experts: int) -> torch.Tensor:
        """Without topk_idx: a rank's first expert stands for it."""
        first = torch.arange(self.size, device=in_rank.device) * (num_experts // self.size)
        return torch.where(in_rank, first, -1)

    def _needs(self, data: torch.Tensor, scales: torch.Tensor | None, top_k: int, num_tokens: int) -> Needs:
        nodes = self.size // NODE_RANKS if self.is_internode else 0
        extra = NOTE_BYTES + padded(nodes) + (0 if scales is None else padded(row_bytes(scales)))
        tokens = rounded(num_tokens)
        # A combine of this dispatch brings bf16 rows back, and rows of K float32 weights.
        widest = max(row_bytes(data), 2 * data.shape[1], 4 * top_k)
        return Needs(tokens, top_k, widest, extra, recv_rows=max(self.size * tokens, 1))

    # Outputs.

    def _received_x(self, arrived: Any, sent: Sent, data: torch.Tensor, scales: torch.Tensor | None) -> Any:
        recv = restore(as_tensor(arrived.payload[0]), data, sent.num_rows)
        if scales is None:
            return recv
        return recv, restore(as_tensor(arrived.payload[1]), scales, sent.num_rows)

    def _received_choices(self, arrived: Any, sent: Sent, num_worst_tokens: int) -> tuple:
        if not sent.has_ids:
            return None, None
        ids = as_tensor(arrived.topk_ids)[: sent.num_rows]
        if num_worst_tokens > 0:
            row = torch.arange(ids.shape[0], device=ids.device)
            ids = torch.where(row[:, None] < as_tensor(arrived.num_rows), ids, -1)
        return ids.to(topk_idx_t).contiguous(), as_tensor(arrived.topk_weights)[: sent.num_rows].contiguous()

    def _expert_counts(self, arrived: Any, layout: Layout, sent: Sent, alignment: int) -> list[int]:
        counts = arrived.host_expert_counts
        if not sent.has_ids:
            counts = self._sum_given_counts(sent, layout.num_tokens_per_expert)
        return [align(count, alignment) for count in counts]

    def _sum_given_counts(self, sent: Sent, per_expert: torch.Tensor) -> list[int]:
        """Without topk_idx the counts are the caller's: each rank gets everybody's counts of its experts, by a
        dispatch of one row per rank."""
        local = sent.num_experts // self.size
        lane = self.lanes.lane("counts", sent.num_experts, per_expert.device)
        group = lane.ensure(Needs(self.size, 1, 4 * local, recv_rows=self.size))
        first = torch.arange(self.size, device=per_expert.device)[:, None] * local
        rows = per_expert.view(self.size, local)
        arrived = group.dispatch(rows, first, stream=ferry.torch.current_stream(per_expert.device))
        return as_tensor(arrived.payload[0]).sum(0).tolist()

    def _handle(self, arrived: Any, sent: Sent, in_rank: torch.Tensor) -> Any:
        blocks = [as_tensor(block)[: sent.num_rows] for block in arrived.payload]
        notes = blocks[-2] if self.is_internode else blocks[-1]
        offsets = as_tensor(arrived.source_offsets)
        arrival = Arrival(
            rank=self.rank,
            num_ranks=self.size,
            channels=sent.channels,
            is_token_in_rank=in_rank,
            notes=notes,
            source_offsets=offsets,
            result=arrived,
        )
        if self.is_internode:
            return internode_handle(sent, arrival, NODE_RANKS, blocks[-1])
        return intranode_handle(sent, arrival)
