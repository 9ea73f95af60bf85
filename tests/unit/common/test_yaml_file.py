from __future__ import annotations

from pathlib import Path

import pytest

from services.common import yaml_file
from services.common.errors import InvalidArgument, NotFound
from services.common.yaml_file import Row, parse_yaml, read_yaml


class Document(Row):
    rows: tuple[int, ...] = ()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rows: [1, two]", "a.yaml: rows.1: "),
        ("rows: []\nmore: 1", "a.yaml: more: "),
        ("[", "a.yaml:1: is not YAML: expected the node content"),
        ("rows: []\nmore: - 1", "a.yaml:2: is not YAML: "),
        ("rows: [1]\nrows: [2]", "a.yaml:2: is not YAML: 'rows' stands twice"),
        ("rows: [{a: 1, a: 2}]", "a.yaml:1: is not YAML: 'a' stands twice"),
        ("", "a.yaml:1: has no field"),
        ("- 1", "a.yaml:1: has no field"),
        ("a: \0", "a.yaml is not YAML"),
        ("rows: 2026-13-45", "a.yaml is not YAML"),
        ("rows: !!bool maybe", "a.yaml is not YAML"),
        ("rows: !!timestamp soon", "a.yaml is not YAML"),
        ("rows: !!int ''", "a.yaml is not YAML"),
        ("rows: !!map ab", "a.yaml:1: is not YAML: expected a mapping node"),
        ("&a [*a]", "a.yaml"),
        ("rows: []" + " " * 100, "a.yaml is over 64 bytes"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_by_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, told: str
) -> None:
    monkeypatch.setattr(yaml_file, "MAX_FILE_BYTES", 64)
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(InvalidArgument) as refused:
        read_yaml(path, Document)
    assert told in refused.value.message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"none\.yaml"):
        read_yaml(tmp_path / "none.yaml", Document)
    (tmp_path / "a.yaml").write_text("rows: [3]")
    assert read_yaml(tmp_path / "a.yaml", Document) == Document(rows=(3,))


class Merged(Row):
    outer: dict[str, dict[str, int]]
    other: dict[str, int]


def test_a_key_that_is_merged_may_stand_beside_its_own() -> None:
    """Also where somebody else merges that mapping before it is made itself."""
    text = "outer: {inner: &own {<<: {x: 1, y: 1}, x: 2}}\nother: {<<: *own}"
    found = parse_yaml(text, "a.yaml", Merged)
    assert found.outer == {"inner": {"x": 2, "y": 1}}
    assert found.other == {"x": 2, "y": 1}
