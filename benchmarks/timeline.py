#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
#
# Draws the timeline that an example of two-batch overlap has written: for each schedule and rank what the rank did, and
# above it which rows were on their way meanwhile.
"""Draw a timeline: benchmarks/timeline.py docs/figures/NAME.json makes docs/figures/NAME.svg."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

from plot import load_pyplot

KINDS = {
    "computation": {"A": "#0b6e4f", "B": "#1d4e89", "all": "#555555"},
    "send": {"A": "#e07a00", "B": "#e07a00", "all": "#e07a00"},
    "receive": {"A": "#b23a48", "B": "#b23a48", "all": "#b23a48"},
    "in flight": {"A": "#8fd3b6", "B": "#9cc3ea", "all": "#c8c8c8"},
}
LEGEND = {
    "computes for batch A": "#0b6e4f",
    "computes for batch B": "#1d4e89",
    "computes for all tokens": "#555555",
    "send": "#e07a00",
    "receive, waits included": "#b23a48",
    "between send and receive": "#c8c8c8",
}


def batch_of(event: dict) -> str:
    """ "A", "B" or "all": the word behind the verb, before a comma."""
    return event["name"].split(",")[0].split()[-1]


def draw(axes, events: list[dict], ranks: int) -> None:
    for event in events:
        above = event["tid"]  # lane 0 is the rank's work
        y = event["pid"] * 4 - above
        color = KINDS[event["cat"]][batch_of(event)]
        height = 0.8 if above == 0 else 0.5
        # What is shorter than a line is wide shows as a line.
        axes.barh(y, event["dur"], left=event["ts"], height=height, color=color, linewidth=0.3, edgecolor=color)
    axes.set_yticks([rank * 4 for rank in range(ranks)], [f"rank {rank}" for rank in range(ranks)])
    axes.set_ylim(ranks * 4 - 2.6, -3.2)
    axes.grid(axis="x", alpha=0.3)


def subtitle(about: dict) -> str:
    return (
        f"{about['machine']}, {about['backend']}, {about['ranks']} ranks, {about['tokens']} tokens each, "
        f"hidden {about['hidden']}, top-{about['top_k']} of {about['experts']}, {about['layers']} layers, "
        f"the fastest of {about['runs']} runs; commit {about['commit']}"
    )


def picture(timeline: dict, path: Path) -> None:
    pyplot = load_pyplot()
    about = timeline["otherData"]
    schedules = list(dict.fromkeys(event["args"]["schedule"] for event in timeline["traceEvents"]))
    height = 1.2 + len(schedules) * (0.5 + 0.75 * about["ranks"])
    figure, panels = pyplot.subplots(len(schedules), 1, figsize=(11, height), sharex=True, squeeze=False)
    for axes, schedule in zip(panels[:, 0], schedules, strict=True):
        events = [event for event in timeline["traceEvents"] if event["args"]["schedule"] == schedule]
        draw(axes, events, about["ranks"])
        end = max(event["ts"] + event["dur"] for event in events)
        axes.set_title(f"{schedule}: {end:.0f} µs", loc="left", fontsize=10)
    panels[-1, 0].set_xlabel("time in µs")
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=color) for color in LEGEND.values()]
    figure.legend(handles, LEGEND.keys(), loc="lower center", ncol=3, fontsize=8, frameon=False)
    figure.suptitle(subtitle(about), fontsize=9)
    figure.tight_layout(rect=(0, 0.5 / height, 1, 1))
    figure.savefig(path, metadata={"Date": None, "Description": digest(timeline)})
    pyplot.close(figure)


def digest(timeline: dict) -> str:
    """Of what the picture shows; written into it, so that an old picture is noticed without drawing."""
    return hashlib.sha256(json.dumps(timeline, sort_keys=True).encode()).hexdigest()[:16]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("timeline", type=Path, help="what an example wrote with --json")
    parser.add_argument(
        "--check", action="store_true", help="draw nothing; exit code 1 if the picture shows another one"
    )
    args = parser.parse_args()
    timeline = json.loads(args.timeline.read_text())
    path = args.timeline.with_suffix(".svg")
    if args.check:
        shown = path.is_file() and digest(timeline) in path.read_text()
        if not shown:
            print(f"timeline: {path} does not show {args.timeline}", file=sys.stderr)
        return int(not shown)
    picture(timeline, path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
