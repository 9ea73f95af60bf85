"""Files of a service are mapped only while it holds them; it is reached directly and safely."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from shuntserve.tensorstore.v1 import tensorstore_pb2 as pb

from services.common import certificate_files, renewal
from services.common.errors import Aborted, DataLoss, FailedPrecondition, Unavailable
from services.common.roles import Role
from services.tensorstore.cache.residence import LocalResidence
from services.tensorstore.format.slices import Selection
from services.tensorstore.places.remote import RemoteReader, RemoteResidence, open_channel
from tests.certificates import Authority
from tests.name_server import NameServer


class Call:
    """What Open returns: one answer; active or ended by the service."""

    def __init__(self, answer: pb.OpenResponse, *, active: bool = True) -> None:
        self.answer, self.active = answer, active

    def __iter__(self) -> Iterator[pb.OpenResponse]:
        return iter([self.answer])

    def is_active(self) -> bool:
        return self.active

    def cancel(self) -> None:
        self.active = False


class Reader:
    def __init__(self, call: Call) -> None:
        self.call = call

    def open(self, _: Selection) -> Call:
        return self.call


@pytest.fixture
def selection(tiny) -> Selection:
    return Selection.of(tiny.imported.digest, tiny.imported.manifest, 0, 3)


@pytest.fixture
def opened(tiny, selection: Selection) -> pb.OpenedSlice:
    with LocalResidence(tiny.root).hold(selection, None) as files:
        return pb.OpenedSlice(
            digest=selection.digest,
            paths=[file.path for file in files],
            inodes=[file.inode for file in files],
        )


def residence(opened: pb.OpenedSlice, **more: Any) -> RemoteResidence:
    return RemoteResidence(Reader(Call(pb.OpenResponse(opened=opened), **more)))  # type: ignore


def test_the_files_carry_the_inodes_that_were_verified(
    tiny, selection: Selection, opened: pb.OpenedSlice
) -> None:
    with (
        residence(opened).hold(selection, None) as files,
        LocalResidence(tiny.root).hold(selection, None) as local,
    ):
        assert files == local


def test_a_hold_that_ended_too_early_is_told(selection: Selection, opened: pb.OpenedSlice) -> None:
    with (
        pytest.raises(Aborted, match="ended"),
        residence(opened, active=False).hold(selection, None),
    ):
        pass


def test_another_answer_than_the_slice_is_data_loss(
    selection: Selection, opened: pb.OpenedSlice
) -> None:
    del opened.inodes[0]
    with pytest.raises(DataLoss, match="something else"), residence(opened).hold(selection, None):
        pass


@pytest.fixture
def address() -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def test_no_proxy_stands_before_a_store(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    with open_channel(address, Role.TENSORSTORE) as channel:
        grpc.channel_ready_future(channel).result(timeout=60)


@pytest.mark.parametrize("absent", ["CERTIFICATE", "KEY", "AUTHORITY"])
def test_half_of_tls_is_refused(absent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {"CERTIFICATE", "KEY", "AUTHORITY"} - {absent}:
        monkeypatch.setenv(f"SHUNT_TLS_{name}", "x.pem")
    monkeypatch.delenv(f"SHUNT_TLS_{absent}", raising=False)
    with pytest.raises(FailedPrecondition, match=f"SHUNT_TLS_{absent}"):
        open_channel("127.0.0.1:1", Role.TENSORSTORE)


class _Seeing(grpc.GenericRpcHandler):
    """A store without models that keeps what its callers showed."""

    def __init__(self) -> None:
        self.shown: list[bytes] = []

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        def listed(request: Any, context: Any) -> pb.ListResponse:
            self.shown.extend(context.auth_context()["x509_pem_cert"])
            return pb.ListResponse()

        return grpc.unary_unary_rpc_method_handler(
            listed, pb.ListRequest.FromString, pb.ListResponse.SerializeToString
        )


def test_a_reader_shows_the_newest_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate_files, "LOOK_INTERVAL_S", 0.0)
    authority = Authority(tmp_path)
    served, shown = authority.issue("tensorstore"), authority.issue("engine")
    for name, path in shown.items():
        monkeypatch.setenv(f"SHUNT_TLS_{name.upper()}", str(path))
    store, server = _Seeing(), grpc.server(ThreadPoolExecutor(1))
    credentials = grpc.ssl_server_credentials(
        [(served["key"].read_bytes(), served["certificate"].read_bytes())],
        authority.path.read_bytes(),
        require_client_auth=True,
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.add_generic_rpc_handlers((store,))
    server.start()
    with closing(RemoteReader(f"127.0.0.1:{port}", Role.TENSORSTORE)) as reader:
        for _ in range(3):
            assert reader.names() == reader.names() == []
            assert set(store.shown) == {shown["certificate"].read_bytes()}
            store.shown.clear()
            authority.issue("engine")
    server.stop(None)


class _Away(grpc.GenericRpcHandler):
    """A store whose objects come in two halves, the second when told; it lists no models."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        if details.method.endswith("/Read"):
            return grpc.unary_stream_rpc_method_handler(self._read)
        return grpc.unary_unary_rpc_method_handler(self._list)

    def _read(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield pb.ReadResponse(data=b"1").SerializeToString()
        self.go_on.wait(60)
        yield pb.ReadResponse(data=b"2").SerializeToString()

    def _list(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        raise AssertionError


def test_a_reader_that_looks_its_store_up_anew_breaks_no_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(renewal, "RENEWAL_INTERVAL_S", 0.0)
    away = _Away()
    server = grpc.server(ThreadPoolExecutor(2), handlers=[away])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    reader = RemoteReader(f"127.0.0.1:{port}", Role.TENSORSTORE)
    pieces = reader.pieces("sha256:x", 0, 2)
    first, before = bytes(next(pieces)), reader._channel
    with pytest.raises(Unavailable):
        reader.names()
    assert reader._channel is not before
    del before
    gc.collect()
    away.go_on.set()
    assert [first, *map(bytes, pieces)] == [b"1", b"2"]
    reader.close()
    server.stop(None)


async def test_a_store_without_an_address_is_looked_up_as_often_as_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    for interval_s in (0.2, 3600.0):
        monkeypatch.setattr(renewal, "RENEWAL_INTERVAL_S", interval_s)
        names = NameServer(None)
        await names.start()
        reader = RemoteReader(f"dns://127.0.0.1:{names.port}/store.test:1", Role.TENSORSTORE)
        for _ in range(30):
            with pytest.raises(Unavailable):
                await asyncio.to_thread(reader.names)
            await asyncio.sleep(0.1)
        asked.append(names.asked)
        reader.close()
        names.close()
    assert asked[0] > 2 * asked[1]
