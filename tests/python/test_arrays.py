# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""Arrays in and out, without any rank."""

import gc
import weakref

import ferry
import ml_dtypes
import numpy as np
import pytest

NUMPY_TYPES = {
    "bf16": ml_dtypes.bfloat16,
    "fp16": np.float16,
    "fp32": np.float32,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "ue8m0": ml_dtypes.float8_e8m0fnu,
    "uint8": np.uint8,
    "int32": np.int32,
    "int64": np.int64,
}
BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class OnlyDLPack:
    """An array of a framework that is not NumPy."""

    def __init__(self, array: np.ndarray, device: tuple[int, int] = (1, 0)) -> None:
        self.array = array
        self.device = device

    def __dlpack__(self, **arguments):
        return self.array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


@pytest.mark.parametrize("name", NUMPY_TYPES)
def test_types_go_in_and_out(name: str) -> None:
    given = (np.arange(24) % 7 + 1).reshape(2, 3, 4).astype(NUMPY_TYPES[name])
    array = ferry.typed(given, name)
    assert (array.shape, array.strides, array.dtype) == ((2, 3, 4), (12, 4, 1), name)
    assert (array.ndim, array.size, array.itemsize, array.nbytes) == (3, 24, given.itemsize, given.nbytes)
    back = np.asarray(array)
    assert back.dtype == given.dtype
    assert np.array_equal(back, given)
    assert np.shares_memory(back, given)
    assert array.tolist() == given.tolist()
    assert repr(array) == f'ferry.Array(shape=(2, 3, 4), dtype="{name}")'


@pytest.mark.parametrize("name", NUMPY_TYPES)
def test_bits_with_an_explicit_type(name: str) -> None:
    bits = np.arange(6, dtype=BITS[np.dtype(NUMPY_TYPES[name]).itemsize])
    for given in (bits, OnlyDLPack(bits)):
        array = ferry.typed(given, name)
        assert array.dtype == name
        assert np.array_equal(np.asarray(array).view(bits.dtype), bits)


@pytest.mark.parametrize("alias", ["bfloat16", "float16", "float32", "float8_e4m3fn", "float8_e8m0fnu"])
def test_names_of_numpy_types(alias: str) -> None:
    given = np.zeros(3, dtype=getattr(ml_dtypes, alias, None) or alias)
    assert np.asarray(ferry.typed(given, alias)).dtype == given.dtype


@pytest.mark.parametrize("name", ["fp16", "fp32", "uint8", "int32", "int64"])
def test_numpy_from_dlpack(name: str) -> None:
    given = np.arange(12).reshape(3, 4).astype(NUMPY_TYPES[name])
    back = np.from_dlpack(ferry.typed(given, name))
    assert np.array_equal(back, given)
    assert np.shares_memory(back, given)


def test_numpy_cannot_say_bf16_but_bits() -> None:
    array = ferry.typed(np.ones(3, dtype=ml_dtypes.float8_e4m3fn), "fp8_e4m3")
    assert np.from_dlpack(array.view("uint8")).tolist() == [0x38, 0x38, 0x38]
    assert array.__dlpack_device__() == (1, 0)
    assert type(array.__dlpack__()).__name__ == "PyCapsule"


@pytest.mark.parametrize(
    "cut",
    [
        lambda a: a[::2],
        lambda a: a[:, ::2],
        lambda a: a.T,
        lambda a: a[::-1],
        lambda a: a[1:1],
        lambda a: np.broadcast_to(a[0], (5, 6)),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_any_strides(cut, dtype) -> None:
    given = cut(np.arange(24).reshape(4, 6).astype(dtype))
    array = ferry.typed(given, np.dtype(dtype).name)
    assert array.shape == given.shape
    assert np.array_equal(np.asarray(array), given)


@pytest.mark.parametrize("given", [bytearray(b"abc"), b"abc", memoryview(b"abc")])
def test_buffers(given) -> None:
    array = ferry.typed(given, "uint8")
    assert array.tolist() == [97, 98, 99]
    assert array.readonly == (not isinstance(given, bytearray))


def test_read_only_stays_read_only() -> None:
    given = np.zeros(3, dtype=np.float32)
    given.flags.writeable = False
    array = ferry.typed(given, "fp32")
    assert array.readonly
    assert not np.asarray(array).flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_items() -> None:
    given = np.zeros((2, 3), dtype=np.float32)
    array = ferry.typed(given, "fp32")
    array[1, 2] = 5
    assert given[1, 2] == 5
    assert len(array) == 2
    assert array[1].tolist() == [0, 0, 5]
    assert [row.tolist() for row in array] == [[0, 0, 0], [0, 0, 5]]


def test_conversions() -> None:
    array = ferry.typed(np.ones(3, dtype=ml_dtypes.bfloat16), "bf16")
    assert np.asarray(array, dtype=np.float64).dtype == np.float64
    copied = np.array(array)
    assert not np.shares_memory(copied, np.asarray(array))
    with pytest.raises(ValueError, match="copy"):
        np.asarray(array, dtype=np.float32, copy=False)


def test_views_own_the_memory() -> None:
    given = np.arange(4, dtype=np.float32)
    alive = weakref.ref(given)
    view = np.asarray(ferry.typed(given, "fp32"))[1:]
    del given
    gc.collect()
    assert alive() is not None
    assert view.tolist() == [1, 2, 3]
    del view
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize(
    ("given", "dtype", "words"),
    [
        (np.zeros(3), "bf16", ["float64", "2 bytes"]),
        (np.zeros(3, np.uint16), "float", ['"float"', '"bf16"', '"fp8_e4m3"']),
        ("text", "uint8", ["str", "__dlpack__"]),
        ([1, 2], "int32", ["list", "__dlpack__"]),
        (np.zeros((1, 1, 1, 1), np.uint8), "uint8", ["4 dimensions", "at most 3"]),
        (np.zeros(3, ">f4"), "fp32", ["byte order"]),
        (np.zeros(3, "M8[s]"), "int64", ["__dlpack__ failed"]),
        (np.zeros(3, np.complex64), "int64", ["complex"]),
    ],
)
def test_refusals(given, dtype: str, words: list[str]) -> None:
    if isinstance(given, np.ndarray) and given.dtype == np.complex64:
        dtype = "fp32"
    with pytest.raises(ferry.Error) as caught:
        ferry.typed(given, dtype)
    error = caught.value
    assert error.code is ferry.ErrorCode.INVALID_ARGUMENT
    assert error.step == "ferry.typed"
    assert error.argument in ("array", "dtype")
    for word in ["ferry.typed", *words]:
        assert word in str(error)


def test_none_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        ferry.typed(None, "bf16")
