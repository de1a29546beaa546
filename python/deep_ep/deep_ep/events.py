# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""EventHandle and EventOverlap. With tensors in CPU memory every event has happened when it is recorded."""

from collections.abc import Callable
from typing import Any

import ferry.torch

from deep_ep.checks import require_python


class EventHandle:
    """An event on torch.cuda.current_stream(), recorded when this is made; copies share it."""

    def __init__(self, *, stream: Any = None) -> None:
        self._event = ferry.torch.Event(stream)

    def current_stream_wait(self) -> None:
        """The current stream waits, on the device; the host does not."""
        self._event.wait()


def event_of(overlap: Any) -> EventHandle | None:
    """What V1's calls read of ``previous_event``: a bare EventHandle has no ``event`` and says nothing."""
    return getattr(overlap, "event", None)


def mark(handle: EventHandle) -> ferry.torch.Event:
    return handle._event


class EventOverlap:
    """An EventHandle or None, what must stay alive until it has happened, and a ``with`` block that ends in a wait."""

    def __init__(self, event: EventHandle | None = None, extra_tensors: tuple[Any, ...] | None = None) -> None:
        self.event = event
        self.extra_tensors = extra_tensors
        self._hook_after_wait: Callable[[], None] | None = None
        self._release_handle = False

    @property
    def hook_after_wait(self) -> Callable[[], None] | None:
        return self._hook_after_wait

    def register_hook_after_wait(self, fn: Callable[[], None]) -> None:
        """Runs once, after the next wait."""
        require_python(self._hook_after_wait is None, "EventOverlap.register_hook_after_wait: seen a second hook")
        self._hook_after_wait = fn

    def current_stream_wait(self, release_handle: bool = False) -> None:
        require_python(
            self.event is not None, "EventOverlap.current_stream_wait: seen no event, expected an EventHandle"
        )
        self.event.current_stream_wait()
        hook, self._hook_after_wait = self._hook_after_wait, None
        if hook is not None:
            hook()
        if release_handle:
            self.event = None

    def __call__(self, release_handle: bool = False) -> "EventOverlap":
        self._release_handle = release_handle
        return self

    def __enter__(self) -> "EventOverlap":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.event is not None:
            self.current_stream_wait(self._release_handle)
