#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
#
# Writes the tables of the README from the committed results, between its two marks; `--check` says whether they agree.
"""Make the README's tables from benchmarks/results/*.jsonl."""

from __future__ import annotations

import argparse
import sys

from measurements import PICTURES, ROOT, call_name, floor_us, gpu_pictures, is_usual, of_newest_commit, verified_results

BEGIN, END = "<!-- figures: made by benchmarks/figures.py -->", "<!-- end of figures -->"


def best_mpi(lines: list[dict], case: tuple) -> float | None:
    """Of the baseline's newest runs, with and without yielding, the faster one."""
    times = [line["time_us_median"] for line in lines if line["backend"] == "mpi" and case_of(line) == case]
    return min(times[-2:]) if times else None


def case_of(line: dict) -> tuple:
    names = "machine mode ranks tokens experts layout payload codec reduction hidden top_k routing op".split()
    return tuple(line[name] for name in names)


def host_table(lines: list[dict]) -> list[str]:
    rows = {}
    for line in lines:
        mpi = best_mpi(lines, case_of(line)) if line["backend"] == "host" else None
        if mpi is None:
            continue
        key = (line["machine"], line["mode"], line["ranks"], line["tokens"], line["op"])
        ferry = line["time_us_median"]
        rows[key] = (
            f"| {line['machine']} | {line['mode']} | {line['ranks']} | {line['tokens']} | {line['op']} "
            f"| {ferry:.0f} | {mpi:.0f} | {mpi / ferry:.2f} |"
        )
    head = [
        "| machine | mode | ranks | tokens | call | Ferry, us | MPI, us | MPI / Ferry |",
        "|---|---|--:|--:|---|--:|--:|--:|",
    ]
    order = lambda key: (key[0], key[1] == "latency", *key[2:4], key[4] != "dispatch")  # noqa: E731
    return head + [rows[key] for key in sorted(rows, key=order)]


def cuda_table(lines: list[dict]) -> list[str]:
    rows = {}
    for line in lines:
        if line["tokens"] != 4096:
            continue
        name = call_name(line)
        rows[(line["machine"], not is_usual(line), line["op"] != "dispatch", name, -line["num_sms"])] = (
            f"| {line['machine']} | {name} | {line['num_sms']} | {line['time_us_median']:.0f} "
            f"| {floor_us(line):.0f} | {line['fraction']:.2f} |"
        )
    head = ["| machine | call, 4096 tokens per rank | SMs | us | floor, us | fraction |", "|---|---|--:|--:|--:|--:|"]
    return head + [rows[key] for key in sorted(rows)]


def latency_table(lines: list[dict]) -> list[str]:
    """Whole calls of latency mode: median and p99, direct and replayed."""
    cells = {}
    for line in lines:
        if line["mode"] != "latency" or line["op"] not in ("dispatch", "combine") or not is_usual(line):
            continue
        name = ", ".join(part for part in (line["op"], line["codec"], line["layout"], line["reduction"]) if part)
        key = (line["machine"], line["op"] != "dispatch", name, line["num_sms"], line["tokens"])
        cells.setdefault(key, {})[line["launch"]] = f"{line['time_us_median']:.1f} ({line['time_us_p99']:.1f})"
    if not cells:
        return []
    rows = [
        f"| {machine} | {name} | {tokens} | {sms or 'any'} | {cell.get('direct', '')} | {cell.get('graph', '')} |"
        for (machine, _, name, sms, tokens), cell in sorted(cells.items())
    ]
    head = [
        "| machine | latency call | tokens | SMs | direct, us (p99) | replayed, us (p99) |",
        "|---|---|--:|--:|--:|--:|",
    ]
    return ["", "Latency mode, whole calls, median and p99.", "", *head, *rows]


HALVES = ("dispatch_send", "dispatch_recv", "combine_send", "combine_recv", "four_kernels")


def hooks_table(lines: list[dict]) -> list[str]:
    """Latency mode with hooks: the four kernels by the trace (else by events), and a product between the halves."""
    kernels, slow_downs = {}, {}
    for line in sorted(lines, key=lambda one: one.get("clock") == "trace"):  # of both clocks the trace stays
        key = (line["machine"], line["tokens"])
        if line["op"] == "gemm":
            slow_downs.setdefault(key, {})[line["in_flight"]] = f"{line['slow_down_percent']:.2f} %"
        elif "clock" in line:
            kernels.setdefault(key, {})[line["op"]] = line
    if not kernels:
        return []
    rows = []
    for key, found in sorted(kernels.items()):
        times = " | ".join(f"{found[op]['time_us_median']:.1f}" if op in found else "" for op in HALVES)
        whole = found.get("four_kernels", {})
        sm_us = f"{whole['sm_us']:.0f}" if whole.get("sm_us") else ""
        slow = " / ".join(slow_downs.get(key, {}).get(op, "-") for op in ("dispatch", "combine"))
        rows.append(f"| {key[0]} | {key[1]} | {times} | {sm_us} | {whole.get('clock', '')} | {slow} |")
    head = [
        "| machine | tokens | dispatch send | receive | combine send | receive | sum, us | SMs x us | clock "
        "| product slower by, dispatch / combine |",
        "|---|--:|--:|--:|--:|--:|--:|--:|---|--:|",
    ]
    return ["", "With hooks: each kernel, launched after its data has arrived; and a large product between the halves.",
            "", *head, *rows]  # fmt: skip


def picture_links(lines: list[dict]) -> list[str]:
    return [
        f"![{picture.machine}, {picture.mode} mode: time and fraction of the link over "
        f"{'tokens per rank' if picture.over == 'tokens' else 'SMs'}](docs/figures/{picture.name})"
        for picture in gpu_pictures(lines)
    ]


def old_pictures(lines: list[dict]) -> list[str]:
    """Pictures that are not there or show other lines than the committed ones."""
    old = []
    for picture in gpu_pictures(lines):
        path = PICTURES / picture.name
        if not path.is_file() or picture.digest not in path.read_text():
            old.append(picture.name)
    return old


def figures(lines: list[dict]) -> str:
    cuda = of_newest_commit([line for line in lines if line["backend"] == "cuda"])
    shown = [line for line in lines if line["backend"] != "cuda"] + cuda
    commits = sorted({f"{line['machine']}: {line['commit']}" for line in shown})
    parts = [
        "Hidden 7168, bf16, top-8, per_rank; medians of the slowest rank, results verified. Made at commits "
        + ", ".join(commits)
        + ".",
        "",
        *host_table(lines),
        "",
        "Floor: the necessary bytes at the rate at which all SMs push to a neighbour in the same run.",
        "",
        *cuda_table(cuda),
        *latency_table(cuda),
        *hooks_table(cuda),
        "",
        *picture_links(lines),
    ]
    return "\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit code 1 if the README says something else"
    )
    args = parser.parse_args()
    readme = ROOT / "README.md"
    text = readme.read_text()
    before, found, rest = text.partition(BEGIN)
    _, found_end, after = rest.partition(END)
    if not found or not found_end:
        print(f"figures: README.md has no marks {BEGIN} ... {END}", file=sys.stderr)
        return 1
    # What was measured between nodes on a host stands in docs/network.md.
    lines = [line for line in verified_results() if line["backend"] == "cuda" or line["nodes"] == 1]
    wanted = f"{before}{BEGIN}\n{figures(lines)}\n{END}{after}"
    if args.check:
        if wanted != text:
            print("figures: README.md does not show the committed results; run benchmarks/figures.py", file=sys.stderr)
        old = old_pictures(lines)
        if old:
            print(f"figures: {', '.join(old)} in docs/figures: not drawn from the committed results; run "
                  "benchmarks/plot.py --gpu", file=sys.stderr)  # fmt: skip
        return int(wanted != text or bool(old))
    readme.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
