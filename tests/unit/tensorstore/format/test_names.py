"""Names that could leave the store are refused everywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidArgument, Unavailable
from services.tensorstore.format.names import check_digest, check_file_name, check_model_name
from services.tensorstore.places.directory import DirectoryBackend

BAD = [
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "/etc/passwd",
    "a\0b",
    "a\nb",
    "-x",
    ".x",
    "a..b",
    "é",
    "x" * 129,
]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_name_is_refused(tmp_path, name: str) -> None:
    backend = DirectoryBackend(tmp_path)
    for call in (
        check_model_name,
        check_file_name,
        backend.resolve,
        backend.withdraw,
        lambda name: backend.publish(name, "0" * 64),
    ):
        with pytest.raises(InvalidArgument):
            call(name)
    assert list(tmp_path.rglob("*")) == []


@given(st.text(max_size=200))
def test_what_is_accepted_is_one_path_component(name: str) -> None:
    try:
        check_model_name(name)
    except InvalidArgument:
        return
    assert "/" not in name
    assert not name.startswith(".")
    assert name.isascii()


@pytest.mark.parametrize("digest", ["", "0" * 63, "G" * 64, "A" * 64, "../" + "0" * 61, "0" * 65])
def test_a_bad_digest_is_refused(tmp_path, digest: str) -> None:
    backend = DirectoryBackend(tmp_path)
    for call in (check_digest, backend.size, backend.delete):
        with pytest.raises(InvalidArgument):
            call(digest)


def test_a_store_that_is_no_directory_gives_typed_errors(tmp_path) -> None:
    for name in ("objects", "models", "tmp"):
        (tmp_path / name).write_bytes(b"")
    backend = DirectoryBackend(tmp_path)
    assert backend.names() == []
    assert list(backend.objects()) == []
    (tmp_path / "file").write_bytes(b"x")
    for call in (
        lambda: backend.withdraw("x"),
        lambda: backend.delete("0" * 64),
        lambda: backend.touch("0" * 64, 1, 0),
        lambda: backend.size("0" * 64),
        lambda: backend.put("0" * 64, tmp_path / "file"),
        lambda: backend.publish("x", "0" * 64),
        lambda: backend.scratch(),
    ):
        with pytest.raises(Unavailable):
            call()
