#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""Takes fences, credits and waits out of the code one at a time and sees whether a test notices.

Reads tests/mutations/*.toml, copies the tree, builds the test programs with ThreadSanitizer once and then, for each
mutation, the one file it changes. Prints a table and ends with status 1 if a result is not the expected one, 2 if a
mutation no longer fits the source or something else is wrong. Not part of CI: about fifteen seconds a mutation.
The mutations of cuda.toml need a GPU: --mutants builds their programs in one folder, and tools/run_mutants.sh runs that
folder where a GPU is (tools/gpu.sh mutants).

    tools/mutate_fences.py                     all of them
    tools/mutate_fences.py --only 'combine'    those whose name or file matches
    tools/mutate_fences.py --check             only see that every mutation still fits the source
    tools/mutate_fences.py --markdown          print the table of docs/design/fences.md
    tools/mutate_fences.py --mutants DIR       build the programs of cuda.toml (--only chooses), beside a build of this
                                               tree: --build names one, such as build/gpu of tools/gpu.sh
"""

import argparse
import concurrent.futures
import functools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("caught", "not caught")
DEVICE_FILE = "cuda.toml"
FIELDS = {"name", "file", "old", "new", "test", "expect", "why", "limit_s"}

HOST_FLAGS = (
    "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
    "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -g1",
    "-DFERRY_SANITIZE=thread",
    "-DFERRY_CUDA=OFF",
)
DEVICE_FLAGS = ("-DCMAKE_BUILD_TYPE=Release", "-DFERRY_CUDA=ON", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON")


class Wrong(Exception):
    """Something that makes a run meaningless."""


@dataclass
class Mutation:
    name: str
    file: str
    old: str
    new: str
    test: str
    expect: str = "caught"
    why: str = ""
    limit_s: int = 120
    on_device: bool = False

    @property
    def program(self):
        return self.test.split(":", 1)[0]

    @property
    def filter(self):
        return self.test.split(":", 1)[1]

    def applied(self, text):
        found = text.count(self.old)
        if found != 1:
            raise Wrong(f"{self.name}: its text stands {found} times in {self.file}, expected once:\n{self.old}")
        return text.replace(self.old, self.new)


def read_mutations(root):
    mutations = []
    for path in sorted((root / "tests/mutations").glob("*.toml")):
        for entry in tomllib.loads(path.read_text())["mutation"]:
            unknown = set(entry) - FIELDS
            if unknown:
                raise Wrong(f"{path.name}: {entry.get('name')}: unknown fields {sorted(unknown)}")
            mutation = Mutation(**entry, on_device=path.name == DEVICE_FILE)
            if mutation.expect not in KINDS or (mutation.expect == "not caught") != bool(mutation.why):
                raise Wrong(f"{mutation.name}: expect is one of {KINDS}, and 'not caught' needs a why")
            mutations.append(mutation)
    names = [mutation.name for mutation in mutations]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise Wrong(f"names that occur twice: {sorted(twice)}")
    return mutations


def check_all_fit(root, mutations):
    problems = []
    for mutation in mutations:
        try:
            mutation.applied((root / mutation.file).read_text())
        except (Wrong, OSError) as problem:
            problems.append(str(problem))
    if problems:
        raise Wrong("\n".join(problems))


def copy_tree(root, tree):
    """Brings the copy up to date; files that are the same keep their time, so that little is built again."""
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-co", "--exclude-standard"], check=True, capture_output=True, text=True
    ).stdout.split("\n")
    names = {name for name in listed if name and (root / name).is_file()}
    for name in names:
        source, target = root / name, tree / name
        if target.is_file() and target.read_bytes() == source.read_bytes():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(source.stat().st_mode)
    for folder in ("src", "include", "tests"):
        for path in (tree / folder).rglob("*"):
            if path.is_file() and str(path.relative_to(tree)) not in names:
                path.unlink()


def run(command, limit_s, **options):
    """Output and status; status None if it did not end in time. Its children are ended with it."""
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        **options,
    ) as process:
        try:
            output, _ = process.communicate(timeout=limit_s)
            return output, process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            return output, None


class Bench:
    """The copy, its build, and the test programs in it."""

    def __init__(self, tree, build, jobs, flags):
        self.tree, self.build_dir, self.jobs, self.flags = tree, build, jobs, flags

    def configure(self):
        command = [
            "cmake",
            "-S",
            str(self.tree),
            "-B",
            str(self.build_dir),
            "-G",
            "Ninja",
            *self.flags,
            "-DFERRY_TESTS=ON",
            "-DFERRY_APPS=OFF",
            "-DFERRY_EXAMPLES=OFF",
            "-DFERRY_BENCHMARKS=OFF",
            "-DFERRY_PYTHON=OFF",
            "-DFERRY_WERROR=OFF",
        ]
        if shutil.which("ccache"):
            command.append("-DCMAKE_CXX_COMPILER_LAUNCHER=ccache")
        output, status = run(command, 300)
        if status != 0:
            raise Wrong(output)

    def build(self, programs):
        command = ["cmake", "--build", str(self.build_dir), f"-j{self.jobs}", "--target", *sorted(programs)]
        output, status = run(command, 3600)
        if status != 0:
            raise Wrong(f"does not compile:\n{output[-3000:]}")

    def test(self, program, pattern, limit_s):
        """Empty if all tests passed, else what failed."""
        environment = dict(os.environ, TSAN_OPTIONS="halt_on_error=1")
        command = [
            "setarch",
            "-R",
            str(self.build_dir / "tests" / program),
            f"--gtest_filter={pattern}",
            "--gtest_fail_fast",
            "--gtest_brief=0",
        ]
        output, status = run(command, limit_s, env=environment)
        if "[==========] Running 0 tests" in output or "[==========] Running" not in output:
            raise Wrong(f"{program}: no test matches {pattern}\n{output[-2000:]}")
        if status == 0:
            return ""
        started = re.findall(r"^\[ RUN      \] (\S+)", output, re.M)
        where = started[-1] if started else "?"
        race = re.search(r"WARNING: ThreadSanitizer: ([\w ]+)", output)
        if race:
            return f"{where}: {race.group(1).strip()}"
        if status is None:
            return f"{where}: did not end in {limit_s} s"
        failed = re.findall(r"^\[  FAILED  \] (\S+?),?(?: |$)", output, re.M)
        return f"{failed[0]}: failed" if failed else f"{where}: ended with status {status}"


def try_one(bench, mutation):
    """What failed, if anything. Tests that depend on how threads meet get three tries to notice."""
    path = bench.tree / mutation.file
    before = path.read_text()
    path.write_text(mutation.applied(before))
    try:
        bench.build({mutation.program})
        for _ in range(3 if mutation.expect == "caught" else 1):
            failed = bench.test(mutation.program, mutation.filter, mutation.limit_s)
            if failed:
                break
        return failed
    finally:
        path.write_text(before)


def check_baseline(bench, mutations):
    """Without a mutation every test must pass, or what they say means nothing."""
    for program in sorted({mutation.program for mutation in mutations}):
        patterns = sorted({part for m in mutations if m.program == program for part in m.filter.split(":")})
        failed = bench.test(program, ":".join(patterns), 1500)
        if failed:
            raise Wrong(f"{program} fails without any mutation: {failed}")


class DeviceBench:
    """A build that stays as it is: what a mutation changes is compiled beside it and linked before the library."""

    def __init__(self, build, jobs):
        self.build_dir, self.jobs = build.resolve(), jobs
        commands = json.loads((build / "compile_commands.json").read_text())
        self.commands = {Path(c["file"]): c for c in commands if Path(c["file"]).is_relative_to(ROOT / "src")}

    def program(self, name):
        return self.build_dir / "tests" / name

    def link_command(self, program):
        """The folder and the command that links a program, for either of CMake's generators."""
        script = self.build_dir / f"tests/CMakeFiles/{program}.dir/link.txt"
        if script.exists():
            return script.parent.parent.parent, script.read_text().strip()
        listed = subprocess.run(
            ["ninja", "-C", str(self.build_dir), "-t", "commands", f"tests/{program}"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        return self.build_dir, listed.strip().split("\n")[-1]

    def sources_with(self, changed):
        """The sources of the library that are `changed` or include it, directly or not."""

        @functools.cache
        def includes(file):
            found = re.findall(r'^#include "(.+)"', (ROOT / file).read_text(), re.M)
            near = [Path("src") / name for name in found]
            return {name for name in near if (ROOT / name).is_file()}

        def reaches(file, seen):
            if file == changed:
                return True
            seen.add(file)
            return any(reaches(name, seen) for name in includes(file) if name not in seen)

        return [file for file in self.commands if reaches(file.relative_to(ROOT), set())]

    def mutant(self, mutation, program):
        """Writes `program` with the mutation."""
        with tempfile.TemporaryDirectory(prefix="ferry-mutant-") as work:
            tree = Path(work) / "src"
            shutil.copytree(ROOT / "src", tree)
            target = Path(work) / mutation.file
            target.write_text(mutation.applied(target.read_text()))
            objects = []
            for source in self.sources_with(Path(mutation.file)):
                entry = self.commands[source]
                words = shlex.split(entry["command"].replace(str(ROOT / "src"), str(tree)))
                objects.append(str(Path(work) / f"{len(objects)}.o"))
                words[words.index("-o") + 1] = objects[-1]
                self.call(mutation, words, entry["directory"])
            folder, command = self.link_command(program.name.split("-", 1)[1])
            words = [word for word in shlex.split(command) if word not in (":", "&&")]
            at = words.index("-o")
            words[at : at + 2] = [*objects, "-s", "-o", str(program)]
            self.call(mutation, words, folder)

    def call(self, mutation, words, folder):
        output, status = run(words, 600, cwd=folder)
        if status != 0:
            raise Wrong(f"{mutation.name}: does not compile:\n{output[-3000:]}")

    def check_pattern(self, program, pattern):
        if not program.endswith("_tests"):
            return
        listed, _ = run([str(self.program(program)), "--gtest_list_tests", f"--gtest_filter={pattern}"], 60)
        if not re.search(r"^  \S", listed, re.M):
            raise Wrong(f"{program}: no test matches {pattern}")


def build_mutants(bench, mutations, folder):
    """The program of each mutation, the unchanged ones first, and list.tsv, which says how to run them."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*"):
        file.unlink()
    lines = []
    for program, pattern in sorted({(m.program, m.filter) for m in mutations}):
        bench.check_pattern(program, pattern)
        file = f"whole-{program}"
        subprocess.run(["strip", "-o", folder / file, bench.program(program)], check=True)
        lines.append([file, pattern, "passes", "60", "nothing"])
    with concurrent.futures.ThreadPoolExecutor(bench.jobs) as pool:
        building = {}
        for number, mutation in enumerate(mutations):
            file = f"{number:02}-{mutation.program}"
            lines.append(
                [file, mutation.filter, mutation.expect.replace(" ", "-"), str(mutation.limit_s), mutation.name]
            )
            building[pool.submit(bench.mutant, mutation, (folder / file).resolve())] = mutation.name
        for number, done in enumerate(concurrent.futures.as_completed(building)):
            done.result()
            print(f"built {number + 1} of {len(mutations)}: {building[done]}", flush=True)
    (folder / "list.tsv").write_text("".join("\t".join(line) + "\n" for line in lines))


def print_markdown(mutations):
    """The table for readers: what is taken out, and the test that fails or the reason why none can."""
    file = None
    for mutation in mutations:
        if mutation.file != file:
            file = mutation.file
            print(f"\n### {file}\n\n| taken out | test that fails |\n|---|---|")
        tests = ", ".join(f"`{part}`" for part in mutation.filter.split(":"))
        print(f"| {mutation.name} | {'none: ' + mutation.why if mutation.why else tests} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "build/mutations", help="where the copy and its build lie")
    parser.add_argument("--tree", type=Path, help="the copy (default: WORK/tree)")
    parser.add_argument("--build", type=Path, help="its build (default: WORK/build)")
    parser.add_argument("--only", default="", help="regular expression for names and files")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--check", action="store_true", help="build nothing, see that all mutations fit the source")
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/design/fences.md")
    parser.add_argument("--mutants", type=Path, help="build the programs of the device's mutations in this folder")
    parser.add_argument("--no-baseline", action="store_true", help="trust that the tests pass without a mutation")
    options = parser.parse_args()

    mutations = read_mutations(ROOT)
    check_all_fit(ROOT, mutations)
    if options.markdown:
        print_markdown(mutations)
        return 0
    chosen = [m for m in mutations if re.search(options.only, f"{m.name} {m.file}")]
    if not options.check:
        chosen = [m for m in chosen if m.on_device == bool(options.mutants)]
    if not chosen:
        raise Wrong(f"no mutation matches {options.only!r}")
    print(f"{len(mutations)} mutations fit the source, {len(chosen)} chosen", flush=True)
    if options.check:
        return 0

    if options.mutants:
        build = options.build or options.work / "cuda"
        if not options.build:
            whole = Bench(ROOT, build, options.jobs, DEVICE_FLAGS)
            whole.configure()
            whole.build({m.program for m in chosen})
        build_mutants(DeviceBench(build, options.jobs), chosen, options.mutants)
        return 0
    tree, build = options.tree or options.work / "tree", options.build or options.work / "build"
    if tree.resolve() == ROOT:
        raise Wrong("--tree must be a copy: its files are changed")
    copy_tree(ROOT, tree)
    bench = Bench(tree, build, options.jobs, HOST_FLAGS)
    bench.configure()
    bench.build({m.program for m in chosen})
    if not options.no_baseline:
        check_baseline(bench, chosen)
        print("without a mutation all tests pass", flush=True)

    unexpected = 0
    for mutation in chosen:
        begin = time.monotonic()
        try:
            failed = try_one(bench, mutation)
        except Wrong as problem:
            raise Wrong(f"{mutation.name}: {problem}") from problem
        seen = "caught" if failed else "not caught"
        good = seen == mutation.expect
        unexpected += not good
        note = failed or mutation.why
        print(
            f"{'ok ' if good else 'BAD'} {seen:10} {time.monotonic() - begin:5.0f} s  {mutation.file}: "
            f"{mutation.name}  [{note}]",
            flush=True,
        )
    print(f"{len(chosen)} mutations, {unexpected} not as expected")
    return 1 if unexpected else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Wrong as problem:
        print(f"mutate_fences: {problem}", file=sys.stderr)
        sys.exit(2)
