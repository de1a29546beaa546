# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
"""The committed stub of the extension module is the one that nanobind makes.

To renew it: python -m nanobind.stubgen -m ferry._ferry -o python/ferry/_ferry.pyi
"""

import ast
import inspect
import re
from pathlib import Path

import ferry
import ferry._ferry
import pytest

STUB = Path(__file__).parents[2] / "python" / "ferry" / "_ferry.pyi"


def test_stub_is_current() -> None:
    stubgen = pytest.importorskip("nanobind.stubgen")
    generator = stubgen.StubGen(ferry._ferry, quiet=True)
    generator.put(ferry._ferry)
    assert generator.get() == STUB.read_text()


def test_stub_has_python_types_only() -> None:
    text = STUB.read_text()
    assert "std::" not in text and "ferry::" not in text
    ast.parse(text)


def test_installed_package_is_typed() -> None:
    folder = Path(ferry.__file__).parent
    assert (folder / "py.typed").exists()
    assert (folder / "_ferry.pyi").exists()


def test_group_takes_what_its_config_takes() -> None:
    """Group's signature is written by hand; it must name the keywords of GroupConfig."""

    def keywords(name: str) -> list[str]:
        tree = ast.parse(STUB.read_text())
        cls = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
        init = next(node for node in cls.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
        return [argument.arg for argument in init.args.kwonlyargs]

    assert keywords("Group") == keywords("GroupConfig") != []


def test_every_public_class_and_method_has_a_docstring() -> None:
    trivial = re.compile(r"__\w+__$")
    for name, cls in inspect.getmembers(ferry._ferry, inspect.isclass):
        assert cls.__doc__, name
        for method, value in vars(cls).items():
            if (
                callable(value)
                and not trivial.match(method)
                and cls in (ferry.Group, ferry.Meeting, ferry.PendingDispatch)
            ):
                assert inspect.getdoc(value), f"{name}.{method}"
