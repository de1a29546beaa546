# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""What travels with a token beside its row: a note of where it comes from, so that a receiver can fill the tables that
handles promise."""

from collections import OrderedDict

import torch

NOTE_BYTES = 16
NOTE_TOKEN, NOTE_TOKENS, NOTE_RANK = 0, 1, 2


_KEPT_NOTES = 256


class Notes:
    """[T, 4] int32: token, T, source rank, 0. The last few are kept, for calls on any stream."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._kept: OrderedDict[tuple[int, str], torch.Tensor] = OrderedDict()

    def of(self, num_tokens: int, device: torch.device) -> torch.Tensor:
        key = (num_tokens, str(device))
        note = self._kept.get(key)
        if note is not None:
            self._kept.move_to_end(key)
            return note
        note = torch.zeros((num_tokens, 4), dtype=torch.int32, device=device)
        note[:, NOTE_TOKEN] = torch.arange(num_tokens, dtype=torch.int32, device=device)
        note[:, NOTE_TOKENS] = num_tokens
        note[:, NOTE_RANK] = self._rank
        if note.is_cuda:
            if torch.cuda.is_current_stream_capturing():
                return note  # belongs to the graph
            torch.cuda.current_stream(device).synchronize()  # once: later calls may be on other streams
        self._kept[key] = note
        if len(self._kept) > _KEPT_NOTES:
            self._kept.popitem(last=False)
        return note


def padded(num_bytes: int) -> int:
    """Bytes of a block on the wire."""
    return -(-num_bytes // 16) * 16


def row_bytes(tensor: torch.Tensor) -> int:
    return tensor.shape[1] * tensor.element_size()


def detached(*tensors: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """Without their graphs: deep_ep takes tensors that require gradients, as autograd functions hand them over, and
    leaves gradients to those functions."""
    return tuple(tensor.detach() if isinstance(tensor, torch.Tensor) else tensor for tensor in tensors)


def split_input(x: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The data and its scales."""
    return (x[0], x[1]) if isinstance(x, (tuple, list)) else (x, None)


def full_rows(rows: torch.Tensor, capacity: int) -> torch.Tensor:
    """On a GPU a handle whose counts the host does not know takes rows of the whole capacity; what is added is never
    read."""
    if rows.shape[0] >= capacity:
        return rows
    full = rows.new_empty((capacity, *rows.shape[1:]))
    full[: rows.shape[0]] = rows
    return full


def restore(block: torch.Tensor, like: torch.Tensor, rows: int | None = None) -> torch.Tensor:
    """Dense rows of the dtype that was sent (unknown types travel as bytes), the first `rows` of them."""
    dense = block if rows is None else block[:rows]
    dense = dense.contiguous()
    return dense if dense.dtype == like.dtype else dense.view(like.dtype)
