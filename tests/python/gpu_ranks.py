# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""What a rank on a GPU does in tests, with PyTorch: as one of several threads, or as a process of its own."""

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import ferry
import ml_dtypes
import moe_cases
import moe_reference as ref
import numpy as np
import torch
from moe_cases import Case
from rank_threads import run_threads

CONFIG = {
    "backend": "cuda",
    "num_experts": 8,
    "max_tokens": 16,
    "max_latency_tokens": 0,
    "max_top_k": 5,
    "hidden": 264,
    "dtype": "fp32",
    "timeout": 20.0,
}
NUM_SMS = 8
"""Kernels of ranks on one GPU wait for each other, so all of them must fit on it at the same time."""

NUMPY_OF_BITS = {
    "bf16": (torch.int16, ml_dtypes.bfloat16),
    "fp8_e4m3": (torch.uint8, ml_dtypes.float8_e4m3fn),
    "ue8m0": (torch.uint8, ml_dtypes.float8_e8m0fnu),
}
TORCH_OF_NUMPY = {
    np.dtype(ml_dtypes.bfloat16): (np.int16, torch.bfloat16),
    np.dtype(ml_dtypes.float8_e4m3fn): (np.uint8, torch.float8_e4m3fn),
}


def to_torch(array: np.ndarray, device: int) -> torch.Tensor:
    """On a GPU, the same bits."""
    bits, dtype = TORCH_OF_NUMPY.get(array.dtype, (array.dtype, None))
    tensor = torch.from_numpy(np.ascontiguousarray(array).view(bits)).to(f"cuda:{device}")
    return tensor if dtype is None else tensor.view(dtype)


def spread(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, every second row of a wider tensor."""
    wide = torch.zeros((2 * tensor.shape[0], tensor.shape[1] + 8), dtype=tensor.dtype, device=tensor.device)
    wide[::2, : tensor.shape[1]] = tensor
    return wide[::2, : tensor.shape[1]]


def to_numpy(array: Any) -> np.ndarray:
    """A ferry.Array on a GPU, or a tensor, copied to the host."""
    if isinstance(array, torch.Tensor):
        array = ferry.typed(array, str(array.dtype).removeprefix("torch."))
    if array.dtype == "bf16":
        return torch.from_dlpack(array).view(torch.int16).cpu().numpy().view(ml_dtypes.bfloat16)
    if array.dtype in NUMPY_OF_BITS:
        return torch.from_dlpack(array.view("uint8")).cpu().numpy().view(NUMPY_OF_BITS[array.dtype][1])
    return torch.from_dlpack(array).cpu().numpy()


def copy_result(result: ferry.DispatchResult) -> Any:
    """A dispatch result in host memory, for the checks that read NumPy arrays."""
    names = "topk_ids topk_weights num_rows source_offsets expert_counts expert_offsets".split()
    arrays = {name: getattr(result, name) for name in names}
    copied = {name: None if array is None else to_numpy(array) for name, array in arrays.items()}
    payload = [to_numpy(block) for block in result.payload]
    return SimpleNamespace(payload=payload, host_expert_counts=result.host_expert_counts, **copied)


@dataclass
class GpuRank:
    group: ferry.Group
    device: int
    stream: torch.cuda.Stream
    barrier: threading.Barrier | None = None
    """Of ranks that are threads. PyTorch may stop the whole GPU to get memory or load a kernel, while kernels of
    another rank on it wait for this one: such work and Ferry's calls never meet in these tests."""
    lock: Any = field(default_factory=threading.Lock)
    """One rank at a time captures."""

    def settle(self) -> None:
        self.stream.synchronize()
        if self.barrier is not None:
            self.barrier.wait()

    def put(self, array: np.ndarray) -> torch.Tensor:
        return to_torch(array, self.device)


@contextmanager
def on_gpu(device: int) -> Iterator[torch.cuda.Stream]:
    """A stream of its own is the current one, with PyTorch's memory and kernels at hand."""
    torch.cuda.set_device(device)
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        sizes = (64 << 20, 16 << 20, *[512 << 10] * 8)
        blocks = [torch.zeros(num_bytes, dtype=torch.uint8, device=f"cuda:{device}") for num_bytes in sizes]
        rows = torch.ones((4, 64), dtype=torch.bfloat16, device=f"cuda:{device}")
        spread(rows).clone().copy_(rows * 2)
        torch.cuda._sleep(1000)
        stream.synchronize()
        del blocks, rows
        yield stream


def run_gpu_threads(devices: list[int], body: Callable[[GpuRank], Any], **config: Any) -> list[Any]:
    """What `body` returned on each rank; rank r is a thread that works on GPU devices[r]."""
    barrier, lock = threading.Barrier(len(devices), timeout=100), threading.Lock()

    def run(meeting: ferry.Meeting) -> Any:
        device = devices[meeting.rank]
        try:
            with on_gpu(device) as stream:
                barrier.wait()
                with ferry.Group(meeting, **(CONFIG | config | {"device": device})) as group:
                    result = body(GpuRank(group, device, stream, barrier, lock))
                    barrier.wait()
                    return result
        except BaseException:
            barrier.abort()
            raise

    return run_threads([lambda meeting=meeting: run(meeting) for meeting in ferry.meet_in_process(len(devices))])


# What ranks do.


def run_case(rank: GpuRank, case: Case) -> None:
    """A dispatch and a combine against the NumPy reference, bit for bit."""
    group, r = rank.group, rank.group.rank
    problem = moe_cases.make_problem(case)
    blocks = [moe_cases.send_blocks(case, problem, source) for source in range(group.size)]
    _, options = moe_cases.dispatch_arguments(case, problem, r)
    cut = spread if case.strided else (lambda tensor: tensor)
    given = [cut(rank.put(array)) for array in (problem.x[r], problem.ids[r], problem.weights[r])]
    rank.settle()
    assert group.why_not(*given, **options, num_sms=NUM_SMS) == ""
    if case.split:
        result = group.dispatch_send(*given, **options, num_sms=NUM_SMS).receive()
    else:
        result = group.dispatch(*given, **options, num_sms=NUM_SMS)
    assert {array.device for array in (*result.payload, result.num_rows)} == {f"cuda:{rank.device}"}
    rank.settle()

    arrived = copy_result(result)
    check = moe_cases.check_rank_major if case.layout == "rank_major" else moe_cases.check_experts
    check(case, problem, arrived, r, blocks)
    y = rank.put(moe_cases.run_experts(case, problem, arrived, r))
    arguments = moe_cases.combine_arguments(case, problem, r)
    for name, value in arguments.items():
        if isinstance(value, np.ndarray):
            arguments[name] = rank.put(value)
        elif isinstance(value, tuple):
            arguments[name] = tuple(rank.put(array) for array in value)
    rank.settle()
    if case.split:
        combined = group.combine_send(y, result.handle, **arguments, num_sms=NUM_SMS).receive()
    else:
        combined = group.combine(y, result.handle, **arguments, num_sms=NUM_SMS)
    rank.settle()
    moe_cases.check_combine(case, problem, r, to_numpy(combined.out))


def experts(arrived: ferry.DispatchResult) -> torch.Tensor:
    """What experts that double their rows make of a result; of rank_major, the sum over a rank's experts."""
    rows = torch.from_dlpack(arrived.payload[0])
    if arrived.layout != "rank_major":
        return rows * 2
    chosen = (torch.from_dlpack(arrived.topk_ids) >= 0).sum(dim=1, keepdim=True)
    return rows * (2 * chosen.to(torch.bfloat16))


@dataclass
class Layer:
    """A layer whose experts double their rows, with inputs that stay where they are."""

    rank: GpuRank
    seed: int = 0
    x: torch.Tensor = field(init=False)
    ids: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.x, self.ids = self.rank.put(self.problem.x[self.r]), self.rank.put(self.problem.ids[self.r])

    @property
    def r(self) -> int:
        return self.rank.group.rank

    @property
    def problem(self) -> ref.Problem:
        size = self.rank.group.size
        return moe_cases.make_problem(
            Case([size], 8, [12] * size, 3, 64, "throughput", "expert_major", seed=self.seed, id_dtype=np.int64)
        )

    def refill(self, seed: int) -> None:
        """Other rows and another routing, in the same memory."""
        self.seed = seed
        self.x.copy_(self.rank.put(self.problem.x[self.r]))
        self.ids.copy_(self.rank.put(self.problem.ids[self.r]))

    def run(self, split: bool = False, **options: Any) -> tuple[ferry.DispatchResult, torch.Tensor]:
        """No wait on the host. What is returned must be kept for as long as a graph that holds the call."""
        options = {"layout": "expert_major", "host_counts": False, "num_sms": NUM_SMS} | options
        arrived = self.dispatch(split, **options)
        return arrived, self.combine(split, experts(arrived), arrived.handle)

    def dispatch(self, split: bool, **options: Any) -> ferry.DispatchResult:
        if not split:
            return self.rank.group.dispatch(self.x, self.ids, **options)
        hook = self.rank.group.dispatch_send(self.x, self.ids, **options).receive
        return hook()

    def combine(self, split: bool, y: torch.Tensor, handle: ferry.Handle) -> torch.Tensor:
        if not split:
            return torch.from_dlpack(self.rank.group.combine(y, handle, num_sms=NUM_SMS).out)
        hook = self.rank.group.combine_send(y, handle, num_sms=NUM_SMS).receive
        return torch.from_dlpack(hook().out)

    def check(self, out: torch.Tensor) -> None:
        problem, zero = self.problem, np.zeros(64, np.float32)
        for token, (row, ids) in enumerate(zip(problem.x[self.r], problem.ids[self.r], strict=True)):
            owners = [problem.owner(int(e)) for e in ids if e >= 0]
            twice = (row.astype(np.float32) * 2).astype(row.dtype)
            expected = (
                ref.combine_choices(problem, [twice] * len(owners), owners, ref.Rule(), zero)
                if owners
                else zero.astype(row.dtype)
            )
            assert moe_cases.same_bits(to_numpy(out)[token], expected), (self.r, token, self.seed)


def run_combine_input(rank: GpuRank) -> None:
    """Experts that write into the combine input, as tensors and as what Ferry gave out, late and on another stream."""
    layer = Layer(rank)
    side = torch.cuda.Stream(rank.device)
    rank.settle()
    layer.check(layer.run()[1])
    for seed, layout in enumerate(("rank_major", "expert_major", "expert_padded"), start=1):
        for host_counts in (False, True):
            rank.settle()
            layer.refill(seed)
            rank.settle()
            arrived = rank.group.dispatch(
                layer.x, layer.ids, layout=layout, host_counts=host_counts, num_sms=NUM_SMS, stream=side
            )
            given = rank.group.combine_input(arrived.handle, "bf16", 64)
            rows = torch.from_dlpack(arrived.payload[0])
            y = torch.from_dlpack(given)
            assert (y.shape, y.dtype, y.device) == (rows.shape, rows.dtype, rows.device)
            rank.settle()
            torch.cuda._sleep(20_000_000)  # cycles
            if layout == "rank_major":
                chosen = (torch.from_dlpack(arrived.topk_ids) >= 0).sum(dim=1, keepdim=True)
                torch.mul(rows, 2 * chosen.to(torch.bfloat16), out=y)
            else:
                torch.mul(rows, 2, out=y)
            side.wait_stream(rank.stream)
            if not host_counts:
                rank.settle()  # the first time round PyTorch loads its kernels
            # A tensor goes by the current stream, what Ferry gave out by the stream of the dispatch.
            combined = rank.group.combine(given if host_counts else y, arrived.handle, num_sms=NUM_SMS)
            out = torch.from_dlpack(combined.out)
            rank.settle()
            layer.check(out)
    rank.settle()


def run_lent_handles(rank: GpuRank) -> None:
    """Handles in PyTorch's memory, which stay for as long as a call needs them, also of calls that are dropped."""
    layer = Layer(rank)
    options: dict[str, Any] = {"layout": "expert_major", "host_counts": False, "num_sms": NUM_SMS}
    needed = rank.group.handle_bytes(layer.x, layer.ids, **options)
    rank.settle()
    layer.check(layer.run()[1])
    for seed in range(1, 7):
        rank.settle()
        layer.refill(seed)
        memory = torch.zeros(needed // 4 + 1, dtype=torch.int32, device=f"cuda:{rank.device}")
        rank.settle()
        pending = rank.group.dispatch_send(layer.x, layer.ids, handle_memory=memory, **options)
        if seed % 3 == 0:
            del pending, memory  # the group finishes the call by itself
            continue
        arrived = pending.receive()
        assert arrived.handle.nbytes <= needed
        rank.settle()
        assert memory.count_nonzero() > 0
        rank.settle()
        del memory
        y = torch.from_dlpack(arrived.payload[0]) * 2
        out = torch.from_dlpack(rank.group.combine(y, arrived.handle, num_sms=NUM_SMS).out)
        rank.settle()
        layer.check(out)
    rank.group.check()
    rank.settle()


def run_side_stream(rank: GpuRank) -> None:
    """Calls on a stream that is late; who takes their results on the current stream gets them when they are there."""
    layer = Layer(rank)
    side = torch.cuda.Stream(rank.device)
    rank.settle()
    layer.check(layer.run()[1])  # everything is loaded, and the windows hold old rows
    for seed, stream in enumerate((side, side.cuda_stream), start=1):
        rank.settle()
        layer.refill(seed)
        rank.settle()
        with torch.cuda.stream(side):
            torch.cuda._sleep(20_000_000)  # cycles
        arrived = rank.group.dispatch(layer.x, layer.ids, host_counts=False, stream=stream, num_sms=NUM_SMS)
        rows = torch.from_dlpack(arrived.payload[0]).clone()
        num_rows = torch.from_dlpack(arrived.num_rows).clone()
        rank.settle()
        problem = layer.problem
        sources = ref.rank_major(problem, layer.r).sources
        assert num_rows.tolist() == [len(sources)]
        expected = np.array([problem.x[source][token] for source, token in sources])
        assert moe_cases.same_bits(to_numpy(rows)[: len(sources)], expected)
        side.synchronize()
    rank.settle()


def run_latency(rank: GpuRank) -> None:
    """Latency mode on the current stream: in one call, and in two halves, of which the second is a hook."""
    layer = Layer(rank)
    for seed, (layout, host_counts, split) in enumerate(
        itertools.product(("expert_padded", "rank_major"), (True, False), (False, True))
    ):
        rank.settle()
        layer.refill(seed)
        rank.settle()
        arrived = layer.dispatch(split, mode="latency", layout=layout, host_counts=host_counts, num_sms=NUM_SMS)
        assert arrived.handle.mode == "latency"
        y = experts(arrived)
        rank.settle()  # the first time round PyTorch loads its kernels
        out = layer.combine(split, y, arrived.handle)
        rank.settle()
        layer.check(out)
    rank.settle()


def run_combine_codecs(rank: GpuRank) -> None:
    """Sums of rows that came in fewer bits, within the codec's error of those that did not."""
    layer = Layer(rank)
    for reduction, (codec, error) in itertools.product(
        ("per_rank", "flat"), (("fp8_f32", 0.0626), ("logfmt10", 0.0221))
    ):
        rank.settle()
        arrived = layer.dispatch(False, mode="latency", layout="expert_padded", num_sms=NUM_SMS)
        y = experts(arrived) * 2.0**-10

        def combine(rows: torch.Tensor, handle=arrived.handle, reduction=reduction, **options: Any) -> torch.Tensor:
            rank.settle()
            combined = rank.group.combine(rows, handle, reduction=reduction, num_sms=NUM_SMS, **options)
            rank.settle()
            return torch.from_dlpack(combined.out).float()

        exact, sizes, coded = combine(y), combine(y.abs()), combine(y, codec=codec)
        assert ((coded - exact).abs() <= 1.01 * error * sizes + 2.0**-7 * sizes + 2.0**-17).all()
        assert not torch.equal(coded, exact)
    rank.settle()


def run_graph(rank: GpuRank, **options: Any) -> None:
    """A captured layer, replayed with other rows and routings, in turn with direct calls."""
    layer = Layer(rank)
    rank.settle()
    layer.check(layer.run(**options)[1])
    rank.settle()
    graph = torch.cuda.CUDAGraph()
    with rank.lock:
        # Not torch.cuda.graph: it waits for the whole GPU.
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            kept = layer.run(**options)
        finally:
            graph.capture_end()
    for seed in range(1, 7):
        rank.settle()
        layer.refill(seed)
        rank.settle()
        out = kept[1]
        if seed % 3 == 0:
            out = layer.run(**options)[1]
        else:
            graph.replay()
        rank.settle()
        layer.check(out)
    rank.group.check()
    rank.settle()
