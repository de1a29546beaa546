# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""deep_ep: names, Config, events, helpers that need no call; sections 1, 2, 3.1 to 3.3 and 4.1 to 4.5 of the
contract."""

import subprocess
import sys

import deep_ep
import deep_ep.utils
import pytest
import torch
from deep_ep import Buffer, Config, ElasticBuffer, EventHandle, EventOverlap
from deep_ep.buffers import elastic_sizes
from ranks import run_ranks

MIB_2 = 2 << 20


# 1: names.


def test_names_of_the_package():
    for name in ("Buffer", "ElasticBuffer", "EPHandle", "Config", "topk_idx_t", "EventOverlap", "EventHandle"):
        assert hasattr(deep_ep, name)
    assert deep_ep.__version__ == "2.1.0"
    assert callable(deep_ep.get_physical_domain_size) and callable(deep_ep.get_logical_domain_size)
    assert deep_ep.buffers.legacy.Buffer is deep_ep.Buffer
    assert deep_ep.buffers.elastic.ElasticBuffer is deep_ep.ElasticBuffer


def test_both_event_names_in_utils():
    from deep_ep.utils import EventHandle as Handle
    from deep_ep.utils import EventOverlap as Overlap
    from deep_ep.utils import check_nvlink_connections

    assert (Handle, Overlap) == (EventHandle, EventOverlap)
    assert check_nvlink_connections(None) is None


def test_extension_modules():
    import deep_ep._C as extension
    import deep_ep_cpp

    for name in ("Config", "EventHandle", "Buffer", "get_low_latency_rdma_size_hint", "is_sm90_compiled", "topk_idx_t"):
        assert getattr(deep_ep_cpp, name) is getattr(extension, name)
    assert deep_ep_cpp.is_sm90_compiled() is True


def test_ids_are_int64():
    assert deep_ep.topk_idx_t is torch.int64


def test_hybrid_ep_says_what_to_use():
    with pytest.raises(NotImplementedError, match="ElasticBuffer"):
        deep_ep.HybridEPBuffer(None, 1, 1, 1)


def test_importing_starts_nothing():
    """No CUDA context (clients probe before they fork), no thread, no process."""
    check = (
        "import threading, deep_ep, torch\n"
        "assert not torch.cuda.is_initialized() and threading.active_count() == 1, threading.enumerate()"
    )
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)


# 2.1: Config.


def test_config_defaults_and_keywords():
    values = {
        "num_sms": 24,
        "num_max_nvl_chunked_send_tokens": 8,
        "num_max_nvl_chunked_recv_tokens": 128,
        "num_max_rdma_chunked_send_tokens": 12,
        "num_max_rdma_chunked_recv_tokens": 130,
    }
    by_name, by_place = Config(**values), Config(*values.values())
    assert by_name.get_rdma_buffer_size_hint(14336, 16) == by_place.get_rdma_buffer_size_hint(14336, 16)
    assert Config().get_nvl_buffer_size_hint(14336, 8) == 335_709_824  # the contract's worked value
    assert not [name for name in vars(by_name) if not name.startswith("_")]


@pytest.mark.parametrize(
    ("arguments", "seen"),
    [
        ((-2,), "num_sms"),
        ((20, 0), "above 0"),
        ((20, 6, 6), "NVLink"),
        ((20, 6, 256, 6, 6), "RDMA"),
        ((20, 6, 256, 6, 11), "half"),
    ],
)
def test_config_refuses(arguments, seen):
    with pytest.raises(RuntimeError, match=seen):
        Config(*arguments)
    Config(20, 6, 256, 6, 12)


def test_nvl_size_hint():
    slot = 7168 + 8 + 128 * 8 + 128 * 4 + 128 * 4
    channels, nodes, ranks, recv = 12, 2, 8, 288
    bytes_ = channels * ranks * (2 * nodes + 3) * 4 + channels * ranks * recv * slot
    assert Config(24, 6, 288).get_nvl_buffer_size_hint(7168, 16) == -(-bytes_ // 128) * 128
    assert Config(23, 6, 288).get_nvl_buffer_size_hint(7168, 8) == Config(22, 6, 288).get_nvl_buffer_size_hint(7168, 8)
    with pytest.raises(RuntimeError, match="multiple of 8"):
        Config().get_nvl_buffer_size_hint(7168, 12)
    with pytest.raises(RuntimeError, match="even"):
        Config(23, 6, 288).get_nvl_buffer_size_hint(7168, 16)


def test_rdma_size_hint():
    assert Config().get_rdma_buffer_size_hint(7168, 8) == 0
    slot = 7168 + 8 + 128 * 8 + 128 * 4 + 128 * 4 + 16
    channels, nodes, recv = 10, 3, 132  # 130 rounded up to a multiple of 12
    bytes_ = channels * nodes * 18 * 2 * 4 + channels * nodes * recv * 2 * slot
    assert Config(20, 6, 256, 12, 130).get_rdma_buffer_size_hint(7168, 24) == -(-bytes_ // 128) * 128
    with pytest.raises(RuntimeError, match="multiple of 8"):
        Config().get_rdma_buffer_size_hint(7168, 12)
    with pytest.raises(RuntimeError, match="even"):
        Config(21).get_rdma_buffer_size_hint(7168, 16)


# 2.2 and 2.3: events.


def test_event_handle_waits_and_copies():
    import copy

    handle = EventHandle()
    copy.copy(handle).current_stream_wait()
    handle.current_stream_wait()


def test_event_overlap_wait():
    empty = EventOverlap()
    assert empty.event is None and empty.extra_tensors is None
    with pytest.raises(AssertionError, match="no event"):
        empty.current_stream_wait()
    tensor = torch.zeros(1)
    overlap = EventOverlap(EventHandle(), (tensor,))
    assert overlap.extra_tensors[0] is tensor
    calls = []
    overlap.register_hook_after_wait(lambda: calls.append(1))
    with pytest.raises(AssertionError, match="second hook"):
        overlap.register_hook_after_wait(lambda: None)
    overlap.current_stream_wait()
    overlap.current_stream_wait()
    assert calls == [1] and overlap.event is not None
    overlap.current_stream_wait(release_handle=True)
    assert overlap.event is None


def test_event_overlap_in_a_with_block():
    calls = []
    overlap = EventOverlap(EventHandle())
    overlap.register_hook_after_wait(lambda: calls.append(1))
    with overlap(release_handle=True) as inside:
        assert inside is overlap and calls == []
    assert calls == [1] and overlap.event is None
    with EventOverlap():
        pass
    overlap = EventOverlap(EventHandle())
    overlap.register_hook_after_wait(lambda: calls.append(2))
    with pytest.raises(KeyError), overlap:
        raise KeyError
    assert calls == [1, 2]


# 3.1: the constructor.


def test_buffer_arguments_and_attributes():
    def body(comm):
        buffer = Buffer(
            None,
            num_nvl_bytes=1 << 20,
            num_rdma_bytes=1 << 10,
            low_latency_mode=True,
            num_qps_per_rank=4,
            allow_nvlink_for_low_latency_mode=True,
            allow_mnnvl=True,
            explicitly_destroy=True,
            enable_shrink=True,
            comm=comm,
            use_fabric=True,
        )
        assert (buffer.rank, buffer.group_size, buffer.group) == (comm.Get_rank(), 2, comm)
        assert (buffer.num_nvl_bytes, buffer.num_rdma_bytes) == (1 << 20, 1 << 10)
        assert buffer.low_latency_mode and buffer.explicitly_destroy and buffer.enable_shrink
        assert buffer.runtime.is_available() and buffer.runtime.get_num_rdma_ranks() == 1
        assert buffer.runtime.get_rdma_rank() == 0 and buffer.runtime.get_local_device_id() >= 0
        assert buffer.nvshmem_qp_depth == 1024
        buffer.destroy()
        assert buffer.runtime is None
        positional = Buffer(comm, 1 << 20, 0, False, 24, True, False, False, False)
        assert positional.num_nvl_bytes == 1 << 20 and not positional.explicitly_destroy

    run_ranks(2, body)


def test_buffer_refuses():
    with pytest.raises(ValueError, match="None for both"):
        Buffer(None)

    def body(comm):
        for arguments in ({"num_nvl_bytes": 100}, {"num_rdma_bytes": 129}, {"num_qps_per_rank": 0}):
            with pytest.raises(RuntimeError, match=next(iter(arguments))):
                Buffer(comm, **arguments)
        with pytest.raises(AssertionError, match="explicitly_destroy"):
            Buffer(comm).destroy()
        # What the original refuses for its own needs works: RDMA memory inside a node without low latency, large sizes.
        Buffer(comm, num_nvl_bytes=1 << 40, num_rdma_bytes=1 << 40)

    run_ranks(1, body)


def test_buffer_says_when_ranks_differ():
    def body(comm):
        with pytest.raises(RuntimeError, match="same on all ranks"):
            Buffer(comm, num_nvl_bytes=128 if comm.Get_rank() else 0)

    run_ranks(2, body)


def test_forgotten_destroy_is_told(capsys):
    def body(comm):
        buffer = Buffer(comm, explicitly_destroy=True)
        del buffer
        buffer = Buffer(comm)
        del buffer

    run_ranks(1, body)
    assert capsys.readouterr().out.count("destroy() was not called") == 1


# 3.2 and 3.3.


@pytest.mark.parametrize("ranks", [2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 144, 160])
def test_default_configs(ranks):
    table = {
        2: ((24, 256, 6, 128), (10, 256, 6, 128)),
        4: ((6, 256, 6, 128), (9, 256, 6, 128)),
        8: ((6, 256, 6, 128), (4, 256, 6, 128)),
        16: ((36, 288, 20, 128), (4, 288, 12, 128)),
        24: ((32, 288, 8, 128), (1, 288, 8, 128)),
        32: ((32, 288, 8, 128), (1, 288, 8, 128)),
        48: ((32, 288, 8, 128), (1, 288, 8, 128)),
        64: ((32, 288, 8, 128), (1, 288, 8, 128)),
        96: ((20, 480, 12, 128), (1, 480, 8, 128)),
        128: ((20, 560, 12, 128), (1, 560, 8, 128)),
        144: ((32, 720, 12, 128), (2, 720, 8, 128)),
        160: ((28, 720, 12, 128), (2, 720, 8, 128)),
    }
    for get, chunks in zip((Buffer.get_dispatch_config, Buffer.get_combine_config), table[ranks], strict=True):
        assert vars(get(ranks)) == vars(Config(Buffer.num_sms, *chunks))


def test_no_default_config_for_other_rank_counts():
    for get in (Buffer.get_dispatch_config, Buffer.get_combine_config):
        with pytest.raises(AssertionError, match="Unsupported number of EP ranks"):
            get(3)


def test_set_num_sms_counts_for_later_configs():
    assert Buffer.num_sms == 20
    try:
        Buffer.set_num_sms(24)
        assert vars(Buffer.get_dispatch_config(8))["_num_sms"] == 24
        with pytest.raises(AssertionError, match="even"):
            Buffer.set_num_sms(7)
    finally:
        Buffer.set_num_sms(20)


def test_static_helpers_of_v1():
    assert Buffer.is_sm90_compiled() is True
    event = Buffer.capture()
    assert isinstance(event, EventOverlap) and isinstance(event.event, EventHandle)
    one, two = torch.zeros(1), torch.ones(1)
    assert Buffer._unpack_bias(one) == (one, None)
    assert Buffer._unpack_bias((one, two)) == (one, two)
    assert Buffer._unpack_bias(None) == (None, None)


def test_low_latency_size_hint():
    hint = Buffer.get_low_latency_rdma_size_hint
    assert hint(128, 7168, 8, 288) == 2_146_961_792  # the contract's worked value
    assert hint(num_max_dispatch_tokens_per_rank=128, hidden=7168, num_ranks=64, num_experts=288) == 2_146_961_792
    scales = 2048 // 128
    dispatch, combine = 16 + max(2 * 2048, 2048 + 4 * scales), 4 * scales + 2 * 2048
    send, recv = max(32 * dispatch, 16 * 32 * combine), 16 * 32 * max(dispatch, combine)
    assert hint(32, 2048, 4, 16) == (2 * (send + recv + 128) + 128) // 128 * 128
    with pytest.raises(RuntimeError, match="multiple of 16"):
        hint(128, 100, 8, 8)


def test_local_buffer_tensor():
    def body(comm):
        buffer = Buffer(comm, num_nvl_bytes=256, num_rdma_bytes=512, low_latency_mode=True)
        buffer.get_local_buffer_tensor(dtype=torch.int8, use_rdma_buffer=True).zero_()  # vLLM
        whole = buffer.get_local_buffer_tensor(torch.float32)
        assert whole.shape == (64,)
        whole.copy_(torch.arange(64.0))
        assert torch.equal(
            buffer.get_local_buffer_tensor(torch.float32, torch.Size((2, 3))).cpu(), torch.arange(6.0).view(2, 3)
        )
        tail = buffer.get_local_buffer_tensor(torch.float32, offset=8)
        assert tail.shape == (62,) and tail[0] == 2  # bytes; it ends where the memory ends
        with pytest.raises(AssertionError, match="at most 64"):
            buffer.get_local_buffer_tensor(torch.float32, torch.Size((65,)))
        assert buffer.get_comm_stream() is not None

    run_ranks(1, body)


# 4.1 to 4.5: domains, constructor, sizes, suggestions.


def make_elastic(comm, **arguments):
    return ElasticBuffer(comm, **({"num_max_tokens_per_rank": 16, "hidden": 256} | arguments))


def test_elastic_attributes():
    def body(comm):
        buffer = make_elastic(comm, num_topk=4, allow_hybrid_mode=1, deterministic=0, explicitly_destroy=1)
        rank = comm.Get_rank()
        assert (buffer.group, buffer.rank_idx, buffer.num_ranks) == (comm, rank, 2)
        assert buffer.allow_hybrid_mode is True and buffer.deterministic is False
        assert buffer.allow_multiple_reduction and buffer.prefer_overlap_with_compute
        assert buffer.num_max_tokens_per_rank == 16 and buffer.num_allocated_qps == 17
        assert buffer.num_bytes % MIB_2 == 0 and buffer.runtime is not None and buffer.nccl_comm_handle is None
        assert (buffer.num_scaleout_ranks, buffer.num_scaleup_ranks) == (1, 2) == buffer.get_logical_domain_size()
        assert (buffer.num_rdma_ranks, buffer.num_nvlink_ranks) == (1, 2) == buffer.get_physical_domain_size()
        assert (buffer.scaleout_rank_idx, buffer.scaleup_rank_idx) == (0, rank)
        assert buffer.get_comm_stream() is not None
        buffer.destroy()
        buffer.destroy()
        assert buffer.runtime is None
        with pytest.raises(AssertionError, match="explicitly_destroy"):
            make_elastic(comm).destroy()

    run_ranks(2, body)


def test_elastic_domains_of_two_nodes(monkeypatch):
    monkeypatch.setenv("FERRY_NODE_SIZE", "2")

    def body(comm):
        hybrid, direct = make_elastic(comm), make_elastic(comm, allow_hybrid_mode=False)
        assert hybrid.get_logical_domain_size() == hybrid.get_physical_domain_size() == (2, 2)
        assert direct.get_logical_domain_size() == (1, 4) and direct.get_physical_domain_size() == (2, 2)
        assert (hybrid.scaleout_rank_idx, hybrid.scaleup_rank_idx) == divmod(comm.Get_rank(), 2)
        assert hybrid.num_allocated_qps == 129 and direct.num_allocated_qps == 17
        assert deep_ep.get_physical_domain_size(comm) == (2, 2)
        assert deep_ep.get_logical_domain_size(comm) == (2, 2)
        assert deep_ep.get_logical_domain_size(comm, allow_hybrid_mode=False) == (1, 4)
        assert hybrid.get_theoretical_num_qps(4) == 65 and hybrid.get_theoretical_num_qps(20) == 129
        assert direct.get_theoretical_num_qps(4) == 4 and direct.get_theoretical_num_qps(20) == 9

    run_ranks(4, body)


def test_elastic_refuses():
    def body(comm):
        with pytest.raises(AssertionError, match="num_bytes"):
            ElasticBuffer(comm)
        with pytest.raises(RuntimeError, match="2 MiB"):
            ElasticBuffer(comm, num_bytes=100)
        with pytest.raises(NotImplementedError, match="Engram"):
            ElasticBuffer(comm, num_bytes=MIB_2, num_cpu_bytes=MIB_2)
        assert ElasticBuffer(comm, num_bytes=MIB_2).num_bytes == MIB_2

    run_ranks(1, body)


@pytest.mark.parametrize("multiple", [True, False])
@pytest.mark.parametrize("fp8", [True, False])
def test_buffer_size_hint(fp8, multiple):
    a32 = lambda value: -(-value // 32) * 32  # noqa: E731
    hidden, tokens, top_k, ranks = 7168, 100, 8, 2
    td = a32(hidden * (1 if fp8 else 2)) + a32(4 * (hidden // 32 if fp8 else 0)) + a32(8 * top_k + 4 * (1 + top_k))
    tc = a32(2 * hidden) + a32(8 * top_k)
    layers = min(ranks, top_k) if multiple else top_k
    expected = -(-max(td * tokens * ranks, tc * tokens * layers) // MIB_2) * MIB_2
    arguments = {"use_fp8_dispatch": fp8, "allow_multiple_reduction": multiple}

    def body(comm):
        assert ElasticBuffer.get_buffer_size_hint(comm, tokens, hidden, top_k, **arguments) == expected
        buffer = ElasticBuffer(comm, num_max_tokens_per_rank=tokens, hidden=hidden, num_topk=top_k, **arguments)
        assert buffer.num_bytes == expected
        zero = ElasticBuffer.get_buffer_size_hint(comm, tokens, hidden, 0, **arguments)
        assert zero == ElasticBuffer.get_buffer_size_hint(comm, tokens, hidden, 32, **arguments)

    run_ranks(ranks, body)


def test_buffer_size_hint_between_nodes():
    moe = elastic_sizes.Moe(64, 1024, 4, False)
    td, tc = moe.dispatch_token_bytes, moe.combine_token_bytes
    assert (td, tc) == (2048 + 0 + 64, 2048 + 32)
    bytes_ = elastic_sizes.moe_buffer_bytes
    up = lambda value: -(-value // MIB_2) * MIB_2  # noqa: E731
    # One logical domain over two NVLink domains.
    dispatch, combine = td * 64 * (1 + 4), tc * 64 * 4 + 4 * 64 * tc
    assert bytes_(moe, (2, 2), (1, 4), True) == up(max(dispatch, combine))
    assert bytes_(moe, (2, 2), (1, 4), False) == up(max(dispatch, tc * 64 * 4 + 4 * 64 * tc * 4))
    # Hybrid.
    dispatch = td * (4 * 64 + 64 + 2 * (64 + 1280))
    assert bytes_(moe, (2, 2), (2, 2), True) == up(max(dispatch, tc * (2 * 2 * 64 + 2 * 64 + 2 * (64 + 1280))))
    assert bytes_(moe, (2, 2), (2, 2), False) == up(max(dispatch, tc * (4 * 2 * 64 + 4 * 64 + 4 * 2 * (64 + 1280))))
    with pytest.raises(RuntimeError, match="hidden"):
        bytes_(elastic_sizes.Moe(64, 3, 4, True), (1, 2), (1, 2), True)


def test_other_size_hints():
    assert ElasticBuffer.get_engram_storage_size_hint(1000, 100, 64) == (MIB_2, MIB_2)
    assert ElasticBuffer.get_engram_storage_size_hint(20000, 100, 64) == (MIB_2, 3 * MIB_2)
    assert ElasticBuffer.get_pp_buffer_size_hint(1 << 20, 3) == 12 << 20

    def body(comm):
        sessions = ElasticBuffer.get_agrs_num_max_session_bytes
        assert sessions(comm, (3, 5), torch.float32) == 128
        assert sessions(comm, torch.Size((3, 5)), torch.float32) == 128
        assert sessions(comm, [(3, 5), (1,)], torch.float32) == 128 + 32
        assert ElasticBuffer.get_agrs_buffer_size_hint(comm, 160) == MIB_2

    run_ranks(2, body)


def h200(num_ranks, prefer_overlap=True, num_sms=132):
    traffic = elastic_sizes.traffic_of((1, num_ranks), (1, num_ranks), 256, 8)
    rates = elastic_sizes.Rates(0, 0.9 * 18 * 26.562, 200, 50)
    return elastic_sizes.suggested_sms(traffic, rates, 1, prefer_overlap, num_sms)


def test_sm_suggestions():
    assert [h200(8), h200(4), h200(2)] == [14, 16, 22]  # the contract's worked values
    assert h200(8, prefer_overlap=False) == 64 and h200(8, num_sms=8) == 8

    def body(comm):
        buffer = make_elastic(comm)
        given = {"num_experts": 256, "num_topk": 8}
        assert buffer.get_theoretical_num_sms(**given, nvlink_gbs=0.9 * 18 * 26.562) == 22
        assert buffer.get_theoretical_num_sms(**given) >= 4
        with pytest.raises(AssertionError, match="num_scaleout_topk"):
            buffer.get_theoretical_num_sms(256, 8, num_scaleout_topk=2)
        with pytest.raises(AssertionError, match="multiple of"):
            buffer.get_theoretical_num_sms(255, 8)

    run_ranks(2, body)
    assert elastic_sizes.expected_groups(2, 4, 2) == pytest.approx(2 * (1 - 1 / 6))
    alone = elastic_sizes.traffic_of((1, 1), (1, 1), 8, 2)
    assert (
        alone.nvlink == 0
        and elastic_sizes.suggested_sms(alone, elastic_sizes.Rates(0, 0, 200, 50), 1, True, 132) == 132
    )


def test_sm_suggestions_between_nodes():
    traffic = elastic_sizes.traffic_of((2, 4), (2, 4), 64, 4)
    per_rank, nodes = 1 / elastic_sizes.expected_groups(8, 64, 4), elastic_sizes.expected_groups(2, 64, 4)
    assert traffic.read == pytest.approx(per_rank + nodes * per_rank)
    assert traffic.write == pytest.approx(per_rank + per_rank * nodes / 2 + 1)
    assert traffic.rdma == pytest.approx(per_rank * nodes / 2) and traffic.nvlink == pytest.approx(0.75)
    slow_network = elastic_sizes.Rates(rdma=1, nvlink=430, sm_read=200, sm_write=50)
    assert elastic_sizes.suggested_sms(traffic, slow_network, 2, True, 132) == 4
    flat = elastic_sizes.traffic_of((2, 4), (1, 8), 64, 4)
    assert flat.write == pytest.approx(per_rank + 0.5) and flat.rdma == pytest.approx(0.5)
    assert flat.nvlink == pytest.approx(0.5 * 0.75)


def test_what_is_not_offered_says_so():
    def body(comm):
        buffer = make_elastic(comm)
        names = ["engram_write", "engram_fetch", "pp_set_config", "pp_send", "pp_recv", "agrs_set_config"]
        names += [
            "create_agrs_session",
            "destroy_agrs_session",
            "agrs_new_session",
            "agrs_get_inplace_tensor",
            "all_gather",
        ]
        for name in names:
            arguments = () if "session" in name else (None,)
            with pytest.raises(NotImplementedError, match="use .* instead"):
                getattr(buffer, name)(*arguments)

    run_ranks(1, body)


def test_capture_and_barrier_of_v2(device):
    def body(comm):
        assert isinstance(ElasticBuffer.capture(), EventHandle)
        buffer = make_elastic(comm)
        buffer.barrier()
        buffer.barrier(use_comm_stream=False, with_cpu_sync=True, sequential=False)

    run_ranks(2, body, device)
