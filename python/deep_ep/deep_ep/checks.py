# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""Refusals: RuntimeError where the original's C++ refused, AssertionError where its Python did."""

import torch


def require(condition: object, message: str) -> None:
    """Raises RuntimeError, as a failed assertion of the original's C++ did."""
    if not condition:
        raise RuntimeError(f"deep_ep (Ferry): {message}")


def require_python(condition: object, message: str) -> None:
    """Raises AssertionError, as a failed assertion of the original's Python did."""
    if not condition:
        raise AssertionError(f"deep_ep (Ferry): {message}")


def require_fill_is_off(function: str) -> None:
    """Filling fresh memory would write over what a call has put there."""
    is_on = torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory
    require_python(
        not is_on,
        f"{function}: seen torch.use_deterministic_algorithms and torch.utils.deterministic.fill_uninitialized_memory "
        "both on, expected fill_uninitialized_memory = False",
    )


def require_tensor(
    function: str, name: str, tensor: torch.Tensor, shape: tuple[int | None, ...], *dtypes: torch.dtype
) -> None:
    """The shape (None: any size), one of the dtypes (none given: any), contiguous."""
    sizes = zip(shape, tensor.shape, strict=False)
    fits = tensor.dim() == len(shape) and all(want is None or want == size for want, size in sizes)
    expected = "[" + ", ".join("*" if size is None else str(size) for size in shape) + "]"
    kinds = " or ".join(str(dtype) for dtype in dtypes) or "any dtype"
    require(
        fits and (not dtypes or tensor.dtype in dtypes),
        f"{function}: argument {name}: seen {list(tensor.shape)} {tensor.dtype}, expected {expected} {kinds}",
    )
    require(tensor.is_contiguous(), f"{function}: argument {name}: seen strides {tensor.stride()}, expected contiguous")


def require_ids(function: str, topk_idx: torch.Tensor, dtype: torch.dtype) -> None:
    """[T, K] contiguous ids; another dtype raises what torch's accessors raise."""
    if topk_idx.dtype != dtype:
        names = {torch.int64: "Long", torch.int32: "Int", torch.int16: "Short", torch.int8: "Char"}
        raise RuntimeError(
            f"expected scalar type {names.get(dtype, dtype)} but found {names.get(topk_idx.dtype, topk_idx.dtype)} "
            f"({function}: argument topk_idx)"
        )
    require_tensor(function, "topk_idx", topk_idx, (None, None), dtype)
