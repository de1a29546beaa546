# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""V1: Buffer, with the calls of normal mode (inside a node and between nodes) and of low-latency mode."""

import os
from collections.abc import Callable
from typing import Any

import ferry.torch
import torch

from deep_ep.buffers.low_latency import CombineRows, Fp8, LowLatencyMode, Shape, Statistics, size_hint
from deep_ep.buffers.normal import Choices, Layout, NormalMode, count_layout
from deep_ep.checks import require, require_fill_is_off, require_ids, require_python
from deep_ep.config import COMBINE_CHUNKS, DISPATCH_CHUNKS, NODE_RANKS, Config, topk_idx_t
from deep_ep.events import EventHandle, EventOverlap, event_of
from deep_ep.lanes import Lanes
from deep_ep.rows import detached, split_input
from deep_ep.streams import CommCall, CommStream, default_device

Tensors = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
_ALIGNMENT_BYTES = 128


class Runtime:
    """What `Buffer.runtime` answers for those who reach in."""

    def __init__(self, buffer: "Buffer") -> None:
        self._rank, self._size = buffer.rank, buffer.group_size

    def is_available(self) -> bool:
        return True

    def get_num_rdma_ranks(self) -> int:
        return max(1, self._size // NODE_RANKS)

    def get_rdma_rank(self) -> int:
        return self._rank // NODE_RANKS

    def get_local_device_id(self) -> int:
        return torch.cuda.current_device() if torch.cuda.is_available() else 0


class Buffer:
    """One rank's end of V1's communication. Making it is collective and allocates no GPU memory: Ferry's groups are
    made by the first call of each kind, which says what they must hold (docs/porting.md).

    group: a process group of any backend (only rank, size and the object all-gather are used); None: ``comm``, a
    communicator of mpi4py. num_nvl_bytes, num_rdma_bytes: multiples of 128; they say which modes are meant and size
    get_local_buffer_tensor. low_latency_mode: allows low-latency calls. enable_shrink: allows masks. timeout: seconds,
    of every wait. num_qps_per_rank, allow_nvlink_for_low_latency_mode, allow_mnnvl, use_fabric: taken and not needed.
    """

    num_sms: int = 20

    def __init__(
        self,
        group: Any,
        num_nvl_bytes: int = 0,
        num_rdma_bytes: int = 0,
        low_latency_mode: bool = False,
        num_qps_per_rank: int = 24,
        allow_nvlink_for_low_latency_mode: bool = True,
        allow_mnnvl: bool = False,
        explicitly_destroy: bool = False,
        enable_shrink: bool = False,
        comm: Any = None,
        *,
        use_fabric: bool = False,
        timeout: float = 100.0,
    ) -> None:
        if group is None and comm is None:
            raise ValueError("Buffer: arguments group and comm: seen None for both, expected one of them")
        for name, size in (("num_nvl_bytes", num_nvl_bytes), ("num_rdma_bytes", num_rdma_bytes)):
            fits = size >= 0 and size % _ALIGNMENT_BYTES == 0
            require(fits, f"Buffer: argument {name}: seen {size}, expected a multiple of {_ALIGNMENT_BYTES}")
        require(num_qps_per_rank > 0, f"Buffer: argument num_qps_per_rank: seen {num_qps_per_rank}, expected above 0")
        peers = ferry.torch.peers_of(comm if group is None else group)
        self.group = comm if group is None else group
        self.rank, self.group_size = peers.rank, peers.size
        self.num_nvl_bytes, self.num_rdma_bytes = num_nvl_bytes, num_rdma_bytes
        self.low_latency_mode = low_latency_mode
        self.explicitly_destroy = explicitly_destroy
        self.enable_shrink = enable_shrink
        self.nvshmem_qp_depth = int(os.environ.get("NVSHMEM_QP_DEPTH", "1024"))
        self._check_alike(peers)
        # On the CPU nodes are pretended, so that sums are added as V1 adds them; on GPUs they are what Ferry finds.
        nodes, rest = divmod(self.group_size, NODE_RANKS)
        pretended = nodes > 1 and rest == 0 and default_device().type == "cpu"
        self._lanes = Lanes(peers, [NODE_RANKS] * nodes if pretended else None, timeout)
        self._normal = NormalMode(self._lanes)
        self._low_latency = LowLatencyMode(self._lanes, enable_shrink)
        self._comm = CommStream()
        self._memory: dict[bool, torch.Tensor] = {}
        self.runtime: Runtime | None = Runtime(self)

    def _check_alike(self, peers: ferry.torch.Peers) -> None:
        mine = (self.num_nvl_bytes > 0, self.num_rdma_bytes > 0, bool(self.low_latency_mode), bool(self.enable_shrink))
        for rank, other in enumerate(peers.all_gather(mine)):
            require(
                other == mine,
                f"Buffer: rank {rank} was given (nvl, rdma, low latency, shrink) = {other}, this rank {mine}; "
                "expected the "
                "same on all ranks",
            )

    def destroy(self) -> None:
        """Local: peers are not waited for."""
        require_python(self.explicitly_destroy, "Buffer.destroy: seen explicitly_destroy=False, expected True")
        self._close()

    def _close(self) -> None:
        if self.runtime is None:
            return
        self.runtime = None
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self._lanes.close()
        self._memory.clear()

    def __del__(self) -> None:
        if getattr(self, "runtime", None) is None:
            return
        if self.explicitly_destroy:
            print("WARNING: destroy() was not called before a DeepEP (Ferry) buffer was let go")
        # The groups go with their last handle; unlike the original's this waits for nobody.

    # Static helpers.

    @staticmethod
    def is_sm90_compiled() -> bool:
        """Ferry's kernels hold code for what it was built for; nothing here depends on it."""
        return True

    @staticmethod
    def set_num_sms(new_num_sms: int) -> None:
        require_python(new_num_sms % 2 == 0, f"Buffer.set_num_sms: seen {new_num_sms}, expected an even number")
        Buffer.num_sms = new_num_sms

    @staticmethod
    def capture() -> EventOverlap:
        return EventOverlap(EventHandle())

    @staticmethod
    def get_low_latency_rdma_size_hint(
        num_max_dispatch_tokens_per_rank: int, hidden: int, num_ranks: int, num_experts: int
    ) -> int:
        return size_hint(num_max_dispatch_tokens_per_rank, hidden, num_experts)

    @staticmethod
    def get_dispatch_config(num_ranks: int) -> Config:
        require_python(num_ranks in DISPATCH_CHUNKS, f"Unsupported number of EP ranks: {num_ranks}")
        return Config(Buffer.num_sms, *DISPATCH_CHUNKS[num_ranks])

    @staticmethod
    def get_combine_config(num_ranks: int) -> Config:
        require_python(num_ranks in COMBINE_CHUNKS, f"Unsupported number of EP ranks: {num_ranks}")
        return Config(Buffer.num_sms, *COMBINE_CHUNKS[num_ranks])

    @staticmethod
    def _unpack_bias(bias: Any) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if isinstance(bias, torch.Tensor):
            return detached(bias, None)
        if isinstance(bias, tuple):
            require_python(len(bias) == 2, f"argument bias: seen {len(bias)} of them, expected 2")
            return detached(*bias)
        return None, None

    # Memory and streams.

    def get_comm_stream(self) -> Any:
        """torch.cuda.Stream of this buffer; without a GPU PyTorch's stream of the CPU."""
        return self._comm.public()

    def get_local_buffer_tensor(
        self, dtype: torch.dtype, size: torch.Size | None = None, offset: int = 0, use_rdma_buffer: bool = False
    ) -> torch.Tensor:
        """Memory of the size that was asked for at construction, the same at each call. No call of this package uses
        it. offset: bytes; the result ends where the memory does."""
        num_bytes = self.num_rdma_bytes if use_rdma_buffer else self.num_nvl_bytes
        if use_rdma_buffer not in self._memory:
            self._memory[use_rdma_buffer] = torch.zeros(num_bytes, dtype=torch.uint8, device=default_device())
        whole = self._memory[use_rdma_buffer][offset:]
        tensor = whole[: whole.numel() // dtype.itemsize * dtype.itemsize].view(dtype)
        if size is None:
            return tensor
        require_python(
            tensor.numel() >= size.numel(),
            f"Buffer.get_local_buffer_tensor: argument size: seen {list(size)}, expected at most {tensor.numel()} "
            f"elements",
        )
        return tensor[: size.numel()].view(size)

    # Normal mode.

    def _comm_call(
        self, device: torch.device, previous_event: Any, async_finish: bool, allocate_on_comm_stream: bool
    ) -> CommCall:
        before = event_of(previous_event)
        require(
            not allocate_on_comm_stream or (before is not None and async_finish),
            "argument allocate_on_comm_stream: seen True, expected it with a previous_event that holds an event and "
            "async_finish=True",
        )
        return CommCall(self._comm, device, before, async_finish)

    def _config(self, config: Config | None, chunks: dict[int, tuple[int, int, int, int]]) -> Config:
        """The original has defaults for twelve numbers of ranks only; queues do not matter here, so any other does,
        too."""
        return config or Config(Buffer.num_sms, *chunks.get(self.group_size, chunks[8]))

    def get_dispatch_layout(
        self,
        topk_idx: torch.Tensor,
        num_experts: int,
        previous_event: EventOverlap | None = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor, EventOverlap]:
        """Counts topk_idx [T, K]. Returns tokens per rank [R], tokens per node (None up to 8 ranks), tokens per expert
        [E], is_token_in_rank [T, R] and the event."""
        name = "Buffer.get_dispatch_layout"
        require_ids(name, topk_idx, topk_idx_t)
        require(num_experts > 0, f"{name}: argument num_experts: seen {num_experts}, expected above 0")
        require(
            num_experts % self.group_size == 0,
            f"{name}: argument num_experts: seen {num_experts}, expected a multiple of {self.group_size} ranks",
        )
        call = self._comm_call(topk_idx.device, previous_event, async_finish, allocate_on_comm_stream)
        with call:
            layout = count_layout(topk_idx, num_experts, self.group_size)
        tensors = (
            layout.num_tokens_per_rank,
            layout.num_tokens_per_rdma_rank,
            layout.num_tokens_per_expert,
            layout.is_token_in_rank,
        )
        return *tensors, call.finish((topk_idx, *tensors))

    def dispatch(
        self,
        x: Tensors,
        handle: tuple | None = None,
        num_tokens_per_rank: torch.Tensor | None = None,
        num_tokens_per_rdma_rank: torch.Tensor | None = None,
        is_token_in_rank: torch.Tensor | None = None,
        num_tokens_per_expert: torch.Tensor | None = None,
        topk_idx: torch.Tensor | None = None,
        topk_weights: torch.Tensor | None = None,
        expert_alignment: int = 1,
        num_worst_tokens: int = 0,
        config: Config | None = None,
        previous_event: EventOverlap | None = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> tuple:
        """Returns (recv_x, recv_topk_idx, recv_topk_weights, num_recv_tokens_per_expert_list, handle, event)."""
        require_fill_is_off("Buffer.dispatch")
        config = self._config(config, DISPATCH_CHUNKS)
        data, scales = split_input(x)
        (topk_weights,) = detached(topk_weights)
        call = self._comm_call(data.device, previous_event, async_finish, allocate_on_comm_stream)
        if handle is not None:
            require_python(
                topk_idx is None and topk_weights is None,
                "Buffer.dispatch: arguments topk_idx and topk_weights: seen with a handle, expected None",
            )
            with call:
                recv_x = self._normal.cached_dispatch(x, handle, config)
            return recv_x, None, None, None, None, call.finish((data, scales, *split_input(recv_x)))
        layout = Layout(num_tokens_per_rank, num_tokens_per_rdma_rank, is_token_in_rank, num_tokens_per_expert)
        choices = Choices(topk_idx, topk_weights)
        with call:
            returned = self._normal.dispatch(x, layout, choices, expert_alignment, num_worst_tokens, config)
        used = (data, scales, topk_idx, topk_weights, is_token_in_rank, *split_input(returned[0]), *returned[1:3])
        return *returned, call.finish(used)

    def combine(
        self,
        x: torch.Tensor,
        handle: tuple,
        topk_weights: torch.Tensor | None = None,
        bias: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
        config: Config | None = None,
        previous_event: EventOverlap | None = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, EventOverlap]:
        """Returns (combined_x [T, H], combined_topk_weights [T, K] or None, event)."""
        require_fill_is_off("Buffer.combine")
        config = self._config(config, COMBINE_CHUNKS)
        biases = Buffer._unpack_bias(bias)
        x, topk_weights = detached(x, topk_weights)
        call = self._comm_call(x.device, previous_event, async_finish, allocate_on_comm_stream)
        with call:
            out, weights = self._normal.combine(x, handle, topk_weights, biases, config)
        return out, weights, call.finish((x, topk_weights, *biases, out, weights))

    # The original's Python forwards to these between nodes; here they are the same calls.
    internode_dispatch = dispatch
    internode_combine = combine

    # Low-latency mode.

    def _low_latency_call(
        self,
        device: torch.device,
        start: Callable[[], tuple[Any, Callable[[], None]]],
        tensors: Callable[[Any], tuple],
        async_finish: bool,
        return_recv_hook: bool,
    ) -> tuple[Any, EventOverlap, Callable[[], None] | None]:
        """With a hook, sending goes to the current stream and the hook goes on with the same one; else both are done
        on the communication stream."""
        require(self.low_latency_mode, "low-latency calls need Buffer(..., low_latency_mode=True)")
        require(
            not (async_finish and return_recv_hook),
            "arguments async_finish and return_recv_hook: seen both, expected one of them",
        )
        if return_recv_hook:
            stream = ferry.torch.current_stream(device)
            result, receive = start()
            waiting = [receive]

            def hook() -> None:
                require(waiting, "a hook of a low-latency call was called a second time, expected once")
                with ferry.torch.following(stream):
                    waiting.pop()()

            return result, EventOverlap(None, tensors(result)), hook
        call = CommCall(self._comm, device, None, async_finish)
        with call:
            result, receive = start()
            receive()
        event = call.finish(tensors(result))
        event.extra_tensors = tensors(result)
        return result, event, None

    def low_latency_dispatch(
        self,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        num_max_dispatch_tokens_per_rank: int,
        num_experts: int,
        cumulative_local_expert_recv_stats: torch.Tensor | None = None,
        dispatch_wait_recv_cost_stats: torch.Tensor | None = None,
        use_fp8: bool = True,
        round_scale: bool = False,
        use_ue8m0: bool = False,
        async_finish: bool = False,
        return_recv_hook: bool = False,
    ) -> tuple:
        """Returns (recv_x or (recv_x, scales), recv_count, handle, event, hook)."""
        require_fill_is_off("Buffer.low_latency_dispatch")
        shape = Shape(num_max_dispatch_tokens_per_rank, x.shape[-1], num_experts)
        fp8 = Fp8(bool(use_fp8), bool(round_scale), bool(use_ue8m0))
        statistics = Statistics(cumulative_local_expert_recv_stats, dispatch_wait_recv_cost_stats)

        def start() -> tuple[Any, Callable[[], None]]:
            *result, receive = self._low_latency.start_dispatch(x.detach(), topk_idx, shape, fp8, statistics)
            return result, receive

        def tensors(result: Any) -> tuple:
            return (x, topk_idx, *split_input(result[0]), result[1])

        result, event, hook = self._low_latency_call(x.device, start, tensors, async_finish, return_recv_hook)
        return *result, event, hook

    def low_latency_combine(
        self,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        topk_weights: torch.Tensor,
        handle: tuple,
        use_logfmt: bool = False,
        zero_copy: bool = False,
        async_finish: bool = False,
        return_recv_hook: bool = False,
        out: torch.Tensor | None = None,
        combine_wait_recv_cost_stats: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, EventOverlap, Callable[[], None] | None]:
        """Returns (combined_x [T, H], event, hook). use_logfmt: rows travel in 10 bits a channel, where a chunk of
        768 fits (docs/porting.md)."""
        require_fill_is_off("Buffer.low_latency_combine")
        require(
            not (use_logfmt and zero_copy),
            "Buffer.low_latency_combine: arguments use_logfmt and zero_copy: seen both, expected one of them",
        )
        rows = CombineRows(zero_copy, "logfmt10" if use_logfmt else "none")

        def start() -> tuple[torch.Tensor, Callable[[], None]]:
            return self._low_latency.start_combine(
                *detached(x, topk_idx, topk_weights), handle, rows, out, combine_wait_recv_cost_stats
            )

        def tensors(result: torch.Tensor) -> tuple:
            return (x, topk_idx, topk_weights, result)

        return self._low_latency_call(x.device, start, tensors, async_finish, return_recv_hook)

    def get_next_low_latency_combine_buffer(self, handle: tuple) -> torch.Tensor:
        """bf16 [El, R * Tmax, H], rows apart: write there, then combine with zero_copy=True as the next low-latency
        call."""
        return self._low_latency.combine_buffer(handle)

    def clean_low_latency_buffer(self, num_max_dispatch_tokens_per_rank: int, hidden: int, num_experts: int) -> None:
        """Nothing to clean: Ferry's signals only grow, and modes share no memory."""

    def low_latency_update_mask_buffer(self, rank_to_mask: int, mask: bool = False) -> None:
        """Masks a rank, or takes it back. All remaining ranks must do the same before the same call."""
        self._low_latency.set_mask(rank_to_mask, bool(mask))

    def low_latency_query_mask_buffer(self, mask_status: torch.Tensor) -> None:
        """Writes 1 for each masked rank into int32 [R]."""
        self._low_latency.write_mask(mask_status)

    def low_latency_clean_mask_buffer(self) -> None:
        """Takes all ranks back."""
        self._low_latency.clean_mask()
