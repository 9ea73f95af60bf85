"""docs/commands.md against the commands themselves."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
WRITTEN = """
import json, runpy
print(json.dumps(runpy.run_path("docs/commands.py")["page"]()))
"""


@pytest.fixture(scope="module")
def page() -> str:
    """As it would be written now; in a process of its own, for commands are mounted once in one."""
    done = subprocess.run(
        (sys.executable, "-c", WRITTEN), cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout))


def _sections(text: str) -> dict[str, set[str]]:
    """Options of each command."""
    parts = re.split(r"^## `shunt ([a-z0-9 -]+?)(?: [^`a-z]*)?`$", text, flags=re.MULTILINE)[1:]
    return {
        name: set(re.findall(r"^\\| .*?`(--[a-z-]+)`", body, flags=re.MULTILINE))
        for name, body in zip(parts[::2], parts[1::2], strict=True)
    }


def test_every_command_and_option_says_what_it_is_for(page: str) -> None:
    assert "| |\n" not in page.replace("| | default | |\n", "").replace("|  |\n", "| |\n")
    found = _sections(page)
    assert {"up", "plan why", "plan solve", "batch submit", "ec2 down"} <= found.keys()
    assert "--what-ifs" in found["plan why"]


def test_what_the_page_has_is_there(page: str) -> None:
    there = _sections(page)
    for name, options in _sections((ROOT / "docs" / "commands.md").read_text()).items():
        assert name in there
        assert options <= there[name], name
