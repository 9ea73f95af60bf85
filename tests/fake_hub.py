"""A hub of the tests' own: the part of Hugging Face's HTTP API that downloads use, with faults."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """One repository at one commit, reached by the branch `main`, the tag `v1` and the commit."""

    repository: str
    files: Mapping[str, bytes]
    large: int = 4096
    """Files from this size on are kept beside git, and served from another path."""
    token: str | None = None
    gated: bool = False
    denies: int = 0
    """A status for every request."""
    cut_after: dict[str, list[int]] = field(default_factory=dict)
    """Bytes after which a file's connections are cut, one connection after another."""
    statuses: dict[str, list[int]] = field(default_factory=dict)
    """Statuses with which a file's requests are refused, one after another."""
    lies: dict[str, int] = field(default_factory=dict)
    """How often a file is sent with its last byte changed."""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and range of each."""
    sent_bytes: Counter[str] = field(default_factory=Counter)
    open_at_once: int = 0
    most_at_once: int = 0
    most_allowed: int = 1 << 10
    one_too_many: threading.Event = field(default_factory=threading.Event)
    """More files were open at once than allowed."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""
    cdn_url: str = ""
    """Where large files are."""
    cdn_tokens: set[str | None] = field(default_factory=set)
    """What was told there of who asks."""
    held: threading.Event | None = None
    """Files are sent once it is set."""

    def asked_for(self) -> set[str]:
        """Names of the files that were asked for."""
        found = set()
        for _, path, _ in self.requests:
            for part in ("/resolve/", "/cdn/"):
                if part in path:
                    found.add(path.split(part, 1)[1].partition("/")[2])
        return found

    def ranges(self) -> dict[str, list[str]]:
        """The ranges that were asked for of large files."""
        found: dict[str, list[str]] = defaultdict(list)
        for method, path, wanted in self.requests:
            if method == "GET" and wanted and path.startswith("/cdn/"):
                found[path.rpartition("/")[2]].append(wanted)
        return found

    def describe(self) -> dict[str, object]:
        """What the API says of the commit."""
        siblings = []
        for name, data in self.files.items():
            blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
            sibling: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": blob}
            if len(data) >= self.large:
                sha256 = hashlib.sha256(data).hexdigest()
                sibling["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 130}
            siblings.append(sibling)
        return {"id": self.repository, "sha": COMMIT, "siblings": siblings}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, format: str, *args: object) -> None:
        return

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path, self.headers.get("Range", "")))
        if hub.denies:
            return self._refuse(hub.denies, "")
        authorised = self.headers.get("Authorization") == f"Bearer {hub.token}"
        if path.startswith("/cdn/"):
            hub.cdn_tokens.add(self.headers.get("Authorization"))
            return self._file(path.rpartition("/")[2], body=body)
        if hub.token is not None and not authorised:
            if hub.gated:
                return self._refuse(401, "GatedRepo")
            return self._refuse(401, "RepoNotFound")
        if path == f"/api/models/{hub.repository}/revision/{COMMIT}":
            return self._json(hub.describe())
        for name in ("main", "v1"):
            if path == f"/api/models/{hub.repository}/revision/{name}":
                return self._json(hub.describe())
        if path.startswith(f"/api/models/{hub.repository}/revision/"):
            return self._refuse(404, "RevisionNotFound")
        resolve = f"/{hub.repository}/resolve/{COMMIT}/"
        name = path.removeprefix(resolve)
        if path.startswith(resolve) and name in hub.files:
            return self._resolve(name, body=body)
        return self._refuse(404, "RepoNotFound")

    def _resolve(self, name: str, *, body: bool) -> None:
        data = self.hub.files[name]
        if len(data) < self.hub.large:
            return self._file(name, body=body)
        self.send_response(302)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-Etag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Linked-Size", str(len(data)))
        self.send_header("Location", f"{self.hub.cdn_url}/cdn/{COMMIT}/{name}")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def _file(self, name: str, *, body: bool) -> None:
        hub, data = self.hub, self.hub.files[name]
        statuses = hub.statuses.get(name)
        if body and statuses:
            return self._refuse(statuses.pop(0), "")
        if body and hub.lies.get(name, 0):
            hub.lies[name] -= 1
            data = data[:-1] + bytes([data[-1] ^ 1])
        start = 0
        if wanted := self.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(hub.files[name]).hexdigest()}"')
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if body:
            self._send(name, data[start:])
        return None

    def _send(self, name: str, data: bytes) -> None:
        hub = self.hub
        with hub.lock:
            hub.open_at_once += 1
            hub.most_at_once = max(hub.most_at_once, hub.open_at_once)
            if hub.open_at_once > hub.most_allowed:
                hub.one_too_many.set()
        try:
            if hub.held is not None:
                hub.held.wait(60)
            cuts = hub.cut_after.get(name)
            piece = data[: cuts.pop(0)] if cuts else data
            with hub.lock:
                hub.sent_bytes[name] += len(piece)  # before who asked can have it, and look
            self.wfile.write(piece)
            if len(piece) < len(data):
                self.close_connection = True
        finally:
            with hub.lock:
                hub.open_at_once -= 1

    def _json(self, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if status == 429:
            self.send_header("Retry-After", "0")
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """The hub at `hub.url`, as long as the body runs."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    hub.cdn_url = f"http://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
