# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""The examples with PyTorch run to their end: over several ranks as the launcher starts them, and one alone."""

import subprocess
import sys
from pathlib import Path

import pytest
from ranks import need

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "torch"
EXAMPLES = sorted(FOLDER.glob("[0-9]*.py"))


def run(command, tmp_path):
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=110)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_over_ranks(device, example, ranks, tmp_path):
    need(device, ranks)
    launch = [sys.executable, "-m", "ferry.launch", "--ranks", str(ranks), example, "--device", device]
    said = run(launch, tmp_path)
    assert said.count("is well") + said.count("are well") == (0 if example.stem.startswith("20") else ranks), said
    if example.stem.startswith("20"):
        assert "largest difference" in said and "all_to_all_single" in said


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_alone(example, tmp_path):
    run([sys.executable, example], tmp_path)
