# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""Importing ferry does no work."""

import subprocess
import sys

import ferry
import pytest

PROBE = """
import os, sys
def state():
    files = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")[:-1]]  # the last one is this listing
    return os.listdir("/proc/self/task"), sorted(os.readlink(name) for name in files)
before_threads, before_files = state()
modules = set(sys.modules)
import ferry
after_threads, after_files = state()
assert len(after_threads) == 1, after_threads
assert not any("socket" in name or "cuda" in name.lower() for name in after_files), after_files
assert len(before_files) == len(after_files), (before_files, after_files)
new = {name.split(".")[0] for name in set(sys.modules) - modules}
assert not new & {"numpy", "ml_dtypes", "torch", "jax", "cupy"}, new
assert not new & {"socket", "subprocess", "threading", "multiprocessing"}, new
libraries = open("/proc/self/maps").read()
assert "libfabric" not in libraries and "libcuda" not in libraries
print("ok")
"""


def test_import_does_no_work() -> None:
    # Variables that make no sense must not matter before somebody asks for them.
    environment = {"RANK": "not a number", "WORLD_SIZE": "-1", "FERRY_PORT": "x", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "ok\n", done.stderr


def test_everything_public_is_there_and_documented() -> None:
    for name in ferry.__all__:
        value = getattr(ferry, name)
        if isinstance(value, type) or callable(value):
            assert value.__doc__, name


def test_version_and_capabilities() -> None:
    assert ferry.__version__ == ferry.version()
    assert all(part.isdigit() for part in ferry.__version__.split("."))
    capabilities = ferry.capabilities()
    assert capabilities
    assert all(c.name and c.detail and (c.usable or c.fix is not None) for c in capabilities)
    done = subprocess.run(
        [sys.executable, "-m", "ferry"],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"ferry {ferry.__version__}\n")
    assert capabilities[0].name in done.stdout


@pytest.mark.parametrize(
    ("members", "make"),
    [
        (ferry.Mode, lambda text: None),
        (ferry.DType, lambda text: ferry.GroupConfig(num_experts=1, dtype=text).dtype),
    ],
)
def test_enumerations_are_strings(members: type, make) -> None:
    for member in members:
        assert isinstance(member, str) and str(member) == member.value
        assert make(member) in (None, member)
