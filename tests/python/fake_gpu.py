# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""Arrays that say they lie on a GPU, for machines without one: DLPack capsules made by hand, and read again."""

import ctypes
from dataclasses import dataclass
from typing import Any

ADDRESS = 0x7F00_0000_1000
"""Where all of them say they lie; nobody may look there."""

VERSIONED = b"dltensor_versioned"
LEGACY = b"dltensor"
CODES = {"int": 0, "uint": 1, "float": 2, "bfloat": 4, "float8_e4m3fn": 10, "float8_e8m0fnu": 14}


class DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class Managed(ctypes.Structure):
    _fields_ = [("tensor", DLTensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


class ManagedVersioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", DLTensor),
    ]


_alive: dict[int, Any] = {}
"""What each capsule that nobody has released holds, by address; the exporter itself may be gone."""


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _release(address: int) -> None:
    _, exporter = _alive.pop(address)
    exporter.num_released += 1


new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype = ctypes.py_object
new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
capsule_name = ctypes.pythonapi.PyCapsule_GetName
capsule_name.restype = ctypes.c_char_p
capsule_name.argtypes = [ctypes.py_object]
capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
capsule_pointer.restype = ctypes.c_void_p
capsule_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


class GpuArray:
    """An array of a framework, on `device` (DLPack's type and number). Records how it was asked for."""

    def __init__(
        self, shape: tuple[int, ...], dtype: str = "float", bits: int = 32, device: tuple[int, int] = (2, 0)
    ) -> None:
        self.shape, self.code, self.bits, self.device = shape, CODES[dtype], bits, device
        self.strides: tuple[int, ...] | None = None
        self.byte_offset = 0
        self.asked: list[dict[str, Any]] = []
        self.num_released = 0

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, **arguments: Any) -> Any:
        self.asked.append(arguments)
        return self.make_capsule(VERSIONED if arguments.get("max_version") else LEGACY)

    def make_capsule(self, name: bytes) -> Any:
        tensor = DLTensor(ADDRESS, *self.device, len(self.shape), self.code, self.bits, 1)
        tensor.shape = (ctypes.c_int64 * len(self.shape))(*self.shape)
        if self.strides is not None:
            tensor.strides = (ctypes.c_int64 * len(self.shape))(*self.strides)
        tensor.byte_offset = self.byte_offset
        deleter = ctypes.cast(_release, ctypes.c_void_p)
        managed: Any = Managed(tensor, None, deleter)
        if name == VERSIONED:
            managed = ManagedVersioned(1, 0, None, deleter, 0, tensor)
        _alive[ctypes.addressof(managed)] = (managed, self)
        return new_capsule(ctypes.addressof(managed), name, None)


@dataclass(frozen=True)
class Seen:
    """What a capsule holds."""

    name: bytes
    address: int
    device: tuple[int, int]
    dtype: tuple[int, int]
    """Code and bits."""
    shape: list[int]
    strides: list[int]


def read_capsule(capsule: Any) -> Seen:
    name = capsule_name(capsule)
    kind: Any = ManagedVersioned if name == VERSIONED else Managed
    tensor = kind.from_address(capsule_pointer(capsule, name)).tensor
    return Seen(
        name,
        tensor.data + tensor.byte_offset,
        (tensor.device_type, tensor.device_id),
        (tensor.code, tensor.bits),
        tensor.shape[: tensor.ndim],
        tensor.strides[: tensor.ndim],
    )
