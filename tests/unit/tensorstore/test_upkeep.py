"""Garbage goes, what a name leads to stays; copies are verified on their way."""

from __future__ import annotations

import os
import time
from contextlib import closing
from pathlib import Path

import pytest
from safetensors.torch import load_file

from services.common.errors import DataLoss, NotFound, ResourceExhausted, Unavailable
from services.common.generation import LayerRange
from services.tensorstore import upkeep
from services.tensorstore.export import export
from services.tensorstore.importer import import_checkpoint
from services.tensorstore.places.backend import StoredObject
from services.tensorstore.places.directory import DirectoryBackend
from services.tensorstore.sources.opening import open_source
from tests.checkpoints import bits, expected_slice
from tests.limits import no_file_above
from tests.mutants import flip

LATER_S = 1e12


def test_garbage_is_what_no_name_leads_to(tiny) -> None:
    assert upkeep.collect(tiny.backend, LATER_S).objects == 0
    tiny.store("second")
    tiny.backend.withdraw("tiny")
    assert upkeep.collect(tiny.backend, LATER_S).objects == 0
    tiny.backend.withdraw("second")
    held = len(list(tiny.backend.objects()))
    assert upkeep.collect(tiny.backend, 0.0).objects == 0
    assert upkeep.collect(tiny.backend, LATER_S).objects == held
    assert list(tiny.backend.objects()) == []


def test_nothing_is_deleted_while_a_manifest_cannot_be_read(tiny) -> None:
    path = tiny.backend.path(tiny.imported.digest)
    flip(path, 9)
    held = len(list(tiny.backend.objects()))
    with pytest.raises(DataLoss):
        upkeep.collect(tiny.backend, LATER_S)
    assert len(list(tiny.backend.objects())) == held


def test_a_model_that_cannot_be_read_is_named_with_what_to_do(tiny) -> None:
    tiny.store("second")
    tiny.backend.path(tiny.imported.digest).unlink()
    with pytest.raises(DataLoss, match=r"model second cannot be read; import or delete it first"):
        upkeep.collect(tiny.backend, LATER_S)
    (tiny.root / "models" / "second").write_text("damaged")
    with pytest.raises(DataLoss, match=r"model second cannot be read; import or delete it first"):
        upkeep.collect(tiny.backend, LATER_S)
    tiny.store("second")
    assert upkeep.collect(tiny.backend, LATER_S).objects == 0


def test_what_is_foreign_beside_models_and_objects_is_left_alone(tiny) -> None:
    (tiny.root / "models" / ".DS_Store").write_bytes(b"x")
    (tiny.root / "objects" / ".DS_Store").write_bytes(b"x")
    (tiny.root / "objects" / "00").mkdir(exist_ok=True)
    (tiny.root / "objects" / "00" / "readme.txt").write_bytes(b"x")
    assert tiny.backend.names() == ["tiny"]
    assert upkeep.collect(tiny.backend, LATER_S).objects == 0
    assert (tiny.root / "objects" / "00" / "readme.txt").exists()


def make_old(backend: DirectoryBackend) -> None:
    for found in backend.objects():
        os.utime(backend.path(found.digest), (1, 1))


@pytest.mark.parametrize("how", ["import", "copy"])
def test_what_an_import_or_copy_relies_on_is_not_collected_before_the_name_appears(
    tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Another process collects garbage at the worst moments; an age of 1970 is beyond any grace."""
    other, source = DirectoryBackend(tiny.root), DirectoryBackend(tmp_path / "source")
    upkeep.copy(tiny.backend, source, "tiny")
    other.withdraw("tiny")
    make_old(other)
    publish = DirectoryBackend.publish

    def collected_first(self: DirectoryBackend, name: str, digest: str) -> None:
        if self is not source:
            upkeep.collect(other, time.time())
        publish(self, name, digest)

    monkeypatch.setattr(DirectoryBackend, "publish", collected_first)
    if how == "import":
        assert tiny.store("again").stored_bytes == 0
    else:
        assert upkeep.copy(source, tiny.backend, "tiny")[1] == 0
    assert upkeep.verify(other, tiny.imported.digest) == []


def test_objects_of_another_user_are_put_again_rather_than_left_old(
    tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_old(tiny.backend)

    def refused(path: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refused)
    assert tiny.store("again").kept_bytes == 0
    assert all(found.modified_s > 1 for found in tiny.backend.objects())


def test_what_is_imported_while_garbage_is_deleted_stays(
    tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, objects = DirectoryBackend(tiny.root), DirectoryBackend.objects
    other.withdraw("tiny")
    make_old(other)

    def imported_behind(self: DirectoryBackend) -> list[StoredObject]:
        listed = list(objects(self))
        tiny.store("again")
        return listed

    monkeypatch.setattr(DirectoryBackend, "objects", imported_behind)
    assert upkeep.collect(other, time.time()).objects == 0
    assert upkeep.verify(other, tiny.imported.digest) == []


@pytest.mark.parametrize("how", ["import", "copy"])
def test_a_name_never_appears_for_what_was_deleted_meanwhile(
    tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """An import so long that its first objects grew old, and were collected; of a copy, which has
    several on their way, also the files that are still being written."""
    target = DirectoryBackend(tmp_path / "target")
    put = DirectoryBackend.put

    def long(self: DirectoryBackend, digest: str, path: Path) -> None:
        put(self, digest, path)
        make_old(self)
        upkeep.collect(self, time.time())

    with monkeypatch.context() as patch:
        patch.setattr(DirectoryBackend, "put", long)
        reason = "deleted meanwhile" if how == "import" else "deleted meanwhile|No such file"
        with pytest.raises(Unavailable, match=reason):
            store_at(target, tiny, how)
    assert target.names() == []
    store_at(target, tiny, how)
    assert upkeep.verify(target, tiny.imported.digest) == []


def store_at(target: DirectoryBackend, tiny, how: str) -> None:
    if how == "copy":
        upkeep.copy(tiny.backend, target, "tiny")
        return
    with closing(open_source(tiny.source)) as checkpoint:
        import_checkpoint(checkpoint, target, "tiny")


@pytest.mark.parametrize("how", ["import", "copy"])
def test_damage_that_left_the_size_is_mended(tiny, tmp_path: Path, how: str) -> None:
    target = DirectoryBackend(tmp_path / "target")
    upkeep.copy(tiny.backend, target, "tiny")
    objects = [*tiny.imported.manifest.objects(), tiny.imported.digest]
    for digest in objects:
        flip(target.path(digest), 77)
    assert store_at(target, tiny, how) is None
    assert upkeep.verify(target, tiny.imported.digest) == []


def test_what_killed_imports_left_is_swept_and_what_is_in_use_is_not(tiny) -> None:
    with tiny.model().stage(LayerRange(0, 3)):
        pass
    (log,) = (tiny.root / "verified").iterdir()
    old, young = tiny.backend.scratch() / "old", tiny.backend.scratch() / "young"
    for path in (old, young):
        path.write_bytes(b"x" * 100)
    os.utime(old, (1, 1))
    assert upkeep.collect(tiny.backend, time.time()).leftovers == 1
    assert (old.exists(), young.exists(), log.exists()) == (False, True, True)
    tiny.backend.withdraw("tiny")
    assert upkeep.collect(tiny.backend, LATER_S).leftovers == 2
    assert not log.exists()


def test_a_copy_is_the_same_model_and_a_second_one_sends_nothing(tiny, tmp_path: Path) -> None:
    target = DirectoryBackend(tmp_path / "target")
    digest, sent = upkeep.copy(tiny.backend, target, "tiny")
    assert digest == tiny.imported.digest
    assert sent == sum(tiny.imported.manifest.objects().values())
    assert upkeep.verify(target, digest) == []
    assert upkeep.copy(tiny.backend, target, "tiny") == (digest, 0)


def test_a_damaged_chunk_is_not_copied(tiny, tmp_path: Path) -> None:
    path = tiny.backend.path(tiny.imported.manifest.chunks[2].digest)
    flip(path, 41)
    target = DirectoryBackend(tmp_path / "target")
    with pytest.raises(DataLoss, match=path.name):
        upkeep.copy(tiny.backend, target, "tiny")
    assert target.names() == []
    path.unlink()
    with pytest.raises(NotFound):
        upkeep.copy(tiny.backend, target, "tiny")
    assert upkeep.verify(tiny.backend, tiny.imported.digest) == [path.name]


def test_a_copy_to_a_full_disk_publishes_nothing_and_the_next_completes(
    tiny, tmp_path: Path
) -> None:
    target = DirectoryBackend(tmp_path / "target")
    with no_file_above(5000), pytest.raises(ResourceExhausted):
        upkeep.copy(tiny.backend, target, "tiny")
    assert target.names() == []
    assert list(target.scratch().iterdir()) == []
    digest, _ = upkeep.copy(tiny.backend, target, "tiny")
    assert upkeep.verify(target, digest) == []


@pytest.mark.parametrize("degree", [1, 4])
def test_an_export_is_a_plain_safetensors_file_of_the_slice(
    tiny, tmp_path: Path, degree: int
) -> None:
    out = tmp_path / "out.safetensors"
    size = export(tiny.model(), out, LayerRange(1, 3), degree, degree - 1)
    assert out.stat().st_size == size
    found = load_file(out)
    assert "model.norm.weight" in found
    assert "model.embed_tokens.weight" not in found
    for name, tensor in found.items():
        wanted = expected_slice(tiny.config, name, tiny.tensors[name], degree, degree - 1)
        assert tensor.shape == wanted.shape
        assert bits(tensor).equal(bits(wanted))
