# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""Ranks of the tests with PyTorch: threads, on the CPU or with a GPU each."""

import functools
import os
import threading
from collections.abc import Callable
from typing import Any

# Read when CUDA starts: kernels of ranks wait for each other.
os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")

import ferry
import pytest
import torch

DEVICES = ["cpu", "cuda"]
JOIN_SECONDS = 100


class Threads:
    """What ranks that are threads share."""

    def __init__(self, size: int) -> None:
        self.slots: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=60)


class ThreadComm:
    """A rank's end of an all-gather among threads, with the names of mpi4py's communicators."""

    def __init__(self, rank: int, threads: Threads) -> None:
        self._rank, self._threads = rank, threads

    def Get_rank(self) -> int:
        return self._rank

    def Get_size(self) -> int:
        return len(self._threads.slots)

    def allgather(self, mine: Any) -> list[Any]:
        self._threads.slots[self._rank] = mine
        self._threads.barrier.wait()
        everybodys = list(self._threads.slots)
        self._threads.barrier.wait()
        return everybodys


@functools.lru_cache(maxsize=1)
def why_no_gpu() -> str:
    backend = next(c for c in ferry.capabilities() if c.name == "backend cuda")
    if not backend.usable:
        return f"backend cuda: {backend.detail}"
    return "" if torch.cuda.is_available() else "this PyTorch finds no GPU"


def need(device: str, num_ranks: int) -> None:
    """Skips, with the reason, where a test cannot run."""
    if device == "cpu":
        return
    if why_no_gpu():
        pytest.skip(why_no_gpu())
    if torch.cuda.device_count() < num_ranks:
        pytest.skip(f"{num_ranks} ranks need a GPU each, this machine has {torch.cuda.device_count()}")


def run_ranks(num_ranks: int, body: Callable[[ThreadComm], Any], device: str = "cpu") -> list[Any]:
    """What ``body(comm)`` returned on each rank; raises the first exception that happened. On GPUs the rank's is
    current, with a stream of its own."""
    need(device, num_ranks)
    threads = Threads(num_ranks)
    results: list[Any] = [None] * num_ranks
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            comm = ThreadComm(rank, threads)
            if device == "cpu":
                results[rank] = body(comm)
                return
            torch.cuda.set_device(rank)
            with torch.cuda.stream(torch.cuda.Stream(rank)):
                results[rank] = body(comm)
                torch.cuda.synchronize()
        except BaseException as error:
            errors.append(error)
            threads.barrier.abort()

    running = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(num_ranks)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(timeout=JOIN_SECONDS)
    if errors:
        raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
    assert not any(thread.is_alive() for thread in running), "a rank did not end"
    return results


def distinct_ids(
    generator: torch.Generator, tokens: int, top_k: int, experts: int, dropped: bool = True
) -> torch.Tensor:
    """[T, K] int64: distinct experts, some slots empty."""
    ids = torch.rand((tokens, experts), generator=generator).argsort(dim=1)[:, :top_k].contiguous()
    if dropped and tokens:
        ids[torch.rand(ids.shape, generator=generator) < 0.2] = -1
    return ids
