"""There is one place where a mesh starts and ends instances, and one where an operator ends it."""

from __future__ import annotations

import ast
from pathlib import Path

SERVICES = Path(__file__).parents[5] / "services"
COSTLY = {
    "create_fleet",
    "create_instances",
    "modify_fleet",
    "request_spot_fleet",
    "request_spot_instances",
    "run_instances",
    "start_instances",
    "stop_instances",
    "terminate_instances",
}


def test_nothing_else_names_what_starts_or_ends_instances() -> None:
    found = {
        (path.relative_to(SERVICES).as_posix(), name)
        for path in SERVICES.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            getattr(node, "attr", None)
            if isinstance(node, ast.Attribute)
            else node.value
            if isinstance(node, ast.Constant)
            else None,
        )
        if isinstance(name, str) and name in COSTLY
    }
    hands = "controller/providers/ec2/hands.py"
    assert found == {
        (hands, "create_fleet"),
        (hands, "terminate_instances"),
        ("cli/ec2/machines.py", "terminate_instances"),
    }
