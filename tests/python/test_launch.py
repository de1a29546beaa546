# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""The launcher by itself: variables, exit codes, signals, output."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ferry.launch import find_port_pair, parse_arguments

ENVIRONMENT = {**os.environ, "PYTHONPATH": ":".join(sys.path)}


def start(tmp_path: Path, text: str, *options: str) -> subprocess.Popen[str]:
    script = tmp_path / "script.py"
    script.write_text("import os, sys, time, signal\nrank = int(os.environ['RANK'])\n" + text)
    return subprocess.Popen(
        [sys.executable, "-m", "ferry.launch", *options, str(script), "a", "--ranks"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, list[str], str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, sorted(out.splitlines()), err


def wait_for(path: Path, count: int) -> None:
    deadline = time.monotonic() + 30
    while len(list(path.glob("*.pid"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_variables(tmp_path: Path) -> None:
    text = """
names = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR FERRY_NODE_SIZE OMP_NUM_THREADS".split()
# One write a line: ranks share the pipe, and print() writes word by word where output is not buffered.
words = [*[os.environ.get(name) for name in names], sys.argv[1:], len(os.environ["FERRY_TOKEN"]) >= 16]
sys.stdout.write(" ".join(map(str, words)) + "\\n")
sys.stdout.write(" ".join(["port", os.environ["MASTER_PORT"], os.environ["FERRY_TOKEN"]]) + "\\n")
"""
    ENVIRONMENT.pop("OMP_NUM_THREADS", None)
    code, lines, err = finish(start(tmp_path, text, "--ranks", "2", "--node-size", "1"))
    assert code == 0, err
    assert lines[0] == "0 2 0 2 127.0.0.1 1 1 ['a', '--ranks'] True"
    assert lines[1] == "1 2 1 2 127.0.0.1 1 1 ['a', '--ranks'] True"
    assert lines[2] == lines[3]  # all have the same port and secret


def test_prefix(tmp_path: Path) -> None:
    text = "print('one'); print('two', end=''); sys.stdout.flush(); print('bad', file=sys.stderr)"
    code, lines, err = finish(start(tmp_path, text, "-n", "2", "--prefix"))
    assert code == 0
    assert lines == ["[0] one", "[0] two", "[1] one", "[1] two"]
    assert sorted(err.splitlines()) == ["[0] bad", "[1] bad"]


SLEEPER = """
open(os.path.join(os.path.dirname(__file__), f"{rank}.pid"), "w").write(str(os.getpid()))
"""


@pytest.mark.parametrize(
    ("failure", "code", "words"),
    [("sys.exit(7)", 7, "rank 1 exited with 7"), ("os.kill(os.getpid(), 9)", 137, "rank 1 was ended by SIGKILL")],
)
def test_first_failure_ends_the_others(tmp_path: Path, failure: str, code: int, words: str) -> None:
    begin = time.monotonic()
    process = start(tmp_path, f"{SLEEPER}\nif rank == 1: {failure}\ntime.sleep(100)", "-n", "3")
    got, _, err = finish(process)
    assert got == code
    assert words in err
    assert time.monotonic() - begin < 30
    assert not any(is_alive(int(path.read_text() or 0)) for path in tmp_path.glob("*.pid"))


def test_stubborn_ranks_are_killed(tmp_path: Path) -> None:
    text = f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{SLEEPER}\n" + (
        "folder = os.path.dirname(__file__)\n"
        "while rank == 1 and len([n for n in os.listdir(folder) if n.endswith('.pid')]) < 2: time.sleep(0.01)\n"
        "if rank == 1: sys.exit(1)\ntime.sleep(100)"
    )
    process = start(tmp_path, text, "-n", "2", "--grace", "0.2")
    assert finish(process)[0] == 1
    assert not any(is_alive(int(path.read_text())) for path in tmp_path.glob("*.pid"))


def test_signals_are_passed_on(tmp_path: Path) -> None:
    text = f"""
def end(*_):
    sys.stdout.write(f"asked {{rank}}\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
{SLEEPER}
time.sleep(100)
"""
    process = start(tmp_path, text, "-n", "2")
    wait_for(tmp_path, 2)
    process.send_signal(signal.SIGTERM)
    code, lines, _ = finish(process)
    assert code == 128 + signal.SIGTERM
    assert lines == ["asked 0", "asked 1"]


def test_ranks_end_with_a_killed_launcher(tmp_path: Path) -> None:
    process = start(tmp_path, f"{SLEEPER}\ntime.sleep(100)", "-n", "2")
    wait_for(tmp_path, 2)
    time.sleep(0.1)
    pids = [int(path.read_text()) for path in tmp_path.glob("*.pid")]
    process.kill()
    process.wait(timeout=20)
    deadline = time.monotonic() + 10
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_modules() -> None:
    job = parse_arguments(["-n", "2", "-m", "package.module", "--x"])
    assert list(job.command) == [sys.executable, "-m", "package.module", "--x"]


@pytest.mark.parametrize(
    "arguments", [["script.py"], ["-n", "0", "s.py"], ["-n", "2"], ["-n", "2", "--port", "65535", "s.py"]]
)
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_arguments(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_port_pairs() -> None:
    assert 0 < find_port_pair() < 65535
    assert 0 < find_port_pair("127.0.0.1") < 65535
