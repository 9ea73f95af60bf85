from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from services.common.errors import FailedPrecondition
from services.tensorstore.remote import open_channel


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
    with open_channel(address) as channel:
        grpc.channel_ready_future(channel).result(timeout=10)


@pytest.mark.parametrize("absent", ["CERTIFICATE", "KEY", "AUTHORITY"])
def test_half_of_tls_is_refused(absent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {"CERTIFICATE", "KEY", "AUTHORITY"} - {absent}:
        monkeypatch.setenv(f"SHUNT_TLS_{name}", "x.pem")
    monkeypatch.delenv(f"SHUNT_TLS_{absent}", raising=False)
    with pytest.raises(FailedPrecondition, match=f"SHUNT_TLS_{absent}"):
        open_channel("127.0.0.1:1")
