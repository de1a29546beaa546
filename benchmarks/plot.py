#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
#
# Draws JSON lines: time against tokens of Ferry, the MPI baseline and the machine's ceiling; with --gpu the pictures of
# the README, time and fraction of the link against tokens and SMs, from the committed results.
"""Plot benchmark results. See benchmarks/README.md."""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

from measurements import PICTURES, Picture, call_name, floor_us, gpu_pictures, read_lines, verified_results

OPS = ("dispatch", "combine")
STYLES = {
    "host": {"label": "Ferry, host", "color": "#0b6e4f", "marker": "o"},
    "cuda": {"label": "Ferry, CUDA", "color": "#1d4e89", "marker": "o"},
    "mpi": {"label": "MPI_Alltoallv", "color": "#b23a48", "marker": "s"},
}


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
        if line["op"] == op and floor_us(line) is not None:
            ceilings[line["tokens"]].append(floor_us(line))
    tokens = sorted(ceilings)
    axes.plot(tokens, [min(ceilings[t]) for t in tokens], "--", color="#555555", label="plain copy of the same bytes")
    axes.set(xscale="log", yscale="log", xlabel="tokens per rank", ylabel="time in µs (median, bar to p90)", title=op)
    axes.set_xticks(tokens, [str(t) for t in tokens])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()


def load_pyplot():
    import matplotlib

    matplotlib.use("Agg")
    # Text stays text, and the same lines give the same bytes: small files and small differences.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "ferry"})
    from matplotlib import pyplot

    return pyplot


def draw_panel(key: tuple, lines: list[dict], folder: Path) -> Path:
    pyplot = load_pyplot()
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


# --- the pictures of the README ------------------------------------------------------------------------------------


def label_of(name: str) -> str:
    """A call's name without what every curve of its half has in common."""
    return name.split(", ", 1)[1]


def draw_floors(axes, picture: Picture, curves: dict[str, list[dict]]) -> None:
    """One line for each number of necessary bytes: bf16, fp8, and a flat combine, which needs a row for each choice."""
    floors = {}
    for lines in curves.values():
        name = lines[0]["payload"] + (", flat" if lines[0]["reduction"] == "flat" else "")
        if name not in floors or len(lines) > len(floors[name]):
            floors[name] = lines
    styles = ("--", ":", "-.")
    for (name, lines), style in zip(sorted(floors.items()), styles, strict=False):
        x = [line[picture.over] for line in lines]
        axes.plot(x, [floor_us(line) for line in lines], style, color="#555555", label=f"floor, {name}")


def draw_half(axes_time, axes_fraction, picture: Picture, op: str) -> None:
    curves = picture.curves(op)
    colors = {}
    for name, lines in curves.items():
        x = [line[picture.over] for line in lines]
        direct = lines[0]["launch"] == "direct"
        color = colors.setdefault(call_name(lines[0] | {"launch": "direct"}), f"C{len(colors)}")
        style = {"color": color, "linestyle": "-" if direct else (0, (4, 1)), "marker": "o" if direct else "s"}
        style["markersize"] = 4
        axes_time.plot(x, [line["time_us_median"] for line in lines], label=label_of(name), **style)
        axes_fraction.plot(x, [line["fraction"] for line in lines], **style)
    draw_floors(axes_time, picture, curves)
    axes_fraction.axhline(1, color="#555555", linestyle="--")
    xs = sorted({line[picture.over] for lines in curves.values() for line in lines})
    label = "tokens per rank" if picture.over == "tokens" else "SMs"
    axes_time.set(title=op, xscale="log", yscale="log", ylabel="µs, median of the slowest rank")
    axes_fraction.set(xscale="log", xlabel=label, ylabel="fraction of the ceiling", ylim=(0, 1.05))
    for axes in (axes_time, axes_fraction):
        axes.set_xticks(xs, [str(x) for x in xs])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    axes_time.yaxis.set_major_formatter("{x:g}")
    handles, labels = axes_time.get_legend_handles_labels()
    axes_fraction.legend(handles, labels, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)


def draw_gpu_picture(picture: Picture, folder: Path) -> Path:
    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 8), sharex=True, sharey="row")
    for column, op in enumerate(OPS):
        draw_half(axes[0][column], axes[1][column], picture, op)
    one = picture.lines[-1]
    fixed = f"{picture.fixed} SMs" if picture.over == "tokens" else f"{picture.fixed} tokens per rank"
    figure.suptitle(
        f"{picture.machine}, {picture.mode} mode, {fixed}, hidden {one['hidden']}, "
        f"top-{one['top_k']} of {one['experts']}, {one['routing']} (commit {one['commit']})"
    )
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / picture.name
    figure.savefig(
        path, metadata={"Date": None, "Description": f"made by benchmarks/plot.py --gpu, lines {picture.digest}"}
    )
    pyplot.close(figure)
    return path


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="JSON lines of ferry bench or compare.py")
    parser.add_argument("--out", type=Path, help="folder for the pictures (default: this one, docs/figures with --gpu)")
    parser.add_argument("--gpu", action="store_true", help="the pictures of the README, from the committed results")
    args = parser.parse_args(arguments)
    if args.gpu == bool(args.files):
        parser.error("expected files with JSON lines, or --gpu")
    if args.gpu:
        pictures = gpu_pictures(verified_results())
        for picture in pictures:
            print(draw_gpu_picture(picture, args.out or PICTURES))
        return 0 if pictures else 1
    args.out = args.out or Path(".")
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
