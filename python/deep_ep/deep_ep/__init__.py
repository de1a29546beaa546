# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""The deep_ep interface over Ferry: programs written for DeepEP run unchanged. docs/porting.md has the differences.

Importing it starts nothing: no CUDA context, no compiler, no look at NCCL.
"""

from deep_ep.buffers.elastic import ElasticBuffer
from deep_ep.buffers.elastic_handle import EPHandle
from deep_ep.buffers.legacy import Buffer
from deep_ep.config import Config, topk_idx_t
from deep_ep.domains import get_logical_domain_size, get_physical_domain_size
from deep_ep.events import EventHandle, EventOverlap
from deep_ep.not_offered import HybridEPBuffer

__version__ = "2.1.0"

__all__ = [
    "Buffer",
    "Config",
    "EPHandle",
    "ElasticBuffer",
    "EventHandle",
    "EventOverlap",
    "HybridEPBuffer",
    "__version__",
    "get_logical_domain_size",
    "get_physical_domain_size",
    "topk_idx_t",
]
