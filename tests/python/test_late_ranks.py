# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""Groups that mask late ranks by themselves, and statistics that calls add to."""

import threading

import ferry
import numpy as np
from rank_threads import run_ranks

LIMITS = {"num_experts": 3, "max_tokens": 8, "hidden": 16}
IDS = np.tile(np.arange(3), (4, 1))


def test_a_late_rank_is_masked_and_named() -> None:
    others = threading.Barrier(2)
    over = threading.Event()

    def body(group: ferry.Group) -> None:
        assert group.config.auto_masks == 1
        if group.rank == 2:
            assert over.wait(30)
            return
        try:
            x = np.full((4, 16), group.rank + 1, np.float32)
            arrived = group.dispatch(x, IDS, mode="latency", layout="expert_padded", timeout=0.3)
            assert arrived.late == [2]
            assert group.masked() == [False, False, True]
            back = group.combine(np.asarray(arrived.payload[0]), arrived.handle)
            assert back.late == []
            assert np.array_equal(np.asarray(back.out), 2 * x)  # of three experts two are left
            others.wait(30)
        finally:
            over.set()

    run_ranks(3, body, auto_masks=1, **LIMITS)


def test_statistics_are_added_up() -> None:
    def body(group: ferry.Group) -> None:
        counts, waited = np.zeros(1, np.int32), np.zeros(3, np.int64)
        x = np.ones((4, 16), np.float32)
        for mode in ("latency", "throughput"):
            arrived = group.dispatch(x, IDS, mode=mode, recv_counts=counts, wait_ns=waited)
            group.combine(np.asarray(arrived.payload[0]), arrived.handle, wait_ns=waited)
        assert counts.tolist() == [2 * 3 * 4]
        assert (waited >= 0).all()

    run_ranks(3, body, **LIMITS)
