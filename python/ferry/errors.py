# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""The one exception type. Whatever goes wrong says where, who and what was seen."""

from enum import StrEnum
from typing import NamedTuple


class ErrorCode(StrEnum):
    """Why a call failed. Members are strings: ``error.code == "timeout"`` works."""

    INVALID_ARGUMENT = "invalid_argument"
    """Misuse found before anything moved: function, argument, seen, expected."""
    UNSUPPORTED = "unsupported"
    """Cannot be done here; the message says what is missing and what would work."""
    OVERFLOW = "overflow"
    """More rows than the receive capacity; every rank gets it, ``needed_rows`` states the need."""
    TIMEOUT = "timeout"
    """A wait passed its deadline."""
    PEER_LOST = "peer_lost"
    """A peer's process ended, or it closed its group while it was waited for."""
    MISMATCH = "mismatch"
    """Ranks are in different calls, or disagree about arguments or membership."""
    ABORTED = "aborted"
    """abort() was called here or on a peer."""
    BOOTSTRAP = "bootstrap"
    """Ranks could not meet."""
    INTERNAL = "internal"
    """A bug in Ferry."""


class PeerWait(NamedTuple):
    """One peer that a failed wait was waiting for."""

    rank: int
    seen: int
    """The signal's value when the wait ended: epoch << 24 | count."""
    wanted: int
    """The value that it should have reached."""
    activity: str
    """What the peer said it was doing last, e.g. "call 1234 combine"; empty if unknown."""


class Error(RuntimeError):
    """What Ferry raises. The message is one complete sentence; the fields hold its parts for programs."""

    code: ErrorCode
    step: str
    """One of the seven steps, "meet", or the function that was called."""
    epoch: int
    """Number of the call that failed, 0 if none had begun."""
    peers: tuple[PeerWait, ...]
    """Who was waited for (timeout, peer_lost, mismatch)."""
    argument: str
    """invalid_argument: the argument's name."""
    needed_rows: int
    """overflow: rows that the fullest rank would have needed."""

    def __init__(
        self,
        message: str,
        code: ErrorCode | str = ErrorCode.INTERNAL,
        step: str = "",
        epoch: int = 0,
        peers: tuple[PeerWait, ...] = (),
        argument: str = "",
        needed_rows: int = 0,
    ) -> None:
        super().__init__(message)
        self.code = ErrorCode(code)
        self.step = step
        self.epoch = epoch
        self.peers = tuple(peers)
        self.argument = argument
        self.needed_rows = needed_rows

    def __reduce__(self) -> tuple[type["Error"], tuple[object, ...]]:
        # With its fields, so that it survives the way out of a multiprocessing worker.
        fields = (self.code, self.step, self.epoch, self.peers, self.argument, self.needed_rows)
        return type(self), (self.args[0], *fields)
