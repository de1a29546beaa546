# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""Both event names, which clients import from here, and the check of NVLink that V1 made."""

from deep_ep.events import EventHandle, EventOverlap

__all__ = ["EventHandle", "EventOverlap", "check_nvlink_connections"]


def check_nvlink_connections(group: object) -> None:
    """Ferry looks at the links itself when it makes a group, and says what is missing; nothing is left to check
    here."""
