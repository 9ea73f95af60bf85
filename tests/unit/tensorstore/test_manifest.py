"""A manifest is believed only whole: whatever its bytes, it is parsed or refused as DataLoss."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import DataLoss
from services.tensorstore import manifest
from tests.mutants import mutate_bytes, mutate_json


@pytest.fixture
def document(tiny) -> dict:
    return json.loads(manifest.dump(tiny.imported.manifest))


def refused(document: object) -> str:
    with pytest.raises(DataLoss) as caught:
        manifest.parse(json.dumps(document).encode("utf-8", "surrogatepass"))
    return caught.value.message


def test_what_was_dumped_is_parsed_again(tiny) -> None:
    data = manifest.dump(tiny.imported.manifest)
    assert manifest.parse(data) == tiny.imported.manifest
    assert manifest.dump(manifest.parse(data)) == data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b'"traw"',
        b"\xff\xfe\x00\x00",
        b"[" * 100_000,
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b'{"format":"traw","format":"traw"}',
        b'{"version": NaN}',
        b'{"version": 1e999}',
        b'{"version": ' + b"9" * 5000 + b"}",
    ],
    ids=range(11),
)
def test_bytes_that_are_no_manifest_are_refused(data: bytes) -> None:
    with pytest.raises(DataLoss):
        manifest.parse(data)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("version",), 2, "version"),
        (("version",), True, "version"),
        (("extra",), 1, "exactly"),
        (("tiling", "heads"), 0, "heads"),
        (("tiling", "kv_heads"), 3, "kv_heads"),
        (("chunks", 0, "digest"), "../../../etc/passwd", "digest"),
        (("chunks", 0, "size"), -1, "size"),
        (("chunks", 0, "size"), 2**63, "size"),
        (("chunks", 0, "ends"), [], "ends"),
        (("chunks", 0, "tiles"), "????", "tiles"),
        (("tensors", 0, "name"), "../x", "name"),
        (("tensors", 0, "name"), "a\0b", "name"),
        (("tensors", 0, "name"), "model.norm.weight", "twice"),
        (("tensors", 0, "shape"), [2**40, 2**40, 4], "size"),
        (("tensors", 0, "shape"), [0], "positive"),
        (("tensors", 0, "shape"), [1] * 10_000, "shape"),
        (("tensors", 0, "shape"), [64.0, 32], "positive"),
        (("tensors", 0, "offset"), 64, "overlaps"),
        (("tensors", 0, "offset"), -64, "offset"),
        (("tensors", 0, "offset"), 0.0, "offset"),
        (("tensors", 0, "dtype"), "F64", "dtype"),
        (("tensors", 0, "chunk"), 99, "chunk"),
        (("tensors", 0, "unit"), "experts", "unit"),
        (("tensors", 0, "axis"), 2, "axis"),
        (("files", "../x"), {"digest": "0" * 64, "size": 1}, "file name"),
    ],
)
def test_a_wrong_field_is_named(document: dict, path: tuple, value: object, said: str) -> None:
    node = document
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    assert said in refused(document)


def test_many_empty_tensors_are_refused(document: dict) -> None:
    document["tensors"] = [document["tensors"][0] | {"shape": [0], "name": "t"}] * 100_000
    assert "tensors" in refused(document)


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_no_mutant_crashes_the_parser(seed: int) -> None:
    source = random.Random(seed)
    whole = {
        "format": "traw",
        "version": 1,
        "config": {"a": 1},
        "files": {"tokenizer.json": {"digest": "0" * 64, "size": 3}},
        "tied": False,
        "tiling": {"layers": 1, "heads": 2, "kv_heads": 1, "intermediate": 4, "vocabulary": 4},
        "chunks": [{"digest": "1" * 64, "size": 32, "ends": [16, 32], "tiles": "A" * 85 + "A=="}],
        "tensors": [
            {
                "name": "w",
                "dtype": "BF16",
                "shape": [4, 4],
                "layer": 0,
                "unit": "heads",
                "axis": 0,
                "chunk": 0,
                "offset": 0,
            }
        ],
    }
    mutant = mutate_json(whole, source) if source.random() < 0.7 else whole
    data = json.dumps(mutant).encode("utf-8", "surrogatepass")
    if source.random() < 0.5:
        data = mutate_bytes(data, source)
    try:
        found = manifest.parse(data)
    except DataLoss:
        return
    assert all(t.offset + t.size_bytes <= found.chunks[t.chunk].size_bytes for t in found.tensors)
