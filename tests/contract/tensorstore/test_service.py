"""The service over its wire, as engines, operators and other stores use it."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from shuntserve.common.v1 import common_pb2
from shuntserve.tensorstore.v1 import tensorstore_pb2 as pb
from shuntserve.tensorstore.v1 import tensorstore_pb2_grpc as rpc

from services.common.errors import DataLoss, InvalidArgument, NotFound
from services.common.generation import LayerRange
from services.tensorstore import __main__ as process
from services.tensorstore.client import open_store
from services.tensorstore.importer import import_checkpoint
from services.tensorstore.places.directory import DirectoryBackend
from services.tensorstore.sources.opening import open_source
from tests.checkpoints import (
    bits,
    expected_slice,
    make_config,
    make_tensors,
    rot,
    smallest_tokenizer,
    write_checkpoint,
)
from tests.foreign_models import save_quantised

TIMEOUT_S = 60.0
NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def address(stored: Any, s3_endpoint: str, tmp_path: Path, start_service: Any) -> str:
    """A service in front of S3, with both caches."""
    (tmp_path / "incoming").mkdir()
    return str(
        start_service(
            store=stored.uri,
            endpoint_url=s3_endpoint,
            cache_directory=tmp_path / "disk",
            memory_directory=tmp_path / "memory",
            import_directory=tmp_path / "incoming",
        ).address
    )


@pytest.fixture
def stub(address: str) -> Any:
    with grpc.insecure_channel(address) as channel:
        yield rpc.TensorStoreServiceStub(channel)


def whole(digest: str = "", name: str = "tiny", end: int = 3, **more: Any) -> pb.Slice:
    return pb.Slice(
        model=common_pb2.ModelRef(model_id=name, digest=digest),
        layers=common_pb2.LayerRange(start=0, end=end),
        **more,
    )


def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        list(call) if hasattr(call, "__iter__") else call
    return caught.value.code()


def test_an_engine_maps_the_files_of_its_node(stored: Any, address: str, tmp_path: Path) -> None:
    model = open_store(f"grpc://{address}").model("tiny")
    assert model.digest == stored.imported.digest
    assert model.tokenizer_files() == {
        "generation_config.json": b'{"eos_token_id": 0}',
        "tokenizer.json": smallest_tokenizer().to_str().encode(),
    }
    for rank in range(2):
        with model.stage(LayerRange(0, 3), 2, rank) as stage:
            for name, tensor in stage.tensors.items():
                wanted = expected_slice(stored.config, name, stored.tensors[name], 2, rank)
                assert torch.equal(bits(tensor), bits(wanted)), name
            assert str(tmp_path / "memory") in Path("/proc/self/maps").read_text()


def test_a_reader_on_another_host_keeps_a_cache_of_its_own(
    stored: Any, address: str, tmp_path: Path
) -> None:
    store = open_store(f"grpc://{address}", cache_directory=tmp_path / "own")
    with store.model("tiny").stage(LayerRange(1, 3), 4, 1) as stage:
        for name, tensor in stage.tensors.items():
            wanted = expected_slice(stored.config, name, stored.tensors[name], 4, 1)
            assert torch.equal(bits(tensor), bits(wanted)), name


def test_list_and_describe_tell_what_there_is(stored: Any, stub: Any) -> None:
    (found,) = stub.List(pb.ListRequest(), timeout=TIMEOUT_S).models
    assert (found.model.model_id, found.model.digest) == ("tiny", stored.imported.digest)
    assert list(found.tp_degrees) == [1, 2, 4, 8]
    request = pb.DescribeRequest(model=common_pb2.ModelRef(digest=stored.imported.digest))
    described = stub.Describe(request, timeout=TIMEOUT_S)
    assert described.summary.layers == 3
    assert not described.part_bytes, "they follow from the config"


def test_describe_tells_the_sizes_of_tensors_that_are_kept_whole(stub: Any, tmp_path: Path) -> None:
    tensors = save_quantised("awq", tmp_path / "incoming" / "quantised")
    list(stub.Import(pb.ImportRequest(source="quantised", name="quantised"), timeout=TIMEOUT_S))
    request = pb.DescribeRequest(model=common_pb2.ModelRef(model_id="quantised"))
    parts = stub.Describe(request, timeout=TIMEOUT_S).part_bytes
    of_layer = [tensor.nbytes for name, tensor in tensors.items() if ".layers.1." in name]
    assert (len(parts), parts[2]) == (5, sum(of_layer))


def test_prefetch_warms_what_is_opened_later(stored: Any, stub: Any, tmp_path: Path) -> None:
    answers = list(stub.Prefetch(pb.PrefetchRequest(slice=whole()), timeout=TIMEOUT_S))
    last = answers[-1].progress
    assert last.done_bytes == last.total_bytes > 0
    assert {answer.progress.total_bytes for answer in answers} == {last.total_bytes}
    held = sum(f.stat().st_size for f in (tmp_path / "memory").rglob("objects/??/*"))
    assert held == sum(chunk.size_bytes for chunk in stored.imported.manifest.chunks)
    call = stub.Open(pb.OpenRequest(slice=whole()), timeout=TIMEOUT_S)
    opened = next(answer for answer in call if answer.HasField("opened")).opened
    assert [Path(path).stat().st_ino for path in opened.paths] == list(opened.inodes)
    call.cancel()


def test_an_operator_imports_verifies_and_deletes(stored: Any, stub: Any, tmp_path: Path) -> None:
    stored.source.rename(tmp_path / "incoming" / "new")
    answers = list(stub.Import(pb.ImportRequest(source="new", name="second"), timeout=TIMEOUT_S))
    reference = answers[-1].imported
    assert reference.digest == stored.imported.digest
    verified = list(stub.Verify(pb.VerifyRequest(model=reference), timeout=TIMEOUT_S))
    assert list(verified[-1].result.damaged) == []
    assert stub.Delete(pb.DeleteRequest(name="second"), timeout=TIMEOUT_S).existed
    assert not stub.Delete(pb.DeleteRequest(name="second"), timeout=TIMEOUT_S).existed


@pytest.mark.parametrize(
    "source", ["../source", "/etc/passwd", "..", "", "a/b", "link", "linked", "x\0y", "n" * 5000]
)
def test_an_import_never_leaves_its_directory(
    stored: Any, stub: Any, tmp_path: Path, source: str
) -> None:
    (tmp_path / "incoming" / "link").symlink_to(stored.source)
    shutil.copytree(stored.source, tmp_path / "incoming" / "linked")
    (tmp_path / "incoming" / "linked" / "tokenizer.json").unlink()
    (tmp_path / "incoming" / "linked" / "tokenizer.json").symlink_to("/etc/hostname")
    call = stub.Import(pb.ImportRequest(source=source, name="x"), timeout=TIMEOUT_S)
    assert code_of(call) in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)


def test_bad_requests_get_a_status_and_the_service_lives(stored: Any, stub: Any) -> None:
    bad, lost = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
    digest = stored.imported.digest
    for request, code in (
        (whole(name="../x"), bad),
        (whole(name="nobody"), lost),
        (whole(digest="x"), bad),
        (whole(digest="0" * 64), lost),
        (whole(end=0), bad),
        (whole(end=99), bad),
        (whole(tp_degree=3), bad),
        (whole(tp_degree=2**31), bad),
        (whole(tp_degree=2, tp_rank=2), bad),
    ):
        assert code_of(stub.Open(pb.OpenRequest(slice=request), timeout=TIMEOUT_S)) == code
        assert code_of(stub.Prefetch(pb.PrefetchRequest(slice=request), timeout=TIMEOUT_S)) == code
    for start, length, code in (
        (0, 0, bad),
        (0, 2**60, bad),
        (2**63, 1, bad),
        (2**40, 8, grpc.StatusCode.DATA_LOSS),
    ):
        request = pb.ReadRequest(digest=digest, start=start, length=length)
        assert code_of(stub.Read(request, timeout=TIMEOUT_S)) == code
    request = pb.ReadRequest(digest="../../etc/passwd", length=1)
    assert code_of(stub.Read(request, timeout=TIMEOUT_S)) == bad
    assert stub.List(pb.ListRequest(), timeout=TIMEOUT_S).models


def test_stores_fetch_from_each_other_before_the_object_store(
    stored: Any, proxy: Any, tmp_path: Path, start_service: Any, address: str
) -> None:
    open_store(f"grpc://{address}").model("tiny").prefetch(LayerRange(0, 2))
    endpoint, faults = proxy
    second = start_service(
        store=stored.uri,
        endpoint_url=endpoint,
        cache_directory=tmp_path / "second",
        peers=f'["{address}"]',
        peer_share=1.0,
    )
    model = open_store(f"grpc://{second.address}").model("tiny")
    before = faults.sent_bytes
    with model.stage(LayerRange(0, 2)) as stage:
        for name, tensor in stage.tensors.items():
            assert torch.equal(bits(tensor), bits(stored.tensors[name])), name
    assert faults.sent_bytes == before
    with model.stage(LayerRange(0, 3)) as stage:
        assert torch.equal(
            bits(stage.tensors["lm_head.weight"]), bits(stored.tensors["lm_head.weight"])
        )
    assert faults.sent_bytes > before


def test_damage_at_the_source_reaches_no_engine(
    stored: Any, proxy: Any, tmp_path: Path, start_service: Any
) -> None:
    endpoint, faults = proxy
    running = start_service(
        store=stored.uri, endpoint_url=endpoint, cache_directory=tmp_path / "third"
    )
    model = open_store(f"grpc://{running.address}").model("tiny")
    faults.flip = 10**6
    with pytest.raises(DataLoss, match="chunk"), model.stage(LayerRange(0, 3)):
        pass
    with pytest.raises(DataLoss):
        model.tokenizer_files()
    faults.flip = 0
    with model.stage(LayerRange(0, 3)) as stage:
        assert stage.tensors


def test_errors_cross_the_wire_as_themselves(address: str) -> None:
    store = open_store(f"grpc://{address}")
    with pytest.raises(NotFound, match="tiny"):
        store.model("nobody")
    with pytest.raises(InvalidArgument, match="TP degree 3"):
        store.model("tiny").prefetch(LayerRange(0, 3), 3)


def test_a_node_that_has_it_all_serves_while_the_store_is_away(
    stored: Any, s3_endpoint: str, tmp_path: Path, start_service: Any
) -> None:
    def start(endpoint: str) -> Any:
        running = start_service(
            store=stored.uri, endpoint_url=endpoint, cache_directory=tmp_path / "c"
        )
        return open_store(f"grpc://{running.address}")

    model = start(s3_endpoint).model("tiny")
    model.prefetch(LayerRange(0, 3))
    files = model.tokenizer_files()
    store = start(NOBODY)
    assert store.names() == ["tiny"]
    model = store.model("tiny")
    assert model.tokenizer_files() == files
    with model.stage(LayerRange(0, 3)) as stage:
        for name, tensor in stage.tensors.items():
            assert torch.equal(bits(tensor), bits(stored.tensors[name])), name


def test_verify_reads_the_node_s_caches_too(stored: Any, stub: Any, tmp_path: Path) -> None:
    list(stub.Prefetch(pb.PrefetchRequest(slice=whole()), timeout=TIMEOUT_S))
    path = max((tmp_path / "disk").glob("objects/??/*"), key=lambda path: path.stat().st_size)
    rot(path)
    request = pb.VerifyRequest(model=common_pb2.ModelRef(model_id="tiny"))
    result = list(stub.Verify(request, timeout=TIMEOUT_S))[-1].result
    assert list(result.damaged) == []
    assert [(file.digest, file.path) for file in result.files] == [(path.name, str(path))]


def test_a_file_beside_the_weights_may_be_empty(tmp_path: Path, start_service: Any) -> None:
    config = make_config()
    source = write_checkpoint(tmp_path / "source", config, make_tensors(config))
    (source / "merges.txt").touch()
    with closing(open_source(source)) as checkpoint:
        import_checkpoint(checkpoint, DirectoryBackend(tmp_path / "store"), "tiny")
    address = start_service(store=tmp_path / "store").address
    files = open_store(f"grpc://{address}").model("tiny").tokenizer_files()
    assert files["merges.txt"] == b""
    assert files["tokenizer.json"] == (source / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("store", ["ftp://host/models", "s3://"])
def test_a_store_that_is_none_is_a_bad_setting(
    store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("services.common.telemetry.configure", lambda *_, **__: None)
    monkeypatch.setattr("services.common.logs.configure", lambda *_: None)
    monkeypatch.setenv("SHUNT_TENSORSTORE_STORE", store)
    with pytest.raises(SystemExit) as stop:
        process.main()
    assert stop.value.code == 2
    assert "bad setting SHUNT_TENSORSTORE_STORE: " in capsys.readouterr().err
