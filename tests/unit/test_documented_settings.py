"""docs/settings.md against the classes that read the settings, and what other pages say of them."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NAME = re.compile(r"\bSHUNT_[A-Z0-9]+(?:_+[A-Z0-9]+)+(?![A-Z0-9_*<…])")
OF_COMPOSE = re.compile(r"\$\{(SHUNT_[A-Z0-9_]+)")
SERVICES = ("CONTROLLER", "ROUTER", "ENGINE", "TENSORSTORE", "PLACEMENT", "LAUNCHER", "NODE")
OF_TESTS = re.compile(r"SHUNT_(TEST|CI)_[A-Z_]+")


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    """What the script that writes the page has."""
    return runpy.run_path(str(ROOT / "docs" / "settings.py"))


def test_the_page_is_as_the_settings_are(settings: dict[str, Any]) -> None:
    assert settings["page"]() == (ROOT / "docs" / "settings.md").read_text(), "`make docs`"


def test_every_setting_says_what_it_is_for(settings: dict[str, Any]) -> None:
    rows = [line for line in settings["page"]().splitlines() if line.startswith("| `SHUNT_")]
    assert len(rows) > 250
    assert [row for row in rows if len(row.split(" | ")[-1]) < 10] == []


def test_settings_that_documents_name_are_there(settings: dict[str, Any]) -> None:
    known = {*settings["names"](), *settings["OTHERS"]}
    files = (ROOT / "deploy" / "compose").glob("*.yaml")
    known |= {name for file in files for name in OF_COMPOSE.findall(file.read_text())}
    every = {name.removeprefix("SHUNT_<SERVICE>") for name in known if "<" in name}
    known |= {f"SHUNT_{service}{name}" for service in SERVICES for name in every}
    unknown = {
        f"{page.name}: {name}"
        for page in pages()
        for name in NAME.findall(page.read_text())
        if not {name, name.partition("__")[0]} & known and not OF_TESTS.fullmatch(name)
    }
    assert unknown == set()


def pages() -> Iterator[Path]:
    """Of the documents, those that say how things are; decisions say how they were."""
    yield from (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "ARCHITECTURE.md")
    yield from (ROOT / "docs").glob("*.md")
    yield from (ROOT / "deploy").rglob("*.md")
