# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""ferry.torch: meeting places, tensors, gradients, torch.compile, CUDA graphs."""

import gc
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import ferry
import ferry.torch
import pytest
import torch
from ferry.torch import ops
from ranks import distinct_ids, need, run_ranks

HERE = Path(__file__).resolve().parent
EXPERTS, TOP_K, HIDDEN, RANKS = 8, 3, 64, 2
CONFIG = {
    "num_experts": EXPERTS,
    "max_tokens": 32,
    "max_latency_tokens": 0,
    "max_top_k": TOP_K,
    "hidden": HIDDEN,
    "dtype": "fp32",
    "timeout": 20.0,
}


def make_group(comm: Any, device: str, **config: Any) -> ferry.torch.Group:
    return ferry.torch.Group(comm, device=device, **(CONFIG | config))


def inputs(rank: int, device: str, tokens: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn((tokens, HIDDEN), generator=generator)
    ids = distinct_ids(generator, tokens, TOP_K, EXPERTS)
    weights = torch.rand((tokens, TOP_K), generator=generator)
    return x.to(device).requires_grad_(), ids.to(device), weights.to(device).requires_grad_()


def reference(x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Expert e multiplies a row with scale[e]; the rest is a weighted sum."""
    factors = torch.where(ids >= 0, scale[ids.clamp(min=0)] * weights, torch.zeros_like(weights))
    return x * factors.sum(dim=1, keepdim=True)


def my_scales(group: ferry.torch.Group, scale: torch.Tensor) -> torch.Tensor:
    local = EXPERTS // group.size
    return scale[group.rank * local : (group.rank + 1) * local]


def run_experts(
    group: ferry.torch.Group, rows: torch.Tensor, routing: Any, layout: str, scale: torch.Tensor
) -> torch.Tensor:
    mine = my_scales(group, scale)
    if layout == "rank_major":
        factors = torch.where(routing.topk_ids >= 0, mine[routing.topk_ids.clamp(min=0)] * routing.row_weights, 0.0)
        return rows * factors.sum(dim=1, keepdim=True)
    row = torch.arange(rows.shape[0], device=rows.device)
    expert = torch.searchsorted(routing.expert_offsets[1:].long(), row, right=True).clamp(max=len(mine) - 1)
    return rows * (mine[expert] * routing.row_weights)[:, None]


@pytest.mark.parametrize(("layout", "alignment"), [("rank_major", 1), ("expert_major", 1), ("expert_major", 4)])
def test_gradients_are_those_of_one_process(device, layout, alignment):
    def body(comm):
        group = make_group(comm, device)
        scale = torch.linspace(0.5, 2, EXPERTS, device=device)
        x, ids, weights = inputs(group.rank, device)
        rows, routing = group.dispatch(x, ids, weights, layout=layout, alignment=alignment)
        out = group.combine(run_experts(group, rows, routing, layout, scale), routing)
        (out * torch.arange(HIDDEN, device=device)).sum().backward()
        got = (out.detach(), x.grad, weights.grad)
        x, ids, weights = inputs(group.rank, device)
        expected = reference(x, ids, weights, scale)
        (expected * torch.arange(HIDDEN, device=device)).sum().backward()
        for value, wanted in zip(got, (expected.detach(), x.grad, weights.grad), strict=True):
            torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-4)

    run_ranks(RANKS, body, device)


def test_results_share_memory_and_outlive_the_group(device):
    def body(comm):
        group = make_group(comm, device)
        x, ids, _ = inputs(group.rank, device)
        arrived = group.ferry.dispatch(x.detach(), ids, output="owned")
        rows = ferry.torch.as_tensor(arrived.payload[0])
        assert rows.data_ptr() == torch.from_dlpack(arrived.payload[0]).data_ptr()
        kept = rows.clone()
        comm.allgather(None)
        group.close()
        del arrived
        gc.collect()
        assert torch.equal(rows, kept)

    run_ranks(RANKS, body, device)


def test_fp8_and_scales_come_out_as_pytorchs_types(device):
    def body(comm):
        group = make_group(comm, device, dtype="bf16", hidden=256)
        x = torch.randn((6, 256), device=device).to(torch.bfloat16)
        ids = torch.arange(6, device=device)[:, None] % EXPERTS
        for codec, scale_type in (("fp8_f32", torch.float32), ("fp8_ue8m0", torch.float8_e8m0fnu)):
            arrived = group.ferry.dispatch(x, ids, codec=codec)
            data, scales = (ferry.torch.as_tensor(block) for block in arrived.payload)
            assert (data.dtype, scales.dtype) == (torch.float8_e4m3fn, scale_type)
            assert data.shape[1] == 256 and scales.shape[1] == 2
        fp8 = x.to(torch.float8_e4m3fn)
        back = ferry.torch.as_tensor(group.ferry.dispatch(ferry.torch.as_array(fp8), ids).payload[0])
        assert back.dtype == torch.float8_e4m3fn
        odd = torch.arange(6 * 4, dtype=torch.float64, device=device).reshape(6, 4)
        got = ferry.torch.as_tensor(group.ferry.dispatch(ferry.torch.as_array(odd), ids).payload[0])
        assert got.dtype == torch.uint8 and got.shape[1] == 32

    run_ranks(RANKS, body, device)


def test_handles_go_with_their_tickets():
    def body(comm):
        group = make_group(comm, "cpu")
        x, ids, weights = inputs(group.rank, "cpu")
        before = len(ops._sent)
        rows, routing = group.dispatch(x, ids, weights)
        assert routing.handle.num_tokens == x.shape[0]
        number = int(routing.ticket)
        out = group.combine(rows, routing)
        del routing, rows
        assert number in ops._sent  # the graph of `out` still needs it
        out.sum().backward()
        del out
        gc.collect()
        assert number not in ops._sent and len(ops._sent) == before
        with pytest.raises(ferry.Error, match="whose handle is gone"):
            ops.sent_of(torch.tensor([number]))

    run_ranks(1, body)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("layout", ["rank_major", "expert_major"])
def test_compiled_layer(device, backend, layout):
    def body(comm):
        group = make_group(comm, device)
        scale = torch.linspace(0.5, 2, EXPERTS, device=device)

        @torch.compile(fullgraph=True, backend=backend)
        def layer(x, ids, weights):
            rows, routing = group.dispatch(x, ids, weights, layout=layout)
            return group.combine(run_experts(group, rows, routing, layout, scale), routing)

        for tokens in (9, 5):
            x, ids, weights = inputs(tokens, device, tokens)
            layer(x, ids, weights).square().sum().backward()
            got = (x.grad, weights.grad)
            x, ids, weights = inputs(tokens, device, tokens)
            reference(x, ids, weights, scale).square().sum().backward()
            for value, wanted in zip(got, (x.grad, weights.grad), strict=True):
                torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-4)

    run_ranks(1, body, device)


def test_fake_outputs_look_like_real_ones():
    def body(comm):
        group = make_group(comm, "cpu")
        x, ids, weights = inputs(0, "cpu")
        for layout in ("rank_major", "expert_major"):
            arguments = (x.detach(), ids, weights.detach(), group.key, layout, 1, False, 0)
            torch.library.opcheck(
                torch.ops.ferry.dispatch.default, arguments, test_utils=("test_schema", "test_faketensor")
            )
            real = torch.ops.ferry.dispatch(*arguments)
            assert real[0].shape[0] == group.capacity(layout)

    run_ranks(1, body)


def test_cuda_graph_of_a_layer():
    need("cuda", 2)

    def body(comm):
        group = make_group(comm, "cuda")
        scale = torch.linspace(0.5, 2, EXPERTS, device="cuda")
        x, ids, weights = (t.detach() for t in inputs(group.rank, "cuda"))

        def layer():
            rows, routing = group.dispatch(x, ids, weights, layout="expert_major", host_counts=False)
            return group.combine(run_experts(group, rows, routing, "expert_major", scale), routing), rows, routing

        layer()
        torch.cuda.synchronize()
        comm.allgather(None)
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        kept = layer()
        graph.capture_end()
        for seed in range(3):
            torch.cuda.synchronize()
            comm.allgather(None)
            x.copy_(inputs(10 * seed + group.rank, "cuda")[0].detach())
            graph.replay()
            torch.testing.assert_close(kept[0], reference(x, ids, weights, scale), rtol=1e-5, atol=1e-4)
        group.ferry.check()

    run_ranks(2, body, "cuda")


def test_streams_and_events_on_the_cpu_order_nothing():
    assert ferry.torch.current_stream(torch.device("cpu")) is None
    with ferry.torch.following(None, ferry.torch.Event()):
        pass
    if not torch.cuda.is_available():
        ferry.torch.Event().wait()


def test_meeting_refuses_what_it_does_not_know():
    with pytest.raises(ferry.Error, match="init_process_group") as caught:
        ferry.torch.meet(None)
    assert pickle.loads(pickle.dumps(caught.value)).code == "invalid_argument"
    with pytest.raises(ferry.Error, match="seen 'ranks'"):
        ferry.torch.meet("ranks")
    with pytest.raises(ferry.Error, match="argument layout"):
        run_ranks(1, lambda comm: make_group(comm, "cpu").dispatch(*inputs(0, "cpu"), layout="expert_padded"))


def test_process_groups_of_pytorch_and_torchrun():
    """gloo, started by torchrun's own launcher; a subgroup, too."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    run = subprocess.run([*command, HERE / "process_groups.py"], capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("is well") == 3


def test_importing_ferry_imports_no_pytorch():
    check = "import sys, ferry; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)
