#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
#
# Draws time against tokens from JSON lines: Ferry, the MPI baseline, and the ceiling of the machine.
"""Plot benchmark results. See benchmarks/README.md."""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

OPS = ("dispatch", "combine")
STYLES = {
    "host": {"label": "Ferry, host", "color": "#0b6e4f", "marker": "o"},
    "cuda": {"label": "Ferry, CUDA", "color": "#1d4e89", "marker": "o"},
    "mpi": {"label": "MPI_Alltoallv", "color": "#b23a48", "marker": "s"},
}


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


PANEL = "machine mode ranks nodes layout payload codec reduction hidden top_k experts routing".split()


def panels(lines: list[dict]) -> dict[tuple, list[dict]]:
    """Verified whole operations; one plot for each set of values of everything but tokens and backend."""
    groups = defaultdict(list)
    for line in lines:
        if line["op"] not in OPS or not line["verified"]:
            continue
        groups[tuple(line[name] for name in PANEL)].append(line)
    # A curve needs at least two token counts.
    return {key: group for key, group in groups.items() if len({line["tokens"] for line in group}) > 1}


def latest(lines: list[dict]) -> dict[int, dict]:
    """The newest line of each token count."""
    newest: dict[int, dict] = {}
    for line in sorted(lines, key=lambda one: one["date"]):
        newest[line["tokens"]] = line
    return dict(sorted(newest.items()))


def ceiling_us(line: dict) -> float | None:
    return line["necessary_bytes"] / line["ceiling_gbps"] / 1e3 if line["ceiling_gbps"] else None


def draw_op(axes, op: str, lines: list[dict]) -> None:
    by_backend = defaultdict(list)
    for line in lines:
        if line["op"] == op:
            by_backend[line["backend"]].append(line)
    for backend, own in sorted(by_backend.items()):
        points = latest(own)
        medians = [line["time_us_median"] for line in points.values()]
        above = [max(0, line["time_us_p90"] - line["time_us_median"]) for line in points.values()]
        style = STYLES.get(backend, {"label": backend})
        axes.errorbar(points.keys(), medians, yerr=[[0] * len(above), above], capsize=3, **style)
    ceilings = defaultdict(list)
    for line in lines:
        if line["op"] == op and ceiling_us(line) is not None:
            ceilings[line["tokens"]].append(ceiling_us(line))
    tokens = sorted(ceilings)
    axes.plot(tokens, [min(ceilings[t]) for t in tokens], "--", color="#555555", label="plain copy of the same bytes")
    axes.set(xscale="log", yscale="log", xlabel="tokens per rank", ylabel="time in µs (median, bar to p90)", title=op)
    axes.set_xticks(tokens, [str(t) for t in tokens])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()


def draw_panel(key: tuple, lines: list[dict], folder: Path) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    one = dict(zip(PANEL, key, strict=True))
    figure, both = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for axes, op in zip(both, OPS, strict=True):
        draw_op(axes, op, lines)
    where = f"{one['machine']}: {one['mode']}, {one['ranks']} ranks on {one['nodes']} node(s)"
    what = f"{one['payload']} as {one['codec']}, hidden {one['hidden']}, top-{one['top_k']} of {one['experts']}"
    figure.suptitle(f"{where}, {what}, {one['routing']}")
    figure.tight_layout()
    path = folder / f"{'-'.join(str(value) for value in key)}.svg"
    figure.savefig(path)
    pyplot.close(figure)
    return path


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="JSON lines of ferry bench or compare.py")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for the pictures")
    args = parser.parse_args(arguments)
    groups = panels(read_lines(args.files))
    if not groups:
        print("plot: no verified dispatch or combine with two or more token counts in these files", file=sys.stderr)
        return 1
    args.out.mkdir(parents=True, exist_ok=True)
    for key, lines in groups.items():
        print(draw_panel(key, lines, args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
