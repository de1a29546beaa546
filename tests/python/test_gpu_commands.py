# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""Commands on GPUs. Skipped where `ferry doctor` finds none."""

import functools
import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# tools/gpu.sh builds in a folder of its own.
FERRY = next((path for path in (ROOT / "build/host/bin/ferry", ROOT / "build/gpu/bin/ferry") if path.exists()), ROOT)
FIELDS = set(
    "commit date machine backend ranks nodes ranks_as mode op layout payload codec reduction tokens hidden top_k "
    "experts routing network link_limit_gbps launch num_sms time_us_median time_us_p90 time_us_p99 necessary_bytes "
    "ceiling_gbps fraction logical_gbps verified output input calls".split()
)
SMALL = ["demo", "--backend=cuda", "--tokens=16", "--hidden=64", "--experts=16", "--timeout=20"]

pytestmark = pytest.mark.skipif(FERRY == ROOT, reason="build/host/bin/ferry is not built")


def ferry(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([FERRY, *arguments], capture_output=True, text=True, timeout=280)


@functools.cache
def doctor() -> tuple[subprocess.CompletedProcess, dict]:
    run = ferry("doctor", "--backend=cuda", "--json=/dev/stderr")
    return run, {one["name"]: one for one in json.loads(run.stderr)}


@functools.cache
def num_gpus() -> int:
    return sum(name.removeprefix("GPU ").isdigit() for name in doctor()[1])


@pytest.fixture(autouse=True)
def needs_gpu():
    if num_gpus() == 0:
        pytest.skip(doctor()[1]["GPUs"]["detail"])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("ranks_as", ["threads", "processes"])
@pytest.mark.parametrize("ranks_per_gpu", [1, 2])
def test_demo_verifies_on_gpus(tmp_path, ranks_as, ranks_per_gpu):
    path = tmp_path / "demo.json"
    ranks = min(8, num_gpus()) * ranks_per_gpu
    run = ferry(*SMALL, f"--ranks={ranks}", f"--ranks-as={ranks_as}", f"--json={path}")
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.rstrip().splitlines()[-1] == "verified"
    told = json.loads(path.read_text())
    assert told["options"]["backend"] == "cuda" and told["options"]["experts_on"] == "host"
    assert {(case["mode"], case["layout"]) for case in told["cases"]} == {
        ("throughput", "rank_major"),
        ("throughput", "expert_major"),
        ("throughput", "expert_padded"),
        ("latency", "rank_major"),
        ("latency", "expert_padded"),
    }
    for case in told["cases"]:
        assert all(difference["unequal"] == 0 for difference in case["differences"])


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "options", [["--codec=fp8"], ["--codec=fp16", "--reduction=flat"], ["--codec=fp32", "--ranks=5"]]
)
def test_demo_verifies_other_rows_and_sums(options):
    run = ferry(*SMALL, "--ranks=2", "--ranks-as=threads", *options)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.timeout(300)
def test_demo_refuses_more_threads_than_a_gpu_has_queues_for():
    run = ferry(*SMALL, f"--ranks={33 * num_gpus()}", "--ranks-as=threads")
    assert run.returncode == 1
    assert "expected at most 32 threads per GPU" in run.stdout


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("options", "calls"),
    [
        (["--sms=8,16", "--output=owned"], [("dispatch", 8), ("dispatch", 16), ("combine", 8), ("combine", 16)]),
        (["--op=dispatch", "--layout=expert_major"], [("dispatch", 16)]),
        (["--op=dispatch", "--payload=fp8_f32"], [("dispatch", 16)]),
        (["--op=combine", "--input=any"], [("combine", 16)]),
        (["--mode=latency", "--launch=graph"], [("dispatch", 0), ("combine", 0)]),
        (
            ["--mode=latency", "--layout=expert_padded", "--codec=fp8_f32", "--reduction=flat", "--sms=0,32"],
            [("dispatch", 0), ("combine", 0), ("dispatch", 32), ("combine", 32)],
        ),
        (
            ["--mode=latency", "--op=steps"],
            [("dispatch_recv", 0), ("dispatch_send", 0), ("combine_recv", 0), ("combine_send", 0)],
        ),
    ],
)
def test_bench_measures_and_verifies(tmp_path, options, calls):
    path = tmp_path / "lines.jsonl"
    run = ferry("bench", "--backend=cuda", "--tokens=128", "--iterations=5", *options, f"--json={path}")
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.rstrip().splitlines()[-1] == "verified"
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    assert [(line["op"], line["num_sms"]) for line in lines] == calls
    for line in lines:
        assert FIELDS - set(line) <= {"output", "input"} and set(line) <= FIELDS
        assert line["backend"] == "cuda" and line["ranks"] == min(num_gpus(), 8) and line["verified"] is True
        assert 0 < line["time_us_median"] <= line["time_us_p90"] <= line["time_us_p99"]


@pytest.mark.timeout(300)
def test_bench_refuses_more_ranks_than_gpus():
    run = ferry("bench", "--backend=cuda", f"--ranks={num_gpus() + 1}")
    assert run.returncode == 2
    assert f"expected at most the number of GPUs, {num_gpus()}" in run.stderr


@pytest.mark.timeout(300)
def test_doctor_tries_every_gpu_and_every_pair():
    run, found = doctor()
    assert run.returncode == 0, run.stdout
    assert f"the cuda backend is usable on {num_gpus()} GPU" in run.stdout.rstrip().splitlines()[-1]
    for gpu in range(num_gpus()):
        for what in ("", " code", " compute mode", " windows", " fabric handles", " NVLink"):
            assert found[f"GPU {gpu}{what}"]["detail"]
    pairs = [(a, b) for a in range(num_gpus()) for b in range(num_gpus()) if a != b]
    for owner, user in pairs:
        assert found[f"GPU {owner} by GPU {user}"]["usable"]
    assert pairs or found["GPU 0 with itself"]["usable"]
    assert found["a small cuda group"]["usable"]
