# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""`ferry demo`, `plan` and `doctor` as a user calls them: last lines, exit codes, JSON. (`bench`: test_bench.py.)"""

import json
import subprocess
from pathlib import Path

import pytest

FERRY = Path(__file__).resolve().parents[2] / "build/host/bin/ferry"
SMALL = ["--tokens=16", "--hidden=32"]
STEPS = "route dispatch_send dispatch_forward dispatch_recv combine_send combine_forward combine_recv".split()

pytestmark = pytest.mark.skipif(not FERRY.exists(), reason=f"{FERRY} is not built")


def ferry(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([FERRY, *arguments], capture_output=True, text=True, timeout=100)


def last_line(run: subprocess.CompletedProcess) -> str:
    return run.stdout.rstrip().splitlines()[-1]


def read(path: Path) -> dict | list:
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    "options",
    [
        ["--ranks=3", "--nodes=2"],
        ["--ranks=1", "--codec=fp8_ue8m0"],
        ["--ranks=3", "--nodes=3", "--experts=2", "--top-k=2"],
        ["--ranks=7", "--nodes=3", "--experts=16", "--ranks-as=threads", "--reduction=per_node", "--seed=9"],
        ["--ranks=2", "--nodes=1", "--reduction=flat", "--codec=fp16"],
        ["--ranks=4", "--nodes=3", "--top-k=16", "--mode=latency", "--layout=expert_padded", "--codec=fp8"],
    ],
    ids=" ".join,
)
def test_demo_verifies(tmp_path, options):
    path = tmp_path / "demo.json"
    run = ferry("demo", *SMALL, *options, f"--json={path}")
    assert run.returncode == 0, run.stdout + run.stderr
    assert last_line(run) == "verified"
    told = read(path)
    assert told["verified"] is True and told["failure"] == ""
    assert told["cases"]
    for case in told["cases"]:
        assert {step["step"] for half in ("forward", "backward") for step in case[half]} <= set(STEPS)
        assert all(difference["largest"] == 0 and difference["unequal"] == 0 for difference in case["differences"])
    assert "load per expert" in run.stdout


def test_demo_takes_another_text_and_another_seed(tmp_path):
    text = tmp_path / "text"
    text.write_text("a short text, repeated as often as it takes. " * 20)
    outputs = []
    for seed in (1, 2):
        path = tmp_path / f"{seed}.json"
        run = ferry("demo", *SMALL, "--ranks=2", f"--text={text}", f"--seed={seed}", "--mode=latency", f"--json={path}")
        assert last_line(run) == "verified", run.stdout + run.stderr
        outputs.append(read(path)["cases"][0]["differences"][0]["to_float64"])
    assert outputs[0] != outputs[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("demo --nodes=9", "--nodes: 9 given, expected at most the number of ranks, 8"),
        ("demo --hidden=9", "--hidden: 9 given, expected a multiple of 8"),
        ("demo --text=/nowhere/text", "--text: cannot read '/nowhere/text'"),
        ("demo --json=/nowhere/json", "--json: cannot write '/nowhere/json'"),
        ("demo --mode=latency --layout=expert_major", "use rank_major or expert_padded, or --mode throughput"),
        ("demo --reduction=flat --layout=rank_major", "use expert_major or expert_padded, or --reduction per_rank"),
        ("demo --backend=gpu", "--backend: 'gpu' given, expected one of auto|host|cuda"),
        ("demo --backend=cuda --nodes=2", "--nodes: 2 given, expected 1 with --backend cuda"),
        ("demo --backend=cuda --mode=latency --top-k=33", "latency mode on GPUs takes --top-k up to 32"),
        ("demo --codec=fp4", "--codec: 'fp4' given, expected one of bf16|"),
        ("plan --json=/nowhere/json", "--json: cannot write '/nowhere/json'"),
        ("plan --top-k=9 --experts=4", "--top-k: 9 given, expected at most the number of experts, 4"),
        ("plan --nodes=9", "--nodes: 9 given, expected at most the number of ranks, 8"),
        ("plan --tokens=0", "--tokens: '0' given, expected a whole number from 1"),
        ("plan --hidden=16000000 --tokens=16000000", "limits"),
        ("doctor --backend=gpu", "--backend: 'gpu' given, expected one of host|cuda"),
        ("doctor --json=/nowhere/json", "--json: cannot write '/nowhere/json'"),
        ("bench --json=/nowhere/json", "--json: cannot write '/nowhere/json'"),
        ("", "subcommand"),
    ],
)
def test_bad_usage_is_refused_at_once(arguments, words):
    run = ferry(*arguments.split())
    assert run.returncode == 2
    assert words in run.stdout + run.stderr


@pytest.mark.parametrize("option", ["--network=verbs", "--backend=cuda"])
def test_demo_says_what_failed_as_its_last_line(option):
    run = ferry("demo", *SMALL, "--ranks=2", "--mode=throughput", option)
    if run.returncode == 0:
        assert last_line(run) == "verified"  # a build and a machine that have it
        return
    assert run.returncode == 1
    assert last_line(run).startswith("FAILED: rank ")
    assert "use " in last_line(run)


def test_plan_adds_up(tmp_path):
    path = tmp_path / "plan.json"
    run = ferry("plan", "--ranks=7", "--nodes=3", "--tokens=64", "--hidden=128", "--experts=20", f"--json={path}")
    assert run.returncode == 0, run.stdout + run.stderr
    plan = read(path)
    assert plan["node_sizes"] == "3+2+2"
    end = 0
    for region in plan["regions"]:
        assert region["offset_bytes"] >= end
        end = region["offset_bytes"] + region["bytes"]
    assert end <= plan["rank_bytes"] < end + 4096
    assert plan["rank_bytes"] <= plan["all_bytes"] <= 7 * plan["rank_bytes"]
    assert f"{plan['rank_bytes']}" in run.stdout
    flat, per_rank, per_node = (
        next(one for one in plan["traffic"] if one["reduction"] == word) for word in ("flat", "per_rank", "per_node")
    )
    assert flat["combine_network_bytes"] >= per_rank["combine_network_bytes"] >= per_node["combine_network_bytes"] > 0
    assert per_node["combine_network_bytes"] == per_node["dispatch_network_bytes"]


@pytest.mark.parametrize(("backend", "nodes"), [("host", 2), ("cuda", 1)])
def test_plan_says_what_the_python_function_says(tmp_path, backend, nodes):
    module = pytest.importorskip("ferry")
    path = tmp_path / "plan.json"
    ferry(
        "plan", "--ranks=4", f"--nodes={nodes}", "--tokens=32", "--hidden=64", "--experts=8", "--top-k=2",
        f"--backend={backend}", f"--json={path}",
    )  # fmt: skip
    config = module.GroupConfig(num_experts=8, max_tokens=32, hidden=64, max_top_k=2, backend=backend)
    plan = module.memory_plan(config, module.Topology.split(4, nodes), read(path)["fullest_rank"])
    assert plan.total_bytes == read(path)["rank_bytes"]
    assert [region.name for region in plan.regions] == [region["name"] for region in read(path)["regions"]]


def test_plan_refuses_what_a_group_would_refuse():
    run = ferry("plan", "--ranks=40", "--nodes=40", "--backend=cuda")
    assert run.returncode == 2
    assert "the cuda backend spans at most 32 nodes" in run.stderr


def test_doctor_says_pass_or_reason_and_fix(tmp_path):
    path = tmp_path / "doctor.json"
    run = ferry("doctor", f"--json={path}")
    found = {one["name"]: one for one in read(path)}
    assert run.returncode == (0 if found["backend host"]["usable"] else 1)
    assert last_line(run).startswith("the host backend")
    for name in ("backend cuda", "network loopback", "shared memory", "locked memory", "libfabric", "GPU peers"):
        assert name in found
    for one in found.values():
        assert one["detail"]
        assert one["usable"] or one["fix"], f"{one['name']} has no fix"
        assert one["detail"] in run.stdout


def test_doctor_judges_the_cuda_backend_when_asked(tmp_path):
    path = tmp_path / "doctor.json"
    run = ferry("doctor", "--backend=cuda", f"--json={path}")
    found = {one["name"]: one for one in read(path)}
    if "GPUs" not in found:
        pytest.skip("this machine has GPUs; see test_gpu_commands.py")
    assert run.returncode == 1
    assert last_line(run) == "the cuda backend cannot be used here, see: GPUs"
    assert [name for name in found if name.startswith("GPU ")] == ["GPU peers"]
    assert "none needed for the host backend" in found["GPUs"]["fix"]
    assert run.stdout.count(found["GPUs"]["detail"]) == 1
    about_host = ferry("doctor")
    assert about_host.returncode == 0
    assert "cuda backend" not in last_line(about_host)


def usable_networks(tmp_path):
    path = tmp_path / "doctor.json"
    ferry("doctor", f"--json={path}")
    prefix = "network "
    return {one["name"].removeprefix(prefix): one for one in read(path) if one["name"].startswith(prefix)}


def test_doctor_lists_networks_and_the_library_behind_them(tmp_path):
    networks = usable_networks(tmp_path)
    assert list(networks) == ["loopback", "tcp", "shm", "verbs", "efa"]
    if not networks["tcp"]["usable"]:
        pytest.skip(networks["tcp"]["detail"])
    assert "lo" in networks["tcp"]["detail"] and "posts" in networks["tcp"]["detail"]


@pytest.mark.parametrize("network", ["tcp", "shm", "shuffle+tcp"])
def test_demo_between_nodes_over_a_network(network, tmp_path):
    found = usable_networks(tmp_path)[network.removeprefix("shuffle+")]
    if not found["usable"]:
        pytest.skip(found["detail"])
    run = ferry("demo", *SMALL, "--ranks=3", "--nodes=2", f"--network={network}")
    assert last_line(run) == "verified", run.stdout + run.stderr
    assert f"network {network}" in run.stdout


def test_netcheck_passes_and_measures(tmp_path):
    if not usable_networks(tmp_path)["tcp"]["usable"]:
        pytest.skip("no tcp network")
    path = tmp_path / "netcheck.json"
    run = ferry("netcheck", "--networks=tcp", f"--json={path}")
    assert last_line(run) == "passed", run.stdout + run.stderr
    (report,) = read(path)
    assert report["passed"] and len(report["checks"]) == 4 and not any(one["failure"] for one in report["checks"])
    assert report["latency_us"] > 0 and report["messages_per_s"] > 0 and report["bandwidth_gbps"] > 0


def test_netcheck_says_what_it_cannot_open():
    run = ferry("netcheck", "--networks=loopback")
    assert run.returncode == 1
    assert last_line(run).startswith("FAILED")
    assert "nothing to check" in run.stdout
