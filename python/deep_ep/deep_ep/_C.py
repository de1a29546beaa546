# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""The names of the original's extension module."""

from deep_ep.buffers.legacy import Buffer
from deep_ep.config import Config, topk_idx_t
from deep_ep.events import EventHandle

get_low_latency_rdma_size_hint = Buffer.get_low_latency_rdma_size_hint
is_sm90_compiled = Buffer.is_sm90_compiled

__all__ = [
    "Buffer",
    "Config",
    "EventHandle",
    "get_low_latency_rdma_size_hint",
    "is_sm90_compiled",
    "topk_idx_t",
]
