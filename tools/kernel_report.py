#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""What each kernel takes of an SM: registers, spills, stack and static shared memory, as ptxas says. No GPU needed.

    tools/kernel_report.py           print the table
    tools/kernel_report.py --write   into docs/design/kernels.md
    tools/kernel_report.py --check   fail if docs/design/kernels.md says something else (not with another nvcc)

A register more can halve the warps that fit, and a spill costs what a kernel gained elsewhere, so a change to either
is to be seen in review. The flags are read from cmake/FerryCuda.cmake.
"""

import argparse
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCES = ROOT / "src/cuda"
REPORT = ROOT / "docs/design/kernels.md"
OPTIONS = re.search(r"COMPILE_LANGUAGE:CUDA>:([^>]*)>", (ROOT / "cmake/FerryCuda.cmake").read_text())
FLAGS = ["-std=c++20", "-O2", "-DNDEBUG", *OPTIONS[1].split(";")]

ENTRY = re.compile(r"Compiling entry function '(\S+)'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


def find_nvcc():
    folders = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ] + ["/usr/local/cuda"]
    return shutil.which("nvcc") or next(filter(None, (shutil.which(f"{folder}/bin/nvcc") for folder in folders)), None)


def version_of(nvcc):
    return re.search(r"release ([\d.]+)", subprocess.check_output([nvcc, "--version"], text=True)).group(1)


def plain_name(symbol):
    """route_kernel, combine_recv_kernel<float, 4>: without namespaces and parameters."""
    name = subprocess.check_output(["c++filt", symbol], text=True).strip()
    name = re.sub(r"\((?:anonymous namespace)\)::|_GLOBAL__N__\w+::|ferry::(?:\w+::)*", "", name)
    name = re.sub(r"^void ", "", name)
    depth = 0
    for place, letter in enumerate(name):  # the parameters begin at the first bracket outside the template's
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return name[:place]
    return name


def label_of(source):
    """route, latency/dispatch: the name under src/cuda, without the suffix."""
    return source.relative_to(SOURCES).with_suffix("").as_posix()


def kernels_of(nvcc, source, architecture, folder):
    command = [nvcc, *FLAGS, "-arch", f"sm_{architecture}", "-I", ROOT / "include", "-I", ROOT / "src", "-cubin"]
    label = label_of(source)
    output = folder / f"{label.replace('/', '.')}.{architecture}.cubin"
    run = subprocess.run([*command, "-Xptxas", "-v", "-o", output, source], text=True, capture_output=True)
    if run.returncode != 0:
        sys.exit(f"kernel_report: nvcc failed on {source.relative_to(ROOT)}\n{run.stderr}")
    rows, name, spills = [], None, None
    for line in run.stderr.splitlines():
        if found := ENTRY.search(line):
            name, spills = plain_name(found[1]), None
        elif (found := SPILLS.search(line)) and name and spills is None:
            spills = [int(n) for n in found.groups()]
        elif (found := USED.search(line)) and name:
            shared = SHARED.search(line)
            rows.append((label, name, int(found[1]), *spills, int(shared[1]) if shared else 0))
            name = None
    return rows


def table(nvcc, architectures):
    sources = sorted(SOURCES.rglob("*.cu"), key=label_of)
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [
            (architecture, pool.submit(kernels_of, nvcc, source, architecture, pathlib.Path(folder)))
            for architecture in architectures
            for source in sources
        ]
        rows = [(architecture, *row) for architecture, job in jobs for row in sorted(job.result())]
    lines = [
        "| sm | file | kernel | registers | stack, bytes | spill stores | spill loads | static shared, bytes |",
        "|--:|---|---|--:|--:|--:|--:|--:|",
    ]
    lines += [f"| {sm} | {file} | `{name}` | {' | '.join(map(str, rest))} |" for sm, file, name, *rest in rows]
    return "\n".join(lines) + "\n"


def report(nvcc, architectures):
    return f"""<!-- SPDX-FileCopyrightText: 2026 The Ferry authors -->
<!-- SPDX-License-Identifier: Apache-2.0 -->
# What each kernel takes of an SM

Made by `tools/kernel_report.py --write` with nvcc {version_of(nvcc)}; `--check`, a part of `make lint`, compares it.
Dynamic shared memory is chosen per call (`src/cuda/policy.cc`). A thread may have 255 registers, an SM has 65536.

{table(nvcc, architectures)}"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write {REPORT.relative_to(ROOT)}")
    parser.add_argument("--check", action="store_true", help="compare with it")
    parser.add_argument("--architectures", default="90", help="commas between them (default: 90)")
    options = parser.parse_args()
    nvcc = find_nvcc()
    if nvcc is None:
        print("kernel_report: no nvcc here, nothing compiled")
        return 0 if options.check else 1
    if options.check:
        said = REPORT.read_text()
        if f"with nvcc {version_of(nvcc)};" not in said:
            print(f"kernel_report: made with another nvcc than {version_of(nvcc)}, not compared")
            return 0
        architectures = sorted(set(re.findall(r"^\| (\d+) \|", said, re.MULTILINE)), key=int)
        seen = report(nvcc, architectures)
        if seen == said:
            print(f"kernel_report: {len(re.findall(r'^. [0-9]+ .', seen, re.MULTILINE))} kernels as committed")
            return 0
        for line in seen.splitlines():
            if line not in said.splitlines():
                print(f"seen:     {line}")
        for line in said.splitlines():
            if line not in seen.splitlines():
                print(f"expected: {line}")
        print("kernel_report: differs; if that is meant: tools/kernel_report.py --write")
        return 1
    text = report(nvcc, options.architectures.split(","))
    if options.write:
        REPORT.write_text(text)
    print(text if not options.write else f"wrote {REPORT.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
