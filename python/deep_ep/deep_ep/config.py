# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""V1's Config: sizes of queues, which Ferry does not have, kept for the sizes and SM counts that clients compute with
it."""

import torch

from deep_ep.checks import require

topk_idx_t = torch.int64

NODE_RANKS = 8
"""Ranks of a node in V1's formulas and handles; not detected there either."""

_MAX_TOP_K = 128
_MAX_SCALES = 128
_SOURCE_META_BYTES = 8


def align(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


class Config:
    """Config(num_sms, nvl send, nvl recv, rdma send, rdma recv): SMs and queue sizes in tokens. Ferry uses num_sms
    (most SMs that a kernel occupies, and half of it as the number of channels in handles); the queue sizes only enter
    the hints."""

    def __init__(
        self,
        num_sms: int = 20,
        num_max_nvl_chunked_send_tokens: int = 6,
        num_max_nvl_chunked_recv_tokens: int = 256,
        num_max_rdma_chunked_send_tokens: int = 6,
        num_max_rdma_chunked_recv_tokens: int = 256,
    ) -> None:
        nvl_send, nvl_recv = num_max_nvl_chunked_send_tokens, num_max_nvl_chunked_recv_tokens
        rdma_send, rdma_recv = num_max_rdma_chunked_send_tokens, num_max_rdma_chunked_recv_tokens
        require(num_sms >= 0, f"Config: argument num_sms: seen {num_sms}, expected 0 or more")
        sizes = (nvl_send, nvl_recv, rdma_send, rdma_recv)
        require(min(sizes) > 0, f"Config: chunk sizes: seen {sizes}, expected all above 0")
        require(
            nvl_send < nvl_recv, f"Config: NVLink chunks: seen send {nvl_send}, recv {nvl_recv}, expected send < recv"
        )
        require(
            rdma_send < rdma_recv, f"Config: RDMA chunks: seen send {rdma_send}, recv {rdma_recv}, expected send < recv"
        )
        require(
            rdma_send <= rdma_recv // 2,
            f"Config: RDMA chunks: seen send {rdma_send}, recv {rdma_recv}, expected send of at most half of recv",
        )
        self._num_sms = num_sms
        self._nvl_recv = nvl_recv
        self._rdma_recv = align(rdma_recv, rdma_send)

    def _slot_bytes(self, hidden_bytes: int) -> int:
        return hidden_bytes + _SOURCE_META_BYTES + _MAX_TOP_K * (topk_idx_t.itemsize + 4) + _MAX_SCALES * 4

    def get_nvl_buffer_size_hint(self, hidden_bytes: int, num_ranks: int, /) -> int:
        """Bytes of the original's NVLink buffer."""
        require(
            num_ranks < NODE_RANKS or num_ranks % NODE_RANKS == 0,
            f"get_nvl_buffer_size_hint: argument num_ranks: seen {num_ranks}, expected below 8 or a multiple of 8",
        )
        require(
            num_ranks <= NODE_RANKS or self._num_sms % 2 == 0,
            f"Config: seen {self._num_sms} SMs, expected an even number",
        )
        nodes, node_ranks, channels = max(num_ranks // NODE_RANKS, 1), min(num_ranks, NODE_RANKS), self._num_sms // 2
        words = channels * node_ranks * (2 * nodes + 3) * 4
        return align(words + channels * node_ranks * self._nvl_recv * self._slot_bytes(hidden_bytes), 128)

    def get_rdma_buffer_size_hint(self, hidden_bytes: int, num_ranks: int, /) -> int:
        """Bytes of the original's RDMA buffer for normal mode; 0 inside a node."""
        if num_ranks <= NODE_RANKS:
            return 0
        require(
            num_ranks % NODE_RANKS == 0,
            f"get_rdma_buffer_size_hint: argument num_ranks: seen {num_ranks}, expected a multiple of 8",
        )
        require(self._num_sms % 2 == 0, f"Config: seen {self._num_sms} SMs, expected an even number")
        nodes, channels = num_ranks // NODE_RANKS, self._num_sms // 2
        words = channels * nodes * (NODE_RANKS * 2 + 2) * 2 * 4
        return align(words + channels * nodes * self._rdma_recv * 2 * (self._slot_bytes(hidden_bytes) + 16), 128)


def channels_of(config: Config) -> int:
    """Channels of the handles that calls with this config make; V1's calls need an even number of SMs."""
    require(config._num_sms % 2 == 0, f"argument config: seen {config._num_sms} SMs, expected an even number")
    return config._num_sms // 2


def sms_of(config: Config) -> int:
    return config._num_sms


DISPATCH_CHUNKS = {
    2: (24, 256, 6, 128),
    4: (6, 256, 6, 128),
    8: (6, 256, 6, 128),
    16: (36, 288, 20, 128),
    **dict.fromkeys((24, 32, 48, 64), (32, 288, 8, 128)),
    96: (20, 480, 12, 128),
    128: (20, 560, 12, 128),
    144: (32, 720, 12, 128),
    160: (28, 720, 12, 128),
}
COMBINE_CHUNKS = {
    2: (10, 256, 6, 128),
    4: (9, 256, 6, 128),
    8: (4, 256, 6, 128),
    16: (4, 288, 12, 128),
    **dict.fromkeys((24, 32, 48, 64), (1, 288, 8, 128)),
    96: (1, 480, 8, 128),
    128: (1, 560, 8, 128),
    144: (2, 720, 8, 128),
    160: (2, 720, 8, 128),
}
"""(nvl send, nvl recv, rdma send, rdma recv) by ranks."""
