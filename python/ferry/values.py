# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""Small values by name. Their members are strings: functions take either, ``ferry.Mode.LATENCY`` or ``"latency"``."""

from enum import StrEnum
from typing import Any, Protocol, TypeAlias


class Mode(StrEnum):
    """How a dispatch finds its rows' places."""

    THROUGHPUT = "throughput"
    """Counts are exchanged first, rows are exact."""
    LATENCY = "latency"
    """Fixed slots, no count exchange before data."""
    AUTO = "auto"
    """One of the two by size; see Group.dispatch."""


class Layout(StrEnum):
    """Shape and order of what a dispatch returns; see DispatchResult."""

    RANK_MAJOR = "rank_major"
    EXPERT_MAJOR = "expert_major"
    EXPERT_PADDED = "expert_padded"


class Codec(StrEnum):
    """How rows are coded on the way: the first payload block of a dispatch, what a rank returns in a combine (latency
    mode)."""

    NONE = "none"
    FP8_F32 = "fp8_f32"
    """bf16 to fp8 e4m3 with float32 scales. Dispatch and combine."""
    FP8_UE8M0 = "fp8_ue8m0"
    """bf16 to fp8 e4m3 with scales rounded up to powers of two, as UE8M0 bytes. Dispatch."""
    LOGFMT10 = "logfmt10"
    """bf16 to a sign and 9 bits on a logarithmic scale of each group of 128 channels. Combine."""


class Output(StrEnum):
    """Where results live."""

    WINDOW = "window"
    """A view of the receive window."""
    OWNED = "owned"
    """Memory of their own."""


class DType(StrEnum):
    """Element types."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"
    FP8_E4M3 = "fp8_e4m3"
    UE8M0 = "ue8m0"
    """A power-of-two scale: one byte, value 2 ** (byte - 127), byte 255 is NaN."""
    UINT8 = "uint8"
    INT32 = "int32"
    INT64 = "int64"


class SupportsDLPack(Protocol):
    """numpy.ndarray, torch.Tensor, jax.Array, cupy.ndarray, ferry.Array, ..."""

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...

    def __dlpack_device__(self) -> tuple[Any, int]: ...


class HasCudaStream(Protocol):
    """torch.cuda.Stream and others that name their handle so."""

    @property
    def cuda_stream(self) -> int: ...


class SupportsCudaStream(Protocol):
    """cuda.core.Stream, cupy.cuda.Stream, torch.cuda.Stream, ..."""

    def __cuda_stream__(self) -> tuple[int, int]: ...


ArrayLike: TypeAlias = SupportsDLPack | memoryview | bytearray | bytes
"""Anything with __dlpack__ or the buffer protocol. Other element types than Array.dtype lists: see ferry.typed."""

StreamLike: TypeAlias = int | HasCudaStream | SupportsCudaStream
"""A CUDA stream: its handle (0 or 1: the legacy default stream, 2: the per-thread one), or a framework's object."""
