#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
#
# Runs Ferry and the MPI baseline in turn, in the same minutes, and prints by what factor one is faster than the other.
"""Compare Ferry with the same job written with MPI. See benchmarks/README.md."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GOALS = {"throughput": 1.0, "latency": 2.0}
YIELDS = (0, 1)


@dataclass(frozen=True)
class Case:
    mode: str
    ranks: int
    tokens: tuple[int, ...]
    experts: int
    iterations: int
    nodes: int = 1

    def options(self) -> list[str]:
        return [
            f"--mode={self.mode}",
            f"--tokens={','.join(str(t) for t in self.tokens)}",
            f"--experts={self.experts}",
            f"--iterations={self.iterations}",
        ]

    def __str__(self) -> str:
        tokens = ",".join(str(t) for t in self.tokens)
        nodes = f" on {self.nodes} nodes" if self.nodes > 1 else ""
        return f"{self.mode}, {self.ranks} ranks{nodes}, {tokens} tokens, {self.experts} experts"


MAIN_CASES = (
    Case("throughput", 2, (1024,), 64, 10),
    Case("throughput", 2, (4096,), 256, 6),
    Case("throughput", 8, (1024,), 256, 6),
    Case("latency", 2, (8,), 256, 200),
    Case("latency", 8, (8,), 256, 60),
)
# Between network namespaces, by TCP; tools/netns.sh bench makes them. The goal is throughput mode's: at least as fast.
NETNS_CASES = (
    Case("throughput", 4, (256,), 64, 10, nodes=2),
    Case("throughput", 4, (1024,), 256, 6, nodes=2),
    Case("latency", 4, (8,), 64, 60, nodes=2),
)
SWEEP_CASES = (
    Case("latency", 2, (1, 8, 32, 128), 256, 60),
    Case("throughput", 2, (128, 256, 1024, 4096), 256, 6),
    Case("latency", 8, (1, 8, 32, 128), 256, 20),
    Case("throughput", 8, (128, 256, 1024), 256, 5),
)


@dataclass(frozen=True)
class Key:
    """What a measurement is of; `side` is "ferry" or "mpi yield=0|1"."""

    mode: str
    ranks: int
    tokens: int
    experts: int
    op: str
    side: str


@dataclass
class Results:
    lines: dict[Key, list[dict]] = field(default_factory=dict)

    def add(self, side: str, line: dict) -> None:
        key = Key(line["mode"], line["ranks"], line["tokens"], line["experts"], line["op"], side)
        self.lines.setdefault(key, []).append(line)

    def middle(self, key: Key) -> dict:
        """The run whose median is the middle one of all rounds (the lower of two)."""
        runs = sorted(self.lines[key], key=lambda line: line["time_us_median"])
        return runs[(len(runs) - 1) // 2]

    def shapes(self) -> list[tuple[str, int, int, int]]:
        return list(dict.fromkeys((k.mode, k.ranks, k.tokens, k.experts) for k in self.lines))

    def best_mpi(self, shape: tuple[str, int, int, int], op: str) -> dict | None:
        """The better of yielding and not yielding, for each operation by itself: the baseline at its best."""
        keys = [Key(*shape, op, f"mpi yield={y}") for y in YIELDS]
        runs = [self.middle(key) for key in keys if key in self.lines]
        return min(runs, key=lambda line: line["time_us_median"]) if runs else None

    def ferry(self, shape: tuple[str, int, int, int], op: str) -> dict | None:
        key = Key(*shape, op, "ferry")
        return self.middle(key) if key in self.lines else None


def run_and_read(command: list[str], timeout_s: float) -> list[dict]:
    """Runs one program that appends JSON lines to the file whose name is put behind the command."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lines.jsonl"
        command = [*command, f"--json={path}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        lines = [json.loads(text) for text in path.read_text().splitlines()]
    for line in lines:
        if line["verified"] is not True:
            raise RuntimeError(f"{' '.join(command)}: result not verified: {line}")
    return lines


def ferry_command(args: argparse.Namespace, case: Case) -> list[str]:
    command = [str(args.ferry), "bench", f"--ranks={case.ranks}", *case.options()]
    if case.nodes > 1:
        command += [f"--nodes={case.nodes}", "--network=tcp", f"--netns={','.join(args.netns)}"]
    return command


# Runs the words of a command in $namespace, with that host name.
ENTER = """exec ip netns exec "$namespace" unshare --uts sh -c "hostname $namespace; exec $*" """


def address_of(namespace: str) -> str:
    """The first IPv4 address of eth0 in a network namespace."""
    shown = subprocess.run(
        ["ip", "-n", namespace, "-4", "-o", "addr", "show", "eth0"], capture_output=True, text=True, check=True
    )
    return shown.stdout.split()[3].split("/")[0]


def mpi_in_namespaces(args: argparse.Namespace, case: Case) -> tuple[list[str], list[str]]:
    """What stands in front of mpirun, and its options: one daemon per namespace, which an agent starts there.

    Each gets a host name of its own as well: OpenMPI names its shared memory by host and number on the host.
    """
    addresses = {address_of(name): name for name in args.netns[: case.nodes]}
    agent = Path(args.folder) / "agent.sh"
    cases = "\n".join(f"  {address}) namespace={name} ;;" for address, name in addresses.items())
    agent.write_text(f'#!/bin/sh\ncase "$1" in\n{cases}\nesac\nshift\n{ENTER}\n')
    agent.chmod(0o755)
    share = case.ranks // case.nodes
    hosts = ",".join(f"{address}:{share}" for address in addresses)
    options = ["--host", hosts, "--mca", "plm_rsh_agent", str(agent), "--mca", "btl", "self,vader,tcp"]
    for part in ("btl", "oob"):
        options += ["--mca", f"{part}_tcp_if_include", "eth0"]
    first = Path(args.folder) / "first.sh"
    first.write_text(f"#!/bin/sh\nnamespace={args.netns[0]}\n{ENTER}\n")
    first.chmod(0o755)
    return [str(first)], options


def mpi_command(args: argparse.Namespace, case: Case, yielding: int) -> list[str]:
    before, options = mpi_in_namespaces(args, case) if case.nodes > 1 else ([], [])
    command = [*before, args.mpirun, "--oversubscribe", "--bind-to", "none", "-np", str(case.ranks), *options]
    if os.geteuid() == 0:
        command.append("--allow-run-as-root")
    nodes = [f"--nodes={case.nodes}", "--network=tcp"] if case.nodes > 1 else []
    return [*command, "--mca", "mpi_yield_when_idle", str(yielding), str(args.mpi), *case.options(), *nodes]


def run_rounds(args: argparse.Namespace, cases: tuple[Case, ...]) -> Results:
    results = Results()
    for number in range(args.rounds):
        for case in cases:
            runs = [("ferry", ferry_command(args, case))]
            runs += [(f"mpi yield={y}", mpi_command(args, case, y)) for y in YIELDS]
            # Every other round goes backwards, so that nobody always has the quieter moment.
            for side, command in runs if number % 2 == 0 else reversed(runs):
                started = time.monotonic()
                for line in run_and_read(command, args.timeout):
                    results.add(side, line)
                print(f"  round {number + 1}: {case}: {side} ({time.monotonic() - started:.0f} s)", file=sys.stderr)
    return results


def table_row(results: Results, shape: tuple[str, int, int, int], op: str) -> tuple[str, bool]:
    """One line of the table, and whether the goal is met."""
    mode, ranks, tokens, experts = shape
    ops = ["dispatch", "combine"] if op == "sum" else [op]
    ferry = sum(results.ferry(shape, o)["time_us_median"] for o in ops)
    mpi = sum(results.best_mpi(shape, o)["time_us_median"] for o in ops)
    ratio = mpi / ferry
    met = ratio >= GOALS[mode]
    line = f"{mode:<10} {ranks:>5} {tokens:>6} {experts:>7}  {op:<8} {ferry:>12.1f} {mpi:>12.1f} {ratio:>7.2f}"
    return f"{line}  {'met' if met else 'MISSED'} (>= {GOALS[mode]:.0f})", met


def print_table(results: Results) -> bool:
    head = f"{'mode':<10} {'ranks':>5} {'tokens':>6} {'experts':>7}  {'op':<8}"
    print(f"{head} {'Ferry us':>12} {'MPI us':>12} {'ratio':>7}  goal")
    all_met = True
    for shape in results.shapes():
        for op in ("dispatch", "combine", "sum"):
            line, met = table_row(results, shape, op)
            # The goal is about the whole job; its halves are shown.
            all_met = all_met and (met or op != "sum")
            print(line)
    return all_met


def write_results(results: Results, path: Path) -> None:
    with path.open("a") as file:
        for shape in results.shapes():
            for op in ("dispatch", "combine"):
                for line in (results.ferry(shape, op), results.best_mpi(shape, op)):
                    if line is not None:
                        file.write(json.dumps(line) + "\n")


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ferry", type=Path, default=ROOT / "build/host/bin/ferry", help="the command line of Ferry")
    parser.add_argument("--mpi", type=Path, default=ROOT / "build/host/bin/ferry_mpi_baseline", help="the MPI baseline")
    parser.add_argument("--mpirun", default="mpirun", help="the program that starts MPI ranks")
    parser.add_argument(
        "--netns",
        type=lambda names: names.split(","),
        default=[],
        help="network namespaces of the nodes: TCP between them on both sides (tools/netns.sh bench sets them up)",
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each side runs (default 3)")
    parser.add_argument("--sweep", action="store_true", help="many token counts, for the plots")
    parser.add_argument("--only", default="", help="cases whose description holds this text, e.g. 'latency, 2 ranks'")
    parser.add_argument("--timeout", type=float, default=300, help="seconds that one program may take (default 300)")
    parser.add_argument("--json", type=Path, help="append the runs that the table shows to this file")
    parser.add_argument("--check", action="store_true", help="exit code 1 if a goal is missed")
    args = parser.parse_args(arguments)
    if args.rounds < 1:
        parser.error(f"--rounds {args.rounds}: expected 1 or more")
    for path in (args.ferry, args.mpi):
        if not path.exists():
            parser.error(f"{path} is missing; build it first: make bench")
    if shutil.which(args.mpirun) is None:
        parser.error(f"{args.mpirun} is missing; on Debian: apt-get install openmpi-bin libopenmpi-dev")
    return args


def main(arguments: list[str]) -> int:
    args = parse_arguments(arguments)
    chosen = NETNS_CASES if args.netns else SWEEP_CASES if args.sweep else MAIN_CASES
    cases = tuple(case for case in chosen if args.only in str(case))
    load = os.getloadavg()[0]
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as folder:
            args.folder = folder
            results = run_rounds(args, cases)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 1
    met = print_table(results)
    seconds = time.monotonic() - started
    # The ranks themselves are part of the load afterwards; before, it was all foreign.
    loads = f"load {load:.1f} before, {os.getloadavg()[0]:.1f} after"
    print(f"{args.rounds} rounds in {seconds:.0f} s on {os.cpu_count()} cores, {loads}")
    if args.json:
        write_results(results, args.json)
    return 0 if met or not args.check else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
