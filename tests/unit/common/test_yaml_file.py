from __future__ import annotations

from pathlib import Path

import pytest

from services.common import yaml_file
from services.common.errors import InvalidArgument, NotFound
from services.common.yaml_file import Row, read_yaml


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
