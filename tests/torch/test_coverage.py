# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""deep_ep_coverage.toml names tests that exist, leaves none out and, where the contract's page is at hand
(FERRY_CONTRACT, or ../shared beside the repository), names every point of it."""

import ast
import os
import re
import tomllib
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
PAGE = Path(os.environ.get("FERRY_CONTRACT", HERE.parents[2] / "shared" / "reference" / "deepep_api.md"))
SEPARATOR = re.compile(r"^\s*\|[\s:|-]+\|\s*$")


def table() -> dict:
    return tomllib.loads((HERE / "deep_ep_coverage.toml").read_text())


def points() -> dict[str, list[str]]:
    """Tests by "section/number"."""
    sections = table()
    del sections["differs"]
    return {f"{section}/{number}": tests for section, rows in sections.items() for number, tests in rows.items()}


def functions_of(path: Path) -> set[str]:
    functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    return {f"{path.name}::{function.name}" for function in functions if function.name.startswith("test_")}


def points_of_page(lines: list[str]) -> set[str]:
    """Bullets, numbered points, rows of tables and bold paragraphs of section 9, counted by section; 0 for a section
    without any."""
    section, counts, found = "", {}, set()
    for index, line in enumerate(lines):
        heading = re.match(r"^#{2,4} (\S+)", line)
        if heading:
            section = heading[1].rstrip(".") if re.fullmatch(r"[\d.]+", heading[1]) else ""
            counts[section] = 0
            continue
        is_row = line.lstrip().startswith("|") and not SEPARATOR.match(line)
        is_head = is_row and index + 1 < len(lines) and SEPARATOR.match(lines[index + 1])
        is_client = section == "9" and re.match(r"^\*\*\w+.*\*\* \(", line)
        if (is_row and not is_head) or re.match(r"^(\*|\d+\.) ", line) or is_client:
            counts[section] += 1
            found.add(f"{section}/{counts[section]}")
    covered = [s for s in counts if re.fullmatch(r"[1-3](\.\d+)*|4\.[1-9]|9", s)]
    has_parts = {s for s in covered for other in covered if other.startswith(s + ".")}
    whole = {f"{s}/0" for s in covered if counts[s] == 0 and s not in has_parts}
    return {point for point in found if point.split("/")[0] in covered} | whole


def test_named_tests_exist():
    existing = set().union(*(functions_of(path) for path in HERE.glob("test_*.py")))
    named = {test for tests in points().values() for test in tests}
    assert named <= existing, named - existing
    assert all(points().values()), [point for point, tests in points().items() if not tests]


def test_no_test_is_left_out():
    """Tests that hold no point of the contract: of what is ours."""
    ours = {"test_what_is_not_offered_says_so", "test_tables_of_no_rows", "test_ranks_that_make_different_calls"}
    existing = set().union(*(functions_of(path) for path in HERE.glob("test_deep_ep_*.py")))
    named = {test for tests in points().values() for test in tests}
    assert {test.split("::")[1] for test in existing - named} == ours


def test_differences_are_points():
    assert set(table()["differs"]) <= set(points())


def test_every_point_of_the_page_is_there():
    if not PAGE.exists():
        pytest.skip("the contract's page is not beside the repository; FERRY_CONTRACT can name it")
    assert points_of_page(PAGE.read_text().splitlines()) == set(points())
