# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""V2's handle: an object with attributes. Tables that only some callers read are made when they are read."""

from collections.abc import Callable
from typing import Any

import torch

_FIELDS = (
    "do_expand",
    "num_experts",
    "expert_alignment",
    "num_max_tokens_per_rank",
    "num_sms",
    "topk_idx",
    "num_recv_tokens",
    "num_expanded_tokens",
    "num_recv_tokens_per_expert_list",
    "psum_num_recv_tokens_per_scaleup_rank",
    "psum_num_recv_tokens_per_expert",
    "num_unaligned_recv_tokens_per_expert",
    "recv_src_metadata",
    "dst_buffer_slot_idx",
    "token_metadata_at_forward",
    "channel_linked_list",
)


class EPHandle:
    """EPHandle(do_expand, num_experts, expert_alignment, num_max_tokens_per_rank, num_sms, topk_idx, num_recv_tokens,
    num_expanded_tokens, num_recv_tokens_per_expert_list, psum_num_recv_tokens_per_scaleup_rank,
    psum_num_recv_tokens_per_expert, num_unaligned_recv_tokens_per_expert, recv_src_metadata, dst_buffer_slot_idx,
    token_metadata_at_forward, channel_linked_list): attributes of these names, all writable.

    combine and cached dispatches go by what Ferry keeps, not by the tables. token_metadata_at_forward and
    channel_linked_list are None: rows handed on between nodes are in Ferry's own handle.
    """

    def __init__(self, *values: Any, **named: Any) -> None:
        if len(values) > len(_FIELDS):
            raise TypeError(f"EPHandle takes {len(_FIELDS)} arguments, {len(values)} were given")
        given = dict(zip(_FIELDS, values, strict=False))
        for name, value in named.items():
            if name in given or name not in _FIELDS:
                raise TypeError(f"EPHandle: argument {name} is unknown or given twice")
            given[name] = value
        for name in _FIELDS:
            setattr(self, name, given.get(name))
        self.cached_recv_src_metadata_before_sort: torch.Tensor | None = None
        self.sent: Any = None

    @classmethod
    def lazy(cls, values: dict[str, Any], makers: dict[str, Callable[[], Any]], sent: Any) -> "EPHandle":
        """makers: of attributes that are made at the first look."""
        handle = cls(**values)
        for name in makers:
            delattr(handle, name)
        handle._makers = makers
        handle.sent = sent
        return handle

    def __getattr__(self, name: str) -> Any:
        maker = self.__dict__.get("_makers", {}).get(name)
        if maker is None:
            raise AttributeError(f"EPHandle has no attribute {name!r}")
        value = maker()
        setattr(self, name, value)
        return value
