"""The S3 backend against a real server, with faults put between."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch

from services.common.errors import DataLoss, NotFound, PermissionDenied, Unavailable
from services.common.generation import LayerRange
from services.tensorstore import s3, upkeep
from services.tensorstore.client import open_store
from services.tensorstore.s3 import S3Backend
from services.tensorstore.slices import Selection
from tests.checkpoints import bits, expected_slice

PERSISTENT = 10**6


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(s3, "LONGEST_WAIT_S", 0.01)


def load(stored: Any, endpoint: str, cache: Path, degree: int = 1, rank: int = 0) -> None:
    """Loads a slice into an empty cache and compares every bit of it."""
    store = open_store(stored.uri, endpoint_url=endpoint, cache_directory=cache)
    with store.model("tiny").stage(LayerRange(0, 3), degree, rank) as stage:
        assert len(stage.tensors) == len(stored.tensors)
        for name, tensor in stage.tensors.items():
            wanted = expected_slice(stored.config, name, stored.tensors[name], degree, rank)
            assert torch.equal(bits(tensor), bits(wanted)), name


def test_both_backends_hold_the_same_version(stored: Any, s3_endpoint: str) -> None:
    backend = S3Backend(stored.uri, s3_endpoint)
    assert backend.names() == ["tiny"]
    assert backend.resolve("tiny") == stored.imported.digest
    assert {found.digest for found in backend.objects()} == {
        *stored.imported.manifest.objects(),
        stored.imported.digest,
    }
    assert upkeep.verify(backend, stored.imported.digest) == []


@pytest.mark.parametrize("degree", [1, 2, 4, 8])
def test_the_bytes_read_are_the_slice_and_every_read_names_the_etag(
    stored: Any, proxy: Any, tmp_path: Path, degree: int
) -> None:
    endpoint, faults = proxy
    rank = degree - 1
    load(stored, endpoint, tmp_path / "c", degree, rank)
    wanted = Selection.of(stored.imported.digest, stored.imported.manifest, 0, 3, degree, rank)
    manifest = S3Backend(stored.uri, endpoint).size(stored.imported.digest)
    assert faults.sent_bytes == wanted.size_bytes + manifest
    reads = [h for method, path, h in faults.requests if method == "GET" and "/objects/" in path]
    assert reads
    assert all("If-Match" in headers for headers in reads)


@pytest.mark.parametrize("status", [500, 503, 429])
def test_errors_in_passing_are_tried_again(
    stored: Any, proxy: Any, tmp_path: Path, status: int
) -> None:
    endpoint, faults = proxy
    faults.status, faults.times = status, 3
    load(stored, endpoint, tmp_path / "c")
    assert faults.times == 0


@pytest.mark.parametrize("fault", ["short", "flip", "range"])
def test_a_wrong_answer_in_passing_is_mended(
    stored: Any, proxy: Any, tmp_path: Path, fault: str
) -> None:
    endpoint, faults = proxy
    store = open_store(stored.uri, endpoint_url=endpoint, cache_directory=tmp_path / "c")
    model = store.model("tiny")
    setattr(faults, fault, 2)
    with model.stage(LayerRange(1, 2)) as stage:
        for name, tensor in stage.tensors.items():
            assert torch.equal(bits(tensor), bits(stored.tensors[name])), name
    assert getattr(faults, fault) == 0


@pytest.mark.parametrize(
    ("fault", "error"),
    [("short", Unavailable), ("flip", DataLoss), ("range", DataLoss), ("times", Unavailable)],
)
def test_a_wrong_answer_that_stays_is_a_typed_error(
    stored: Any, proxy: Any, tmp_path: Path, fault: str, error: type[Exception]
) -> None:
    endpoint, faults = proxy
    store = open_store(stored.uri, endpoint_url=endpoint, cache_directory=tmp_path / "c")
    model = store.model("tiny")
    faults.status = 503
    setattr(faults, fault, PERSISTENT)
    with pytest.raises(error), model.stage(LayerRange(0, 3)):
        pass
    setattr(faults, fault, 0)
    load(stored, endpoint, tmp_path / "c")


def test_an_object_swapped_in_mid_read_is_data_loss(stored: Any, s3_endpoint: str) -> None:
    backend = S3Backend(stored.uri, s3_endpoint)
    chunk = stored.imported.manifest.chunks[0]
    half = chunk.size_bytes // 2
    assert sum(map(len, backend.pieces(chunk.digest, 0, half))) == half
    prefix = stored.uri.rpartition("/")[2]
    key = f"{prefix}/objects/{chunk.digest[:2]}/{chunk.digest}"
    boto3.client("s3", endpoint_url=s3_endpoint).put_object(
        Bucket="weights", Key=key, Body=bytes(chunk.size_bytes)
    )
    with pytest.raises(DataLoss, match="changed"):
        list(backend.pieces(chunk.digest, half, chunk.size_bytes))


def test_flipped_bits_in_stored_objects_are_found(
    stored: Any, s3_endpoint: str, tmp_path: Path
) -> None:
    client, source = boto3.client("s3", endpoint_url=s3_endpoint), random.Random(3)
    prefix = stored.uri.rpartition("/")[2]
    for number in range(8):
        chunk = source.choice(stored.imported.manifest.chunks)
        key = f"{prefix}/objects/{chunk.digest[:2]}/{chunk.digest}"
        whole = client.get_object(Bucket="weights", Key=key)["Body"].read()
        damaged, bit = bytearray(whole), source.randrange(len(whole) * 8)
        damaged[bit // 8] ^= 1 << bit % 8
        client.put_object(Bucket="weights", Key=key, Body=bytes(damaged))
        store = open_store(
            stored.uri, endpoint_url=s3_endpoint, cache_directory=tmp_path / str(number)
        )
        with (
            pytest.raises(DataLoss, match=chunk.digest),
            store.model("tiny").stage(LayerRange(0, 3)),
        ):
            pass
        backend = S3Backend(stored.uri, s3_endpoint)
        assert upkeep.verify(backend, stored.imported.digest) == [chunk.digest]
        client.put_object(Bucket="weights", Key=key, Body=whole)


def test_a_missing_object_and_wrong_credentials_are_told_apart(
    stored: Any, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = S3Backend(stored.uri, s3_endpoint)
    with pytest.raises(NotFound):
        list(backend.pieces("0" * 64, 0, 4))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(PermissionDenied):
        S3Backend(stored.uri, s3_endpoint).names()


def test_a_server_that_is_away_is_unavailable() -> None:
    with pytest.raises(Unavailable):
        S3Backend("s3://weights/x", "http://127.0.0.1:9").names()


def test_garbage_goes_and_copies_come_back_whole(
    stored: Any, s3_endpoint: str, tmp_path: Path
) -> None:
    from services.tensorstore.directory import DirectoryBackend

    backend, target = S3Backend(stored.uri, s3_endpoint), DirectoryBackend(tmp_path / "back")
    digest, _ = upkeep.copy(backend, target, "tiny")
    assert upkeep.verify(target, digest) == []
    assert backend.withdraw("tiny")
    held = len(list(backend.objects()))
    assert upkeep.collect(backend, 1e12).objects == held
    assert list(backend.objects()) == []
    assert upkeep.copy(target, backend, "tiny")[0] == digest
