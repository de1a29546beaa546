# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""Dispatch and combine as operators of PyTorch: ``torch.ops.ferry.*``, with fake implementations for torch.compile and
gradients. Operators take tensors and numbers only, so a group is named by its key and a handle by a ticket.

The backward of dispatch is combine (of gradients), and the backward of combine is a cached dispatch.
"""

import itertools
import threading
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import ferry
from ferry.torch.tensors import as_array, as_tensor

groups: "weakref.WeakValueDictionary[str, Any]" = weakref.WeakValueDictionary()
"""ferry.torch.Group by key: a string, since torch.compile takes numbers for sizes that change."""


@dataclass(frozen=True)
class Sent:
    """What a ticket stands for."""

    handle: ferry.Handle
    alignment: int


_sent: dict[int, Sent] = {}
_lock = threading.Lock()
_numbers = itertools.count(1)


class _TicketMemory(np.ndarray):
    """The memory of a ticket; lives as long as any tensor over it, whichever graph holds that."""


def _forget(number: int) -> None:
    _sent.pop(number, None)


def make_ticket(sent: Sent) -> torch.Tensor:
    """An int64 [1] CPU tensor that stands for a handle, which lives as long as the tensor's memory."""
    with _lock:
        number = next(_numbers)
    _sent[number] = sent
    memory = np.array([number], dtype=np.int64).view(_TicketMemory)
    weakref.finalize(memory, _forget, number)
    return torch.from_numpy(memory)


def sent_of(ticket: torch.Tensor) -> Sent:
    """Raises ferry.Error("invalid_argument") if every tensor over the ticket's memory has gone."""
    sent = _sent.get(int(ticket))
    if sent is None:
        raise ferry.Error(
            f"ferry.torch: argument ticket: seen {int(ticket)}, whose handle is gone, expected the ticket that "
            f"dispatch "
            "returned (not a clone that outlived it)",
            code="invalid_argument",
        )
    return sent


def _group(key: str) -> Any:
    group = groups.get(key)
    if group is None:
        raise ferry.Error(
            f"ferry.torch: argument group: seen {key!r}, whose group is gone, expected the key of a ferry.torch.Group "
            "that is alive",
            code="invalid_argument",
        )
    return group


def _stream(x: torch.Tensor) -> Any:
    """Operators run on the current stream, also inside backward passes."""
    return torch.cuda.current_stream(x.device) if x.is_cuda else None


@torch.library.custom_op("ferry::dispatch", mutates_args=())
def dispatch(
    x: torch.Tensor,
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor | None,
    group: str,
    layout: str,
    alignment: int,
    host_counts: bool,
    num_sms: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns rows, row weights, local ids, expert counts, expert offsets and the ticket; see Group.dispatch."""
    ranks = _group(group)
    arrived = ranks.ferry.dispatch(
        as_array(x),
        as_array(topk_ids),
        None if topk_weights is None else as_array(topk_weights),
        layout=layout,
        alignment=alignment,
        zero_padding=layout == "expert_major",
        host_counts=host_counts,
        output="owned",
        num_sms=num_sms,
        stream=_stream(x),
    )
    none = x.new_empty((0,), dtype=torch.float32)
    return (
        _as_given(as_tensor(arrived.payload[0]), x),
        none if arrived.topk_weights is None else as_tensor(arrived.topk_weights),
        none.to(torch.int64) if arrived.topk_ids is None else as_tensor(arrived.topk_ids),
        as_tensor(arrived.expert_counts),
        as_tensor(arrived.expert_offsets) if layout == "expert_major" else none.to(torch.int32),
        make_ticket(Sent(arrived.handle, alignment)),
    )


def _as_given(rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Dense rows of x's dtype (a row whose bytes are no multiple of 16 arrives with a gap behind it)."""
    return rows.contiguous().view(x.dtype)


@dispatch.register_fake
def _(x, topk_ids, topk_weights, group, layout, alignment, host_counts, num_sms):
    num_tokens, top_k = topk_ids.shape
    ranks = _group(group)
    rows = torch.library.get_ctx().new_dynamic_size() if host_counts else ranks.capacity(layout)
    by_expert = layout == "expert_major"
    num_experts = ranks.ferry.placement.num_local_experts(ranks.rank)
    weights_shape = (0,) if topk_weights is None else (rows,) if by_expert else (rows, top_k)
    return (
        x.new_empty((rows, x.shape[1])),
        x.new_empty(weights_shape, dtype=torch.float32),
        x.new_empty((0,) if by_expert else (rows, top_k), dtype=topk_ids.dtype if not by_expert else torch.int64),
        x.new_empty((num_experts,), dtype=torch.int32),
        x.new_empty((num_experts + 1,) if by_expert else (0,), dtype=torch.int32),
        torch.empty((1,), dtype=torch.int64, device="cpu"),
    )


@torch.library.custom_op("ferry::dispatch_backward", mutates_args=())
def dispatch_backward(
    grad_rows: torch.Tensor,
    grad_weights: torch.Tensor | None,
    ticket: torch.Tensor,
    group: str,
    num_tokens: int,
    top_k: int,
    num_sms: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients [T, H] of the tokens and [T, K] of their weights (0 rows if grad_weights is None)."""
    out = _group(group).ferry.combine(
        as_array(grad_rows),
        sent_of(ticket).handle,
        topk_weights=None if grad_weights is None else as_array(grad_weights.contiguous()),
        num_sms=num_sms,
        stream=_stream(grad_rows),
    )
    weights = grad_rows.new_empty((0, top_k), dtype=torch.float32)
    return as_tensor(out.out), weights if out.topk_weights is None else as_tensor(out.topk_weights)


@dispatch_backward.register_fake
def _(grad_rows, grad_weights, ticket, group, num_tokens, top_k, num_sms):
    return (
        grad_rows.new_empty((num_tokens, grad_rows.shape[1])),
        grad_rows.new_empty((0 if grad_weights is None else num_tokens, top_k), dtype=torch.float32),
    )


def _setup_dispatch(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, ids, weights, ctx.group, _layout, _alignment, _host_counts, ctx.num_sms = inputs
    ctx.num_tokens, ctx.top_k = x.shape[0], ids.shape[1]
    ctx.weights_shape = None if weights is None else output[1].shape
    ctx.save_for_backward(output[5])
    ctx.set_materialize_grads(False)


def _dispatch_gradients(ctx: Any, grad_rows: Any, grad_weights: Any, *_: Any) -> tuple:
    nothing = (None,) * 6
    if grad_rows is None and grad_weights is None:
        return None, None, None, *nothing[:5]
    if grad_rows is None:
        raise ferry.Error(
            "ferry.torch: the backward of dispatch: gradients reach the weights but not the rows; all ranks need both, "
            "or the rows' alone",
            code="unsupported",
        )
    (ticket,) = ctx.saved_tensors
    # Every rank makes the same call, so weights travel back wherever they came along, also where no gradient reached
    # them.
    weights = None if ctx.weights_shape is None else grad_weights
    if ctx.weights_shape is not None and weights is None:
        weights = grad_rows.new_zeros(ctx.weights_shape, dtype=torch.float32)
    x, w = torch.ops.ferry.dispatch_backward(
        grad_rows.contiguous(), weights, ticket, ctx.group, ctx.num_tokens, ctx.top_k, ctx.num_sms
    )
    return x, None, None if ctx.weights_shape is None else w, *nothing[:5]


dispatch.register_autograd(_dispatch_gradients, setup_context=_setup_dispatch)


@torch.library.custom_op("ferry::combine", mutates_args=())
def combine(
    rows: torch.Tensor, ticket: torch.Tensor, group: str, num_tokens: int, reduction: str, num_sms: int
) -> torch.Tensor:
    """The sums [T, H]; see Group.combine."""
    out = _group(group).ferry.combine(
        as_array(rows), sent_of(ticket).handle, reduction=reduction, num_sms=num_sms, stream=_stream(rows)
    )
    return as_tensor(out.out)


@combine.register_fake
def _(rows, ticket, group, num_tokens, reduction, num_sms):
    return rows.new_empty((num_tokens, rows.shape[1]))


@torch.library.custom_op("ferry::combine_backward", mutates_args=())
def combine_backward(grad: torch.Tensor, ticket: torch.Tensor, group: str, num_rows: int, num_sms: int) -> torch.Tensor:
    """The gradient [N, H] of every row: a cached dispatch."""
    sent = sent_of(ticket)
    layout = sent.handle.layout
    arrived = _group(group).ferry.dispatch(
        as_array(grad),
        handle=sent.handle,
        layout=layout,
        alignment=sent.alignment,
        zero_padding=layout == "expert_major",
        output="owned",
        num_sms=num_sms,
        stream=_stream(grad),
    )
    return _as_given(as_tensor(arrived.payload[0]), grad)[:num_rows]


@combine_backward.register_fake
def _(grad, ticket, group, num_rows, num_sms):
    return grad.new_empty((num_rows, grad.shape[1]))


def _setup_combine(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    rows, ticket, ctx.group, _tokens, _reduction, ctx.num_sms = inputs
    ctx.num_rows = rows.shape[0]
    ctx.save_for_backward(ticket)


def _combine_gradients(ctx: Any, grad: torch.Tensor) -> tuple:
    (ticket,) = ctx.saved_tensors
    rows = torch.ops.ferry.combine_backward(grad.contiguous(), ticket, ctx.group, ctx.num_rows, ctx.num_sms)
    return rows, None, None, None, None, None


combine.register_autograd(_combine_gradients, setup_context=_setup_combine)
