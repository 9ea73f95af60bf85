from __future__ import annotations

from pathlib import Path

import pytest

from services.controller.providers.ec2.memory import FILE, Memory


def test_the_run_and_what_was_seen_outlive_the_controller(tmp_path: Path) -> None:
    first = Memory.open(tmp_path)
    first.hazards.interrupted("a")
    first.keep()
    again = Memory.open(tmp_path)
    assert (again.run, again.hazards.to_json()) == (first.run, first.hazards.to_json())
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_the_run_is_kept_before_anything_is_ordered(tmp_path: Path) -> None:
    assert Memory.open(tmp_path).run == Memory.open(tmp_path).run


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2}', '{"version": 1, "run": "r"}'])
def test_what_cannot_be_read_is_begun_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    begun = Memory.open(tmp_path)
    assert begun.run not in text
    assert Memory.open(tmp_path).run == begun.run
