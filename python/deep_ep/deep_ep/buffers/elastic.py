# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""V2: ElasticBuffer."""

from functools import lru_cache
from typing import Any

import ferry.torch
import torch

from deep_ep import domains, not_offered
from deep_ep.buffers.elastic_handle import EPHandle
from deep_ep.buffers.elastic_mode import ElasticMode, Request, inputs_of
from deep_ep.buffers.elastic_sizes import (
    MIB_2,
    Moe,
    Rates,
    SizeHints,
    device_sms,
    moe_buffer_bytes,
    nvlink_gb_per_s,
    suggested_sms,
    traffic_of,
)
from deep_ep.buffers.elastic_tables import Domains
from deep_ep.buffers.legacy import Buffer
from deep_ep.checks import require, require_ids, require_python, require_tensor
from deep_ep.config import topk_idx_t
from deep_ep.events import EventHandle, EventOverlap
from deep_ep.lanes import Lanes
from deep_ep.not_offered import Experiments
from deep_ep.rows import detached, split_input
from deep_ep.streams import CommCall, CommStream, default_device

Tensors = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
_DIRECT_QPS, _HYBRID_QPS = 17, 129
_COMM = CommStream()
"""One per process and GPU, shared by all buffers."""


class ElasticBuffer(SizeHints, Experiments):
    """One rank's end of V2's communication. Making it is collective; Ferry's groups are made by the first call of each
    kind.

    group: a process group of any backend, or a communicator of mpi4py. num_max_tokens_per_rank: also the default of
    dispatch. deterministic: rows ordered by source rank and token; without it, between nodes, by the source's rank in
    its node first. Rows have a fixed order in both cases. allow_multiple_reduction: combine may round at intermediate
    hops. num_cpu_timeout_secs, num_gpu_timeout_secs: the larger one is every wait's deadline. num_bytes is remembered,
    not allocated. sl_idx, num_allocated_qps: taken and not needed. num_cpu_bytes: not offered.
    """

    def __init__(
        self,
        group: Any,
        num_bytes: int | None = None,
        num_cpu_bytes: int = 0,
        num_max_tokens_per_rank: int = 0,
        hidden: int = 0,
        num_topk: int = 0,
        use_fp8_dispatch: bool = False,
        deterministic: bool = False,
        allow_hybrid_mode: bool = True,
        allow_multiple_reduction: bool = True,
        prefer_overlap_with_compute: bool = True,
        sl_idx: int = 3,
        num_allocated_qps: int = 0,
        num_cpu_timeout_secs: float = 300,
        num_gpu_timeout_secs: float = 100,
        explicitly_destroy: bool = False,
    ) -> None:
        if num_cpu_bytes:
            not_offered.refuse("num_cpu_bytes (Engram's storage)", "a table in memory of your own")
        peers = ferry.torch.peers_of(group)
        sizes = domains.node_sizes(peers)
        physical = domains.physical(sizes)
        logical = domains.logical(sizes, bool(allow_hybrid_mode))
        if num_bytes is None:
            require_python(
                num_max_tokens_per_rank > 0 and hidden > 0,
                f"ElasticBuffer: seen num_bytes None, num_max_tokens_per_rank {num_max_tokens_per_rank}, hidden "
                f"{hidden}; "
                "expected num_bytes, or both others above 0",
            )
            moe = Moe(num_max_tokens_per_rank, hidden, num_topk, bool(use_fp8_dispatch))
            num_bytes = moe_buffer_bytes(moe, physical, logical, bool(allow_multiple_reduction))
        require(
            num_bytes > 0 and num_bytes % MIB_2 == 0,
            f"ElasticBuffer: argument num_bytes: seen {num_bytes}, expected a multiple of 2 MiB above 0",
        )
        self.group = group
        self.rank_idx, self.num_ranks = peers.rank, peers.size
        self.allow_hybrid_mode = bool(allow_hybrid_mode)
        self.allow_multiple_reduction = bool(allow_multiple_reduction)
        self.prefer_overlap_with_compute = bool(prefer_overlap_with_compute)
        self.deterministic = bool(deterministic)
        self.num_bytes = num_bytes
        self.num_max_tokens_per_rank = num_max_tokens_per_rank
        self.num_allocated_qps = num_allocated_qps or (_HYBRID_QPS if logical[0] > 1 else _DIRECT_QPS)
        self.explicitly_destroy = bool(explicitly_destroy)
        self.num_rdma_ranks, self.num_nvlink_ranks = physical
        self.num_scaleout_ranks, self.num_scaleup_ranks = logical
        self.scaleout_rank_idx, self.scaleup_rank_idx = divmod(self.rank_idx, self.num_scaleup_ranks)
        self.nccl_comm_handle = None
        self._lanes = Lanes(peers, None, float(max(num_cpu_timeout_secs, num_gpu_timeout_secs)))
        self._mode = ElasticMode(self._lanes, Domains(*logical), self.deterministic, self.allow_multiple_reduction)
        self._suggest = lru_cache(maxsize=None)(self._theoretical_num_sms)
        self.runtime: object | None = self._mode
        peers.all_gather(None)

    def destroy(self) -> None:
        """Local: peers are not waited for. May be called again."""
        require_python(self.explicitly_destroy, "ElasticBuffer.destroy: seen explicitly_destroy=False, expected True")
        if self.runtime is None:
            return
        self.runtime = None
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self._lanes.close()

    # Suggestions and queries.

    def get_theoretical_num_sms(
        self,
        num_experts: int,
        num_topk: int,
        num_scaleout_topk: int = 0,
        rdma_gbs: float = 0,
        nvlink_gbs: float = 0,
        sm_read_gbs: float = 200,
        sm_write_gbs: float = 50,
    ) -> int:
        require_python(num_scaleout_topk == 0, f"argument num_scaleout_topk: seen {num_scaleout_topk}, expected 0")
        return self._suggest(num_experts, num_topk, Rates(rdma_gbs, nvlink_gbs, sm_read_gbs, sm_write_gbs))

    def _theoretical_num_sms(self, num_experts: int, num_topk: int, rates: Rates) -> int:
        traffic = traffic_of(self.get_physical_domain_size(), self.get_logical_domain_size(), num_experts, num_topk)
        rates = Rates(rates.rdma, rates.nvlink or nvlink_gb_per_s(), rates.sm_read, rates.sm_write)
        return suggested_sms(traffic, rates, self.num_scaleout_ranks, self.prefer_overlap_with_compute, device_sms())

    def get_theoretical_num_qps(self, num_sms: int) -> int:
        wanted = 16 * num_sms + 1 if self.allow_hybrid_mode else min(num_sms, 9)
        return min(wanted, self.num_allocated_qps)

    def get_physical_domain_size(self) -> tuple[int, int]:
        return self.num_rdma_ranks, self.num_nvlink_ranks

    def get_logical_domain_size(self) -> tuple[int, int]:
        return self.num_scaleout_ranks, self.num_scaleup_ranks

    def get_comm_stream(self) -> Any:
        return _COMM.public()

    @staticmethod
    def capture() -> EventHandle:
        return EventHandle()

    def barrier(self, use_comm_stream: bool = True, with_cpu_sync: bool = False, sequential: bool = True) -> None:
        """Later work on the stream begins when every rank has begun this call."""
        device = default_device()
        on_gpu = device.type == "cuda"
        if with_cpu_sync and on_gpu:
            torch.cuda.synchronize()
        if use_comm_stream:
            call = CommCall(_COMM, device, None, False)
            with call:
                self._mode.barrier(device)
            call.finish(())
        else:
            self._mode.barrier(device)
        if with_cpu_sync and on_gpu:
            torch.cuda.synchronize()

    # Dispatch and combine.

    def _call(
        self,
        device: torch.device,
        previous_event: EventHandle | None,
        before_epilogue: EventHandle | None,
        is_async: bool,
        allocate_on_comm_stream: bool,
    ) -> CommCall:
        for name, event in (("previous_event", previous_event), ("previous_event_before_epilogue", before_epilogue)):
            require(
                event is None or isinstance(event, EventHandle),
                f"argument {name}: seen {type(event).__name__}, expected an EventHandle (capture() returns one)",
            )
        require(
            previous_event is None or allocate_on_comm_stream,
            "argument previous_event: seen one without allocate_on_comm_stream=True, expected both",
        )
        call = CommCall(_COMM, device, previous_event, bool(is_async))
        # The whole call waits, not only what it copies out at its end.
        if before_epilogue is not None and call.stream is not None:
            before_epilogue._event.wait(call.stream)
        return call

    def dispatch(
        self,
        x: Tensors,
        topk_idx: torch.Tensor | None = None,
        topk_weights: torch.Tensor | None = None,
        cumulative_local_expert_recv_stats: torch.Tensor | None = None,
        num_experts: int | None = None,
        num_max_tokens_per_rank: int | None = None,
        expert_alignment: int | None = None,
        num_sms: int = 0,
        num_qps: int = 0,
        previous_event: EventHandle | None = None,
        previous_event_before_epilogue: EventHandle | None = None,
        async_with_compute_stream: bool = False,
        allocate_on_comm_stream: bool = False,
        handle: EPHandle | None = None,
        do_handle_copy: bool = True,
        do_cpu_sync: bool | None = None,
        do_expand: bool = False,
        do_zero_padding: bool = False,
        use_tma_aligned_col_major_sf: bool = False,
    ) -> tuple:
        """Returns (recv_x or (recv_x, sf), recv_topk_idx, recv_topk_weights, handle, event)."""
        data, scales = inputs_of(x)
        (topk_weights,) = detached(topk_weights)
        self._check_tables(data, topk_idx, topk_weights, handle, do_cpu_sync, cumulative_local_expert_recv_stats)
        experts, most_tokens, alignment = self._sizes(num_experts, num_max_tokens_per_rank, expert_alignment, handle)
        require_python(
            do_expand or not do_zero_padding,
            "ElasticBuffer.dispatch: argument do_zero_padding: seen without do_expand, expected both",
        )
        require(
            handle is None or bool(do_expand) == handle.do_expand,
            f"ElasticBuffer.dispatch: argument do_expand: seen {bool(do_expand)}, expected the handle's, "
            f"{not do_expand}",
        )
        require(
            data.shape[0] <= most_tokens,
            f"ElasticBuffer.dispatch: argument x: seen {data.shape[0]} tokens, expected at most {most_tokens} "
            "(num_max_tokens_per_rank)",
        )
        top_k = (topk_idx if handle is None else handle.topk_idx).shape[1]
        request = Request(
            data=data,
            scales=scales,
            topk_idx=topk_idx,
            topk_weights=topk_weights,
            handle=handle,
            num_experts=experts,
            num_max_tokens=most_tokens,
            alignment=alignment,
            num_sms=self._check_sms(num_sms or self.get_theoretical_num_sms(experts, top_k), num_qps),
            do_handle_copy=bool(do_handle_copy),
            do_cpu_sync=handle is None and do_cpu_sync in (None, True, 1),
            do_expand=bool(do_expand),
            do_zero_padding=bool(do_zero_padding),
            col_major_scales=bool(use_tma_aligned_col_major_sf),
            stats=cumulative_local_expert_recv_stats,
        )
        call = self._call(
            data.device,
            previous_event,
            previous_event_before_epilogue,
            async_with_compute_stream,
            allocate_on_comm_stream,
        )
        with call:
            recv_x, ids, weights, made = self._mode.dispatch(request)
        used = (data, scales, topk_idx, topk_weights, *split_input(recv_x), ids, weights)
        return recv_x, ids, weights, made, call.finish(used)

    def combine(
        self,
        x: torch.Tensor,
        handle: EPHandle,
        topk_weights: torch.Tensor | None = None,
        bias: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
        num_sms: int = 0,
        num_qps: int = 0,
        previous_event: EventHandle | None = None,
        previous_event_before_epilogue: EventHandle | None = None,
        async_with_compute_stream: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, EventOverlap]:
        """Returns (combined_x [T, H], combined_topk_weights [T, K] or None, event)."""
        biases = Buffer._unpack_bias(bias)
        x, topk_weights = detached(x, topk_weights)
        num_sms = self._check_sms(num_sms or handle.num_sms, num_qps)
        call = self._call(
            x.device, previous_event, previous_event_before_epilogue, async_with_compute_stream, allocate_on_comm_stream
        )
        with call:
            out, weights = self._mode.combine(x, handle, topk_weights, biases, num_sms)
        return out, weights, call.finish((x, topk_weights, *biases, out, weights))

    def _check_sms(self, num_sms: int, num_qps: int) -> int:
        require(num_sms <= device_sms(), f"argument num_sms: seen {num_sms}, expected at most {device_sms()}")
        require(
            num_qps <= self.num_allocated_qps,
            f"argument num_qps: seen {num_qps}, expected at most num_allocated_qps = {self.num_allocated_qps}",
        )
        return num_sms

    def _check_tables(
        self,
        data: torch.Tensor,
        topk_idx: torch.Tensor | None,
        topk_weights: torch.Tensor | None,
        handle: EPHandle | None,
        do_cpu_sync: bool | None,
        stats: torch.Tensor | None,
    ) -> None:
        name = "ElasticBuffer.dispatch"
        if handle is not None:
            require_python(topk_idx is None, f"{name}: argument topk_idx: seen with a handle, expected None")
            require(not do_cpu_sync, f"{name}: argument do_cpu_sync: seen True with a handle, expected False or None")
            require(
                stats is None, f"{name}: argument cumulative_local_expert_recv_stats: seen with a handle, expected None"
            )
            require(handle.sent is not None, f"{name}: argument handle: seen one that no dispatch made")
            num_tokens, top_k = handle.topk_idx.shape
        else:
            require_python(topk_idx is not None, f"{name}: argument topk_idx: seen None without a handle")
            require_ids(name, topk_idx, topk_idx_t)
            num_tokens, top_k = topk_idx.shape
        require(
            data.shape[0] == num_tokens,
            f"{name}: argument x: seen {data.shape[0]} tokens, expected {num_tokens}, as topk_idx",
        )
        if topk_weights is not None:
            require_tensor(name, "topk_weights", topk_weights, (num_tokens, top_k), torch.float32)

    def _sizes(
        self, num_experts: int | None, num_max_tokens: int | None, alignment: int | None, handle: EPHandle | None
    ) -> tuple[int, int, int]:
        """Experts, most tokens, alignment: as given, or as the handle says, which must not be contradicted."""
        given = (num_experts, num_max_tokens, alignment)
        if handle is not None:
            kept = (handle.num_experts, handle.num_max_tokens_per_rank, handle.expert_alignment)
            names = ("num_experts", "num_max_tokens_per_rank", "expert_alignment")
            for name, value, known in zip(names, given, kept, strict=True):
                require(
                    value is None or value == known,
                    f"ElasticBuffer.dispatch: argument {name}: seen {value}, expected {known}, as the handle's",
                )
            return kept
        require_python(
            num_experts is not None, "ElasticBuffer.dispatch: argument num_experts: seen None without a handle"
        )
        most = self.num_max_tokens_per_rank if num_max_tokens is None else num_max_tokens
        require(
            most > 0, "ElasticBuffer.dispatch: argument num_max_tokens_per_rank: seen none, expected it here or above"
        )
        alignment = 1 if alignment is None else alignment
        require(
            alignment >= 1, f"ElasticBuffer.dispatch: argument expert_alignment: seen {alignment}, expected 1 or more"
        )
        return num_experts, most, alignment
