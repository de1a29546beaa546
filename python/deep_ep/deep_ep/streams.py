# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""On which stream a call runs, what it waits for, and who waits for it."""

from collections.abc import Iterable
from typing import Any

import ferry.torch
import torch

from deep_ep.checks import require
from deep_ep.events import EventHandle, EventOverlap, mark


def default_device() -> torch.device:
    """Where buffers live that no tensor was given for: the current GPU, or the CPU where there is none."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


class CommStream:
    """A communication stream per device, made when it is first asked for. On the CPU: none."""

    def __init__(self) -> None:
        self._streams: dict[int, Any] = {}

    def on(self, device: torch.device) -> Any:
        if device.type != "cuda":
            return None
        index = torch.cuda.current_device() if device.index is None else device.index
        if index not in self._streams:
            self._streams[index] = torch.cuda.Stream(index, priority=-1)
        return self._streams[index]

    def public(self) -> Any:
        """What get_comm_stream returns."""
        device = default_device()
        return self.on(device) if device.type == "cuda" else torch.cpu.current_stream()


class CommCall:
    """One call on the communication stream S, made from the current stream C.

    S waits for ``before`` (an EventHandle) if one is given, else for all of C. Inside the ``with`` block S is the
    current stream: whatever PyTorch computes there follows the call. At finish(), C waits for S, or an event is
    returned.
    """

    def __init__(self, comm: CommStream, device: torch.device, before: EventHandle | None, is_async: bool) -> None:
        self.stream = comm.on(device)
        self.compute = ferry.torch.current_stream(device)
        self.is_async = is_async
        waits = self.stream is not None and (before is None or not is_async)
        require(
            not waits or self.stream != self.compute,
            "the current stream is the communication stream: a call cannot wait for itself",
        )
        self._entered = ferry.torch.following(self.stream, self.compute if before is None else mark(before))

    def __enter__(self) -> "CommCall":
        self._entered.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._entered.__exit__(*exception)

    def finish(self, tensors: Iterable[torch.Tensor | None]) -> EventOverlap:
        """After the ``with`` block. tensors: inputs and outputs, used on both streams."""
        if self.stream is None:
            return EventOverlap(EventHandle() if self.is_async else None)
        # A graph keeps its memory apart, and the caller keeps the tensors of a captured call.
        is_captured = torch.cuda.is_current_stream_capturing()
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor) and tensor.is_cuda and not is_captured:
                tensor.record_stream(self.stream)
                tensor.record_stream(self.compute)
        if self.is_async:
            return EventOverlap(EventHandle(stream=self.stream))
        self.compute.wait_stream(self.stream)
        return EventOverlap()
