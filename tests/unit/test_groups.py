"""Each of the 43 groups of bad input has a test that bears its number."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
GROUPS = range(1, 44)


def _marked(path: Path) -> Iterator[int]:
    """Numbers in the marks of a file's tests."""
    text = path.read_text()
    for node in ast.walk(ast.parse(text)) if "pytest.mark.group(" in text else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith(
            "test_"
        ):
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.group":
                    yield from (ast.literal_eval(number) for number in mark.args)


def test_every_group_of_bad_input_has_a_test() -> None:
    found = {number for path in ROOT.rglob("test_*.py") for number in _marked(path)}
    assert found == set(GROUPS)
