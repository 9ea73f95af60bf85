"""What was read of a store once is there while the store is away, and never damaged."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from services.common.errors import NotFound, Unavailable
from services.tensorstore.cache import kept
from services.tensorstore.cache.kept import KeptReader
from services.tensorstore.places.backend import Pieces, find_manifest, read_manifest, read_whole
from tests.limits import no_file_above


class Leaving:
    """A store that can go away, or stop answering."""

    def __init__(self, backend) -> None:
        self.backend, self.away, self.silent = backend, False, threading.Event()
        self.silent.set()
        self.asked = 0

    def ask(self):
        self.asked += 1
        assert self.silent.wait(60)
        if self.away:
            raise Unavailable("away")
        return self.backend

    def size(self, digest: str) -> int | None:
        return self.ask().size(digest)

    def pieces(self, digest: str, start: int, stop: int) -> Pieces:
        yield from self.ask().pieces(digest, start, stop)

    def resolve(self, name: str) -> str | None:
        return self.ask().resolve(name)

    def names(self) -> list[str]:
        return self.ask().names()


@pytest.fixture
def store(tiny) -> Leaving:
    return Leaving(tiny.backend)


def read_all(reader: KeptReader) -> tuple[list[str], bytes, list[bytes]]:
    names = reader.names()
    data, manifest = read_manifest(reader, find_manifest(reader, names[0]))
    files = manifest.files.values()
    return names, data, [read_whole(reader, file.digest, file.size_bytes) for file in files]


def test_what_was_read_once_outlives_the_store(store: Leaving, tmp_path: Path) -> None:
    before = read_all(KeptReader(store, tmp_path / "c"))
    store.away = True
    assert read_all(KeptReader(store, tmp_path / "c")) == before
    with pytest.raises(Unavailable):
        KeptReader(store, tmp_path / "c").resolve("other")


def test_a_store_that_does_not_answer_is_not_waited_for(store: Leaving, tmp_path: Path) -> None:
    before = read_all(KeptReader(store, tmp_path / "c"))
    store.silent.clear()
    store.asked = 0
    reader = KeptReader(store, tmp_path / "c", patience_s=0.01)
    try:
        for _ in range(kept.ASKED_AT_ONCE):
            assert read_all(reader) == before
    finally:
        store.silent.set()
    reader._asking.shutdown()
    assert store.asked == kept.ASKED_AT_ONCE  # nothing had piled up


def test_a_name_follows_the_store(tiny, store: Leaving, tmp_path: Path) -> None:
    reader = KeptReader(store, tmp_path / "c")
    assert reader.resolve("tiny") == tiny.imported.digest
    tiny.backend.publish("tiny", "0" * 64)
    assert reader.resolve("tiny") == "0" * 64
    tiny.backend.withdraw("tiny")
    assert reader.resolve("tiny") is None
    store.away = True
    with pytest.raises(Unavailable):
        reader.resolve("tiny")


def test_a_name_follows_the_store_however_many_ask_at_once(
    tiny, store: Leaving, tmp_path: Path
) -> None:
    reader = KeptReader(store, tmp_path / "c")
    reader.resolve("tiny")
    tiny.backend.publish("tiny", "0" * 64)
    store.silent.clear()
    with ThreadPoolExecutor(2 * kept.ASKED_AT_ONCE) as pool:
        found = [pool.submit(reader.resolve, "tiny") for _ in range(2 * kept.ASKED_AT_ONCE)]
        wait(found, timeout=0.3)
        store.silent.set()
    assert {future.result() for future in found} == {"0" * 64}


def test_damage_to_what_was_kept_is_read_again(store: Leaving, tmp_path: Path) -> None:
    before = read_all(KeptReader(store, tmp_path / "c"))
    for path in (tmp_path / "c" / "kept").iterdir():
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert read_all(KeptReader(store, tmp_path / "c")) == before


def test_parts_and_damaged_objects_are_not_kept(tiny, store: Leaving, tmp_path: Path) -> None:
    reader = KeptReader(store, tmp_path / "c")
    chunk = tiny.imported.manifest.chunks[0]
    list(reader.pieces(chunk.digest, 0, chunk.size_bytes - 1))
    with pytest.raises(NotFound):
        list(reader.pieces("0" * 64, 0, 1))
    assert not (tmp_path / "c" / "kept").exists()


def test_no_more_is_kept_than_the_limit(
    tiny, store: Leaving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "KEPT_OBJECTS", 2)
    reader = KeptReader(store, tmp_path / "c")
    for chunk in tiny.imported.manifest.chunks[:4]:
        list(reader.pieces(chunk.digest, 0, chunk.size_bytes))
    assert len(list((tmp_path / "c" / "kept").iterdir())) == 2


def test_a_place_that_cannot_be_written_to_only_forgets(store: Leaving, tmp_path: Path) -> None:
    (tmp_path / "c").write_text("in the way")
    assert read_all(KeptReader(store, tmp_path / "c"))


def test_a_full_disk_is_left_no_fuller(store: Leaving, tmp_path: Path) -> None:
    with no_file_above(40):
        assert read_all(KeptReader(store, tmp_path / "c"))
    assert list((tmp_path / "c" / "tmp").iterdir()) == []
