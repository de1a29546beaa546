"""
Ferry's C++ library for Python. Use the names that `import ferry` gives.
"""

from collections.abc import Callable, Sequence
from typing import Any, overload

import ferry.values


class Array:
    """
    A dense array of up to three dimensions in memory that Ferry, or whoever made
    it, owns; on the host, or on a CUDA device.

    What calls return are Arrays: views that keep their memory mapped for as long as they, or anything made from them,
    live; also after the group was closed. How long the *contents* of a window view stay is said at Group.

    np.asarray(a) and a.numpy() give a numpy.ndarray of the same memory, with bf16, fp8 and UE8M0 as ml_dtypes types.
    torch.from_dlpack(a), jax.dlpack.from_dlpack(a) and cupy.from_dlpack(a) work for all dtypes that those know;
    np.from_dlpack(a) for all but bf16, fp8 and UE8M0, which DLPack in NumPy lacks. Nothing is copied. Arrays on a CUDA
    device cannot be read as NumPy's: numpy() and what rests on it raise Error("invalid_argument").

    On a CUDA device, __dlpack__(stream=s) puts a wait on stream s for the stream that wrote the array, unless they are the
    same; the host waits for nothing. s is a stream's handle, 1 or None for the legacy default stream, 2 for the per-thread
    one, -1 for no ordering. Between a stream that is being captured into a CUDA graph and one that is not, nothing is
    ordered.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def strides(self) -> tuple[int, ...]:
        """In elements, not bytes."""

    @property
    def dtype(self) -> str:
        """
        A name of ferry.DType: "bf16", "fp16", "fp32", "fp8_e4m3", "ue8m0", "uint8", "int32", "int64".
        """

    @property
    def device(self) -> str:
        """"cpu", or "cuda:0" for CUDA device 0."""

    @property
    def ndim(self) -> int: ...

    @property
    def size(self) -> int:
        """Number of elements."""

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""

    @property
    def nbytes(self) -> int:
        """Bytes of the elements, without gaps between rows."""

    @property
    def readonly(self) -> bool: ...

    def numpy(self) -> Any:
        """A numpy.ndarray of the same memory, on the host."""

    def view(self, dtype: str) -> Array:
        """The same memory with another dtype of the same size."""

    def tolist(self) -> list[Any]:
        """Nested lists of Python numbers."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any: ...

    def __dlpack__(self, **arguments: Any) -> Any: ...

    def __dlpack_device__(self) -> tuple[int, int]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any:
        """As numpy.ndarray.__getitem__."""

    def __setitem__(self, index: Any, value: Any, /) -> None:
        """As numpy.ndarray.__setitem__."""

    def __repr__(self) -> str: ...

def typed(array: ferry.values.ArrayLike, dtype: str) -> Array:
    """
    Says what the elements of an array stand for.

    array: anything with __dlpack__ or the buffer protocol, on the host or on a CUDA device. dtype: "bf16", "fp16", "fp32",
    "fp8_e4m3", "ue8m0", "uint8", "int32" or "int64" (also the names of NumPy and ml_dtypes), of the same size as the
    elements. For frameworks without such a type: typed(bits, "bf16") for uint16, typed(bits, "fp8_e4m3") or typed(bits, "ue8m0") for uint8. Returns an
    Array of the same memory. Raises Error("invalid_argument") if the sizes differ.
    """

class Reduction:
    """
    How the rows of one token are added up in combine.

    group: "choice" (no groups), "rank", or "node" (by rank, then by node). order: groups follow each other "ascending"
    by rank or node, or by the position of their "last_choice". A stage starts at +0 (the last one at bias0 + bias1, in
    float32), adds its terms in order and rounds once to the dtype of the rows.
    """

    def __init__(self, group: str = 'rank', order: str = 'ascending') -> None: ...

    @staticmethod
    def flat() -> Reduction:
        """
        Choices ascending, one rounding: the bits of a single-process reference, whatever the placement and topology.
        """

    @staticmethod
    def per_rank() -> Reduction:
        """Choices ascending inside a rank, one rounding, then ranks ascending."""

    @staticmethod
    def per_node() -> Reduction:
        """As per_rank inside a node with one rounding, then nodes ascending."""

    @property
    def group(self) -> str: ...

    @property
    def order(self) -> str: ...

    def __eq__(self, other: object, /) -> bool: ...

    def __hash__(self) -> int: ...

    def __str__(self) -> str: ...

    def __repr__(self) -> str: ...

class Topology:
    """
    Which ranks form a node, i.e. can load and store in each other's windows. Nodes may have any sizes.
    """

    @staticmethod
    def single_node(num_ranks: int) -> Topology:
        """One node that holds all ranks."""

    @staticmethod
    def nodes(node_sizes: Sequence[int]) -> Topology:
        """
        Nodes of the given sizes; ranks are numbered node by node. Raises Error("invalid_argument") on an empty list or a size below 1.
        """

    @staticmethod
    def split(num_ranks: int, num_nodes: int) -> Topology:
        """
        Ranks over nodes as evenly as possible; the first nodes take the remainder.
        """

    @property
    def num_ranks(self) -> int: ...

    @property
    def num_nodes(self) -> int: ...

    def node_of(self, rank: int) -> int:
        """Node of a rank; raises IndexError out of range, as all look-ups here."""

    def local_rank(self, rank: int) -> int:
        """Position of a rank in its node."""

    def node_size(self, node: int) -> int: ...

    def first_rank(self, node: int) -> int:
        """Lowest rank of a node; first_rank(num_nodes) is the number of ranks."""

    def describe(self) -> str:
        """Sizes of the nodes, e.g. "4+4"."""

    def __eq__(self, other: object, /) -> bool: ...

    def __hash__(self) -> int: ...

    def __repr__(self) -> str: ...

class Placement:
    """
    The map from global expert ids to places; an expert may have several copies (replicas). Places of all ranks are numbered through as slots: first_slot(rank) + local index.
    """

    @staticmethod
    def contiguous(num_experts: int, num_ranks: int) -> Placement:
        """
        Experts in order, each rank as many as the next; the first ranks take one more each if a rest is left.
        """

    @staticmethod
    def explicit_map(places: Sequence[Sequence[tuple[int, int]]], num_ranks: int) -> Placement:
        """
        places[e] lists the copies of expert e as (rank, local index). Each place must be taken exactly once and each rank's indices must be 0 .. n-1 without a gap, else Error("invalid_argument").
        """

    @property
    def num_experts(self) -> int: ...

    @property
    def num_ranks(self) -> int: ...

    @property
    def num_slots(self) -> int: ...

    @property
    def max_local_experts(self) -> int: ...

    def first_slot(self, rank: int) -> int: ...

    def num_local_experts(self, rank: int) -> int: ...

    def rank_of_slot(self, slot: int) -> int: ...

    def expert_of_slot(self, slot: int) -> int: ...

    def slots_of(self, expert: int) -> list[int]:
        """Slots that hold copies of an expert, in the order given."""

    def choose_slot(self, expert: int, source_rank: int, token: int, masked: Sequence[bool] = []) -> int:
        """
        The copy that a token uses: live copy number (source_rank + token) mod live copies, or -1 if none is left.
        """

    def digest(self) -> int: ...

    def __eq__(self, other: object, /) -> bool: ...

    def __hash__(self) -> int: ...

    def __repr__(self) -> str: ...

class Meeting:
    """
    A meeting place of ranks; used while a group is made, not afterwards. Made by the meet_ functions.
    """

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def all_gather(self, mine: bytes, timeout: float = 60.0) -> list[bytes]:
        """
        Everybody's bytes, by rank; sizes may differ. Collective. Raises Error("bootstrap" or "timeout") that names the ranks that did not come within `timeout` seconds.
        """

def meet_in_process(size: int) -> list[Meeting]:
    """
    Meeting places for ranks that are threads of this process: element r belongs to rank r.
    """

def meet_over_tcp(rank: int, size: int, *, address: str = '127.0.0.1', port: int, token: str = '', timeout: float = 60.0) -> Meeting:
    """
    Rank 0 listens at address:port, the others connect and retry until `timeout` seconds have passed. token: shared secret of the job; strangers without it are turned away. Raises Error("bootstrap" or "timeout").
    """

def meet_from_environment() -> Meeting:
    """
    Reads RANK, WORLD_SIZE, MASTER_ADDR, FERRY_PORT (default: MASTER_PORT + 1) and FERRY_TOKEN, as torchrun and python -m ferry.launch set them. Without RANK and WORLD_SIZE: one rank alone.
    """

def meet_through(rank: int, size: int, all_gather: Callable[[bytes], Sequence[bytes]]) -> Meeting:
    """
    Uses an all-gather that the caller has (torch.distributed, mpi4py, ...): all_gather(mine) returns everybody's bytes, by rank. It is called on the thread that makes the group and may raise; its own timeout applies.
    """

class GroupConfig:
    """
    The largest calls that a group must carry, which fix its memory, and its choices.
    Equal on all ranks.

    num_experts: global experts of the default placement. max_tokens, max_latency_tokens: per rank and call, of
    throughput and latency mode; 0 latency tokens = no latency mode. max_top_k: choices per token. hidden: widest row,
    in elements of `dtype`, the widest payload and combine dtype. extra_bytes: per token, for payload blocks beyond the
    row and its fp8 scales. recv_rows: rows of the receive window in throughput mode, 0 = worst case (for alignments up
    to 128). owned_rows: on the cuda backend, widest rows that owned results may hold together where peers write them,
    -1 = those of one rank-major dispatch; what finds no room is copied. max_slots: places of experts over all ranks,
    0 = those of the default placement. num_flights: calls in flight of each kind.

    topology: a Topology or a list of node sizes; None: nodes of FERRY_NODE_SIZE ranks if that is set, else one node per
    machine. placement: None: contiguous. backend: "host" (arrays in host memory), "cuda" (on a GPU); "auto" is "host".
    device: of the cuda backend, the number of this rank's GPU, -1 = the thread's current one (torch.cuda.set_device).
    network, between nodes: "loopback" or "shm" (ranks of one machine), "tcp", "verbs" (InfiniBand, RoCE), "efa"; "auto":
    loopback on one machine, else the first of efa, verbs and tcp that all ranks can use. nics: names of network cards that
    this rank uses; empty: the num_nics nearest to near_pci, a PCIe address such as "0000:3b:00.0". traffic_class: empty, a
    word such as "low_latency" or "bulk_data", or "dscp:0" to "dscp:63". gated_posts: signals wait for acknowledgements, for
    fabrics that reorder packets. proxy_threads: that drive the network for this rank, equal on all ranks; proxy_cores: CPUs
    that they are bound to. link_bytes_per_second: over the loopback this rank seems to send over a link of that rate, 0 = as
    fast as it goes. What a provider cannot honour is Error(unsupported).
    timeout: seconds, of every wait. auto_masks: how often the group masks by itself who misses a deadline, 0 = never.
    test_seed, test_max_signal_delay_ns:
    for tests, a random delay up to this before every signal; changes no result.
    """

    def __init__(self, *, num_experts: int, max_tokens: int = 4096, max_latency_tokens: int = 128, max_top_k: int = 8, hidden: int = 7168, dtype: str = 'bf16', extra_bytes: int = 0, recv_rows: int = 0, owned_rows: int = -1, max_slots: int = 0, num_flights: int = 2, topology: Topology | Sequence[int] | None = None, placement: Placement | None = None, backend: str = 'auto', device: int = -1, network: str = 'auto', nics: Sequence[str] = [], num_nics: int = 1, near_pci: str = '', traffic_class: str = '', gated_posts: bool = False, proxy_threads: int = 1, proxy_cores: Sequence[int] = [], link_bytes_per_second: int = 0, timeout: float = 100.0, auto_masks: int = 0, test_seed: int = 0, test_max_signal_delay_ns: int = 0) -> None: ...

    @property
    def num_experts(self) -> int: ...

    @property
    def max_tokens(self) -> int: ...

    @property
    def max_latency_tokens(self) -> int: ...

    @property
    def max_top_k(self) -> int: ...

    @property
    def hidden(self) -> int: ...

    @property
    def extra_bytes(self) -> int: ...

    @property
    def recv_rows(self) -> int: ...

    @property
    def owned_rows(self) -> int: ...

    @property
    def max_slots(self) -> int: ...

    @property
    def num_flights(self) -> int: ...

    @property
    def dtype(self) -> str: ...

    @property
    def topology(self) -> Topology | None: ...

    @property
    def placement(self) -> Placement | None: ...

    @property
    def backend(self) -> str: ...

    @property
    def device(self) -> int: ...

    @property
    def network(self) -> str: ...

    @property
    def nics(self) -> list[str]: ...

    @property
    def num_nics(self) -> int: ...

    @property
    def near_pci(self) -> str: ...

    @property
    def traffic_class(self) -> str: ...

    @property
    def gated_posts(self) -> bool: ...

    @property
    def proxy_threads(self) -> int: ...

    @property
    def proxy_cores(self) -> list[int]: ...

    @property
    def link_bytes_per_second(self) -> int: ...

    @property
    def timeout(self) -> float:
        """Seconds."""

    @property
    def auto_masks(self) -> int: ...

    @property
    def test_seed(self) -> int: ...

    @property
    def test_max_signal_delay_ns(self) -> int: ...

class RegionPlan:
    """A named part of a window, or (cuda) what is reserved for results."""

    @property
    def name(self) -> str: ...

    @property
    def offset_bytes(self) -> int: ...

    @property
    def bytes(self) -> int: ...

    def __repr__(self) -> str: ...

class MemoryPlan:
    """What one rank's windows will hold and what it reserves for results."""

    @property
    def regions(self) -> list[RegionPlan]: ...

    @property
    def total_bytes(self) -> int: ...

    @property
    def recv_rows(self) -> int:
        """Rows of the receive window of one flight."""

def memory_plan(config: GroupConfig, topology: Topology, rank: int) -> MemoryPlan:
    """
    The bytes that a group of this configuration takes on `rank`, per region; allocates nothing. The same numbers that Group uses. Raises Error("invalid_argument") for limits that make no sense.
    """

class TrafficPlan:
    """
    Bytes that a rank sends in one dispatch and one combine: expectation, mean over ranks, throughput mode.
    """

    @property
    def dispatch_node_bytes(self) -> float:
        """To other ranks of the node, rows handed on for other nodes included."""

    @property
    def dispatch_network_bytes(self) -> float:
        """To other nodes: one row per (token, node)."""

    @property
    def combine_node_bytes(self) -> float: ...

    @property
    def combine_network_bytes(self) -> float:
        """
        per_node: one row per (token, node); per_rank: per (token, rank); flat: per choice.
        """

def traffic_plan(config: GroupConfig, topology: Topology, reduction: Reduction | str, tokens: int, top_k: int) -> TrafficPlan:
    """
    Bytes for `tokens` tokens per rank with `top_k` distinct experts drawn uniformly; rows of hidden x dtype of the limits.
    """

class GroupStatistics:
    """A group's counters at one moment."""

    @property
    def epoch(self) -> int:
        """Calls begun."""

    @property
    def membership(self) -> int:
        """Changes of membership."""

    @property
    def window_bytes(self) -> int:
        """Of this rank."""

    @property
    def device_memory(self) -> str:
        """
        How ranks map each other's device memory: by fabric handles, or by file descriptors and why. Empty on the host backend.
        """

    @property
    def wait_ns(self) -> list[int]:
        """[R] time spent waiting for each rank."""

    @property
    def network_commands(self) -> int: ...

    @property
    def network_bytes(self) -> int: ...

class StepTrace:
    """
    One step of the last call on this rank: the rows that the step itself stored or sent off, their bytes, its time with its waits. route counts tokens and the bytes of counts.
    """

    @property
    def step(self) -> str:
        """One of the seven steps."""

    @property
    def rows(self) -> int: ...

    @property
    def bytes(self) -> int: ...

    @property
    def seconds(self) -> float: ...

    def __repr__(self) -> str: ...

class Handle:
    """
    What a dispatch remembers for combine and for cached dispatches. May be used by any number of them, of the group that made it, also after its receive window was reused. After masks changed, combine still takes it (ranks left out contribute nothing) unless other ranks forward between nodes now; cached dispatches refuse it.

    On the cuda backend it lies in memory of the GPU. After host_counts=False the host does not know its counts: num_rows and num_expert_rows are the capacity, and the arrays raise Error("unsupported"); DispatchResult has them on the GPU. source_token and bytes() are for the host backend alone.
    """

    @property
    def layout(self) -> str: ...

    @property
    def mode(self) -> str: ...

    @property
    def num_tokens(self) -> int:
        """T: tokens that this rank dispatched."""

    @property
    def top_k(self) -> int:
        """K: choices per token."""

    @property
    def num_rows(self) -> int:
        """N: (token, this rank) pairs received."""

    @property
    def num_expert_rows(self) -> int:
        """Nx: rows of the expert layouts, padding included."""

    @property
    def num_local_experts(self) -> int: ...

    @property
    def expert_capacity(self) -> int:
        """Rows per expert of expert_padded, else 0."""

    @property
    def source_offsets(self) -> Array:
        """
        int32 [R + 1]: rows from rank s are o[s] to o[s + 1] in rank-major order.
        """

    @property
    def expert_counts(self) -> Array:
        """int32 [E_local]: rows per local expert, without padding."""

    @property
    def expert_offsets(self) -> Array:
        """int32 [E_local + 1]: first row of each expert (expert layouts)."""

    @property
    def nbytes(self) -> int: ...

    def source_token(self, row: int) -> int:
        """Index at its source of rank-major row `row`."""

    def __bytes__(self) -> bytes: ...

    def __repr__(self) -> str: ...

class DispatchResult:
    """
    What arrived. N = rows received, Nx = expert rows with padding, C = capacity,
    E_local = local experts.

    rank_major: payload[b] [N, W_b], one row per (token, this rank), ordered by (source rank, source token).
    expert_major: payload[b] [Nx, W_b], experts ascending, inside an expert by (source rank, source token, choice).
    expert_padded: payload[b] [E_local, C, W_b], the same order inside an expert.

    Row strides are the block's bytes rounded up to 16, divided by the element size. Rows beyond the real ones are
    unspecified unless zeroed on request. With host_counts=False, N and Nx in shapes are the receive capacity. Arrays of
    a window view (output="window") show this call until the rank starts the dispatch num_flights later, and stay mapped
    for as long as they live. With backend="cuda" they lie on the GPU and are written on the call's stream: work on another
    stream takes them through __dlpack__ (torch.from_dlpack), which orders it, and is done before they are let go.
    """

    @property
    def layout(self) -> str: ...

    @property
    def payload(self) -> tuple[Array, ...]:
        """
        The blocks that were given, the scales that a codec added after the first; what was given as `out`, if it was.
        """

    @property
    def host_expert_counts(self) -> list[int]:
        """The aligned counts [E_local]; empty without host_counts."""

    @property
    def late(self) -> list[int]:
        """
        Ranks that were masked automatically in this call and are left out of it; backend="cuda" without host_counts: see Group.masked.
        """

    @property
    def handle(self) -> Handle: ...

    @property
    def topk_ids(self) -> Array | None:
        """
        rank_major: [N, K] local expert ids, -1 elsewhere, dtype of the ids given (cached: int32).
        """

    @property
    def topk_weights(self) -> Array | None:
        """
        float32, if weights were given: rank_major [N, K], exactly 0 where the id is -1; expert_major [Nx]; expert_padded [E_local, C].
        """

    @property
    def num_rows(self) -> Array:
        """int64 [1]: N."""

    @property
    def source_offsets(self) -> Array:
        """int32 [R + 1]."""

    @property
    def expert_counts(self) -> Array:
        """int32 [E_local], without padding."""

    @property
    def expert_offsets(self) -> Array | None:
        """
        int32 [E_local + 1]: first row of each expert, aligned (expert layouts).
        """

    @property
    def rank_counts(self) -> Array | None:
        """
        int32 [R, R]: rows that rank i sends to rank j. Host backend, throughput mode without a handle given; else None.
        """

class PendingDispatch:
    """A dispatch that was sent and not yet received."""

    def receive(self) -> DispatchResult:
        """
        Waits for the rows and returns the DispatchResult. Once only; Error("invalid_argument") the second time.
        """

    @property
    def valid(self) -> bool:
        """Not yet received."""

class CombineResult:
    """What combine returns."""

    @property
    def out(self) -> Any:
        """
        [T, H] in the dtype of x: an Array of its own memory, or the very object that was given as `out`.
        """

    @property
    def topk_weights(self) -> Array | None:
        """[T, K] float32, if topk_weights was given."""

    @property
    def late(self) -> list[int]:
        """As of a DispatchResult."""

class PendingCombine:
    """A combine that was sent and not yet received."""

    def receive(self) -> CombineResult:
        """
        Waits for the rows, sums them and returns the CombineResult. Once only; Error("invalid_argument") the second time.
        """

    @property
    def valid(self) -> bool:
        """Not yet received."""

class Group:
    """
    One rank's end of the ranks that dispatch and combine together. Everything hangs on
    it; there are no globals.

    Group(meeting, num_experts=..., ...) takes the keywords of GroupConfig, or one as `config`. Making it is collective
    over the meeting; raises Error("invalid_argument", "bootstrap", "mismatch" or "timeout").

    Every rank makes the same sequence of dispatch and combine calls (sends, when phases are split); receives may come
    in any order. One thread at a time may use a group (others get an Error), except abort(), which any thread may call.
    Waits give the GIL away. Ranks on several nodes that have calls of two groups in flight must receive them in the same
    order: a rank hands on rows of others while it is inside a call of that group.

    A result with output="window" stays valid until this rank starts the dispatch num_flights later. Results own a share
    of the memory, so using one for longer, or after close(), reads stale rows but never unmapped memory.

    backend="cuda": calls take and return arrays on the group's GPU and put their work on a CUDA stream: the one given as
    `stream`, else the current stream of PyTorch or CuPy if an array is theirs, else the stream that wrote the first
    ferry.Array among them, else the legacy default stream. The host waits for nothing but the counts of a dispatch with
    host_counts=True; other calls can be captured into a CUDA graph.

    After an Error with code "timeout", "peer_lost", "mismatch" or "overflow" the call is over on this rank and the
    group goes on with the next call; "invalid_argument" found before the call leaves the group as it was. If only some
    ranks made or failed a call, they may be out of step: their next calls end in named errors until the membership
    changes or another group is made. A group is a context manager that closes itself.
    """

    def __init__(self, meeting: Meeting, config: GroupConfig | None = None, *, num_experts: int = ..., max_tokens: int = ..., max_latency_tokens: int = ..., max_top_k: int = ..., hidden: int = ..., dtype: str = ..., extra_bytes: int = ..., recv_rows: int = ..., owned_rows: int = ..., max_slots: int = ..., num_flights: int = ..., topology: Topology | Sequence[int] | None = ..., placement: Placement | None = ..., backend: str = ..., device: int = ..., network: str = ..., nics: Sequence[str] = ..., num_nics: int = ..., near_pci: str = ..., traffic_class: str = ..., gated_posts: bool = ..., proxy_threads: int = ..., proxy_cores: Sequence[int] = ..., link_bytes_per_second: int = ..., timeout: float = ..., auto_masks: int = ..., test_seed: int = ..., test_max_signal_delay_ns: int = ...) -> None: ...

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def topology(self) -> Topology: ...

    @property
    def placement(self) -> Placement: ...

    @property
    def config(self) -> GroupConfig: ...

    @property
    def backend_name(self) -> str:
        """The backend that was chosen: "host" or "cuda"."""

    @property
    def network_name(self) -> str:
        """
        The network that was chosen, "loopback" or "tcp" for example; "none" if all ranks are in one node.
        """

    def dispatch(self, payload: ferry.values.ArrayLike | Sequence[ferry.values.ArrayLike], topk_ids: ferry.values.ArrayLike | None = None, topk_weights: ferry.values.ArrayLike | None = None, *, handle: Handle | None = None, mode: str = 'throughput', layout: str = 'rank_major', codec: str = 'none', scale_block: int = 128, alignment: int = 1, expert_capacity: int = 0, zero_padding: bool = False, renormalise: bool = False, host_counts: bool = True, output: str = 'window', placement: Placement | None = None, num_sms: int = 0, handle_memory: ferry.values.ArrayLike | None = None, stream: ferry.values.StreamLike | None = None, timeout: float | None = None, out: Sequence[ferry.values.ArrayLike] | None = None, max_tokens: int = 0, recv_counts: ferry.values.ArrayLike | None = None, wait_ns: ferry.values.ArrayLike | None = None) -> DispatchResult:
        """
        Sends every token's row to the ranks that own its experts and returns what
        arrived here.

        payload: an array or a list of arrays [T, W_b], any strides: the row itself (bf16, fp16, fp32, fp8_e4m3, bytes),
        then its scales and any further bytes. Only the first can be coded on the way. topk_ids: [T, K] int32 or int64,
        global expert ids, negative = no choice; None with `handle`. topk_weights: [T, K] float32, optional, travels with
        the tokens. handle: of an earlier dispatch, to route exactly as it did, without counting.

        mode: "throughput", "latency" or "auto": the mode of `handle` if one is given, else latency if the call's largest
        rank fits the group's max_latency_tokens, the layout is not expert_major and latency mode takes this expert_capacity
        and so many choices, else throughput; mode_of(...) says which. max_tokens: most tokens that any rank gives to this
        call, 0 = the group's max_tokens: ranks must agree on the mode, so it never follows from this rank's own T. layout:
        "rank_major", "expert_major" (throughput only) or "expert_padded". codec:
        "none", or "fp8_f32" / "fp8_ue8m0" for bf16 rows, which add a block of scales, one per `scale_block` channels (128
        or 32), float32 or powers of two. alignment, zero_padding: of the expert blocks of expert_major. expert_capacity:
        rows per expert of expert_padded, 0 = ranks x max tokens as far as the window holds them; rows that name an expert
        several times can need more (Error("overflow") states it). renormalise: scale the live weights up by what masked ranks
        would have had. host_counts: shape the results exactly. output: "window" (a view) or "owned". placement: None: the
        group's. num_sms: most SMs that a kernel of the call occupies, 0 = automatic; ignored by the host backend.
        handle_memory: an array without gaps, of any dtype of Ferry, that lends the handle its memory: handle_bytes(...) bytes, at
        a multiple of 16; None: the group makes some. It is kept as long as the handle or anything that came of it, and must not
        be written until then. timeout: seconds, of every wait of this call; None: the group's. out, expert_padded on the host backend: arrays
        [E_local, C, W_b], any strides, one per block of the result's payload, which then is these very objects; real rows are
        written when the call is received, so they can be handed on before. recv_counts: int32 or int64 [E_local], wait_ns:
        int64 [R], contiguous; the call adds the rows received per local expert, and the nanoseconds waited for each source.

        With backend="cuda" all arrays lie on the group's GPU. stream: a CUDA stream's handle as a number, or an object with
        cuda_stream (PyTorch) or __cuda_stream__; the call follows the work on it, and its later work may use the result. None:
        the current stream of the arrays' framework, see Group. Inputs may be changed, and memory given back, by later work on
        that stream. With host_counts=False the host waits for nothing and the call can be captured into a CUDA graph; its
        result must be kept for as long as the graph.

        Collective: all ranks make the same sequence of calls with equal modes, max_tokens, layouts, codecs, dtypes, widths
        and K. The GIL is given away while it runs. Raises Error: "invalid_argument" or "unsupported" before anything moves,
        "overflow", "timeout", "peer_lost", "mismatch", "aborted".
        """

    def dispatch_send(self, payload: ferry.values.ArrayLike | Sequence[ferry.values.ArrayLike], topk_ids: ferry.values.ArrayLike | None = None, topk_weights: ferry.values.ArrayLike | None = None, *, handle: Handle | None = None, mode: str = 'throughput', layout: str = 'rank_major', codec: str = 'none', scale_block: int = 128, alignment: int = 1, expert_capacity: int = 0, zero_padding: bool = False, renormalise: bool = False, host_counts: bool = True, output: str = 'window', placement: Placement | None = None, num_sms: int = 0, handle_memory: ferry.values.ArrayLike | None = None, stream: ferry.values.StreamLike | None = None, timeout: float | None = None, out: Sequence[ferry.values.ArrayLike] | None = None, max_tokens: int = 0, recv_counts: ferry.values.ArrayLike | None = None, wait_ns: ferry.values.ArrayLike | None = None) -> PendingDispatch:
        """
        The first half of dispatch, with the same arguments: returns a PendingDispatch
        as soon as the rows are sent. receive() goes on with the same stream.

        All ranks start sends in the same order; receives may come in any order. The inputs may be changed once this
        returns. Dropping the result is safe: the group then receives the rows itself and throws them away.
        """

    @overload
    def why_not(self, payload: ferry.values.ArrayLike | Sequence[ferry.values.ArrayLike], topk_ids: ferry.values.ArrayLike | None = None, topk_weights: ferry.values.ArrayLike | None = None, *, handle: Handle | None = None, mode: str = 'throughput', layout: str = 'rank_major', codec: str = 'none', scale_block: int = 128, alignment: int = 1, expert_capacity: int = 0, zero_padding: bool = False, renormalise: bool = False, host_counts: bool = True, output: str = 'window', placement: Placement | None = None, num_sms: int = 0, handle_memory: ferry.values.ArrayLike | None = None, stream: ferry.values.StreamLike | None = None, timeout: float | None = None, out: Sequence[ferry.values.ArrayLike] | None = None, max_tokens: int = 0, recv_counts: ferry.values.ArrayLike | None = None, wait_ns: ferry.values.ArrayLike | None = None) -> str:
        """
        Empty if a dispatch (or, with x= and handle=, a combine) with these arguments can be made, else the reason and what would work. Looks at values only, never at data.
        """

    @overload
    def why_not(self, *, x: ferry.values.ArrayLike, handle: Handle, reduction: Reduction | str = 'per_rank', weights: ferry.values.ArrayLike | str | None = None, codec: str = 'none', bias: ferry.values.ArrayLike | tuple[ferry.values.ArrayLike, ferry.values.ArrayLike] | None = None, topk_weights: ferry.values.ArrayLike | None = None, out: ferry.values.ArrayLike | None = None, wait_ns: ferry.values.ArrayLike | None = None, num_sms: int = 0, stream: ferry.values.StreamLike | None = None, timeout: float | None = None) -> str:
        """As above for a combine; all arguments by keyword."""

    def mode_of(self, payload: ferry.values.ArrayLike | Sequence[ferry.values.ArrayLike], topk_ids: ferry.values.ArrayLike | None = None, topk_weights: ferry.values.ArrayLike | None = None, *, handle: Handle | None = None, mode: str = 'throughput', layout: str = 'rank_major', codec: str = 'none', scale_block: int = 128, alignment: int = 1, expert_capacity: int = 0, zero_padding: bool = False, renormalise: bool = False, host_counts: bool = True, output: str = 'window', placement: Placement | None = None, num_sms: int = 0, handle_memory: ferry.values.ArrayLike | None = None, stream: ferry.values.StreamLike | None = None, timeout: float | None = None, out: Sequence[ferry.values.ArrayLike] | None = None, max_tokens: int = 0, recv_counts: ferry.values.ArrayLike | None = None, wait_ns: ferry.values.ArrayLike | None = None) -> str:
        """
        The mode that a dispatch with these arguments takes: theirs, or what "auto" comes to.
        """

    def handle_bytes(self, payload: ferry.values.ArrayLike | Sequence[ferry.values.ArrayLike], topk_ids: ferry.values.ArrayLike | None = None, topk_weights: ferry.values.ArrayLike | None = None, *, handle: Handle | None = None, mode: str = 'throughput', layout: str = 'rank_major', codec: str = 'none', scale_block: int = 128, alignment: int = 1, expert_capacity: int = 0, zero_padding: bool = False, renormalise: bool = False, host_counts: bool = True, output: str = 'window', placement: Placement | None = None, num_sms: int = 0, handle_memory: ferry.values.ArrayLike | None = None, stream: ferry.values.StreamLike | None = None, timeout: float | None = None, out: Sequence[ferry.values.ArrayLike] | None = None, max_tokens: int = 0, recv_counts: ferry.values.ArrayLike | None = None, wait_ns: ferry.values.ArrayLike | None = None) -> int:
        """Bytes of the largest handle that a dispatch of this shape can make."""

    def combine(self, x: ferry.values.ArrayLike, handle: Handle, *, reduction: Reduction | str = 'per_rank', weights: ferry.values.ArrayLike | str | None = None, codec: str = 'none', bias: ferry.values.ArrayLike | tuple[ferry.values.ArrayLike, ferry.values.ArrayLike] | None = None, topk_weights: ferry.values.ArrayLike | None = None, out: ferry.values.ArrayLike | None = None, wait_ns: ferry.values.ArrayLike | None = None, num_sms: int = 0, stream: ferry.values.StreamLike | None = None, timeout: float | None = None) -> CombineResult:
        """
        Returns the experts' results to their tokens and sums them.

        x: bf16, fp16 or fp32 in the layout of the dispatch: rank_major [N, H], expert_major [Nx, H], expert_padded
        [E_local, C, H]; rows beyond the real ones are never read. handle: of the dispatch whose rows come back. reduction:
        "flat" (expert layouts only), "per_rank", "per_node" or a Reduction. weights, expert layouts only: "dispatch"
        multiplies each choice's row with the weight that travelled with the dispatch, an array [T, K] float32 gives them
        here, on the token's side. codec, latency mode and bf16 x: "fp8_f32" or "logfmt10" code what a rank returns in 8 or 10
        bits a channel, restored within 1/16 or 2.21 % of each value (docs/python.md has the bounds and what they leave out).
        bias: an array [T, H] of the dtype of x or float32, or a pair of them, added on the token's side.
        topk_weights: float32 in the shape of DispatchResult.topk_weights; each choice's value returns to [T,
        K], 0 for a choice that has none. out: an array [T, H] of x's dtype to write. wait_ns, num_sms, stream: as in dispatch; with
        backend="cuda" the host waits for nothing. timeout: seconds, of every wait of this call; None: the group's.

        Returns a CombineResult. A token that was sent nowhere gets the bias, or 0. Collective: equal dtypes, reduction,
        kind of weights and codec on all ranks. The GIL is given away while it runs. Raises Error as dispatch does.
        """

    def combine_send(self, x: ferry.values.ArrayLike, handle: Handle, *, reduction: Reduction | str = 'per_rank', weights: ferry.values.ArrayLike | str | None = None, codec: str = 'none', bias: ferry.values.ArrayLike | tuple[ferry.values.ArrayLike, ferry.values.ArrayLike] | None = None, topk_weights: ferry.values.ArrayLike | None = None, out: ferry.values.ArrayLike | None = None, wait_ns: ferry.values.ArrayLike | None = None, num_sms: int = 0, stream: ferry.values.StreamLike | None = None, timeout: float | None = None) -> PendingCombine:
        """
        The first half of combine, with the same arguments: returns a PendingCombine as
        soon as the rows are sent.

        x may be changed once this returns; the biases and `out` belong to the call until it was received.
        """

    def mask(self, rank: int) -> None:
        """
        Leaves `rank` out from the next call on: nothing is sent to it, nothing awaited, its part is left out. All remaining ranks must make the same changes before the same call.
        """

    def unmask(self, rank: int) -> None:
        """
        Takes `rank` back from the next call on; the rank itself calls unmask(group.rank), too, and joins the others' count of calls.
        """

    def check(self) -> None:
        """
        Raises the fault of an earlier call that was not raised yet, or Error("aborted").
        """

    def combine_input(self, handle: Handle, dtype: str, elements: int) -> Array:
        """
        Where the experts may write their results, so that combine reads them where
        they are and copies nothing; backend="cuda".

        handle: of the dispatch whose rows come back. dtype: "bf16", "fp16" or "fp32". elements: H, of a row. Returns an Array on
        the group's GPU in the layout of the dispatch: rank_major [N, H], expert_major [Nx, H], expert_padded [E_local, C, H],
        rows padded to 16 bytes; after host_counts=False N and Nx are the capacity. Nothing is copied where all of it is given to
        combine: the Array, or a tensor made of it (torch.from_dlpack), on whose stream the call then goes.

        What lies there is unspecified until it is written. Its contents belong to this call until the rank starts the dispatch
        num_flights after the handle's; the memory stays mapped as long as the Array lives. The Array goes by the stream of the
        dispatch: taking it on another one (__dlpack__) orders the two. Local; the host waits for nothing. Raises Error:
        "unsupported" on the host backend, where combine reads any array in place; "invalid_argument".
        """

    def masked(self) -> list[bool]:
        """
        [R] True for ranks that are left out, those masked automatically among them.
        """

    def abort(self) -> None:
        """
        Ends every wait here and on the peers with Error("aborted"). Local; may be called from any thread.
        """

    def close(self) -> None:
        """
        Gives the memory back as soon as nobody uses it. Local, idempotent; calls after it are Error("invalid_argument").
        """

    def statistics(self) -> GroupStatistics:
        """Counters at this moment."""

    def last_trace(self) -> list[StepTrace]:
        """Seconds and bytes of each step of the last call on this rank."""

    def __enter__(self) -> Group: ...

    def __exit__(self, *exception: object) -> None: ...

class Capability:
    """One thing that this build can or cannot do on this machine."""

    @property
    def name(self) -> str: ...

    @property
    def usable(self) -> bool: ...

    @property
    def detail(self) -> str:
        """What was found, or the reason why not."""

    @property
    def fix(self) -> str:
        """What would help; empty if usable."""

    def __repr__(self) -> str: ...

def capabilities() -> list[Capability]:
    """Looks at the machine; starts nothing and leaves nothing behind."""

def version() -> str:
    """The library's version, e.g. "0.1.0"."""
