# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""The tools that check our own house: what they find and what they leave alone."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import check_layers  # noqa: E402
import check_rules  # noqa: E402
import check_sizes  # noqa: E402

LICENCE = "// SPDX-FileCopyrightText: 2026 The Ferry authors\n// SPDX-License-Identifier: Apache-2.0\n"


def make_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize("tool", ["check_layers", "check_sizes", "check_rules"])
def test_our_own_tree_is_clean(tool):
    run = subprocess.run([sys.executable, ROOT / "tools" / f"{tool}.py"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_readme_shows_the_committed_results():
    run = subprocess.run([sys.executable, ROOT / "benchmarks/figures.py", "--check"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(
    ("file", "included"),
    [
        ("include/ferry/a.h", "wire/rows.h"),
        ("src/wire/a.h", "host/step.h"),
        ("src/routing/a.cc", "api/group.h"),
        ("src/net/a.cc", "routing/dedup.h"),
        ("src/net/a.cc", "../routing/dedup.h"),
        ("src/host/a.cc", "cuda/plan.h"),
        ("src/cuda/a.cu", "host/step.h"),
        ("src/host/a.cc", "api/group.h"),
        ("src/api/a.cc", "host/step.h"),
        ("tests/conformance/a.cc", "core/check.h"),
        ("benchmarks/mpi/a.cc", "ferry/types.h"),
    ],
)
def test_layers_refuses_the_wrong_direction(tmp_path, file, included):
    parts = ["wire/rows.h", "host/step.h", "api/group.h", "routing/dedup.h", "cuda/plan.h", "core/check.h"]
    tree = {f"src/{part}": "" for part in parts} | {"include/ferry/types.h": ""}
    root = make_tree(tmp_path, tree | {file: f'\n#include "{included}"\n'})
    found = check_layers.check(root)
    assert len(found) == 1
    assert found[0].startswith(f'{file}:2: includes "{included}"')


def test_layers_allows_the_right_direction(tmp_path):
    tree = {
        "include/ferry/types.h": "#include <vector>\n",
        "include/ferry/group.h": '#include "ferry/types.h"\n',
        "src/core/check.h": '#include "ferry/types.h"\n',
        "src/wire/rows.h": '#include "core/check.h"\n',
        "src/backend/seam.h": '#include "wire/rows.h"\n',
        "src/host/step.cc": '#include "backend/seam.h"\n#include "wire/rows.h"\n#include <fmt/format.h>\n',
        "src/api/group.cc": '#include "ferry/group.h"\n#include "backend/seam.h"\n// #include "host/step.h"\n',
    }
    assert check_layers.check(make_tree(tmp_path, tree)) == []


def names_and_sizes(text: str) -> list[tuple[str, int]]:
    return [(function.name, function.num_lines) for function in check_sizes.cxx_functions(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("int f() {\n  return 1;\n}\n", [("f", 3)]),
        ("namespace a::b {\nclass C {\n  int g() const { return 1; }\n};\n}\n", [("g", 1)]),
        ("template <typename T>\nauto f(T x = {}) -> int {\n  if (x) {\n  }\n  return 1;\n}\n", [("f", 6)]),
        ("struct S {\n  S() : a_{1}, b_(2) {\n    go();\n  }\n  int a_ = 0;\n};\n", [("S", 3)]),
        ("struct alignas(64) S {\n  int f();\n};\nconst int a[] = {1, 2};\n", []),
        ("// }{\nconst char* t = \"{\";\nint f() { return '{'; } /* { */\n", [("f", 1)]),
        ("#define X(a) \\\n  void a() {\nint f() {\n}\n", [("f", 2)]),
        (
            "int f() {\n  auto g = [] {\n    return 1;\n  };\n  return g();\n}\nint h() { return 1'000; }\n",
            [("f", 6), ("h", 1)],
        ),
        ('TEST(Sizes, Case) {\n  const char* raw = R"(\n}}}\n)";\n}\n', [("TEST", 5)]),
        ("Topology::Topology(int n)\n    : n_(n) {\n}\nvoid g() {}\n", [("Topology::Topology", 3), ("g", 1)]),
    ],
)
def test_sizes_finds_cxx_functions(text, expected):
    assert names_and_sizes(text) == expected


def test_sizes_counts_python_without_docstrings():
    text = (
        'def f():\n    """One.\n\n    Two.\n    """\n    return 1\n\n\nclass C:\n    def g(self):\n        return 2\n'
    )
    assert [(f.name, f.num_lines) for f in check_sizes.python_functions(text)] == [("f", 2), ("g", 2)]


def test_sizes_judges_files_functions_and_exceptions():
    long_function = "int f() {\n" + "  go();\n" * 90 + "}\n"
    texts = {Path("a.cc"): long_function, Path("b.cc"): "\n" * 601}
    found = check_sizes.check(texts, {})
    assert len(found) == 2
    assert "f has 92 lines, at most 80" in found[0]
    assert "b.cc: the file has 601 lines, at most 600" in found[1]
    assert check_sizes.check(texts, {"a.cc:f": 92, "b.cc": 601}) == []
    assert "needs no exception" in check_sizes.check({}, {"a.cc:f": 92})[0]


def test_sizes_exceptions_need_a_reason():
    assert check_sizes.read_exceptions("# comment\n\na.cc:f 99 a table\n") == {"a.cc:f": 99}
    with pytest.raises(ValueError, match="expected PATH"):
        check_sizes.read_exceptions("a.cc:f 99\n")


@pytest.mark.parametrize(
    ("file", "code", "num_found"),
    [
        ("src/host/a.cc", 'auto x = std::getenv("A");', 1),
        ("src/core/environment.cc", 'auto x = std::getenv("A");', 0),
        ("src/host/a.cc", "std::abort();", 1),
        ("src/host/a.cc", "  exit(1);", 1),
        ("src/host/a.cc", "group.abort(); // abort()", 0),
        ("src/api/a.h", "void abort();", 0),
        ("src/api/a.cc", "void Group::abort() {}", 0),
        ("src/host/a.cc", 'std::printf("x");', 1),
        ("src/host/a.cc", 'std::snprintf(x, 1, "x");', 0),
        ("apps/ferry/a.cc", 'std::printf("x");', 0),
    ],
)
def test_rules_of_the_library(file, code, num_found):
    assert len(check_rules.check({Path(file): LICENCE + code + "\n"})) == num_found


def test_rules_want_the_licence():
    assert "licence" in check_rules.check({Path("apps/a.cc"): "int x;\n"})[0]
    assert check_rules.check({Path("tools/a.sh"): "#!/bin/bash\n" + LICENCE.replace("//", "#")}) == []
