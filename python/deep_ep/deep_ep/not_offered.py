# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""What the original has and this package does not: each name says so, and what to use instead."""

from typing import Any, NoReturn


def refuse(name: str, instead: str) -> NoReturn:
    raise NotImplementedError(f"deep_ep (Ferry) does not offer {name}; use {instead} instead (docs/porting.md)")


class HybridEPBuffer:
    """Of the original's hybrid-ep branch. Clients import it by name and must be told when they use it."""

    def __init__(self, *_: Any, **__: Any) -> None:
        refuse("HybridEPBuffer", "ElasticBuffer (do_expand=True permutes on the way), or Buffer")


class Experiments:
    """The experimental calls of ElasticBuffer."""

    def engram_write(self, *_: Any, **__: Any) -> NoReturn:
        refuse("engram_write", "a table in host or device memory of your own and torch.distributed")

    def engram_fetch(self, *_: Any, **__: Any) -> NoReturn:
        refuse("engram_fetch", "a table in host or device memory of your own and torch.distributed")

    def pp_set_config(self, *_: Any, **__: Any) -> NoReturn:
        refuse("pp_set_config", "torch.distributed's batch_isend_irecv")

    def pp_send(self, *_: Any, **__: Any) -> NoReturn:
        refuse("pp_send", "torch.distributed.isend")

    def pp_recv(self, *_: Any, **__: Any) -> NoReturn:
        refuse("pp_recv", "torch.distributed.irecv")

    def agrs_set_config(self, *_: Any, **__: Any) -> NoReturn:
        refuse("agrs_set_config", "torch.distributed.all_gather_into_tensor")

    def create_agrs_session(self) -> NoReturn:
        refuse("create_agrs_session", "torch.distributed.all_gather_into_tensor")

    def destroy_agrs_session(self) -> NoReturn:
        refuse("destroy_agrs_session", "torch.distributed.all_gather_into_tensor")

    def agrs_new_session(self, enabled: bool = True) -> NoReturn:
        refuse("agrs_new_session", "torch.distributed.all_gather_into_tensor")

    def agrs_get_inplace_tensor(self, *_: Any, **__: Any) -> NoReturn:
        refuse("agrs_get_inplace_tensor", "torch.distributed.all_gather_into_tensor")

    def all_gather(self, *_: Any, **__: Any) -> NoReturn:
        refuse("all_gather", "torch.distributed.all_gather_into_tensor")
