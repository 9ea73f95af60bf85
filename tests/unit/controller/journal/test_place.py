from __future__ import annotations

from pathlib import Path

import pytest

from services.common.errors import InvalidArgument
from services.controller.journal.place import PostgresPlace, SqlitePlace, place_of

DATA = Path("/data")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("", "/data/journal.db"),
        ("sqlite:/var/j.db", "/var/j.db"),
        ("sqlite:j.db", "j.db"),
    ],
)
def test_a_file_is_where_the_setting_says(text: str, path: str) -> None:
    assert place_of(text, DATA) == SqlitePlace(Path(path))


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_a_database_is_told_without_its_password(scheme: str) -> None:
    place = place_of(f"{scheme}://me:secret@db:5433/mesh?sslmode=require&password=secret", DATA)
    assert isinstance(place, PostgresPlace)
    assert place.name == "postgresql://me@db:5433/mesh"
    assert place.parameters["password"] == "secret"
    assert "secret" not in repr(place)


@pytest.mark.parametrize(
    "text",
    [
        "mysql://secret@db/mesh",
        "secret",
        "sqlite:",
        "sqlite://host/secret",
        "postgresql://me:secret@[db/mesh",
        "postgresql://me:secret@db/mesh?secret=1",
        "postgresql://me:%zz@db/secret",
    ],
)
def test_what_is_no_place_is_refused_and_never_echoed(text: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        place_of(text, DATA)
    assert refused.value.field == "journal"
    assert "secret" not in refused.value.message
