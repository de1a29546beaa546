# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""Starts a script once per rank on this machine: ``python -m ferry.launch --ranks 8 script.py args...``

Every process gets the variables that torchrun sets: RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and
MASTER_PORT (a free port whose successor, Ferry's own, is free as well); and FERRY_TOKEN, a secret of this job, so that
strangers are turned away. When a rank fails, the others are ended and its exit code is the launcher's; 128 + number if
it died of a signal. SIGINT, SIGTERM and SIGHUP are passed on; ranks that have not ended a grace later are killed. The
ranks end with the launcher even if that is killed.
"""

import argparse
import contextlib
import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import IO

FORWARDED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL_SECONDS = 0.02
PR_SET_PDEATHSIG = 1  # from linux/prctl.h


@dataclass(frozen=True)
class Job:
    """What to start. ``command`` is the command line of one rank."""

    command: Sequence[str]
    ranks: int
    address: str = "127.0.0.1"
    port: int = 0
    """MASTER_PORT; 0 takes a free one."""
    node_size: int = 0
    """Ranks per pretend node (FERRY_NODE_SIZE); 0 leaves the variable alone."""
    prefix: bool = False
    """Put "[rank] " before every line that a rank prints."""
    grace_seconds: float = 5.0
    """Time between asking ranks to end and killing them."""


def find_port_pair(address: str = "127.0.0.1") -> int:
    """A port that is free and whose successor is free: MASTER_PORT and FERRY_PORT."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for _ in range(100):
        with socket.socket(family) as first, socket.socket(family) as second:
            first.bind((address, 0))
            port = int(first.getsockname()[1])
            with contextlib.suppress(OSError, OverflowError):
                second.bind((address, port + 1))
                return port
    raise OSError(f"no two free ports in a row on {address}")


def make_environment(job: Job, rank: int, port: int, token: str) -> dict[str, str]:
    """The environment of one rank. What the user set already stays: FERRY_TOKEN, FERRY_PORT, OMP_NUM_THREADS."""
    environment = dict(os.environ)
    environment.setdefault("FERRY_TOKEN", token)
    environment.setdefault("FI_TCP_PREFETCH_RBUF_SIZE", "1024")  # for network tcp, see docs/network.md
    if job.ranks > 1:
        environment.setdefault("OMP_NUM_THREADS", "1")  # as torchrun: ranks share the cores
    environment |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(job.ranks),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(job.ranks),
        "MASTER_ADDR": job.address,
        "MASTER_PORT": str(port),
    }
    if job.node_size:
        environment["FERRY_NODE_SIZE"] = str(job.node_size)
    return environment


def _make_die_with_parent() -> Callable[[], None]:
    """What a child runs before its program starts: be killed when the launcher is gone."""
    prctl = ctypes.CDLL(None).prctl  # looked up here: between fork and exec as little as possible
    parent = os.getpid()

    def die_with_parent() -> None:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:
            os._exit(1)

    return die_with_parent


def _copy_lines(source: IO[bytes], target: IO[bytes], prefix: bytes, lock: threading.Lock) -> None:
    for line in source:
        with lock:
            target.write(prefix + line + (b"" if line.endswith(b"\n") else b"\n"))
            target.flush()


class Launcher:
    """The processes of a job."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.processes: list[subprocess.Popen[bytes]] = []
        self.threads: list[threading.Thread] = []
        self.signals: list[int] = []
        """Those that were passed on."""
        self.deadline: float | None = None
        """When ranks that got a signal are killed."""

    def start(self) -> None:
        job = self.job
        port = job.port or find_port_pair(job.address)
        token = secrets.token_hex(16)
        die_with_parent = _make_die_with_parent()
        pipe = subprocess.PIPE if job.prefix else None
        for rank in range(job.ranks):
            # A session of its own: a terminal's Ctrl-C reaches the ranks once, through the launcher.
            self.processes.append(
                subprocess.Popen(
                    job.command,
                    env=make_environment(job, rank, port, token),
                    stdin=None if rank == 0 else subprocess.DEVNULL,
                    stdout=pipe,
                    stderr=pipe,
                    start_new_session=True,
                    preexec_fn=die_with_parent,
                )
            )
        if job.prefix:
            self._start_copying()

    def _start_copying(self) -> None:
        width = len(str(self.job.ranks - 1))
        lock = threading.Lock()
        for rank, process in enumerate(self.processes):
            prefix = f"[{rank:{width}}] ".encode()
            for source, target in ((process.stdout, sys.stdout.buffer), (process.stderr, sys.stderr.buffer)):
                thread = threading.Thread(target=_copy_lines, args=(source, target, prefix, lock), daemon=True)
                thread.start()
                self.threads.append(thread)

    def wait(self) -> int:
        """Waits until all ranks ended well or one failed, and ends the others then; returns the exit code."""
        while True:
            codes = [process.poll() for process in self.processes]
            failed = [(rank, code) for rank, code in enumerate(codes) if code]
            if failed:
                rank, code = failed[0]
                self._report(rank, code)
                self.stop()
                return code if code > 0 else 128 - code
            if all(code == 0 for code in codes):
                return 128 + self.signals[0] if self.signals else 0
            if self.deadline is not None and time.monotonic() > self.deadline:
                self.send_signal(signal.SIGKILL)
            time.sleep(POLL_SECONDS)

    def _report(self, rank: int, code: int) -> None:
        how = f"exited with {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"
        print(f"ferry.launch: rank {rank} {how}; ending the other ranks", file=sys.stderr, flush=True)

    def forward(self, number: int, _frame: FrameType | None = None) -> None:
        """A signal handler that passes the signal on and starts the grace."""
        self.signals.append(number)
        self.deadline = self.deadline or time.monotonic() + self.job.grace_seconds
        self.send_signal(number)

    def send_signal(self, number: int) -> None:
        """To every rank and what it started."""
        for process in self.processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)

    def stop(self) -> None:
        """Ends what still runs: SIGTERM, then SIGKILL when the grace is over."""
        self.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + self.job.grace_seconds
        while time.monotonic() < deadline and any(process.poll() is None for process in self.processes):
            time.sleep(POLL_SECONDS)
        self.send_signal(signal.SIGKILL)
        for process in self.processes:
            process.wait()

    def finish_output(self) -> None:
        """Waits for the last lines; not for ever, as something that a rank left behind may hold the pipe."""
        for thread in self.threads:
            thread.join(timeout=2.0)


@contextlib.contextmanager
def _forward_signals(launcher: Launcher) -> Iterator[None]:
    before = {number: signal.signal(number, launcher.forward) for number in FORWARDED_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def launch(job: Job) -> int:
    """Runs a job to its end and returns the exit code: 0, or that of the first rank that failed. Main thread only."""
    if job.ranks < 1:
        raise ValueError(f"ferry.launch: ranks is {job.ranks}, expected at least 1")
    launcher = Launcher(job)
    with _forward_signals(launcher):
        try:
            launcher.start()
            return launcher.wait()
        finally:
            launcher.stop()
            launcher.finish_output()


def parse_arguments(arguments: Sequence[str] | None = None) -> Job:
    parser = argparse.ArgumentParser(
        prog="python -m ferry.launch", description="Starts a Python script once per rank on this machine."
    )
    parser.add_argument("-n", "--ranks", type=int, required=True, help="number of processes")
    parser.add_argument("--node-size", type=int, default=0, help="ranks per pretend node (FERRY_NODE_SIZE)")
    parser.add_argument("--address", default="127.0.0.1", help="MASTER_ADDR, an address of this machine")
    parser.add_argument(
        "--port", type=int, default=0, help="MASTER_PORT; Ferry takes the next one (default: two free ports)"
    )
    parser.add_argument("--prefix", action="store_true", help='put "[rank] " before every line that a rank prints')
    parser.add_argument(
        "--grace",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="between asking ranks to end and killing them (default: 5)",
    )
    parser.add_argument("-m", "--module", action="store_true", help="the script is the name of a module")
    parser.add_argument("script", help="a Python script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its arguments")
    given = parser.parse_args(arguments)
    if given.ranks < 1:
        parser.error(f"--ranks is {given.ranks}, expected at least 1")
    if given.node_size < 0:
        parser.error(f"--node-size is {given.node_size}, expected at least 1")
    if not 0 <= given.port <= 65534:
        parser.error(f"--port is {given.port}, expected 1 to 65534, or 0 for a free one")
    command = [sys.executable, *(["-m"] if given.module else []), given.script, *given.arguments]
    return Job(
        command=command,
        ranks=given.ranks,
        address=given.address,
        port=given.port,
        node_size=given.node_size,
        prefix=given.prefix,
        grace_seconds=given.grace,
    )


def main() -> None:
    sys.exit(launch(parse_arguments()))


if __name__ == "__main__":
    main()
