# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""Runs ranks as threads of this process."""

import threading
from collections.abc import Callable
from typing import Any

import ferry
import numpy as np

SMALL = {
    "num_experts": 8,
    "max_tokens": 16,
    "max_latency_tokens": 8,
    "max_top_k": 4,
    "hidden": 64,
    "dtype": "fp32",
    "timeout": 20.0,
}
"""Keywords of a group that makes small windows."""


def run_threads(functions: list[Callable[[], Any]]) -> list[Any]:
    """The results of functions that run at the same time; raises the first exception that happened."""
    results: list[Any] = [None] * len(functions)
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            results[index] = functions[index]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "a rank did not end"
    return results


def run_ranks(num_ranks: int, body: Callable[[ferry.Group], Any], **config: Any) -> list[Any]:
    """Makes a group of threads and returns what `body(group)` returned on each rank."""
    meetings = ferry.meet_in_process(num_ranks)

    def run(meeting: ferry.Meeting) -> Any:
        with ferry.Group(meeting, **(SMALL | config)) as group:
            return body(group)

    return run_threads([lambda meeting=meeting: run(meeting) for meeting in meetings])


def ids_for(group: ferry.Group, num_tokens: int, top_k: int = 2, dtype: type = np.int32) -> np.ndarray:
    """Distinct experts, different on each rank."""
    first = np.arange(num_tokens)[:, None] * 3 + group.rank
    return ((first + np.arange(top_k)) % group.placement.num_experts).astype(dtype)
