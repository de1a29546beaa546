# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""`ferry bench` on small cases, and the scripts that compare and plot its lines."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FERRY = ROOT / "build/host/bin/ferry"
sys.path.insert(0, str(ROOT / "benchmarks"))

import compare  # noqa: E402
import figures  # noqa: E402
import measurements  # noqa: E402
import plot  # noqa: E402

FIELDS = set(
    "commit date machine backend ranks nodes ranks_as mode op layout payload codec reduction tokens hidden top_k "
    "experts routing network link_limit_gbps launch num_sms time_us_median time_us_p90 time_us_p99 necessary_bytes "
    "ceiling_gbps fraction logical_gbps verified output input".split()
)
SMALL = ["--tokens=16", "--hidden=256", "--experts=16", "--top-k=4", "--iterations=3", "--warmup=2", "--sets=3"]

needs_ferry = pytest.mark.skipif(not FERRY.exists(), reason=f"{FERRY} is not built")


def bench(*options: str) -> subprocess.CompletedProcess:
    return subprocess.run([FERRY, "bench", *options], capture_output=True, text=True, timeout=100)


@needs_ferry
@pytest.mark.parametrize(
    "options",
    [
        ["--ranks=1"],
        ["--ranks=3", "--nodes=2", "--ranks-as=threads", "--op=dispatch,combine,steps"],
        ["--ranks=2", "--mode=latency"],
        ["--ranks=2", "--layout=expert_major", "--reduction=flat", "--routing=zipf"],
        ["--ranks=4", "--nodes=2", "--layout=expert_padded", "--mode=latency", "--reduction=per_node"],
        ["--ranks=2", "--payload=fp8_f32", "--output=owned"],
        ["--ranks=2", "--codec=fp8_ue8m0", "--routing=grouped"],
        ["--ranks=2", "--payload=fp16"],
        ["--ranks=2", "--payload=fp32", "--layout=expert_major"],
    ],
    ids=" ".join,
)
def test_a_small_case_is_measured_and_verified(tmp_path, options):
    path = tmp_path / "lines.jsonl"
    run = bench(*SMALL, *options, f"--json={path}")
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.splitlines()[-1] == "verified"
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    ops = [line["op"] for line in lines]
    assert ops[:2] == ["dispatch", "combine"]
    assert ("route" in ops) == any("steps" in option for option in options)
    for line in lines:
        assert set(line) == FIELDS
        assert line["verified"] is True
        assert line["tokens"] == 16
        assert 0 < line["time_us_median"] <= line["time_us_p90"] <= line["time_us_p99"]
    if "--ranks=1" not in options:
        assert 0 < lines[0]["fraction"]


@needs_ferry
def test_several_token_counts_make_several_lines(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert bench(*SMALL[1:], "--tokens=4,8", "--op=dispatch", f"--json={path}").returncode == 0
    assert [json.loads(text)["tokens"] for text in path.read_text().splitlines()] == [4, 8]


@needs_ferry
@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--mode=fast", "expected throughput or latency"),
        ("--top-k=17", "--top-k 17: expected 1 .. 16"),
        ("--nodes=3", "--nodes 3: expected 1 .. 2"),
        ("--reduction=flat", "needs an expert layout"),
        ("--tokens=-1", "expected 0 or more"),
        ("--op=sideways", "sideways"),
        ("--backend=gpu", "--backend: 'gpu' given, expected one of auto|host|cuda"),
        ("--input=window", "--input: window given, expected any on the host"),
        ("--launch=graph", "--launch: graph given, expected direct on the host"),
    ],
)
def test_options_that_make_no_sense_are_refused(option, words):
    run = bench("--experts=16", option)
    assert run.returncode == 2
    assert words in run.stdout + run.stderr


@needs_ferry
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--mode=fast", "--mode: fast given, expected throughput or latency"),
        ("--codec=fp8_f32", "--codec: fp8_f32 given, expected none with --backend cuda"),
        (
            "--mode=latency --layout=expert_major",
            "--layout expert_major --codec none --reduction per_rank --output window",
        ),
        ("--mode=latency --payload=fp16", "--payload fp16 --layout rank_major --codec none"),
        ("--mode=latency --output=owned", "--output owned given, expected"),
        ("--mode=latency --input=window", "--input: window given, expected any with --backend cuda"),
        ("--mode=latency --op=steps --launch=graph", "--launch: graph given, expected direct"),
        ("--nodes=2", "--nodes: 2 given, expected 1 with --backend cuda"),
        ("--ranks-as=processes", "--ranks-as: processes given, expected threads with --backend cuda"),
        ("--sets=4", "--sets: 4 given, expected 0 with --backend cuda"),
        ("--payload=fp16", "--payload fp16 --layout rank_major --output window given, expected"),
        ("--layout=expert_major", "--layout: expert_major given, expected rank_major for combine"),
        ("--op=steps", "--op: steps given, expected dispatch or combine"),
    ],
)
def test_cases_that_the_gpu_benchmark_lacks_are_refused(options, words):
    run = bench("--backend=cuda", *options.split())
    assert run.returncode == 2
    assert words in run.stderr


@needs_ferry
@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="this machine has GPUs; see test_gpu_commands.py")
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--mode=latency", "--op=dispatch,combine,steps"],
        ["--mode=latency", "--layout=expert_padded", "--codec=fp8_f32", "--reduction=flat"],
    ],
    ids=" ".join,
)
def test_bench_without_a_gpu_says_what_is_missing(options):
    run = bench("--backend=cuda", "--tokens=16", *options)
    assert run.returncode == 1
    last = run.stdout.splitlines()[-1]
    assert last.startswith("FAILED: --backend: cuda given, but")
    assert "use --backend host" in last


def line(**changes) -> dict:
    base = {field: "x" for field in FIELDS}
    base |= {"mode": "latency", "ranks": 2, "tokens": 8, "experts": 256, "op": "dispatch", "backend": "host"}
    base |= {"nodes": 1}
    base |= {
        "time_us_median": 10.0,
        "time_us_p90": 12.0,
        "necessary_bytes": 1000,
        "ceiling_gbps": 1.0,
        "verified": True,
    }
    return base | changes


def test_compare_takes_the_middle_round_and_the_better_baseline(tmp_path):
    results = compare.Results()
    for op in ("dispatch", "combine"):
        for median in (30.0, 10.0, 20.0):
            results.add("ferry", line(op=op, time_us_median=median))
            results.add("mpi yield=0", line(op=op, backend="mpi", time_us_median=median * 3))
            results.add("mpi yield=1", line(op=op, backend="mpi", time_us_median=median * 5))
    (shape,) = results.shapes()
    assert results.ferry(shape, "dispatch")["time_us_median"] == 20.0
    assert results.best_mpi(shape, "dispatch")["time_us_median"] == 60.0
    text, met = compare.table_row(results, shape, "sum")
    assert met and "3.00" in text
    compare.write_results(results, tmp_path / "kept.jsonl")
    kept = [json.loads(text) for text in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert [(one["backend"], one["op"]) for one in kept] == [
        ("host", "dispatch"),
        ("mpi", "dispatch"),
        ("host", "combine"),
        ("mpi", "combine"),
    ]


def test_compare_refuses_results_that_are_not_verified():
    lie = json.dumps(line(verified=False))
    program = "import sys; open(sys.argv[1].split('=')[1], 'w').write('''" + lie + "''')"
    with pytest.raises(RuntimeError, match="not verified"):
        compare.run_and_read([sys.executable, "-c", program], 20)


def test_plot_keeps_cases_apart_and_uses_the_newest_line():
    lines = [
        line(tokens=t, date=d, backend=b) for t in (1, 8) for d in ("2026-01-01", "2026-01-02") for b in ("host", "mpi")
    ]
    lines.append(line(tokens=8, ranks=4))  # one token count: no curve
    lines.append(line(tokens=32, verified=False))
    (group,) = plot.panels(lines).values()
    assert len(group) == 8
    assert [one["date"] for one in plot.latest(group).values()] == ["2026-01-02"] * 2
    assert measurements.floor_us(line()) == pytest.approx(1.0)


def test_plot_draws_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    data = tmp_path / "lines.jsonl"
    lines = [
        line(tokens=t, op=op, backend=b) for t in (1, 8) for op in ("dispatch", "combine") for b in ("host", "mpi")
    ]
    data.write_text("\n".join(json.dumps(one) for one in lines))
    assert plot.main([str(data), "--out", str(tmp_path / "plots")]) == 0
    assert len(list((tmp_path / "plots").glob("*.svg"))) == 1


def gpu_line(**changes) -> dict:
    base = {"machine": "2xG", "backend": "cuda", "mode": "throughput", "op": "dispatch", "layout": "rank_major"}
    base |= {"payload": "bf16", "reduction": "", "output": "window", "input": None, "launch": "direct", "num_sms": 16}
    base |= {"tokens": 4096, "hidden": 7168, "top_k": 8, "routing": "uniform", "commit": "new", "date": "2026-01-02"}
    base |= {"fraction": 0.5, "time_us_median": 200.0, "necessary_bytes": 36e6, "ceiling_gbps": 360.0}
    return line() | base | changes


def latency_line(**changes) -> dict:
    base = {
        "mode": "latency",
        "layout": "expert_padded",
        "codec": "fp8_f32",
        "num_sms": 0,
        "tokens": 128,
        "time_us_p99": 25.0,
    }
    return gpu_line(**(base | changes))


def test_tables_of_latency_mode():
    whole = [latency_line(launch=launch, time_us_median=us) for launch, us in (("direct", 20.0), ("graph", 15.0))]
    (row,) = figures.latency_table(whole)[-1:]
    assert row == "| 2xG | dispatch, fp8_f32, expert_padded | 128 | any | 20.0 (25.0) | 15.0 (25.0) |"
    assert figures.latency_table([gpu_line()]) == [] == figures.hooks_table(whole)
    hooks = [
        latency_line(op=op, clock=clock, time_us_median=us, sm_us=100.0 if clock == "trace" else None)
        for clock, us in (("trace", 8.0), ("events", 9.0))
        for op in figures.HALVES
    ]
    hooks.append(latency_line(op="gemm", in_flight="combine", slow_down_percent=1.234))
    (row,) = figures.hooks_table(hooks)[-1:]
    assert row == "| 2xG | 128 | 8.0 | 8.0 | 8.0 | 8.0 | 8.0 | 100 | trace | - / 1.23 % |"


def gpu_lines() -> list[dict]:
    lines = [gpu_line(tokens=tokens, launch=launch) for tokens in (1024, 4096, 8192) for launch in ("direct", "graph")]
    lines += [gpu_line(num_sms=sms) for sms in (4, 8)]
    for sms, tokens in ((16, 1024), (16, 4096), (8, 4096)):
        lines.append(gpu_line(op="combine", output=None, input="window", num_sms=sms, tokens=tokens))
    lines += [gpu_line(commit="old", date="2026-01-01", tokens=2048), gpu_line(routing="zipf", fraction=9.0)]
    lines += [gpu_line(nodes=2, network="loopback", link_limit_gbps=50, tokens=512)]
    return lines


def test_calls_across_nodes_say_so():
    name = measurements.call_name(gpu_line(nodes=2, network="loopback", link_limit_gbps=50))
    assert name == "dispatch, bf16, rank_major, window, 2 nodes over loopback at 50 GB/s"


def test_gpu_pictures_show_the_newest_commit_over_tokens_and_sms():
    over_tokens, over_sms = measurements.gpu_pictures(gpu_lines())
    assert (over_tokens.name, over_tokens.fixed) == ("2xG-throughput-tokens.svg", 16)
    assert (over_sms.name, over_sms.fixed) == ("2xG-throughput-sms.svg", 4096)
    curves = over_tokens.curves("dispatch")
    assert list(curves) == ["dispatch, bf16, rank_major, window", "dispatch, bf16, rank_major, window, graph"]
    assert [one["tokens"] for one in curves["dispatch, bf16, rank_major, window"]] == [1024, 4096, 8192]
    (name,) = over_sms.curves("combine")
    assert [one["num_sms"] for one in over_sms.curves("combine")[name]] == [8, 16]
    assert over_tokens.digest != over_sms.digest


def test_a_gpu_picture_says_what_it_was_drawn_from(tmp_path):
    pytest.importorskip("matplotlib")
    for picture in measurements.gpu_pictures(gpu_lines()):
        path = plot.draw_gpu_picture(picture, tmp_path)
        assert picture.digest in path.read_text()
        assert path.stat().st_size < 100_000
        again = path.read_bytes()
        assert plot.draw_gpu_picture(picture, tmp_path).read_bytes() == again


def test_plot_wants_either_files_or_the_committed_results():
    for arguments in ([], ["--gpu", "some.jsonl"]):
        with pytest.raises(SystemExit) as ended:
            plot.main(arguments)
        assert ended.value.code == 2


def test_figures_notice_pictures_of_other_lines(tmp_path, monkeypatch):
    lines = gpu_lines()
    monkeypatch.setattr(figures, "PICTURES", tmp_path)
    pictures = measurements.gpu_pictures(lines)
    names = [picture.name for picture in pictures]
    assert figures.old_pictures(lines) == names
    for picture in pictures:
        (tmp_path / picture.name).write_text(picture.digest)
    assert figures.old_pictures(lines) == []
    lines[0]["time_us_median"] += 1
    assert names[0] in figures.old_pictures(lines)
    assert all(f"docs/figures/{name}" in figures.figures(lines) for name in names)
    assert "| 2xG | dispatch, bf16, rank_major, window, graph | 16 | 200 | 100 | 0.50 |" in figures.figures(lines)
