# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""V2's dispatch and combine: throughput mode of Ferry, rank-major, or expert-major where the caller wants rows
expanded."""

from dataclasses import dataclass
from typing import Any

import ferry
import ferry.torch
import torch
from ferry.torch import as_array, as_tensor

from deep_ep.buffers import elastic_tables as tables
from deep_ep.buffers.elastic_handle import EPHandle
from deep_ep.checks import require, require_tensor
from deep_ep.config import align
from deep_ep.lanes import Lanes, Needs, rounded
from deep_ep.rows import NOTE_BYTES, Notes, detached, full_rows, padded, restore, row_bytes, split_input

_COMBINE = "ElasticBuffer.combine"


@dataclass(frozen=True)
class Request:
    """A dispatch, checked."""

    data: torch.Tensor
    scales: torch.Tensor | None
    topk_idx: torch.Tensor | None
    topk_weights: torch.Tensor | None
    handle: EPHandle | None
    num_experts: int
    num_max_tokens: int
    alignment: int
    num_sms: int
    do_handle_copy: bool
    do_cpu_sync: bool
    do_expand: bool
    do_zero_padding: bool
    col_major_scales: bool
    stats: torch.Tensor | None


@dataclass
class Sent:
    """What a dispatch leaves for combine and for cached dispatches."""

    group: ferry.Group
    handle: ferry.Handle
    do_expand: bool
    num_tokens: int
    num_rows: int
    """Rows of recv_x, as shaped."""
    top_k: int
    order: torch.Tensor | None
    """Where rows are handed out in another order than Ferry's: place in Ferry's order of each."""


class ElasticMode:
    def __init__(self, lanes: Lanes, domains: tables.Domains, deterministic: bool, multiple_reduction: bool) -> None:
        self.lanes, self.domains = lanes, domains
        self.deterministic, self.multiple_reduction = deterministic, multiple_reduction
        self.rank, self.size = lanes.peers.rank, lanes.peers.size
        self._notes = Notes(self.rank)

    def dispatch(self, request: Request) -> tuple:
        """recv_x, recv_topk_idx, recv_topk_weights, handle."""
        cached = request.handle is not None
        blocks, weights = self._blocks(request)
        options: dict[str, Any] = {
            "layout": "expert_major" if request.do_expand else "rank_major",
            "alignment": request.alignment if request.do_expand else 1,
            "zero_padding": request.do_zero_padding,
            "output": "owned",
            "num_sms": request.num_sms,
            "stream": ferry.torch.current_stream(request.data.device),
        }

        def call(group: ferry.Group) -> tuple[ferry.Group, ferry.DispatchResult]:
            ids = request.topk_idx
            return group, group.dispatch(blocks, ids, weights, host_counts=request.do_cpu_sync, **options)

        if cached:
            sent: Sent = request.handle.sent
            arrived = sent.group.dispatch(
                blocks, topk_weights=weights, handle=sent.handle, host_counts=False, **options
            )
            return *self._received(request, arrived, sent), request.handle
        lane = self.lanes.lane("elastic", request.num_experts, request.data.device)
        group, arrived = lane.with_room(self._needs(request), call, request.do_cpu_sync)
        sent = self._make_sent(request, group, arrived)
        if request.stats is not None:
            request.stats.add_(as_tensor(arrived.expert_counts))
        received = self._received(request, arrived, sent)
        return *received, self._make_handle(request, arrived, sent)

    def combine(
        self, x: torch.Tensor, handle: EPHandle, topk_weights: torch.Tensor | None, biases: tuple, num_sms: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        sent: Sent = handle.sent
        require(sent is not None, f"{_COMBINE}: argument handle: seen one that no dispatch made, expected dispatch's")
        rows = None if sent.do_expand else sent.num_rows
        require_tensor(_COMBINE, "x", x, (rows, None), torch.bfloat16)
        if topk_weights is not None:
            shape = (None,) if sent.do_expand else (sent.num_rows, sent.top_k)
            require_tensor(_COMBINE, "topk_weights", topk_weights, shape, torch.float32)
        given = [bias for bias in biases if bias is not None]
        for index, bias in enumerate(given):
            require_tensor(_COMBINE, f"bias[{index}]", bias, (sent.num_tokens, x.shape[1]), x.dtype)
        capacity = sent.handle.num_expert_rows if sent.do_expand else sent.handle.num_rows
        combined = sent.group.combine(
            self._in_ferrys_order(x, sent, capacity),
            sent.handle,
            reduction=self._reduction(sent.do_expand),
            bias=[None, *given[:1], tuple(given)][len(given)],
            topk_weights=None if topk_weights is None else self._in_ferrys_order(topk_weights, sent, capacity),
            num_sms=num_sms,
            stream=ferry.torch.current_stream(x.device),
        )
        weights = None if combined.topk_weights is None else as_tensor(combined.topk_weights)
        return as_tensor(combined.out), weights

    def barrier(self, device: torch.device) -> None:
        """Ends when every rank has begun it: counts of a dispatch without tokens go to everybody."""
        lane = self.lanes.lane("barrier", self.size, device)
        nothing = torch.empty((0, 16), dtype=torch.uint8, device=device)
        ids = torch.empty((0, 1), dtype=torch.int32, device=device)
        stream = ferry.torch.current_stream(device)
        lane.ensure(Needs()).dispatch(nothing, ids, host_counts=device.type == "cpu", stream=stream)

    def _reduction(self, do_expand: bool) -> ferry.Reduction:
        if self.multiple_reduction:
            return ferry.Reduction("node" if self.domains.scaleout > 1 else "rank", "last_choice")
        return ferry.Reduction.flat() if do_expand else ferry.Reduction("rank", "last_choice")

    # What is sent.

    def _blocks(self, request: Request) -> tuple[list[Any], torch.Tensor | None]:
        """The payload and the weights that are routed. Without expansion weights arrive as they were sent, so they are
        payload; with it Ferry gives each row its own."""
        num_tokens, device = request.data.shape[0], request.data.device
        blocks = [as_array(request.data), *([] if request.scales is None else [as_array(request.scales)])]
        weights = None if request.topk_weights is None else as_array(request.topk_weights)
        if request.handle is None:
            blocks.append(self._notes.of(num_tokens, device))
            if request.do_expand:
                blocks.append(request.topk_idx)
        if weights is not None and not request.do_expand:
            blocks.append(weights)
            weights = None
        return blocks, weights

    def _needs(self, request: Request) -> Needs:
        top_k, local = request.topk_idx.shape[1], request.num_experts // self.size
        scale_bytes = 0 if request.scales is None else padded(row_bytes(request.scales))
        extra = NOTE_BYTES + padded(8 * top_k) + padded(4 * top_k) + scale_bytes
        tokens = rounded(request.num_max_tokens)
        rows = self.size * tokens
        if request.do_expand:
            # With counts on the host a call that needs more says so, and the group grows.
            rows = rows if request.do_cpu_sync else max(rows, self._worst_expanded(request, local, top_k))
        widest = max(row_bytes(request.data), 2 * request.data.shape[1])
        return Needs(tokens, top_k, widest, extra, max(rows, 1))

    def _worst_expanded(self, request: Request, local: int, top_k: int) -> int:
        rows = self.size * request.num_max_tokens * min(top_k, local)
        return align(rows + (request.alignment - 1) * local, request.alignment)

    # What has arrived.

    def _make_sent(self, request: Request, group: ferry.Group, arrived: ferry.DispatchResult) -> Sent:
        top_k = request.topk_idx.shape[1]
        rows = arrived.payload[0].shape[0]
        if not request.do_cpu_sync:
            local = request.num_experts // self.size
            worst = self._worst_expanded(request, local, top_k)
            rows = worst if request.do_expand else self.size * request.num_max_tokens
        order = self._order(arrived, rows) if not request.do_expand else None
        return Sent(group, arrived.handle, request.do_expand, request.data.shape[0], rows, top_k, order)

    def _order(self, arrived: ferry.DispatchResult, num_rows: int) -> torch.Tensor | None:
        """Between nodes V2 orders rows by the source's rank in its node, then Ferry's order."""
        if self.domains.scaleout == 1 or self.deterministic:
            return None
        offsets = as_tensor(arrived.source_offsets)
        row = torch.arange(num_rows, device=offsets.device)
        source = torch.searchsorted(offsets[1:].to(torch.int64).contiguous(), row, right=True)
        scaleout, scaleup = self.domains.scaleout, self.domains.scaleup
        key = torch.where(source < self.size, source % scaleup * scaleout + source // scaleup, self.size)
        return torch.argsort(key, stable=True)

    def _in_order(self, rows: torch.Tensor, sent: Sent) -> torch.Tensor:
        rows = rows[: sent.num_rows]
        return rows if sent.order is None else rows[sent.order]

    def _in_ferrys_order(self, rows: torch.Tensor, sent: Sent, capacity: int) -> torch.Tensor:
        if sent.order is not None:
            back = torch.empty_like(rows)
            back[sent.order] = rows
            rows = back
        return full_rows(rows, capacity)

    def _received(self, request: Request, arrived: ferry.DispatchResult, sent: Sent) -> tuple:
        blocks = [self._in_order(as_tensor(block), sent) for block in arrived.payload]
        recv_x: Any = restore(blocks[0], request.data)
        if request.scales is not None:
            scales = restore(blocks[1], request.scales)
            recv_x = (recv_x, tables.column_major(scales) if request.col_major_scales else scales)
        if sent.do_expand:
            weights = None if request.topk_weights is None else as_tensor(arrived.topk_weights)[: sent.num_rows]
            return recv_x, None, weights
        ids = self._in_order(as_tensor(arrived.topk_ids), sent).to(torch.int64).contiguous()
        weights = None if request.topk_weights is None else blocks[-1].contiguous()
        return recv_x, ids, weights

    def _make_handle(self, request: Request, arrived: ferry.DispatchResult, sent: Sent) -> EPHandle:
        local, alignment = request.num_experts // self.size, request.alignment
        aligned = [align(count, alignment) for count in arrived.host_expert_counts]
        worst = self._worst_expanded(request, local, sent.top_k)
        topk_idx = request.topk_idx.clone() if request.do_handle_copy else request.topk_idx
        sync = request.do_cpu_sync
        values = {
            "do_expand": request.do_expand,
            "num_experts": request.num_experts,
            "expert_alignment": alignment,
            "num_max_tokens_per_rank": request.num_max_tokens,
            "num_sms": request.num_sms,
            "topk_idx": topk_idx,
            "num_recv_tokens": sent.handle.num_rows if sync else self.size * request.num_max_tokens,
            "num_expanded_tokens": sum(aligned) if sync else worst,
            "num_recv_tokens_per_expert_list": aligned,
        }
        counts, offsets = as_tensor(arrived.expert_counts), as_tensor(arrived.source_offsets)
        notes, ids = self._table_inputs(request, arrived, sent)

        def ends_of_experts() -> torch.Tensor:
            if request.do_expand:
                return (as_tensor(arrived.expert_offsets)[:-1] + counts).to(torch.int32)
            return tables.align_tensor(counts, alignment).cumsum(0).to(torch.int32)

        def metadata() -> torch.Tensor:
            if not request.do_expand:
                return tables.metadata_of_ranks(notes, ids, request.num_max_tokens, self.domains)
            expert = tables.expert_of_rows(notes.shape[0], as_tensor(arrived.expert_offsets), counts)
            return tables.metadata_of_experts(notes, ids, expert, request.num_max_tokens, self.domains)

        makers = {
            "psum_num_recv_tokens_per_scaleup_rank": lambda: self._per_scaleup_rank(offsets),
            "psum_num_recv_tokens_per_expert": ends_of_experts,
            "num_unaligned_recv_tokens_per_expert": lambda: counts.clone(),
            "recv_src_metadata": metadata,
            "dst_buffer_slot_idx": lambda: tables.destination_slots(
                topk_idx, self.rank, local, self.size, request.num_max_tokens
            ),
        }
        return EPHandle.lazy(values, makers, sent)

    def _table_inputs(self, request: Request, arrived: ferry.DispatchResult, sent: Sent) -> tuple:
        """The notes and local ids of the rows, in the order in which they are handed out."""
        notes = self._in_order(as_tensor(arrived.payload[1 if request.scales is None else 2]), sent)
        if not request.do_expand:
            return notes, self._in_order(as_tensor(arrived.topk_ids), sent)
        first, local = self.rank * (request.num_experts // self.size), request.num_experts // self.size
        ids = as_tensor(arrived.payload[2 if request.scales is None else 3])[: sent.num_rows] - first
        return notes, torch.where((ids >= 0) & (ids < local), ids, -1)

    def _per_scaleup_rank(self, source_offsets: torch.Tensor) -> torch.Tensor:
        counts = (source_offsets[1:] - source_offsets[:-1]).view(self.domains.scaleout, self.domains.scaleup)
        return counts.sum(0).cumsum(0).to(torch.int32)


def inputs_of(x: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Checks the rows and their scales."""
    name = "ElasticBuffer.dispatch"
    data, scales = detached(*split_input(x))
    require_tensor(name, "x", data, (None, None))
    if scales is not None:
        require(
            scales.dim() == 2 and scales.shape[0] == data.shape[0] and scales.element_size() == 4,
            f"{name}: argument x[1]: seen {list(scales.shape)} {scales.dtype}, expected [{data.shape[0]}, P] of 4-byte "
            "elements",
        )
    return data, scales
