"""A real S3 server, a proxy that spoils its answers, and running services."""

from __future__ import annotations

import contextlib
import http.client
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from services.tensorstore.importer import Imported, import_checkpoint
from services.tensorstore.places.directory import DirectoryBackend
from services.tensorstore.places.s3 import S3Backend
from services.tensorstore.sources.opening import open_source
from tests.checkpoints import make_config, make_tensors, write_checkpoint


@pytest.fixture(autouse=True)
def own_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files on their way to S3 lie here, where no other test sweeps them."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def reads_an_object(method: str, path: str) -> bool:
    return method == "GET" and "/objects/" in path


@dataclass
class Faults:
    """What the proxy does to answers, each so many times: to those of GETs of objects, or of the
    requests that `chosen` picks. What was asked for has been done all the same."""

    chosen: Callable[[str, str], bool] = reads_an_object
    status: int = 0
    times: int = 0  # answers with that status, and this body, instead
    body: bytes = b""
    short: int = 0
    flip: int = 0
    range: int = 0
    slow: int = 0  # answers that do not come before the test ends
    drip: int = 0  # bodies that come byte by byte
    drip_head: int = 0  # heads of answers that come byte by byte
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    sent_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    over: threading.Event = field(default_factory=threading.Event)

    def take(self, what: str) -> bool:
        with self.lock:
            left = int(getattr(self, what))
            if left:
                setattr(self, what, left - 1)
            return left > 0


@pytest.fixture
def proxy(s3_endpoint: str) -> Iterator[tuple[str, Faults]]:
    """An endpoint that hands everything on, spoiled as told."""
    faults, upstream = Faults(), s3_endpoint.removeprefix("http://")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            return

        def handle_any(self) -> None:
            headers = dict(self.headers.items())
            with faults.lock:
                faults.requests.append((self.command, self.path, headers))
            body = self.rfile.read(int(headers.get("Content-Length", 0)))
            upstream_call = http.client.HTTPConnection(upstream, timeout=60)
            try:
                upstream_call.putrequest(self.command, self.path, skip_host=True)
                for name, value in headers.items():
                    upstream_call.putheader(name, value)
                upstream_call.endheaders(body)
                answer = upstream_call.getresponse()
                data = answer.read()
                with contextlib.suppress(ConnectionError):  # a client that waited long enough
                    self.reply(answer.status, answer.getheaders(), data)
            finally:
                upstream_call.close()

        def reply(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
            spoiled = faults.chosen(self.command, self.path)
            if spoiled and faults.take("slow"):
                faults.over.wait(60)
                self.close_connection = True
                return
            if spoiled and faults.take("drip_head"):
                head = f"HTTP/1.1 {status} Here it comes\r\nX-Long: {'a' * 100_000}\r\n\r\n"
                self.drip(head.encode())
                return
            if spoiled and faults.take("times"):
                self.send_response(faults.status)
                self.send_header("Content-Length", str(len(faults.body)))
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else faults.body)
                return
            if spoiled and data and faults.take("flip"):
                data = bytes([data[0] ^ 1]) + data[1:]
            self.send_response(status)
            shifted = spoiled and status == 206 and faults.take("range")
            for name, value in headers:
                if name.lower() in ("connection", "date", "server"):
                    continue
                self.send_header(
                    name, "bytes 1-2/3" if shifted and name == "Content-Range" else value
                )
            self.end_headers()
            if self.command == "HEAD":
                return
            if spoiled and len(data) > 1 and faults.take("short"):
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
                return
            if spoiled and faults.take("drip"):
                self.drip(data)
                return
            with faults.lock:
                faults.sent_bytes += len(data) if spoiled else 0
            self.wfile.write(data)

        def drip(self, data: bytes) -> None:
            self.close_connection = True
            for at in range(len(data)):
                self.wfile.write(data[at : at + 1])
                if faults.over.wait(0.02):
                    return

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", faults
    finally:
        faults.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


class Stored:
    """A tiny model in a directory and in S3."""

    def __init__(self, root: Path, uri: str, endpoint: str) -> None:
        self.config = make_config(hidden_size=256, vocab_size=4096)
        self.tensors = make_tensors(self.config)
        self.source = write_checkpoint(root / "source", self.config, self.tensors)
        self.directory = root / "store"
        self.uri = uri
        self.imported = self.store(DirectoryBackend(self.directory))
        self.store(S3Backend(uri, endpoint))

    def store(self, backend: Any) -> Imported:
        checkpoint = open_source(self.source)
        try:
            return import_checkpoint(checkpoint, backend, "tiny")
        finally:
            checkpoint.close()


@pytest.fixture
def stored(tmp_path: Path, s3_uri: str, s3_endpoint: str) -> Stored:
    return Stored(tmp_path, s3_uri, s3_endpoint)


@dataclass
class Running:
    """A service process."""

    address: str
    process: subprocess.Popen[str]


@pytest.fixture
def start_service() -> Iterator[Any]:
    """Starts `python -m services.tensorstore` with settings; ends it afterwards."""
    processes: list[subprocess.Popen[str]] = []

    def start(**settings: Any) -> Running:
        environment = os.environ | {
            f"SHUNT_TENSORSTORE_{name.upper()}": str(value) for name, value in settings.items()
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "services.tensorstore"],
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "grpc on" in line, line or f"it ended, with {process.wait(60)}: see above"
        return Running(line.split()[-1], process)

    yield start
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait(60)
        assert process.stdout is not None
        process.stdout.close()
