"""The S3 backend against a real server, with faults put between."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import textwrap
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from shuntserve.tensorstore.v1 import tensorstore_pb2, tensorstore_pb2_grpc
from tenacity import retry, stop_after_delay, wait_fixed

from services.common import s3_calls
from services.common.errors import (
    DataLoss,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from services.common.generation import LayerRange
from services.common.roles import Role
from services.tensorstore import upkeep
from services.tensorstore.client import open_store
from services.tensorstore.format.slices import Selection
from services.tensorstore.importer import import_checkpoint
from services.tensorstore.places import remote, s3
from services.tensorstore.places.backend import digest_of
from services.tensorstore.places.s3 import S3Backend
from services.tensorstore.sources.opening import open_source
from tests.checkpoints import bits, expected_slice, make_tensors, write_checkpoint

PERSISTENT = 10**6


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_calls, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(s3_calls, "LONGEST_WAIT_S", 0.01)


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


WRITES = {
    "HEAD": lambda method, path: method == "HEAD",
    "PUT": lambda method, path: method == "PUT",
    "LIST": lambda method, path: "list-type=2" in path,
    "begin": lambda method, path: method == "POST" and "uploads" in path,
    "part": lambda method, path: method == "PUT" and "partNumber" in path,
    "complete": lambda method, path: method == "POST" and "uploadId" in path,
}


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """An object of several parts."""
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    data = random.Random(5).randbytes(12 << 20)
    (tmp_path / "large").write_bytes(data)
    return digest_of(data), tmp_path / "large"


@pytest.mark.parametrize("request_kind", WRITES)
def test_errors_in_passing_of_an_import_are_tried_again(
    stored: Any, proxy: Any, large: tuple[str, Path], request_kind: str
) -> None:
    endpoint, faults = proxy
    uri = stored.uri + "/again"
    faults.chosen, faults.status, faults.times = WRITES[request_kind], 503, 3
    backend = S3Backend(uri, endpoint)
    done = stored.store(backend)
    backend.put(*large)
    assert backend.names() == ["tiny"]
    assert faults.times == 0
    assert upkeep.verify(backend, done.digest) == []
    assert digest_of(b"".join(map(bytes, backend.pieces(large[0], 0, 12 << 20)))) == large[0]


@pytest.mark.parametrize("request_kind", WRITES)
def test_an_upload_that_cannot_be_made_is_a_typed_error_and_leaves_nothing_begun(
    stored: Any, proxy: Any, large: tuple[str, Path], request_kind: str
) -> None:
    endpoint, faults = proxy
    faults.chosen, faults.status, faults.times = WRITES[request_kind], 503, PERSISTENT
    backend = S3Backend(stored.uri, endpoint)
    with pytest.raises(Unavailable):
        backend.names() if request_kind == "LIST" else backend.put(*large)
    asked = [path for method, path, _ in faults.requests if faults.chosen(method, path)]
    assert len(asked) <= 3 * s3_calls.ATTEMPTS  # three parts; never attempts within attempts
    faults.times = 0
    begun = backend.sweep(1e12)
    assert begun == (
        s3_calls.ATTEMPTS if request_kind == "begin" else 0
    )  # whose names never came back
    backend.put(*large)
    assert backend.size(large[0]) == 12 << 20


def test_one_read_asks_no_more_often_than_its_attempts(stored: Any, proxy: Any) -> None:
    endpoint, faults = proxy
    faults.chosen, faults.status, faults.times = WRITES["HEAD"], 503, PERSISTENT
    chunk = stored.imported.manifest.chunks[0]
    with pytest.raises(Unavailable):
        list(S3Backend(stored.uri, endpoint).pieces(chunk.digest, 0, chunk.size_bytes))
    assert len(faults.requests) == s3_calls.ATTEMPTS


@pytest.mark.parametrize("fault", ["slow", "drip"])
def test_a_slow_answer_ends_in_time_with_a_typed_error(
    stored: Any, proxy: Any, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(s3_calls, "READ_TIMEOUT_S", 0.2)
    monkeypatch.setattr(s3_calls, "DEADLINE_S", 1.0)
    endpoint, faults = proxy
    backend = S3Backend(stored.uri, endpoint)
    chunk = stored.imported.manifest.chunks[0]  # dripping it takes an hour
    setattr(faults, fault, PERSISTENT)
    with pytest.raises(Unavailable):
        list(backend.pieces(chunk.digest, 0, chunk.size_bytes))
    faults.chosen = lambda method, path: "/models/" in path
    with pytest.raises(Unavailable):
        backend.resolve("tiny")
    setattr(faults, fault, 1)
    assert backend.resolve("tiny") == stored.imported.digest


ASKS = {
    "head": lambda backend, digest: backend.size(digest),
    "range": lambda backend, digest: list(backend.pieces(digest, 0, 100)),
    "entry": lambda backend, digest: backend.resolve("tiny"),
    "list": lambda backend, digest: backend.names(),
    "objects": lambda backend, digest: list(backend.objects()),
    "uploads": lambda backend, digest: backend.sweep(0.0),
}


@pytest.mark.parametrize(
    ("ask", "fault"),
    [
        ("head", "drip_head"),
        ("range", "drip_head"),
        ("list", "drip_head"),
        ("objects", "drip"),
        ("entry", "drip"),
        ("uploads", "drip"),
    ],
)
def test_an_answer_that_drips_ends_in_time_with_a_typed_error(
    stored: Any, proxy: Any, monkeypatch: pytest.MonkeyPatch, ask: str, fault: str
) -> None:
    monkeypatch.setattr(s3_calls, "READ_TIMEOUT_S", 0.3)
    monkeypatch.setattr(s3_calls, "DEADLINE_S", 1.0)
    monkeypatch.setattr(s3_calls, "LEAST_BYTES_PER_S", 1 << 30)
    endpoint, faults = proxy
    backend = S3Backend(stored.uri, endpoint)
    digest = stored.imported.manifest.chunks[0].digest
    before = ASKS[ask](backend, digest)
    faults.chosen = lambda method, path: True
    setattr(faults, fault, PERSISTENT)
    began_s = time.monotonic()
    with pytest.raises(Unavailable):
        ASKS[ask](backend, digest)
    # Dripping it all takes half an hour.
    assert time.monotonic() - began_s < 120
    setattr(faults, fault, 0)
    assert ASKS[ask](backend, digest) == before


def test_a_store_told_to_stop_ends_though_s3_hangs(
    stored: Any, proxy: Any, start_service: Any, tmp_path: Path
) -> None:
    endpoint, faults = proxy
    settings = {"store": stored.uri, "endpoint_url": endpoint, "shutdown_grace_s": 0.5}
    running = start_service(grpc_port=0, cache_directory=tmp_path / "cache", **settings)
    faults.chosen = lambda method, path: True
    faults.slow = PERSISTENT
    asked = len(faults.requests)
    with closing(remote.open_channel(running.address, Role.TENSORSTORE)) as channel:
        stub: Any = tensorstore_pb2_grpc.TensorStoreServiceStub(channel)
        waiting = stub.List.future(tensorstore_pb2.ListRequest())
        while len(faults.requests) == asked:
            time.sleep(0.01)
        running.process.terminate()
        assert running.process.wait(60) == 0  # the socket's own timeout is 20 s, six times over
        waiting.cancel()


def test_an_object_that_is_kept_is_young_again_and_one_of_another_size_is_not_kept(
    stored: Any, s3_endpoint: str
) -> None:
    backend = S3Backend(stored.uri, s3_endpoint)
    digest, size = next(iter(stored.imported.manifest.objects().items()))
    assert backend.touch(digest, size, older_s=3600)
    assert not backend.touch(digest, size - 1, older_s=-3600)
    assert not backend.touch("0" * 64, size, older_s=-3600)
    before = {found.digest: found.modified_s for found in backend.objects()}[digest]
    wait_until_after(before)
    assert backend.touch(digest, size, older_s=-3600)
    assert {found.digest: found.modified_s for found in backend.objects()}[digest] > before
    assert upkeep.verify(backend, stored.imported.digest) == []


@retry(stop=stop_after_delay(60), wait=wait_fixed(0.1))
def wait_until_after(second: float) -> None:
    """S3 tells times in whole seconds."""
    assert time.time() > second + 1


def test_what_was_begun_and_never_completed_is_swept(stored: Any, s3_endpoint: str) -> None:
    backend = S3Backend(stored.uri, s3_endpoint)
    client = boto3.client("s3", endpoint_url=s3_endpoint)
    prefix = stored.uri.removeprefix("s3://weights/")
    client.create_multipart_upload(Bucket="weights", Key=f"{prefix}/objects/00/{'0' * 64}")
    assert upkeep.collect(backend, 0.0).leftovers == 0
    assert upkeep.collect(backend, 1e12).leftovers == 1
    assert upkeep.collect(backend, 1e12).leftovers == 0


def test_what_is_foreign_beside_models_and_objects_is_left_alone(
    stored: Any, s3_endpoint: str
) -> None:
    backend = S3Backend(stored.uri, s3_endpoint)
    client = boto3.client("s3", endpoint_url=s3_endpoint)
    prefix = stored.uri.removeprefix("s3://weights/")
    for key in ("models/.DS_Store", "objects/readme.txt"):
        client.put_object(Bucket="weights", Key=f"{prefix}/{key}", Body=b"x")
    assert backend.names() == ["tiny"]
    assert upkeep.collect(backend, 1e12).objects == 0
    assert client.head_object(Bucket="weights", Key=f"{prefix}/objects/readme.txt")


def test_a_damaged_object_is_mended_by_the_next_import(stored: Any, s3_endpoint: str) -> None:
    backend = S3Backend(stored.uri, s3_endpoint)
    client = boto3.client("s3", endpoint_url=s3_endpoint)
    chunk = stored.imported.manifest.chunks[1]
    prefix = stored.uri.removeprefix("s3://weights/")
    key = f"{prefix}/objects/{chunk.digest[:2]}/{chunk.digest}"
    client.put_object(Bucket="weights", Key=key, Body=bytes(chunk.size_bytes))
    assert upkeep.verify(backend, stored.imported.digest) == [chunk.digest]
    assert stored.store(backend).stored_bytes == chunk.size_bytes
    assert upkeep.verify(backend, stored.imported.digest) == []


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from services.tensorstore.importer import import_checkpoint
    from services.tensorstore.places.s3 import S3Backend
    from services.tensorstore.sources.opening import open_source

    def progress(done, total):
        if done > total * float(sys.argv[4]):
            os.kill(os.getpid(), signal.SIGKILL)

    backend = S3Backend(sys.argv[2], sys.argv[3])
    import_checkpoint(open_source(Path(sys.argv[1])), backend, "tiny", progress)
"""


@pytest.mark.parametrize("part", ["0.0", "0.5", "0.99"])
def test_a_killed_import_leaves_the_old_version_and_the_next_completes(
    stored: Any,
    s3_endpoint: str,
    tmp_path: Path,
    part: str,
) -> None:
    backend, old = S3Backend(stored.uri, s3_endpoint), stored.imported.digest
    config = stored.config | {"num_hidden_layers": 4}
    source = write_checkpoint(tmp_path / "new", config, make_tensors(config, seed=1))
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(source), stored.uri]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run([*command, s3_endpoint, part], env=environment, timeout=120)
    assert done.returncode == -9
    assert backend.resolve("tiny") == old
    assert upkeep.verify(backend, old) == []
    assert list(backend.scratch().iterdir())  # what it was writing
    with closing(open_source(source)) as checkpoint:
        imported = import_checkpoint(checkpoint, backend, "tiny")
    if part == "0.99":
        assert imported.kept_bytes > 0.5 * imported.manifest.size_bytes
    upkeep.collect(backend, 1e12)
    assert list(backend.scratch().iterdir()) == []
    assert backend.resolve("tiny") == imported.digest
    assert upkeep.verify(backend, imported.digest) == []


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
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(PermissionDenied):
        S3Backend(stored.uri, s3_endpoint).names()


@pytest.mark.parametrize("endpoint", ["nonsense", "http://[::1", "ftp//x"])
def test_an_endpoint_that_is_no_url_is_refused(endpoint: str) -> None:
    with pytest.raises(InvalidArgument):
        S3Backend("s3://weights/x", endpoint)


def test_a_server_that_is_away_is_unavailable() -> None:
    with pytest.raises(Unavailable):
        S3Backend("s3://weights/x", "http://127.0.0.1:9").names()


def test_garbage_goes_and_copies_come_back_whole(
    stored: Any, s3_endpoint: str, tmp_path: Path
) -> None:
    from services.tensorstore.places.directory import DirectoryBackend

    backend, target = S3Backend(stored.uri, s3_endpoint), DirectoryBackend(tmp_path / "back")
    digest, _ = upkeep.copy(backend, target, "tiny")
    assert upkeep.verify(target, digest) == []
    assert backend.withdraw("tiny")
    held = len(list(backend.objects()))
    assert upkeep.collect(backend, 1e12).objects == held
    assert list(backend.objects()) == []
    assert upkeep.copy(target, backend, "tiny")[0] == digest


def test_a_model_whose_entry_is_damaged_can_be_deleted(stored: Any, s3_endpoint: str) -> None:
    backend = S3Backend(stored.uri, s3_endpoint)
    client = boto3.client("s3", endpoint_url=s3_endpoint)
    prefix = stored.uri.removeprefix("s3://weights/")
    for damaged in (b"x", b""):
        client.put_object(Bucket="weights", Key=f"{prefix}/models/tiny", Body=damaged)
        with pytest.raises(DataLoss, match="delete it first"):
            upkeep.collect(backend, 1e12)
        assert backend.withdraw("tiny")
        assert backend.names() == []
        assert not backend.withdraw("tiny")


@pytest.mark.parametrize("code", ["RequestTimeout", "BadDigest"])
def test_an_upload_that_arrived_too_slowly_or_damaged_is_tried_again(
    stored: Any, proxy: Any, large: tuple[str, Path], code: str
) -> None:
    endpoint, faults = proxy
    faults.chosen, faults.status, faults.times = WRITES["PUT"], 400, 2
    faults.body = f"<Error><Code>{code}</Code><Message>again</Message></Error>".encode()
    backend = S3Backend(stored.uri, endpoint)
    backend.put(*large)
    assert faults.times == 0
    assert backend.size(large[0]) == 12 << 20
