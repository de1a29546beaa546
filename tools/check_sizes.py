#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""Checks that files and functions stay short enough to be read: 600 lines a file, 80 lines a function.

    tools/check_sizes.py [--root DIR] [--list]

Exceptions stand with limit and reason in tools/size_exceptions.txt; one that is no longer needed is an error too.
Exit code 0 if all is well, 1 with a line per violation otherwise. --list prints the ten longest functions.
"""

import argparse
import ast
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 80
CXX = {".h", ".cc", ".cu", ".cuh"}
PATTERNS = ["*.h", "*.cc", "*.cu", "*.cuh", "*.py", "*.sh", "*.cmake", "CMakeLists.txt", "Makefile"]

# Everything whose braces and parentheses are no code, in the order in which it must be recognised.
NO_CODE = re.compile(
    r'//[^\n]*|/\*.*?\*/|R"(?P<tag>[^(\s]*)\(.*?\)(?P=tag)"|"(?:\\.|[^"\\\n])*"|(?<![0-9a-fA-F])\'(?:\\.|[^\'\\\n])+\'',
    re.DOTALL,
)
DIRECTIVE = re.compile(r"^[ \t]*#(?:[^\n\\]|\\\n|\\.)*", re.MULTILINE)
CLASS_HEAD = re.compile(r"^(?:template\s*<.*>\s*)?(?:typedef\s+)?(?:class|struct|union|enum)\b", re.DOTALL)
ATTRIBUTES = re.compile(r"\b(?:alignas|__attribute__|__align__)\s*\((?:[^()]|\([^()]*\))*\)")
NAME = re.compile(r"([~\w:]+|operator\s*\S+)\s*\(")
INITIALISERS = re.compile(r"\)[^()]*(?<!:):(?!:)")


@dataclass(frozen=True)
class Function:
    name: str
    line: int
    num_lines: int


def blank(match: re.Match[str]) -> str:
    """Spaces in place of a match, line by line, so that positions and line numbers stay."""
    return re.sub(r"[^\n]", " ", match.group())


class CxxReader:
    """Finds the functions of a C++ file by following braces. It knows no types and expands no macros; code inside a
    function, lambdas too, counts for the outermost function."""

    def __init__(self, text: str):
        self.text = DIRECTIVE.sub(blank, NO_CODE.sub(blank, text))
        self.functions: list[Function] = []

    def line(self, position: int) -> int:
        return self.text.count("\n", 0, position) + 1

    def skip_braces(self, opening: int) -> int:
        """Position of the brace that closes the one at `opening`."""
        depth = 0
        for match in re.compile(r"[{}]").finditer(self.text, opening):
            depth += 1 if match.group() == "{" else -1
            if depth == 0:
                return match.start()
        return len(self.text) - 1

    def read(self) -> list[Function]:
        head, position, parentheses = 0, 0, 0
        while position < len(self.text):
            char = self.text[position]
            if char in "()":
                parentheses += 1 if char == "(" else -1
            elif char == "{" and parentheses > 0:
                position = self.skip_braces(position)  # a default argument
            elif char == "{":
                head, position = self.open_brace(head, position)
            elif char in ";}" and parentheses == 0:
                head = position + 1
            position += 1
        return self.functions

    def open_brace(self, head: int, position: int) -> tuple[int, int]:
        """Decides what a brace outside of functions opens; returns the new head and where to go on."""
        text = ATTRIBUTES.sub(blank, self.text[head:position])
        stripped = text.strip()
        opens_class = CLASS_HEAD.match(stripped) and "(" not in re.sub(r"<[^{}]*>", "", stripped)
        if opens_class or re.match(r"(inline\s+)?namespace\b|extern\s*$", stripped):
            return position + 1, position
        end = self.skip_braces(position)
        name = NAME.search(stripped)
        if name is None:
            return head, end  # the braces of an initialiser
        if INITIALISERS.search(stripped) and re.search(r"[\w>]$", stripped):
            return head, end  # a member's braces in a constructor's list; the body follows
        first = self.line(head + len(text) - len(text.lstrip()))
        self.functions.append(Function(name.group(1), first, self.line(end) - first + 1))
        return end + 1, end


def cxx_functions(text: str) -> list[Function]:
    return CxxReader(text).read()


def python_functions(text: str) -> list[Function]:
    """Functions and methods; docstrings do not count, they are documentation."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            num_lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                num_lines -= node.body[0].end_lineno - node.body[0].lineno + 1
            found.append(Function(node.name, node.lineno, num_lines))
    return found


def our_files(root: Path) -> list[Path]:
    """Files that git knows and new ones that it does not ignore."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *PATTERNS]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    return sorted({Path(name) for name in names if name and (root / name).is_file()})


def read_exceptions(text: str) -> dict[str, int]:
    """Lines of the form `PATH[:FUNCTION] LIMIT REASON`."""
    exceptions = {}
    for line in text.splitlines():
        fields = line.split(maxsplit=2)
        if not fields or fields[0].startswith("#"):
            continue
        if len(fields) < 3 or not fields[1].isdigit():
            raise ValueError(f"size exception '{line}': expected PATH[:FUNCTION] LIMIT REASON")
        exceptions[fields[0]] = int(fields[1])
    return exceptions


def functions_of(path: Path, text: str) -> list[Function]:
    if path.suffix in CXX:
        return cxx_functions(text)
    return python_functions(text) if path.suffix == ".py" else []


def check(texts: dict[Path, str], exceptions: dict[str, int]) -> list[str]:
    """Violations in the given files."""
    found, used = [], set()

    def judge(key: str, where: str, what: str, num_lines: int, limit: int) -> None:
        if num_lines <= limit:
            return
        used.add(key)
        if num_lines > exceptions.get(key, limit):
            found.append(f"{where}: {what} has {num_lines} lines, at most {exceptions.get(key, limit)} are allowed")

    for path, text in texts.items():
        judge(str(path), f"{path}", "the file", len(text.splitlines()), MAX_FILE_LINES)
        for function in functions_of(path, text):
            where = f"{path}:{function.line}"
            judge(f"{path}:{function.name}", where, function.name, function.num_lines, MAX_FUNCTION_LINES)
    found += [f"tools/size_exceptions.txt: {key} needs no exception any more" for key in exceptions if key not in used]
    return found


def print_longest(texts: dict[Path, str], how_many: int = 10) -> None:
    longest = sorted(
        ((f.num_lines, f"{path}:{f.line}", f.name) for path, text in texts.items() for f in functions_of(path, text)),
        reverse=True,
    )
    for num_lines, where, name in longest[:how_many]:
        print(f"{num_lines:5} {where} {name}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent)
    parser.add_argument("--list", action="store_true", help="print the ten longest functions")
    arguments = parser.parse_args()
    texts = {path: (arguments.root / path).read_text(encoding="utf-8") for path in our_files(arguments.root)}
    if arguments.list:
        print_longest(texts)
    exceptions_file = arguments.root / "tools" / "size_exceptions.txt"
    exceptions = read_exceptions(exceptions_file.read_text(encoding="utf-8")) if exceptions_file.exists() else {}
    found = check(texts, exceptions)
    for line in found:
        print(line)
    print(f"check_sizes: {len(found)} violations" if found else f"check_sizes: clean ({len(texts)} files)")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
