"""A Docker engine that is played: the part of its API that the launcher uses, on a socket of its
own, whose containers run nothing. What it answers was seen of Docker 20.10 (API 1.41)."""

from __future__ import annotations

import json
import queue
import re
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

PROJECT, SERVICE, IMAGE, NETWORK = "played", "engine", "shunt-engine", "played_mesh"
PATTERN_LABELS = {
    "com.docker.compose.project": PROJECT,
    "com.docker.compose.service": SERVICE,
    "com.docker.compose.oneoff": "False",
}
_KILLED, _TERMINATED = 137, 143


def pattern(**changes: Any) -> dict[str, Any]:
    """What is described of a compose service's container that is as it should be; `changes` are
    of its host's part."""
    return {
        "Config": {
            "Image": IMAGE,
            "User": "shunt",
            "Entrypoint": ["true"],
            "Env": ["PATH=/opt/shunt/bin", "SHUNT_ENGINE_MEMORY_BYTES=1"],
            "Labels": dict(PATTERN_LABELS),
            "Healthcheck": {"Test": ["CMD", "true"]},
        },
        "HostConfig": {
            "Binds": [f"{PROJECT}_store:/var/lib/shunt/store:ro"],
            "CapAdd": None,
            "CapDrop": ["ALL"],
            "CgroupnsMode": "host",
            "IpcMode": "private",
            "Memory": 1 << 30,
            "NetworkMode": NETWORK,
            "PidMode": "",
            "PidsLimit": 64,
            "Privileged": False,
            "ReadonlyRootfs": True,
            "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
            "SecurityOpt": ["no-new-privileges:true"],
            "Tmpfs": {"/tmp": ""},
            **changes,
        },
        "Mounts": [
            {
                "Type": "volume",
                "Name": f"{PROJECT}_store",
                "Source": "/var/lib/docker/volumes/store",
                "Destination": "/var/lib/shunt/store",
                "RW": False,
            }
        ],
        "NetworkSettings": {"Networks": {NETWORK: {"Aliases": ["engine"]}}},
    }


@dataclass
class PlayedContainer:
    """One container."""

    container_id: str
    name: str
    body: dict[str, Any]
    state: str = "created"
    exit_code: int = 0
    created: int = 0
    said: str = ""

    @property
    def labels(self) -> dict[str, str]:
        config = self.body.get("Config", self.body)
        labels: dict[str, str] = config.get("Labels") or {}
        return labels

    def described(self) -> dict[str, Any]:
        config = self.body.get("Config", self.body)
        return {
            **self.body,
            "Id": self.container_id,
            "Name": f"/{self.name}",
            "Config": {**config, "Tty": False},
            "State": {"Status": self.state, "ExitCode": self.exit_code, "OOMKilled": False},
        }


@dataclass
class PlayedDocker:
    """What runs there, and what was asked."""

    socket: str
    containers: dict[str, PlayedContainer] = field(default_factory=dict)
    volumes: dict[str, dict[str, Any]] = field(default_factory=dict)
    images: set[str] = field(default_factory=lambda: {IMAGE})
    calls: list[str] = field(default_factory=list)
    deaf: bool = False
    """It answers nothing but failures."""
    ignores_term: bool = False
    start_s: float = 0.0
    started: Callable[[], object] = lambda: None
    """Called when a container has started, before that is answered."""

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._numbers = 0
        self._listeners: list[queue.Queue[dict[str, Any] | None]] = []
        self.volumes[f"{PROJECT}_store"] = {"Driver": "local", "Options": None}

    # What the test does

    def add(self, name: str, body: dict[str, Any], state: str = "running") -> PlayedContainer:
        with self._lock:
            self._numbers += 1
            made = PlayedContainer(f"{self._numbers:064x}", name, body, state)
            made.created = self._numbers
            self.containers[made.container_id] = made
            return made

    def add_pattern(self, **changes: Any) -> PlayedContainer:
        return self.add(f"{PROJECT}-{SERVICE}-1", pattern(**changes), "exited")

    def named(self, name: str) -> PlayedContainer | None:
        return next((one for one in self.containers.values() if one.name == name), None)

    def running(self) -> list[PlayedContainer]:
        return [one for one in self.containers.values() if one.state == "running"]

    def die(self, container_id: str, exit_code: int = _KILLED, said: str = "") -> None:
        """It ends, and nobody was asked."""
        with self._lock:
            one = self.containers[container_id]
            one.state, one.exit_code, one.said = "exited", exit_code, said
            self.tell("die", one)

    def break_off(self) -> None:
        """Whoever listens to events hears no more."""
        with self._lock:
            for listener in self._listeners:
                listener.put(None)
            self._listeners.clear()

    # What it answers

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        self.calls.append(f"{method} {path}")
        if self.deaf:
            return 500, {"message": "deaf"}
        for pattern_, verb, act in _ROUTES:
            found = re.fullmatch(pattern_, path)
            if found and verb == method:
                with self._lock:
                    answer: tuple[int, Any] = act(self, *found.groups(), query, body)
                if path.endswith("/start"):
                    self.started()
                return answer
        return 404, {"message": f"page not found: {method} {path}"}

    def _version(self, query: dict[str, str], body: Any) -> tuple[int, Any]:
        return 200, {"ApiVersion": "1.41", "Version": "20.10.24"}

    def _list(self, query: dict[str, str], body: Any) -> tuple[int, Any]:
        wanted = json.loads(query.get("filters", "{}")).get("label", [])
        return 200, [
            {
                "Id": one.container_id,
                "Labels": one.labels,
                "State": one.state,
                "Created": one.created,
            }
            for one in self.containers.values()
            if all(_has(one.labels, label) for label in wanted)
        ]

    def _create(self, query: dict[str, str], body: Any) -> tuple[int, Any]:
        name = query.get("name", "")
        if self.named(name):
            return 409, {"message": f'Conflict. The container name "/{name}" is already in use'}
        if body["Image"] not in self.images:
            return 404, {"message": f"No such image: {body['Image']}:latest"}
        return 201, {"Id": self.add(name, body, "created").container_id, "Warnings": []}

    def _inspect(self, name: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        one = self._one(name)
        return (200, one.described()) if one else _no_container(name)

    def _volume(self, name: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        found = self.volumes.get(name)
        return (200, found) if found else (404, {"message": f"get {name}: no such volume"})

    def _start(self, name: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        one = self._one(name)
        if one is None:
            return _no_container(name)
        time.sleep(self.start_s)
        one.state = "running"
        self.tell("start", one)
        return 204, None

    def _kill(self, name: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        one = self._one(name)
        if one is None:
            return _no_container(name)
        if one.state != "running":
            return 409, {"message": f"Container {name} is not running"}
        if query.get("signal") == "SIGKILL":
            self.die(one.container_id)
        elif not self.ignores_term:
            self.die(one.container_id, _TERMINATED)
        return 204, None

    def _logs(self, name: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        one = self._one(name)
        if one is None:
            return _no_container(name)
        said = one.said.encode()
        return 200, b"\x02\0\0\0" + len(said).to_bytes(4, "big") + said

    def _remove(self, name: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        one = self._one(name)
        if one is None:
            return _no_container(name)
        if one.state == "running":
            self.die(one.container_id)
        del self.containers[one.container_id]
        return 204, None

    def _one(self, name: str) -> PlayedContainer | None:
        return self.containers.get(name) or self.named(name)

    def tell(self, action: str, one: PlayedContainer) -> None:
        actor = {"ID": one.container_id, "Attributes": {**one.labels, "name": one.name}}
        for listener in self._listeners:
            listener.put({"Type": "container", "Action": action, "Actor": actor})

    def listen(self) -> Iterator[dict[str, Any]]:
        heard: queue.Queue[dict[str, Any] | None] = queue.Queue()
        with self._lock:
            self._listeners.append(heard)
        while (event := heard.get()) is not None:
            yield event


def _has(labels: dict[str, str], wanted: str) -> bool:
    key, _, value = wanted.partition("=")
    return labels.get(key) == value


def _no_container(name: str) -> tuple[int, Any]:
    return 404, {"message": f"No such container: {name}"}


_ROUTES: tuple[tuple[str, str, Any], ...] = (
    ("/version", "GET", PlayedDocker._version),
    ("/containers/json", "GET", PlayedDocker._list),
    ("/containers/create", "POST", PlayedDocker._create),
    ("/containers/([^/]+)/json", "GET", PlayedDocker._inspect),
    ("/containers/([^/]+)/start", "POST", PlayedDocker._start),
    ("/containers/([^/]+)/kill", "POST", PlayedDocker._kill),
    ("/containers/([^/]+)/logs", "GET", PlayedDocker._logs),
    ("/containers/([^/]+)", "DELETE", PlayedDocker._remove),
    ("/volumes/([^/]+)", "GET", PlayedDocker._volume),
)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def address_string(self) -> str:
        return "socket"

    def log_message(self, format: str, *arguments: Any) -> None: ...

    def _serve(self) -> None:
        url = urlsplit(self.path)
        path = re.sub(r"^/v[0-9.]+", "", url.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        if path == "/events" and not self.server.docker.deaf:
            self._stream()
            return
        status, answer = self.server.docker.answer(self.command, path, query, body)
        raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(0 if status == 204 else len(raw)))
        self.end_headers()
        if status != 204:
            self.wfile.write(raw)

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        try:
            for event in self.server.docker.listen():
                line = json.dumps(event).encode() + b"\n"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True

    do_GET = do_POST = do_DELETE = _serve


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, path: str, docker: PlayedDocker) -> None:
        self.docker = docker
        super().__init__(path, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None: ...


@contextmanager
def played_docker(directory: Path) -> Iterator[PlayedDocker]:
    """Serves inside the block, with a compose project whose pattern is as it should be."""
    path = str(directory / "docker.sock")
    docker = PlayedDocker(f"unix://{path}")
    docker.add_pattern()
    server = _Server(path, docker)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield docker
    finally:
        docker.break_off()
        server.shutdown()
        server.server_close()
        thread.join()
