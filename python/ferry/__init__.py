# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""Dispatch and combine for mixture-of-experts layers.

Importing this module does no work: no threads, no sockets, no look at the environment or at a device. NumPy and
ml_dtypes are imported when the first array is looked at.
"""

from ferry._ferry import (
    Array,
    Capability,
    CombineResult,
    DispatchResult,
    Group,
    GroupConfig,
    GroupStatistics,
    Handle,
    Meeting,
    MemoryPlan,
    PendingCombine,
    PendingDispatch,
    Placement,
    Reduction,
    RegionPlan,
    StepTrace,
    Topology,
    TrafficPlan,
    capabilities,
    meet_from_environment,
    meet_in_process,
    meet_over_tcp,
    meet_through,
    memory_plan,
    traffic_plan,
    typed,
    version,
)
from ferry.errors import Error, ErrorCode, PeerWait
from ferry.values import ArrayLike, Codec, DType, Layout, Mode, Output, StreamLike

__version__ = version()

__all__ = [
    "Array",
    "ArrayLike",
    "Capability",
    "Codec",
    "CombineResult",
    "DType",
    "DispatchResult",
    "Error",
    "ErrorCode",
    "Group",
    "GroupConfig",
    "GroupStatistics",
    "Handle",
    "Layout",
    "Meeting",
    "MemoryPlan",
    "Mode",
    "Output",
    "PeerWait",
    "PendingCombine",
    "PendingDispatch",
    "Placement",
    "Reduction",
    "RegionPlan",
    "StepTrace",
    "StreamLike",
    "Topology",
    "TrafficPlan",
    "__version__",
    "capabilities",
    "meet_from_environment",
    "meet_in_process",
    "meet_over_tcp",
    "meet_through",
    "memory_plan",
    "traffic_plan",
    "typed",
    "version",
]
