#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""Checks rules of the house that no compiler knows.

    tools/check_rules.py [--root DIR]

Every source file starts with the licence lines; the library reads the environment in one place only, never ends the
process, and never prints. Exit code 0 if all is well, 1 with a line per violation otherwise.
"""

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from check_sizes import NO_CODE, blank, our_files

LICENCE = ("SPDX-FileCopyrightText: 2026 The Ferry authors", "SPDX-License-Identifier: Apache-2.0")


@dataclass(frozen=True)
class Rule:
    pattern: re.Pattern[str]
    why: str
    except_in: tuple[str, ...] = ()


LIBRARY_RULES = (
    Rule(
        re.compile(r"\b(?:secure_)?getenv\s*\("),
        "only src/core/environment reads the environment",
        ("src/core/environment.cc",),
    ),
    Rule(
        re.compile(r"(?<![\w:.>])(?<!void )(?:std::|::)?(?:abort|exit|_exit|quick_exit|terminate)\s*\("),
        "the library never ends the process",
    ),
    Rule(re.compile(r"\b__trap\s*\("), "a device never traps, it writes a fault"),
    Rule(
        re.compile(r"\b(?:v?printf|puts|putchar)\s*\(|\bstd::(?:cout|clog)\b"),
        "the library never prints on standard output",
    ),
)


def licence_violations(path: Path, text: str) -> list[str]:
    lines = text.splitlines()
    start = 1 if lines and lines[0].startswith("#!") else 0
    if len(lines) >= start + 2 and all(wanted in line for wanted, line in zip(LICENCE, lines[start:], strict=False)):
        return []
    return [f"{path}:{start + 1}: the two licence lines are missing ({LICENCE[0]}; {LICENCE[1]})"]


def library_violations(path: Path, text: str) -> list[str]:
    code = NO_CODE.sub(blank, text)
    found = []
    for rule in LIBRARY_RULES:
        if path.as_posix() in rule.except_in:
            continue
        for match in rule.pattern.finditer(code):
            line = code.count("\n", 0, match.start()) + 1
            found.append(f"{path}:{line}: {match.group().strip()}...: {rule.why}")
    return found


def check(texts: dict[Path, str]) -> list[str]:
    found = []
    for path, text in texts.items():
        found += licence_violations(path, text)
        if path.parts[0] in ("src", "include") and path.suffix in (".h", ".cc", ".cu", ".cuh"):
            found += library_violations(path, text)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent)
    root = parser.parse_args().root
    found = check({path: (root / path).read_text(encoding="utf-8") for path in our_files(root)})
    for line in found:
        print(line)
    print(f"check_rules: {len(found)} violations" if found else "check_rules: clean")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
