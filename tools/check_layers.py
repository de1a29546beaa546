#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""Checks the direction of knowledge: which folder may include which.

    tools/check_layers.py [--root DIR]

Exit code 0 if every include is allowed, 1 with a line per violation otherwise.
"""

import argparse
import re
import sys
from pathlib import Path

PUBLIC = "include/ferry"
BELOW_HOST = ("routing", "wire", "core", "net", "bootstrap", "backend")

# What each folder may include besides itself. Public headers and system headers are open to everyone in src/.
ALLOWED = {
    PUBLIC: (),
    "src/core": (),
    "src/wire": ("core", "routing"),
    "src/routing": ("core", "wire"),
    "src/bootstrap": ("core",),
    "src/net": ("core", "bootstrap"),
    "src/backend": ("core", "routing", "wire", "bootstrap", "net"),
    "src/host": BELOW_HOST,
    "src/cuda": BELOW_HOST,
    "src/api": ("backend", "core", "routing", "wire", "bootstrap", "net"),
    "apps/ferry": (),
    "python/bindings": (),
    "examples": (),
    "benchmarks/mpi": ("core",),
    "tests/support": (),
    "tests/conformance": (),
}
# Folders that see the public headers and their own files, and why.
REASONS = {
    PUBLIC: "public headers include public headers only",
    "src/wire": "wire is pure: it knows core, routing and public types",
    "src/routing": "routing is pure: it knows core, wire and public types",
    "src/net": "the network knows windows, offsets, bytes and signals; never tokens or experts",
    "src/host": "host and cuda never include each other, and know nothing of the API above them",
    "src/cuda": "host and cuda never include each other, and know nothing of the API above them",
    "src/api": "the API reaches backends through src/backend",
    "apps/ferry": "the command line uses the public API, as any user",
    "python/bindings": "the bindings use the public API, as any user",
    "examples": "examples show the public API",
    "benchmarks/mpi": "the baseline is compiled like Ferry (core/clones.h), but stands without it",
    "tests/support": "support for the conformance suite sees the public API only",
    "tests/conformance": "the conformance suite sees the public API only",
}
PARTS = {folder.removeprefix("src/") for folder in ALLOWED if folder.startswith("src/")}
SUFFIXES = {".h", ".cc", ".cu", ".cuh"}
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')


def folder_of(path: Path) -> str | None:
    """The folder of ALLOWED that a file (relative to the root) belongs to."""
    for folder in ALLOWED:
        if path.as_posix().startswith(folder + "/"):
            return folder
    return None


def part_of(included: str, path: Path, root: Path) -> str:
    """What an include names: 'public', one of the parts of src/, or 'own' for a file of the same folder."""
    first = included.split("/")[0]
    if (root / "include" / included).is_file():
        return "public"
    if (root / path.parent / included).is_file():
        # "../wire/rows.h" must not be a way around the rules.
        target = (root / path.parent / included).resolve().relative_to(root.resolve())
        return "own" if folder_of(target) == folder_of(path) else (folder_of(target) or "own").removeprefix("src/")
    if first in PARTS and (root / "src" / included).is_file():
        return first
    return "external"


def violations_in(path: Path, root: Path) -> list[str]:
    folder = folder_of(path)
    if folder is None:
        return []
    allowed = {"public", "own", "external", folder.removeprefix("src/"), *ALLOWED[folder]}
    if folder == "benchmarks/mpi":
        allowed.discard("public")
    found = []
    for number, line in enumerate((root / path).read_text(encoding="utf-8").splitlines(), start=1):
        match = INCLUDE.match(line)
        if match and part_of(match.group(1), path, root) not in allowed:
            may = ", ".join(sorted(allowed - {"external", "own"})) or "nothing of ours"
            reason = REASONS.get(folder, "see the direction of knowledge in src/README.md")
            found.append(f'{path}:{number}: includes "{match.group(1)}"; {folder} may include {may} ({reason})')
    return found


def check(root: Path) -> list[str]:
    """All violations under a root, in the order of the files' names."""
    found = []
    for folder in ALLOWED:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in SUFFIXES and path.is_file():
                found += violations_in(path.relative_to(root), root)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent)
    found = check(parser.parse_args().root)
    for line in found:
        print(line)
    print(f"check_layers: {len(found)} violations" if found else "check_layers: clean")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
