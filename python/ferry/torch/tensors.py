# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""PyTorch's tensors as arguments, Ferry's arrays as tensors; nothing is copied."""

import torch

import ferry

_AS_BITS = {"fp8_e4m3": torch.float8_e4m3fn, "ue8m0": getattr(torch, "float8_e8m0fnu", torch.uint8)}
"""dtypes that DLPack of many versions of PyTorch cannot name."""
_KNOWN = {
    torch.bfloat16,
    torch.float16,
    torch.float32,
    torch.uint8,
    torch.int32,
    torch.int64,
    torch.float8_e4m3fn,
}


def as_tensor(array: ferry.Array) -> torch.Tensor:
    """The same memory as a tensor; on a GPU the current stream is made to follow the stream that wrote it.

    UE8M0 becomes torch.float8_e8m0fnu, or uint8 where PyTorch is older than that type.
    """
    bits = _AS_BITS.get(array.dtype)
    if bits is None:
        return torch.from_dlpack(array)
    return torch.from_dlpack(array.view("uint8")).view(bits)


def as_array(tensor: torch.Tensor) -> torch.Tensor | ferry.Array:
    """The same memory as something that Ferry's calls take: without its graph, fp8 named as such, and elements of types
    that Ferry does not know as their bytes (the last dimension then counts bytes and must be dense)."""
    tensor = tensor.detach()
    if tensor.dtype == torch.float8_e4m3fn:
        return ferry.typed(tensor.view(torch.uint8), "fp8_e4m3")
    return tensor if tensor.dtype in _KNOWN else tensor.view(torch.uint8)
