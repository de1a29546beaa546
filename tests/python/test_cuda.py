# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""PyTorch's tensors on GPUs: ranks as threads, on one GPU and over all, and as processes with a GPU each."""

import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ferry
import numpy as np
import pytest

# Kernels of ranks on one GPU wait for each other, so each needs a hardware queue of its own. Read when CUDA starts.
os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
torch = pytest.importorskip("torch")
BACKEND = next(c for c in ferry.capabilities() if c.name == "backend cuda")
if not BACKEND.usable:
    pytest.skip(f"backend cuda: {BACKEND.detail}", allow_module_level=True)
if not torch.cuda.is_available():
    pytest.skip("this PyTorch finds no GPU", allow_module_level=True)

import gpu_ranks  # noqa: E402
import moe_reference as ref  # noqa: E402
from fake_gpu import GpuArray  # noqa: E402
from gpu_ranks import GpuRank, Layer, run_gpu_threads  # noqa: E402
from moe_cases import Case  # noqa: E402

NUM_GPUS = torch.cuda.device_count()
PLACES = {"one": [0, 0, 0], "all": [rank % NUM_GPUS for rank in range(max(2, NUM_GPUS))]}


@pytest.fixture(params=PLACES)
def devices(request: pytest.FixtureRequest) -> list[int]:
    """The GPU of each rank: all on the first one, then spread over all GPUs."""
    if request.param == "all" and NUM_GPUS == 1:
        pytest.skip("this machine has one GPU")
    return PLACES[request.param]


def case(layout: str, mode: str = "throughput", **choices: Any) -> Case:
    return Case([0], 7, [], 3, 136, mode, layout, **choices)


CASES = {
    "rank_major": case("rank_major"),
    "rank_major-device-counts": case("rank_major", host_counts=False, strided=True),
    "rank_major-owned": case("rank_major", output="owned", split=True, num_biases=1),
    "rank_major-int64": case("rank_major", id_dtype=np.int64, dtype="fp32", rule=ref.Rule("rank", True)),
    "expert_major": case("expert_major", alignment=8, zero_padding=True),
    "expert_major-flat": case("expert_major", rule=ref.Rule("choice"), weighting="given", num_biases=2),
    "expert_major-weighted": case("expert_major", weighting="dispatch", dtype="fp16", split=True),
    "expert_major-device-counts": case("expert_major", host_counts=False, alignment=4, weighting="dispatch"),
    "expert_padded": case("expert_padded", strided=True, num_biases=1),
    "expert_padded-device-counts": case("expert_padded", host_counts=False, output="owned"),
    "fp8_f32": case("rank_major", codec="fp8_f32"),
    "fp8_f32-expert_major": case("expert_major", codec="fp8_f32", alignment=4),
    "fp8_ue8m0": case("expert_padded", codec="fp8_ue8m0", scale_block=32),
    "latency-rank_major": case("rank_major", "latency", strided=True, num_biases=2),
    "latency-rank_major-device-counts": case("rank_major", "latency", host_counts=False, split=True),
    "latency-rank_major-fp32": case("rank_major", "latency", id_dtype=np.int64, dtype="fp32", output="owned"),
    "latency-expert_padded": case("expert_padded", "latency", weighting="dispatch", num_biases=1),
    "latency-expert_padded-flat": case("expert_padded", "latency", rule=ref.Rule("choice"), weighting="given"),
    "latency-expert_padded-device-counts": case("expert_padded", "latency", host_counts=False, split=True),
    "latency-fp8_f32": case("expert_padded", "latency", codec="fp8_f32"),
    "latency-fp8_ue8m0": case("rank_major", "latency", codec="fp8_ue8m0", scale_block=32),
}


@pytest.mark.parametrize("name", CASES)
def test_cases(name: str, devices: list[int]) -> None:
    size = len(devices)
    chosen = CASES[name]
    fields = vars(chosen) | {"node_sizes": [size], "tokens": [5, 0, 6, 3, 4, 8, 1, 2][:size]}
    limits = {"num_experts": chosen.num_experts, "max_latency_tokens": 8 if chosen.mode == "latency" else 0}
    run_gpu_threads(devices, lambda rank: gpu_ranks.run_case(rank, Case(**fields)), **limits)


@pytest.mark.parametrize(
    "name",
    [
        "rank_major",
        "rank_major-owned",
        "expert_major",
        "expert_major-flat",
        "expert_major-weighted",
        "expert_padded-device-counts",
        "fp8_f32",
        "latency-rank_major",
        "latency-expert_padded-flat",
        "latency-fp8_f32",
    ],
)
def test_cases_across_nodes(name: str, devices: list[int]) -> None:
    size = len(devices)
    sizes = [1, size - 1]
    chosen = CASES[name]
    fields = vars(chosen) | {"node_sizes": sizes, "tokens": [5, 0, 6, 3, 4, 8, 1, 2][:size]}
    limits = {"num_experts": chosen.num_experts, "max_latency_tokens": 8 if chosen.mode == "latency" else 0}
    run_gpu_threads(devices, lambda rank: gpu_ranks.run_case(rank, Case(**fields)), topology=sizes, **limits)


def test_side_stream(devices: list[int]) -> None:
    run_gpu_threads(devices, gpu_ranks.run_side_stream)


def test_combine_input(devices: list[int]) -> None:
    run_gpu_threads(devices, gpu_ranks.run_combine_input)


def test_handles_in_lent_memory(devices: list[int]) -> None:
    run_gpu_threads(devices, gpu_ranks.run_lent_handles)


def test_latency(devices: list[int]) -> None:
    run_gpu_threads(devices, gpu_ranks.run_latency, max_latency_tokens=16)


def test_combine_codecs(devices: list[int]) -> None:
    run_gpu_threads(devices, gpu_ranks.run_combine_codecs, max_latency_tokens=16)


@pytest.mark.parametrize("split", [False, True], ids=["one", "halves"])
def test_latency_graph(devices: list[int], split: bool) -> None:
    def body(rank: GpuRank) -> None:
        gpu_ranks.run_graph(rank, mode="latency", layout="expert_padded", split=split)

    run_gpu_threads(devices, body, max_latency_tokens=16)


def test_graph(devices: list[int]) -> None:
    run_gpu_threads(devices, gpu_ranks.run_graph)


def alone(body: Any, **config: Any) -> Any:
    return run_gpu_threads([0], body, **config)[0]


def test_graph_of_one_rank() -> None:
    alone(gpu_ranks.run_graph)


def test_processes() -> None:
    if NUM_GPUS < 2:
        pytest.skip("this machine has one GPU")
    done = subprocess.run(
        [sys.executable, "-m", "ferry.launch", "--ranks", str(NUM_GPUS), str(Path(__file__).parent / "gpu_process.py")],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(done.stdout.splitlines()) == [f"rank {rank} is well" for rank in range(NUM_GPUS)]


# Results.


def test_results_live_as_long_as_a_tensor() -> None:
    def body(rank: GpuRank) -> None:
        layer = Layer(rank)
        result = rank.group.dispatch(layer.x, layer.ids, output="owned")
        owned = torch.from_dlpack(result.payload[0])
        given = torch.from_dlpack(rank.group.combine_input(result.handle, "bf16", 64))
        window = torch.from_dlpack(rank.group.dispatch(layer.x, layer.ids).payload[0])
        handle = result.handle
        del result
        gc.collect()
        expected = owned.clone()
        for seed in range(1, 8):
            layer.refill(seed)
            layer.run()
        assert torch.equal(owned, expected)
        rank.group.close()
        del handle
        gc.collect()
        assert torch.equal(owned, expected)
        window.clone()  # stale rows, but memory
        given.fill_(1)
        rank.stream.synchronize()

    alone(body)


def test_what_a_result_says() -> None:
    def body(rank: GpuRank) -> None:
        layer = Layer(rank)
        result = rank.group.dispatch(layer.x, layer.ids, layout="expert_major")
        assert rank.group.statistics().device_memory.startswith("by ")
        rows = result.payload[0]
        assert (rows.device, rows.__dlpack_device__()) == ("cuda:0", (2, 0))
        tensor = torch.from_dlpack(rows)
        assert (tensor.dtype, tuple(tensor.shape), tensor.device.index) == (torch.bfloat16, rows.shape, 0)
        assert sum(result.host_expert_counts) == rows.shape[0]
        assert result.handle.expert_counts.tolist() == torch.from_dlpack(result.expert_counts).tolist()
        for stream in (None, 1, 2, -1, rank.stream.cuda_stream, torch.cuda.Stream().cuda_stream):
            rows.__dlpack__(stream=stream, max_version=(1, 0))
        with pytest.raises(ferry.Error, match="on CUDA device 0, expected memory of the CPU"):
            np.asarray(rows)
        with pytest.raises(ferry.Error, match="memory of a CUDA device"):
            bytes(result.handle)
        out = torch.empty_like(layer.x)
        assert rank.group.combine(rows, result.handle, out=out).out is out
        # A ferry.Array goes by the stream that wrote it.
        combined = rank.group.combine(rows, result.handle).out
        assert torch.equal(torch.from_dlpack(combined), out)

    alone(body)


def test_fp8_rows_of_torch() -> None:
    def body(rank: GpuRank) -> None:
        rows = torch.arange(12 * 64, device="cuda:0").to(torch.uint8).view(12, 64)
        scales = torch.arange(12 * 2, device="cuda:0", dtype=torch.float32).view(12, 2)
        ids = torch.zeros((12, 1), dtype=torch.int32, device="cuda:0")
        for given in (rows.view(torch.float8_e4m3fn), ferry.typed(rows, "fp8_e4m3")):
            result = rank.group.dispatch([given, scales], ids)
            assert result.payload[0].dtype == "fp8_e4m3"
            assert torch.equal(torch.from_dlpack(result.payload[0].view("uint8")), rows)
            assert torch.equal(torch.from_dlpack(result.payload[1]), scales)

    alone(body)


# Misuse.


def test_misuse() -> None:
    def body(rank: GpuRank) -> None:
        group, layer = rank.group, Layer(rank)
        x, ids = layer.x, layer.ids
        side = torch.cuda.Stream()

        def refused(words: str, call: Any) -> None:
            with pytest.raises(ferry.Error, match=words) as caught:
                call()
            assert caught.value.code in ("invalid_argument", "unsupported"), str(caught.value)

        refused("payload is in host memory, expected memory of CUDA device 0", lambda: group.dispatch(x.cpu(), ids))
        refused("payload is in host memory", lambda: group.dispatch(x.cpu().pin_memory(), ids))
        refused("topk_ids is in host memory", lambda: group.dispatch(x, layer.problem.ids[0]))
        refused("payload is on CUDA device 9", lambda: group.dispatch(GpuArray((12, 64), device=(2, 9)), ids))
        refused("float64", lambda: group.dispatch(x.double(), ids))
        refused("require gradient", lambda: group.dispatch(x.float().requires_grad_(), ids))
        refused("stream is -1", lambda: group.dispatch(x, ids, stream=-1))
        refused("handle_memory is in host memory", lambda: group.dispatch(x, ids, handle_memory=np.zeros(1 << 20)))
        few = torch.zeros(16, device="cuda:0")
        refused("handle_memory is 64 bytes, expected at least", lambda: group.dispatch(x, ids, handle_memory=few))
        result = group.dispatch(x, ids, stream=side)
        refused("dtype is uint8", lambda: group.combine_input(result.handle, "uint8", 64))
        refused("elements is 0, expected 1 to", lambda: group.combine_input(result.handle, "bf16", 0))
        given = torch.from_dlpack(group.combine_input(result.handle, "bf16", 64))
        assert given.stride() == (64, 1)
        side.synchronize()
        rows = torch.from_dlpack(result.payload[0])
        refused("bias", lambda: group.combine(rows, result.handle, bias=torch.zeros_like(x, dtype=torch.float16)))
        refused("x is in host memory", lambda: group.combine(rows.cpu(), result.handle))
        refused("out is in host memory", lambda: group.combine(rows, result.handle, out=torch.empty(12, 64)))
        if NUM_GPUS > 1:
            refused("payload is on CUDA device 1", lambda: group.dispatch(x.to("cuda:1"), ids))
            refused("stream is of CUDA device 1", lambda: group.dispatch(x, ids, stream=torch.cuda.Stream(1)))
        arrived = group.dispatch(x, ids, mode="latency", layout="expert_padded")
        words = "in latency mode combine reads x where it is and copies nothing; give it any tensor"
        refused(words, lambda: group.combine_input(arrived.handle, "bf16", 64))
        layer.check(layer.run()[1])  # the group is as it was

    alone(body, max_latency_tokens=16)


def test_host_counts_cannot_be_captured() -> None:
    def body(rank: GpuRank) -> None:
        layer = Layer(rank)
        layer.check(layer.run()[1])
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            with pytest.raises(ferry.Error, match="host_counts is True while the stream is being captured"):
                rank.group.dispatch(layer.x, layer.ids)
            assert "host_counts" in rank.group.why_not(layer.x, layer.ids)
            assert rank.group.why_not(layer.x, layer.ids, host_counts=False) == ""
            kept = layer.run()
        finally:
            graph.capture_end()
        graph.replay()
        layer.check(kept[1])

    alone(body)


def test_ids_out_of_range_are_named() -> None:
    def body(rank: GpuRank) -> None:
        layer = Layer(rank)
        layer.ids[3, 1] = 99
        with pytest.raises(ferry.Error, match="99") as caught:
            rank.group.dispatch(layer.x, layer.ids)
        assert (caught.value.code, caught.value.argument) == ("invalid_argument", "topk_ids")

    alone(body)
