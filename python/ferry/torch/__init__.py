# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""Ferry for PyTorch: process groups as meeting places, tensors without copies, streams and events, dispatch and combine
that autograd and torch.compile understand.

    group = ferry.torch.Group(dist.group.WORLD, num_experts=64, hidden=2048, max_tokens=4096)     # collective
    rows, routing = group.dispatch(x, topk_ids, topk_weights, layout="expert_major")
    out = group.combine(experts(rows, routing.expert_counts) * routing.row_weights[:, None], routing)

``import ferry`` never imports PyTorch; this module does.
"""

from ferry.torch.group import Group, Routing
from ferry.torch.meeting import Peers, meet, peers_of
from ferry.torch.streams import Event, current_stream, following
from ferry.torch.tensors import as_array, as_tensor

__all__ = [
    "Event",
    "Group",
    "Peers",
    "Routing",
    "as_array",
    "as_tensor",
    "current_stream",
    "following",
    "meet",
    "peers_of",
]
