"""Hostile safetensors files get a typed error, sound ones are read."""

from __future__ import annotations

import json
import os
import random
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from services.common.errors import DataLoss, InvalidArgument, NotFound
from services.tensorstore.sources.checkpoint import WeightsCheckpoint
from services.tensorstore.sources.hf_checkpoint import HfCheckpoint
from services.tensorstore.sources.opening import default_source, open_source
from services.tensorstore.sources.safetensors_file import read_header
from tests.mutants import mutate_bytes


def packed(header: Any, data_bytes: int) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data_bytes)


def entry(shape: list[Any], begin: Any, end: Any, **more: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]} | more


HOSTILE = {
    "empty": b"",
    "seven bytes": b"\x00" * 7,
    "length of 2^63": (2**63).to_bytes(8, "little") + b"{}",
    "longer than the file": (100).to_bytes(8, "little") + b"{}",
    "not UTF-8": packed(b'{"\xff\xfe": 1}', 0),
    "deep": packed(b"[" * 50_000 + b"]" * 50_000, 0),
    "not an object": packed([1], 0),
    "overlap": packed({"a": entry([4], 0, 16), "b": entry([4], 8, 24)}, 24),
    "hole": packed({"a": entry([4], 0, 16), "b": entry([4], 20, 36)}, 36),
    "trailing": packed({"a": entry([4], 0, 16)}, 17),
    "truncated": packed({"a": entry([4], 0, 16)}, 15),
    "end before begin": packed({"a": entry([4], 16, 0)}, 16),
    "negative": packed({"a": entry([4], -16, 0)}, 16),
    "float offsets": packed({"a": entry([4], 0.0, 16.0)}, 16),
    "overflow": packed({"a": entry([2**33, 2**33], 0, 16)}, 16),
    "size is not shape": packed({"a": entry([5], 0, 16)}, 16),
    "rank 10,000": packed({"a": entry([1] * 10_000, 0, 4)}, 4),
    "negative extent": packed({"a": entry([-4], 0, 16)}, 16),
    "boolean extent": packed({"a": entry([True], 0, 4)}, 4),
    "duplicate": packed(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        4,
    ),
    "parent in name": packed({"../a": entry([1], 0, 4)}, 4),
    "NUL in name": packed({"a\0": entry([1], 0, 4)}, 4),
    "unknown field": packed({"a": entry([1], 0, 4, code="x")}, 4),
    "unknown dtype": packed({"a": entry([1], 0, 4, dtype="F64")}, 4),
    "empty tensors": packed({f"t{n}": entry([0], 0, 0) for n in range(100_000)}, 0),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.group(39, 40, 41, 42)
def test_a_hostile_file_gets_a_typed_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(InvalidArgument) as caught:
        read_header(path)
    assert len(caught.value.message) <= 400


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_no_mutant_crashes_the_reader(tmp_path_factory: Any, seed: int) -> None:
    source = random.Random(seed)
    tensors = {"a": torch.zeros(3, 4), "b.c": torch.ones(5, dtype=torch.bfloat16)}
    path = tmp_path_factory.getbasetemp() / "mutant.safetensors"
    path.write_bytes(mutate_bytes(save(tensors), source))
    try:
        found = read_header(path)
    except InvalidArgument:
        return
    assert all(one.start + one.size_bytes <= path.stat().st_size for one in found)


@pytest.mark.group(43)
def test_a_source_truncated_while_it_is_read_is_data_loss(tiny) -> None:
    checkpoint = open_source(tiny.source)
    file = next(tiny.source.glob("*.safetensors"))
    os.truncate(file, file.stat().st_size - 1000)
    with pytest.raises(DataLoss):
        read_everything(checkpoint)
    checkpoint.close()


def read_everything(checkpoint: WeightsCheckpoint) -> None:
    for name, tensor in checkpoint.tensors.items():
        checkpoint.read_rows(name, 0, tensor.shape[0], memoryview(bytearray(tensor.size_bytes)))


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b", "", 5, ["a"], None])
def test_an_index_cannot_name_files_elsewhere(tiny, name: object) -> None:
    index = {"weight_map": {"a": name, "b": "b.safetensors"}}
    (tiny.source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InvalidArgument):
        HfCheckpoint(tiny.source)


def test_a_missing_tensor_is_named(tiny) -> None:
    config = tiny.config | {"num_hidden_layers": 4}
    (tiny.source / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidArgument, match=r"model\.layers\.3\.input_layernorm"):
        tiny.store("other")


SOURCES = ("config.json", "tokenizer.json", "model-00001-of-00001.safetensors")


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("kind", ["pipe", "loop", "missing"])
def test_a_source_that_is_no_plain_file_gets_a_typed_error(tiny, name: str, kind: str) -> None:
    path = tiny.source / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    with pytest.raises((InvalidArgument, NotFound)):
        tiny.store("other")


def test_a_source_that_cannot_even_be_looked_at_gets_a_typed_error() -> None:
    with pytest.raises(InvalidArgument, match="too long"):
        open_source(Path("n" * 5000))


def test_a_shard_that_vanishes_before_it_is_read_gets_a_typed_error(tiny) -> None:
    with closing(open_source(tiny.source)) as checkpoint:
        (tiny.source / SOURCES[2]).unlink()
        with pytest.raises(NotFound, match="missing"):
            read_everything(checkpoint)


@pytest.mark.parametrize("name", SOURCES)
def test_links_are_followed_only_where_they_may_be(tiny, tmp_path: Path, name: str) -> None:
    outside, inside = tmp_path / "outside", tiny.source / "inside"
    (tiny.source / name).rename(outside)
    (tiny.source / name).symlink_to(outside)
    open_source(tiny.source).close()
    with pytest.raises(InvalidArgument, match="lies elsewhere"):
        open_source(tiny.source, within=tiny.source)
    outside.rename(inside)
    (tiny.source / name).unlink()
    (tiny.source / name).symlink_to(inside)
    with closing(open_source(tiny.source, within=tiny.source)) as checkpoint:
        read_everything(checkpoint)


def test_a_linked_gguf_file_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.gguf").symlink_to(default_source())
    with pytest.raises(InvalidArgument, match="lies elsewhere"):
        open_source(tmp_path / "in" / "x.gguf", within=tmp_path / "in")
