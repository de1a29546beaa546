# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""The names of the original's V1 extension module, which some scripts import."""

from deep_ep._C import (
    Buffer,
    Config,
    EventHandle,
    get_low_latency_rdma_size_hint,
    is_sm90_compiled,
    topk_idx_t,
)

__all__ = [
    "Buffer",
    "Config",
    "EventHandle",
    "get_low_latency_rdma_size_hint",
    "is_sm90_compiled",
    "topk_idx_t",
]
