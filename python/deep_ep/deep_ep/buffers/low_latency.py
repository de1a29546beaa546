# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""V1's low-latency mode: latency mode of Ferry, one block of rows per local expert; sending and receiving apart."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ferry
import ferry.torch
import torch
from ferry.torch import as_array, as_tensor

from deep_ep.buffers.handles import LazyTuple, sent_of
from deep_ep.checks import require, require_ids, require_tensor
from deep_ep.config import align, topk_idx_t
from deep_ep.lanes import Lane, Lanes, Needs
from deep_ep.rows import NOTE_BYTES, NOTE_RANK, NOTE_TOKEN, Notes, padded

SCALE_CHANNELS = 128
_PACK = 4
_DISPATCH = "Buffer.low_latency_dispatch"
_COMBINE = "Buffer.low_latency_combine"


def size_hint(num_max_tokens: int, hidden: int, num_experts: int) -> int:
    """The original's buffer, in bytes."""
    scales = hidden // SCALE_CHANNELS
    require(scales * 4 <= hidden, f"get_low_latency_rdma_size_hint: argument hidden: seen {hidden}, expected above 3")
    dispatch = 16 + max(2 * hidden, hidden + 4 * scales)
    combine = 4 * scales + 2 * hidden
    for name, message in (("dispatch", dispatch), ("combine", combine)):
        require(
            message % 16 == 0,
            f"get_low_latency_rdma_size_hint: argument hidden: seen {hidden}, whose {name} message has {message} "
            "bytes, "
            "expected a multiple of 16",
        )
    send = max(num_max_tokens * dispatch, num_experts * num_max_tokens * combine)
    recv = max(num_experts * num_max_tokens * dispatch, num_experts * num_max_tokens * combine)
    total = 2 * (send + recv + align(4 * num_experts, 128))
    return (total + 128) // 128 * 128


@dataclass(frozen=True)
class Shape:
    """What all ranks agree on."""

    num_max_tokens: int
    hidden: int
    num_experts: int


@dataclass
class Sent:
    lane: Lane
    handle: ferry.Handle
    shape: Shape
    num_tokens: int
    top_k: int


@dataclass(frozen=True)
class Fp8:
    use_fp8: bool
    round_scale: bool
    use_ue8m0: bool

    @property
    def codec(self) -> str:
        return "none" if not self.use_fp8 else "fp8_ue8m0" if self.round_scale else "fp8_f32"


@dataclass(frozen=True)
class CombineRows:
    """Where the rows of a combine are, and how they travel."""

    zero_copy: bool = False
    codec: str = "none"


@dataclass(frozen=True)
class Statistics:
    """Tensors of the caller that calls add to."""

    recv_counts: torch.Tensor | None = None
    wait_ns: torch.Tensor | None = None


class LowLatencyMode:
    def __init__(self, lanes: Lanes, enable_shrink: bool) -> None:
        self.lanes = lanes
        self.rank, self.size = lanes.peers.rank, lanes.peers.size
        self.enable_shrink = enable_shrink
        self._notes = Notes(self.rank)
        self._masked: set[int] = set()
        self._zero_copy: dict[tuple, torch.Tensor] = {}
        self._parity = 0

    # Dispatch.

    def start_dispatch(
        self, x: torch.Tensor, topk_idx: torch.Tensor, shape: Shape, fp8: Fp8, statistics: Statistics
    ) -> tuple[Any, torch.Tensor, Any, Callable[[], None]]:
        """Sends. Returns recv_x, recv_count and the handle, which `receive` fills, and `receive`."""
        self._check_dispatch(x, topk_idx, shape, fp8, statistics)
        self._parity ^= 1
        lane = self._lane(shape, topk_idx.shape[1], x.device)
        recv = _Received(x.device, shape, self.size, fp8)
        sent = Sent(lane, None, shape, x.shape[0], topk_idx.shape[1])

        def send() -> ferry.PendingDispatch:
            return lane.group.dispatch_send(
                [x.detach(), self._notes.of(x.shape[0], x.device)],
                topk_idx,
                mode="latency",
                layout="expert_padded",
                codec=fp8.codec,
                expert_capacity=self.size * shape.num_max_tokens,
                host_counts=False,
                out=recv.out(),
                stream=ferry.torch.current_stream(x.device),
            )

        pending = self._masking(lane, send)

        def receive() -> None:
            before = lane.group.statistics().wait_ns
            arrived = self._receiving(lane, pending, send)
            sent.handle = arrived.handle
            recv.fill(arrived)
            if statistics.recv_counts is not None:
                statistics.recv_counts.add_(recv.count)
            self._add_waits(lane, before, statistics.wait_ns)

        return recv.x, recv.count, recv.handle(sent), receive

    # Combine.

    def start_combine(
        self,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        topk_weights: torch.Tensor,
        handle: Any,
        rows: CombineRows,
        out: torch.Tensor | None,
        wait_ns: torch.Tensor | None,
    ) -> tuple[torch.Tensor, Callable[[], None]]:
        """Sends. Returns the sums, which `receive` fills, and `receive`."""
        sent: Sent = sent_of(_COMBINE, handle)
        self._check_combine(sent, x, topk_idx, topk_weights, out, wait_ns)
        source = self.combine_buffer(handle) if rows.zero_copy else x
        self._parity ^= 1
        if out is None:
            out = x.new_empty((sent.num_tokens, x.shape[2]))
        lane = sent.lane

        def send() -> ferry.PendingCombine:
            return lane.group.combine_send(
                source.detach(),
                sent.handle,
                reduction="flat",
                weights=topk_weights,
                codec=rows.codec,
                out=out,
                stream=ferry.torch.current_stream(x.device),
            )

        pending = self._masking(lane, send)

        def receive() -> None:
            before = lane.group.statistics().wait_ns
            self._receiving(lane, pending, send)
            self._add_waits(lane, before, wait_ns)

        return out, receive

    def combine_buffer(self, handle: Any) -> torch.Tensor:
        """Where the experts may write for a combine with zero_copy: V1's strides. Two of them, as V1 has two
        buffers."""
        sent: Sent = sent_of("Buffer.get_next_low_latency_combine_buffer", handle)
        shape, device = sent.shape, sent.lane.device
        key = (shape, str(device), self._parity)
        if key not in self._zero_copy:
            width = shape.hidden + 2 * (shape.hidden // SCALE_CHANNELS)
            local, rows = shape.num_experts // self.size, self.size * shape.num_max_tokens
            self._zero_copy[key] = torch.zeros((local, rows, width), dtype=torch.bfloat16, device=device)
        return self._zero_copy[key][:, :, : shape.hidden]

    # Masks.

    def set_mask(self, rank: int, mask: bool) -> None:
        self._require_shrink()
        require(0 <= rank < self.size, f"argument rank: seen {rank}, expected 0 to {self.size - 1}")
        if mask == (rank in self._masked):
            return
        self._masked.symmetric_difference_update({rank})
        for lane in self.lanes.of_mode("latency"):
            self._apply_masks(lane)

    def write_mask(self, status: torch.Tensor) -> None:
        self._require_shrink()
        require_tensor("Buffer.low_latency_query_mask_buffer", "mask_status", status, (self.size,), torch.int32)
        status.copy_(torch.tensor([int(rank in self._masked) for rank in range(self.size)], dtype=torch.int32))

    def clean_mask(self) -> None:
        self._require_shrink()
        for rank in sorted(self._masked):
            self.set_mask(rank, False)

    def _require_shrink(self) -> None:
        require(self.enable_shrink, "Shrink mode must be enabled (Buffer(..., enable_shrink=True))")

    def _apply_masks(self, lane: Lane) -> None:
        if lane.group is None:
            return
        for rank in sorted(lane.masked - self._masked):
            lane.group.unmask(rank)
        for rank in sorted(self._masked - lane.masked):
            lane.group.mask(rank)
        lane.masked = set(self._masked)

    def _receiving(self, lane: Lane, pending: Any, send: Callable[[], Any]) -> Any:
        """Receives; with enable_shrink a peer that does not come in time is masked, and the call made again without
        it."""
        try:
            return pending.receive()
        except ferry.Error as error:
            self._mask_late_peers(lane, error)
        return self._masking(lane, lambda: send().receive())

    def _masking(self, lane: Lane, call: Callable[[], Any]) -> Any:
        for _ in range(self.size):
            try:
                return call()
            except ferry.Error as error:
                self._mask_late_peers(lane, error)
        raise AssertionError("every peer was masked and the call still waits")

    def _mask_late_peers(self, lane: Lane, error: ferry.Error) -> None:
        late = {peer.rank for peer in error.peers} - lane.masked - {self.rank}
        if not self.enable_shrink or error.code not in ("timeout", "peer_lost") or not late:
            raise error
        warnings.warn(f"deep_ep (Ferry): ranks {sorted(late)} are masked from now on: {error}", stacklevel=4)
        self._masked |= late
        self._apply_masks(lane)

    # Checks.

    def _lane(self, shape: Shape, top_k: int, device: torch.device) -> Lane:
        lane = self.lanes.lane("latency", shape.num_experts, device)
        needs = Needs(
            tokens=1,
            top_k=top_k,
            row_bytes=2 * shape.hidden,
            extra_bytes=NOTE_BYTES + padded(-(-shape.hidden // SCALE_CHANNELS) * 4),
            recv_rows=1,
            latency_tokens=shape.num_max_tokens,
        )
        lane.ensure(needs)
        self._apply_masks(lane)
        return lane

    def _check_dispatch(
        self, x: torch.Tensor, topk_idx: torch.Tensor, shape: Shape, fp8: Fp8, statistics: Statistics
    ) -> None:
        require_tensor(_DISPATCH, "x", x, (None, None), torch.bfloat16)
        require_ids(_DISPATCH, topk_idx, topk_idx_t)
        require_tensor(_DISPATCH, "topk_idx", topk_idx, (x.shape[0], None))
        require(
            x.shape[0] <= shape.num_max_tokens,
            f"{_DISPATCH}: argument x: seen {x.shape[0]} tokens, expected at most num_max_dispatch_tokens_per_rank = "
            f"{shape.num_max_tokens}",
        )
        require(
            fp8.round_scale or not fp8.use_ue8m0,
            f"{_DISPATCH}: argument use_ue8m0: seen True without round_scale, expected both",
        )
        local = shape.num_experts // self.size
        if statistics.recv_counts is not None:
            name = "cumulative_local_expert_recv_stats"
            require_tensor(_DISPATCH, name, statistics.recv_counts, (local,), torch.int32)
        if statistics.wait_ns is not None:
            name = "dispatch_wait_recv_cost_stats"
            require_tensor(_DISPATCH, name, statistics.wait_ns, (self.size,), torch.int64)

    def _check_combine(
        self,
        sent: Sent,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        topk_weights: torch.Tensor,
        out: torch.Tensor | None,
        wait_ns: torch.Tensor | None,
    ) -> None:
        require(
            sent.handle is not None, f"{_COMBINE}: argument handle: its dispatch was not received; call its hook first"
        )
        shape = sent.shape
        local, rows = shape.num_experts // self.size, self.size * shape.num_max_tokens
        require_tensor(_COMBINE, "x", x, (local, rows, None), torch.bfloat16)
        require_ids(_COMBINE, topk_idx, topk_idx_t)
        require_tensor(_COMBINE, "topk_idx", topk_idx, (sent.num_tokens, sent.top_k))
        require_tensor(_COMBINE, "topk_weights", topk_weights, (sent.num_tokens, sent.top_k), torch.float32)
        if out is not None:
            require_tensor(_COMBINE, "out", out, (sent.num_tokens, x.shape[2]), x.dtype)
        if wait_ns is not None:
            require_tensor(_COMBINE, "combine_wait_recv_cost_stats", wait_ns, (self.size,), torch.int64)

    def _add_waits(self, lane: Lane, before: list[int], wait_ns: torch.Tensor | None) -> None:
        if wait_ns is not None:
            waited = [after - was for after, was in zip(lane.group.statistics().wait_ns, before, strict=True)]
            wait_ns.add_(torch.tensor(waited, dtype=torch.int64, device=wait_ns.device))


class _Received:
    """The tensors that a dispatch hands out before its rows have come."""

    def __init__(self, device: torch.device, shape: Shape, num_ranks: int, fp8: Fp8) -> None:
        self._num_ranks, self._fp8 = num_ranks, fp8
        local, rows = shape.num_experts // num_ranks, num_ranks * shape.num_max_tokens
        num_scales = -(-shape.hidden // SCALE_CHANNELS)
        dtype = torch.float8_e4m3fn if fp8.use_fp8 else torch.bfloat16
        self._data = torch.empty((local, rows, shape.hidden), dtype=dtype, device=device)
        self._note = torch.empty((local, rows, 4), dtype=torch.int32, device=device)
        self.count = torch.empty((local,), dtype=torch.int32, device=device)
        self._scales, self._exponents = None, None
        if fp8.use_fp8:
            packs = -(-num_scales // _PACK) if fp8.use_ue8m0 else num_scales
            scale_dtype = torch.int32 if fp8.use_ue8m0 else torch.float32
            self._scales = torch.empty((local, packs, rows), dtype=scale_dtype, device=device).transpose(1, 2)
        if fp8.use_fp8 and fp8.round_scale:
            self._exponents = torch.empty((local, rows, num_scales), dtype=torch.uint8, device=device)
        self.x = self._data if self._scales is None else (self._data, self._scales)

    def _blocks(self) -> list[torch.Tensor]:
        """What Ferry's payload goes to."""
        scales = self._scales if self._exponents is None else self._exponents
        return [self._data, *([] if scales is None else [scales]), self._note]

    def out(self) -> list[Any] | None:
        """For dispatch. On GPUs Ferry does not write into memory of others; see fill."""
        if self._data.is_cuda:
            return None
        data, *scales, note = self._blocks()
        exponents = [] if self._exponents is None else [ferry.typed(self._exponents, "ue8m0")]
        return [as_array(data), *(exponents or scales), note]

    def fill(self, arrived: ferry.DispatchResult) -> None:
        if self._data.is_cuda:
            for target, block in zip(self._blocks(), arrived.payload, strict=True):
                source = as_tensor(block)
                if target.element_size() == 1:
                    target, source = target.view(torch.uint8), source.view(torch.uint8)
                target.copy_(source)
        self.count.copy_(as_tensor(arrived.expert_counts))
        if self._exponents is not None:
            self._spread_exponents(self._exponents.to(torch.int32))

    def _spread_exponents(self, exponents: torch.Tensor) -> None:
        """From a byte per block to float32, or to four in an int32."""
        if not self._fp8.use_ue8m0:
            self._scales.copy_((exponents << 23).view(torch.float32))
            return
        self._scales.zero_()
        for byte in range(_PACK):
            part = exponents[:, :, byte::_PACK]
            self._scales[:, :, : part.shape[2]] |= part << (8 * byte)

    def handle(self, sent: Sent) -> LazyTuple:
        shape = sent.shape
        return LazyTuple(
            [
                lambda: self._note[:, :, NOTE_TOKEN],
                self._layout_range,
                lambda: shape.num_max_tokens,
                lambda: shape.hidden,
                lambda: shape.num_experts,
            ],
            sent,
            own=range(2),
            is_live=True,
        )

    def _layout_range(self) -> torch.Tensor:
        """int64 [El, R]: first row << 32 | count, of each source in each expert."""
        local, rows, _ = self._note.shape
        real = torch.arange(rows, device=self._note.device) < self.count[:, None]
        # Clamped, since before the rows have come there is anything.
        source = (
            torch.where(real, self._note[:, :, NOTE_RANK], self._num_ranks).to(torch.int64).clamp(0, self._num_ranks)
        )
        counts = torch.zeros((local, self._num_ranks + 1), dtype=torch.int64, device=self._note.device)
        counts.scatter_add_(1, source, torch.ones_like(source))
        counts = counts[:, : self._num_ranks]
        return (counts.cumsum(1) - counts) << 32 | counts
