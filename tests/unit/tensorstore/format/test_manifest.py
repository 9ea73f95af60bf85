"""A manifest is believed only whole: whatever its bytes, it is parsed or refused as DataLoss."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import DataLoss
from services.tensorstore.format import manifest
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


def test_one_digest_stands_for_one_chunk(document: dict) -> None:
    chunks = document["chunks"]
    chunks["digest"][1] = chunks["digest"][0]
    assert "different chunks" in refused(document)


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
        (("version",), 1.0, "version"),
        (("extra",), 1, "exactly"),
        (("tiling", "heads"), 0, "heads"),
        (("tiling", "kv_heads"), 3, "kv_heads"),
        (("chunks", "digest", 0), "../../../etc/passwd", "digest"),
        (("chunks", "size", 0), -1, "size"),
        (("chunks", "size", 0), 2**63, "size"),
        (("chunks", "ends", 0), [], "ends"),
        (("chunks", "tiles"), "????", "tiles"),
        (("tensors", "name", 0), "../x", "name"),
        (("tensors", "name", 0), "a\0b", "name"),
        (("tensors", "name", 0), "model.norm.weight", "twice"),
        (("tensors", "shape", 0), [2**40, 2**40, 4], "size"),
        (("tensors", "shape", 0), [0], "positive"),
        (("tensors", "shape", 0), [1] * 10_000, "shape"),
        (("tensors", "shape", 0), [64.0, 32], "positive"),
        (("tensors", "offset", 0), 64, "overlaps"),
        (("tensors", "offset", 0), -64, "offset"),
        (("tensors", "offset", 0), 0.0, "offset"),
        (("tensors", "dtype", 0), "F4", "dtype"),
        (("tensors", "chunk", 0), 99, "chunk"),
        (("tensors", "unit", 0), "experts", "unit"),
        (("tensors", "axis", 0), 2, "axis"),
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
    table = document["tensors"]
    document["tensors"] = {key: column[:1] * 300_000 for key, column in table.items()}
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
        "chunks": {
            "digest": ["1" * 64],
            "size": [32],
            "ends": [[16, 32]],
            "tiles": "A" * 85 + "A==",
        },
        "tensors": {
            "name": ["w"],
            "dtype": ["BF16"],
            "shape": [[4, 4]],
            "layer": [0],
            "unit": ["heads"],
            "axis": [0],
            "chunk": [0],
            "offset": [0],
        },
    }
    manifest.parse(json.dumps(whole).encode())
    mutant = mutate_json(whole, source) if source.random() < 0.7 else whole
    data = json.dumps(mutant).encode("utf-8", "surrogatepass")
    if source.random() < 0.5:
        data = mutate_bytes(data, source)
    try:
        found = manifest.parse(data)
    except DataLoss:
        return
    assert all(t.offset + t.size_bytes <= found.chunks[t.chunk].size_bytes for t in found.tensors)
