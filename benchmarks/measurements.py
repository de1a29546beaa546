# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
#
# What plot.py and figures.py know of JSON lines: reading them, the newest ones, and the curves of the GPU pictures.
"""Lines of benchmarks/results, chosen and grouped."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
PICTURES = ROOT / "docs/figures"


def read_lines(paths: list[Path]) -> list[dict]:
    lines = []
    for path in paths:
        for number, text in enumerate(path.read_text().splitlines(), 1):
            if not text.strip():
                continue
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError as error:
                raise SystemExit(f"{path}:{number}: not a JSON line: {error}") from error
    return lines


def verified_results() -> list[dict]:
    """All committed lines, oldest first. A wrong result has no time worth showing."""
    lines = read_lines(sorted(RESULTS.glob("*.jsonl")))
    return sorted((line for line in lines if line["verified"]), key=lambda line: line["date"])


def of_newest_commit(lines: list[dict]) -> list[dict]:
    """Of each machine and mode the lines of the commit measured last: no picture mixes versions of the code."""
    newest = {}
    for line in sorted(lines, key=lambda one: one["date"]):
        newest[line["machine"], line["ranks"], line["mode"]] = line["commit"]
    return [line for line in lines if newest[line["machine"], line["ranks"], line["mode"]] == line["commit"]]


def is_usual(line: dict) -> bool:
    """Top-8 of 256 experts, uniform routing: what the figures are about where they name nothing else."""
    return (line["experts"], line["top_k"], line["routing"]) == (256, 8, "uniform")


def call_name(line: dict) -> str:
    """ "dispatch, bf16, rank_major, window"; of a graph launch ", graph" behind it, and what else is not as usual."""
    where = line.get("output") or line.get("input")
    parts = [part for part in (line["op"], line["payload"], line["layout"], where) if part]
    if line["op"] == "combine" and line["reduction"] not in ("", "per_rank"):
        parts.append(line["reduction"])
    if line["launch"] != "direct":
        parts.append(line["launch"])
    if not is_usual(line):
        parts.append(f"top-{line['top_k']} of {line['experts']}, {line['routing']}")
    if line["nodes"] > 1:
        limit = line["link_limit_gbps"]
        parts.append(f"{line['nodes']} nodes over {line['network']}" + (f" at {limit} GB/s" if limit else ""))
    return ", ".join(parts)


def floor_us(line: dict) -> float | None:
    """The necessary bytes at the rate of the ceiling of the same run."""
    return line["necessary_bytes"] / line["ceiling_gbps"] / 1e3 if line["ceiling_gbps"] else None


@dataclass
class Picture:
    """Curves of one machine over tokens or SMs."""

    machine: str
    mode: str
    over: str  # "tokens" or "num_sms"
    fixed: int  # the value of the other one
    lines: list[dict] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.machine}-{self.mode}-{'tokens' if self.over == 'tokens' else 'sms'}.svg"

    @property
    def digest(self) -> str:
        """Of everything that the picture shows; written into it, so that an old picture is noticed without drawing."""
        text = json.dumps(self.lines, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def curves(self, op: str) -> dict[str, list[dict]]:
        """Of each call the lines by what the picture runs over; of a repeated measurement the newest."""
        found = defaultdict(dict)
        for line in self.lines:
            if line["op"] == op:
                found[call_name(line)][line[self.over]] = line
        return {name: [points[x] for x in sorted(points)] for name, points in sorted(found.items())}


def values_over(lines: list[dict], over: str, fixed: str) -> int | None:
    """The value of `fixed` that has most values of `over`, at least two; among equals the one with most lines."""
    seen = defaultdict(set)
    count = defaultdict(int)
    for line in lines:
        seen[line[fixed]].add(line[over])
        count[line[fixed]] += 1
    best = max(seen, key=lambda value: (len(seen[value]), count[value], value), default=None)
    return best if best is not None and len(seen[best]) > 1 else None


def gpu_pictures(lines: list[dict]) -> list[Picture]:
    """For each machine time and fraction over tokens, and over SMs; inside one node."""
    groups = defaultdict(list)
    for line in of_newest_commit([line for line in lines if line["backend"] == "cuda"]):
        if line["op"] in ("dispatch", "combine") and is_usual(line) and line["nodes"] == 1:
            groups[line["machine"], line["mode"]].append(line)
    pictures = []
    for (machine, mode), own in sorted(groups.items()):
        for over, fixed in (("tokens", "num_sms"), ("num_sms", "tokens")):
            value = values_over(own, over, fixed)
            if value is not None:
                shown = [line for line in own if line[fixed] == value]
                pictures.append(Picture(machine, mode, over, value, shown))
    return pictures
