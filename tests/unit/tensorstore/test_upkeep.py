"""Garbage goes, what a name leads to stays; copies are verified on their way."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from services.common.errors import DataLoss, NotFound
from services.common.generation import LayerRange
from services.tensorstore import upkeep
from services.tensorstore.directory import DirectoryBackend
from services.tensorstore.export import export
from tests.checkpoints import bits, expected_slice

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
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    held = len(list(tiny.backend.objects()))
    with pytest.raises(DataLoss):
        upkeep.collect(tiny.backend, LATER_S)
    assert len(list(tiny.backend.objects())) == held


def test_a_copy_is_the_same_model_and_a_second_one_sends_nothing(tiny, tmp_path: Path) -> None:
    target = DirectoryBackend(tmp_path / "target")
    digest, sent = upkeep.copy(tiny.backend, target, "tiny")
    assert digest == tiny.imported.digest
    assert sent == sum(tiny.imported.manifest.objects().values())
    assert upkeep.verify(target, digest) == []
    assert upkeep.copy(tiny.backend, target, "tiny") == (digest, 0)


def test_a_damaged_chunk_is_not_copied(tiny, tmp_path: Path) -> None:
    path = tiny.backend.path(tiny.imported.manifest.chunks[2].digest)
    data = bytearray(path.read_bytes())
    data[5] ^= 2
    path.chmod(0o644)
    path.write_bytes(data)
    target = DirectoryBackend(tmp_path / "target")
    with pytest.raises(DataLoss, match=path.name):
        upkeep.copy(tiny.backend, target, "tiny")
    assert target.names() == []
    path.unlink()
    with pytest.raises(NotFound):
        upkeep.copy(tiny.backend, target, "tiny")
    assert upkeep.verify(tiny.backend, tiny.imported.digest) == [path.name]


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
