"""A model split into several GGUF files is read as one, or what is missing is named."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import pytest

from services.common.errors import InvalidArgument
from services.tensorstore.importer import import_checkpoint
from services.tensorstore.places.directory import DirectoryBackend
from services.tensorstore.sources.gguf.checkpoint import GgufCheckpoint
from services.tensorstore.sources.opening import open_source
from tests import gguf_models
from tests.gguf_models import GgufModel


@pytest.fixture(scope="module")
def model() -> GgufModel:
    return gguf_models.model("llama")


def digest(path: Path, store: Path) -> str:
    with closing(open_source(path)) as checkpoint:
        return import_checkpoint(checkpoint, DirectoryBackend(store), "x").digest


def test_any_part_of_a_set_is_the_model_of_the_whole_file(tmp_path: Path, model: GgufModel) -> None:
    whole = digest(model.write(tmp_path / "whole.gguf"), tmp_path / "store")
    parts = model.write_parts(tmp_path, 3)
    for part in parts:
        assert digest(part, tmp_path / "store") == whole


@pytest.mark.parametrize("left", [0, 1, 2])
def test_a_part_that_is_missing_is_named(tmp_path: Path, model: GgufModel, left: int) -> None:
    parts = model.write_parts(tmp_path, 3)
    parts[left].unlink()
    for number, part in enumerate(parts):
        if number == left:
            continue
        with pytest.raises(InvalidArgument) as caught:
            open_source(part)
        assert caught.value.field == "split.count"
        assert f"{part.name} is part {number + 1} of 3" in caught.value.message
        assert parts[left].name in caught.value.message


def test_a_first_part_without_its_others_is_no_tied_model(tmp_path: Path) -> None:
    model = gguf_models.model("llama", layers=1)
    tail = {"output.weight": model.tensors["output.weight"]}
    rest = {name: tensor for name, tensor in model.tensors.items() if name not in tail}
    split = {"split.no": 0, "split.count": 2, "split.tensors.count": len(model.tensors)}
    first = GgufModel({**model.metadata, **split}, rest)
    for name, changes in (
        ("alone-00001-of-00002.gguf", {}),
        ("renamed.gguf", {}),
        ("name-00001-of-00002.gguf", dict.fromkeys(split)),  # only the name says so
        ("key.gguf", {"split.count": None}),
        ("one.gguf", {"split.count": 1}),
    ):
        path = first.changed(changes).write(tmp_path / name)
        with pytest.raises(InvalidArgument) as caught:
            open_source(path)
        assert caught.value.field in ("split.count", "split.tensors.count"), name


def test_parts_under_other_names_are_asked_for_by_the_right_ones(
    tmp_path: Path, model: GgufModel
) -> None:
    first = model.write_parts(tmp_path, 2)[0]
    with pytest.raises(InvalidArgument, match=r"would be called NAME-00001-of-00002\.gguf"):
        open_source(first.rename(tmp_path / "m.gguf"))


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path, model: GgufModel) -> None:
    parts = model.write_parts(tmp_path, 3)
    shutil.copy(parts[1], parts[2])
    with pytest.raises(InvalidArgument) as caught:
        open_source(parts[0])
    assert caught.value.field == "split.no"
    assert caught.value.message.startswith(parts[2].name)
    (tmp_path / "other").mkdir()
    others = gguf_models.model("llama", layers=3).write_parts(tmp_path / "other", 3)
    shutil.copy(others[2], parts[2])
    with pytest.raises(InvalidArgument) as caught:
        open_source(parts[0])
    assert caught.value.message.startswith((parts[1].name, parts[2].name))


def test_a_directory_of_one_gguf_model_is_that_model(tmp_path: Path, model: GgufModel) -> None:
    (tmp_path / "a").mkdir()
    model.write_parts(tmp_path / "a", 3)
    (tmp_path / "a" / "config.json").write_text("{}")
    whole = digest(model.write(tmp_path / "whole.gguf"), tmp_path / "store")
    assert digest(tmp_path / "a", tmp_path / "store") == whole


def test_a_directory_of_several_models_names_them(tmp_path: Path, model: GgufModel) -> None:
    model.write_parts(tmp_path, 2, "q4")
    model.write(tmp_path / "q8.gguf")
    with pytest.raises(InvalidArgument) as caught:
        open_source(tmp_path)
    assert "2 GGUF models" in caught.value.message
    assert "q4-00001-of-00002.gguf" in caught.value.message
    assert "q8.gguf" in caught.value.message


def test_a_model_is_opened_and_closed_without_a_file_left_open(
    tmp_path: Path, model: GgufModel
) -> None:
    first = model.write_parts(tmp_path, 3)[0]
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        GgufCheckpoint(first).close()
        with pytest.raises(InvalidArgument):
            GgufCheckpoint(model.changed({"llama.expert_count": 8}).write(tmp_path / "x.gguf"))
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
