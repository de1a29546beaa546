# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""The numbered Python examples run to their end. (Those in C++ are tests of ctest.)"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
OVERLAP = ROOT / "build/host/examples/05_two_batch_overlap"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example, tmp_path):
    run = subprocess.run([sys.executable, example], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.skipif(not OVERLAP.exists(), reason=f"{OVERLAP} is not built")
def test_timeline_of_two_batch_overlap(tmp_path):
    """With two batches, the rows of one are on their way while the rank computes for the other."""
    path = tmp_path / "timeline.json"
    run = subprocess.run(
        [OVERLAP, "--layers", "2", "--json", path, "--machine", "here", "--commit", "this"],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    timeline = json.loads(path.read_text())
    assert timeline["otherData"]["commit"] == "this" and timeline["otherData"]["ranks"] == 2
    for rank in range(2):
        of_rank = [event for event in timeline["traceEvents"] if event["pid"] == rank]
        assert {event["args"]["schedule"] for event in of_rank} == {"one batch", "two batches"}
        for event in of_rank:
            if event["cat"] != "in flight" or event["args"]["schedule"] == "one batch":
                continue
            other = "B" if event["name"].endswith("A") else "A"
            begin, end = event["ts"], event["ts"] + event["dur"]
            meanwhile = [
                one
                for one in of_rank
                if one["args"]["schedule"] == "two batches"
                and one["cat"] == "computation"
                and one["name"].endswith(other)
                and begin - 0.1 <= one["ts"]
                and one["ts"] + one["dur"] <= end + 0.1
            ]
            # Nobody computes any more when the last results are on their way.
            last = end + 0.1 >= max(one["ts"] for one in of_rank if one["args"]["schedule"] == "two batches")
            assert meanwhile or last, event
    pytest.importorskip("matplotlib")
    script = [sys.executable, ROOT / "benchmarks/timeline.py", path]
    assert subprocess.run([*script, "--check"], capture_output=True).returncode == 1
    assert subprocess.run(script).returncode == 0
    assert "two batches" in path.with_suffix(".svg").read_text()
    assert subprocess.run([*script, "--check"]).returncode == 0


def test_committed_timelines_are_drawn():
    pytest.importorskip("matplotlib")
    timelines = sorted((ROOT / "docs/figures").glob("*-two-batch-overlap.json"))
    assert timelines
    for path in timelines:
        run = subprocess.run([sys.executable, ROOT / "benchmarks/timeline.py", path, "--check"], capture_output=True)
        assert run.returncode == 0, run.stderr
