# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""Streams and events that also exist, and order nothing, where tensors lie in CPU memory."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def current_stream(device: torch.device) -> Any:
    """The current CUDA stream of a device; None for the CPU, where every call is over when it returns."""
    return torch.cuda.current_stream(device) if device.type == "cuda" else None


def following(stream: Any, *before: Any) -> AbstractContextManager[Any]:
    """Makes ``stream`` wait, on the GPU, for streams or Events, and makes it the current one inside the ``with`` block.
    ``stream`` None: nothing happens."""
    if stream is None:
        return nullcontext()
    for other in before:
        if isinstance(other, Event):
            other.wait(stream)
        elif other is not None and other != stream:
            stream.wait_stream(other)
    return torch.cuda.stream(stream)


class Event:
    """A mark on a stream that other streams can wait for; copies share it. On the CPU it has always been reached."""

    def __init__(self, stream: Any = None) -> None:
        """Records on ``stream``, None: the current CUDA stream if CUDA is in use in this process."""
        if stream is None and torch.cuda.is_available() and torch.cuda.is_initialized():
            stream = torch.cuda.current_stream()
        self._event = None if stream is None else stream.record_event()

    def wait(self, stream: Any = None) -> None:
        """Makes ``stream`` (None: the current one) wait on the GPU; the host does not."""
        if self._event is None:
            return
        (stream or torch.cuda.current_stream()).wait_event(self._event)
