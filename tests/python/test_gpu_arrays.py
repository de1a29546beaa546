# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""Arrays on a GPU and streams, as far as they can be looked at without a GPU."""

import gc
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import ferry
import numpy as np
import pytest
from fake_gpu import ADDRESS, LEGACY, VERSIONED, GpuArray, read_capsule
from ferry._ferry import _choose_stream as choose_stream
from rank_threads import run_ranks

TORCH_STREAM = 0xABC0
CUPY_STREAM = 0xDEF0


class OldGpuArray(GpuArray):
    """From before DLPack 1.0."""

    def __dlpack__(self, stream: Any = None) -> Any:
        return super().__dlpack__(stream=stream)


class HostArray(GpuArray):
    """Of a framework that knows no streams."""

    def __dlpack__(self) -> Any:
        return super().__dlpack__()


class BusyArray(GpuArray):
    def __dlpack__(self, **arguments: Any) -> Any:
        raise BufferError("use tensor.detach()")


class TorchTensor(GpuArray):
    dtype = "torch.float32"

    def view(self, dtype: str) -> GpuArray:
        assert dtype == "torch.uint8"
        return GpuArray(self.shape, "uint", 8, self.device)


class CupyArray(GpuArray):
    pass


@pytest.fixture
def frameworks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """PyTorch and CuPy, as far as streams go; the devices whose current stream was asked for."""
    asked: list[int] = []

    def module(name: str, **names: Any) -> None:
        made = ModuleType(name)
        vars(made).update(names)
        monkeypatch.setitem(sys.modules, name, made)

    def current(**stream: int) -> Any:
        def get(device: int) -> SimpleNamespace:
            asked.append(device)
            return SimpleNamespace(**stream)

        return get

    cuda = SimpleNamespace(current_stream=current(cuda_stream=TORCH_STREAM))
    module("torch", Tensor=TorchTensor, cuda=cuda, uint8="torch.uint8")
    module("cupy", ndarray=CupyArray, cuda=SimpleNamespace(get_current_stream=current(ptr=CUPY_STREAM)))
    return asked


# In.


def test_nobody_is_asked_to_synchronise() -> None:
    given = GpuArray((2, 3))
    choose_stream([given], 0)
    ferry.typed(given, "fp32")
    assert given.asked == 2 * [{"stream": -1, "max_version": (1, 1)}]


def test_exporters_from_before_dlpack_1() -> None:
    given = OldGpuArray((2, 3))
    assert ferry.typed(given, "fp32").shape == (2, 3)
    assert given.asked == [{"stream": -1}]


@pytest.mark.parametrize(
    ("dtype", "bits", "name"),
    [
        ("bfloat", 16, "bf16"),
        ("float", 16, "fp16"),
        ("float", 32, "fp32"),
        ("float8_e4m3fn", 8, "fp8_e4m3"),
        ("float8_e8m0fnu", 8, "ue8m0"),
        ("uint", 8, "uint8"),
        ("int", 32, "int32"),
        ("int", 64, "int64"),
    ],
)
def test_types(dtype: str, bits: int, name: str) -> None:
    array = ferry.typed(GpuArray((2, 3), dtype, bits, (2, 1)), name)
    assert (array.dtype, array.shape, array.strides, array.device) == (name, (2, 3), (3, 1), "cuda:1")
    assert array.__dlpack_device__() == (2, 1)
    assert repr(array) == f'ferry.Array(shape=(2, 3), dtype="{name}", device="cuda:1")'
    choose_stream([GpuArray((2, 3), dtype, bits), ferry.typed(GpuArray((2, 3), dtype, bits), name)], 0)


@pytest.mark.parametrize("name", ["fp8_e4m3", "ue8m0"])
def test_bytes_can_stand_for_fp8(name: str) -> None:
    array = ferry.typed(GpuArray((4, 8), "uint", 8), name)
    assert array.dtype == name
    assert array.view("uint8").device == "cuda:0"


@pytest.mark.parametrize(("torch_name", "name"), [("float8_e4m3fn", "fp8_e4m3"), ("float8_e8m0fnu", "ue8m0")])
def test_fp8_of_torch_goes_as_bytes(frameworks: list[int], torch_name: str, name: str) -> None:
    given = TorchTensor((4, 8), torch_name, 8)
    given.dtype = f"torch.{torch_name}"
    assert ferry.typed(given, name).dtype == name
    assert choose_stream([given], 0) == TORCH_STREAM
    assert not given.asked


def test_strides_and_offset() -> None:
    given = GpuArray((2, 3))
    given.strides, given.byte_offset = (8, 2), 64
    array = ferry.typed(given, "fp32")
    assert array.strides == (8, 2)
    seen = read_capsule(array.__dlpack__(stream=-1))
    assert (seen.address, seen.shape, seen.strides) == (ADDRESS + 64, [2, 3], [8, 2])


@pytest.mark.parametrize(
    ("given", "device", "words"),
    [
        (GpuArray((2, 3), device=(2, 1)), 0, ["on CUDA device 1", "memory of CUDA device 0, the group's"]),
        (lambda: ferry.typed(GpuArray((2, 3)), "fp32"), 1, ["on CUDA device 0", "memory of CUDA device 1"]),
        (np.zeros((2, 3), np.float32), 0, ["in host memory", "memory of CUDA device 0"]),
        (b"abc", 0, ["in host memory", "memory of CUDA device 0"]),
        (GpuArray((2, 3), device=(3, 0)), 0, ["in host memory"]),
        (GpuArray((2, 3), device=(10, 0)), 0, ["DLPack device type 10"]),
        (GpuArray((2, 3), "float", 64), 0, ["float64", "ferry.typed"]),
        (GpuArray((1, 1, 1, 1)), 0, ["4 dimensions", "at most 3"]),
        (HostArray((2, 3)), 0, ["__dlpack__ failed", "__dlpack__(stream=-1)"]),
        (BusyArray((2, 3)), 0, ["__dlpack__ failed", "use tensor.detach()"]),
    ],
)
def test_refusals(given: Any, device: int, words: list[str]) -> None:
    given = given() if callable(given) else given
    with pytest.raises(ferry.Error) as caught:
        choose_stream([GpuArray((1,), device=(2, device)), given], device)
    assert caught.value.code is ferry.ErrorCode.INVALID_ARGUMENT
    assert caught.value.argument == "arrays[1]"
    for word in words:
        assert word in str(caught.value)


def test_managed_memory_serves_every_group() -> None:
    given = GpuArray((2, 3), device=(13, 0))
    assert choose_stream([given], 1) == 0
    assert given.asked == [{"stream": -1, "max_version": (1, 1)}]


def test_a_group_on_the_host_refuses_a_gpu() -> None:
    def body(group: ferry.Group) -> None:
        for given in (GpuArray((4, 16)), ferry.typed(GpuArray((4, 16)), "fp32")):
            with pytest.raises(ferry.Error, match=r"payload is on CUDA device 0, expected memory of the CPU"):
                group.dispatch(given, np.zeros((4, 1), np.int32))
        with pytest.raises(ferry.Error, match="stream is 'side', expected"):
            group.dispatch(np.zeros((4, 16), np.float32), np.zeros((4, 1), np.int32), stream="side")
        result = group.dispatch(np.zeros((4, 16), np.float32), np.zeros((4, 1), np.int32), stream=7)
        assert (result.payload[0].device, result.payload[0].__dlpack_device__()) == ("cpu", (1, 0))

    run_ranks(1, body)


# Out.


def test_capsules() -> None:
    array = ferry.typed(GpuArray((2, 3), "bfloat", 16, (2, 1)), "bf16")
    for arguments, expected in [({}, LEGACY), ({"max_version": (1, 0)}, VERSIONED), ({"max_version": (0, 8)}, LEGACY)]:
        for stream in (-1, None, 1, 2, 0x7000):
            seen = read_capsule(array.__dlpack__(stream=stream, **arguments))
            assert (seen.name, seen.device, seen.dtype) == (expected, (2, 1), (4, 16))
            assert (seen.address, seen.shape, seen.strides) == (ADDRESS, [2, 3], [3, 1])


@pytest.mark.parametrize("stream", [0, -2, True, "stream", 1.5])
def test_streams_that_dlpack_does_not_know(stream: Any) -> None:
    array = ferry.typed(GpuArray((2, 3)), "fp32")
    with pytest.raises(ferry.Error, match=r"ferry.Array.__dlpack__: stream is .*, expected None or 1"):
        array.__dlpack__(stream=stream)


def test_memory_stays_as_long_as_a_capsule() -> None:
    given = GpuArray((2, 3))
    array = ferry.typed(given, "fp32")
    capsule = array.__dlpack__(stream=-1)
    del array
    gc.collect()
    assert given.num_released == 0
    del capsule
    gc.collect()
    assert given.num_released == 1


@pytest.mark.parametrize(
    "read",
    [
        lambda array: array.numpy(),
        lambda array: np.asarray(array),
        lambda array: array.tolist(),
        lambda array: array[0],
        lambda array: array.__setitem__(0, 1),
    ],
)
def test_numpy_cannot_read_a_gpu(read: Any) -> None:
    with pytest.raises(ferry.Error) as caught:
        read(ferry.typed(GpuArray((2, 3), device=(2, 1)), "fp32"))
    assert caught.value.code == "invalid_argument"
    for word in ["ferry.Array.numpy", "on CUDA device 1", "memory of the CPU", "torch.from_dlpack(array).cpu()"]:
        assert word in str(caught.value)


# Streams.


class Protocol:
    def __init__(self, handle: int) -> None:
        self.handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return (0, self.handle)


@pytest.mark.parametrize(
    ("stream", "handle"),
    [
        (0, 0),
        (1, 0),
        (2, 2),
        (0x7F00, 0x7F00),
        (SimpleNamespace(cuda_stream=0x7F00), 0x7F00),
        (SimpleNamespace(cuda_stream=0, device_index=1), 0),
        (Protocol(0x7F00), 0x7F00),
        (Protocol(1), 0),
    ],
)
def test_streams_by_name(frameworks: list[int], stream: Any, handle: int) -> None:
    assert choose_stream([TorchTensor((2, 3), device=(2, 1))], 1, stream) == handle


@pytest.mark.parametrize("stream", [-1, True, 1.5, "side", [1], object(), SimpleNamespace(cuda_stream="x"), 1 << 70])
def test_what_is_no_stream(stream: Any) -> None:
    with pytest.raises(ferry.Error) as caught:
        choose_stream([GpuArray((2, 3))], 0, stream)
    assert (caught.value.code, caught.value.argument) == ("invalid_argument", "stream")
    assert "cuda_stream" in str(caught.value)


def test_a_stream_of_another_gpu() -> None:
    with pytest.raises(ferry.Error, match="stream is of CUDA device 1, expected a stream of CUDA device 0"):
        choose_stream([GpuArray((2, 3))], 0, SimpleNamespace(cuda_stream=64, device_index=1))


def test_current_streams(frameworks: list[int]) -> None:
    unknown, torch, cupy = (kind((2, 3), device=(2, 1)) for kind in (GpuArray, TorchTensor, CupyArray))
    assert choose_stream([unknown], 1) == 0
    assert not frameworks
    assert choose_stream([unknown, torch, torch], 1) == TORCH_STREAM
    assert choose_stream([cupy, unknown], 1) == CUPY_STREAM
    assert frameworks == [1, 1]  # once a call, on the group's device


def test_typed_arrays_remember_their_stream(frameworks: list[int]) -> None:
    array = ferry.typed(TorchTensor((2, 8), "uint", 8), "fp8_e4m3")
    assert choose_stream([array], 0) == TORCH_STREAM
    assert choose_stream([array.view("uint8"), TorchTensor((2, 3))], 0) == TORCH_STREAM
    read_capsule(array.__dlpack__(stream=TORCH_STREAM))  # the same stream: nothing to order


def test_no_framework_is_imported() -> None:
    loaded = {name for name in ("torch", "cupy") if name in sys.modules}
    choose_stream([GpuArray((2, 3))], 0)
    assert loaded == {name for name in ("torch", "cupy") if name in sys.modules}


# Groups.


def test_device_of_a_group() -> None:
    assert ferry.GroupConfig(num_experts=8).device == -1
    assert ferry.GroupConfig(num_experts=8, backend="cuda", device=3).device == 3


def test_a_group_without_a_gpu() -> None:
    if any(c.name == "backend cuda" and c.usable for c in ferry.capabilities()):
        pytest.skip("this machine has a GPU")
    with pytest.raises(ferry.Error) as caught:
        ferry.Group(ferry.meet_in_process(1)[0], num_experts=8, backend="cuda")
    assert caught.value.code == "unsupported"
