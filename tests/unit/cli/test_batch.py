"""`shunt batch` against routers that answer as they are told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner

from services.cli import batch as commands
from services.cli.batch import app

BATCH = {
    "id": "batch_1",
    "status": "completed",
    "request_counts": {"total": 2, "completed": 2, "failed": 0},
    "output_file_id": "file-1",
    "error_file_id": None,
    "errors": None,
}
ANSWERS = b'{"custom_id": "q1"}\n{"custom_id": "q2"}\n'


class Door(BaseHTTPRequestHandler):
    """A batch that has ended; of its answers the first reader gets a part."""

    asked: ClassVar[list[str]] = []
    body: ClassVar[bytes] = b""
    broken: ClassVar[int] = 0
    status: ClassVar[int] = 200

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        content = ANSWERS if self.path.endswith("/content") else type(self).body
        self.send_response(type(self).status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        if self.path.endswith("/content") and type(self).broken:
            type(self).broken -= 1
            content = content[:10]
        self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(commands, "LOOK_S", 0.0)
    Door.asked, Door.body, Door.broken, Door.status = [], json.dumps(BATCH).encode(), 0, 200
    server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def told(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_answers_that_break_off_are_fetched_again_and_written_whole(
    door: str, tmp_path: Path
) -> None:
    Door.broken = 2
    out = tmp_path / "answers.jsonl"
    result = told("status", "batch_1", "--url", door, "-o", str(out))
    assert result.exit_code == 0
    assert "batch_1 completed: 2 of 2 lines" in result.stdout
    assert out.read_bytes() == ANSWERS
    assert [path.name for path in tmp_path.iterdir()] == ["answers.jsonl"]
    assert Door.asked == ["/v1/batches/batch_1", *["/v1/files/file-1/content"] * 3]


def test_where_answers_cannot_lie_is_told_before_anything_is_asked(
    door: str, tmp_path: Path
) -> None:
    (tmp_path / "q.jsonl").write_text("")
    for command in (("status", "batch_1"), ("submit", str(tmp_path / "q.jsonl"))):
        result = told(*command, "--url", door, "-o", str(tmp_path / "none" / "x"))
        assert result.exit_code == 1
        assert "--output: " in result.stderr
        assert "No such file or directory" in result.stderr
    assert Door.asked == []


@pytest.mark.parametrize("url", ["foo", "127.0.0.1:8080", "http://", "http://h:99999", "ftp://h"])
def test_what_is_no_address_is_refused_at_once(url: str) -> None:
    result = told("status", "batch_1", "--url", url)
    assert result.exit_code == 1
    assert "is no address of a router" in result.stderr


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}"])
def test_what_answers_and_is_no_router_is_said(door: str, body: bytes) -> None:
    Door.body = body
    result = told("status", "batch_1", "--url", door)
    assert result.exit_code == 1
    assert "what answers there is no router" in result.stderr


def test_who_lacks_a_key_is_told_where_a_command_has_it_from(door: str) -> None:
    Door.status, Door.body = 401, b'{"error": {"message": "this needs an API key"}}'
    result = told("status", "batch_1", "--url", door)
    assert result.exit_code == 1
    assert "this needs an API key; a command shows the one in SHUNT_API_KEY" in result.stderr


def test_a_batchs_name_is_one_part_of_a_path(door: str) -> None:
    told("status", "../../v1/models?x#y", "--url", door)
    assert Door.asked == ["/v1/batches/..%2F..%2Fv1%2Fmodels%3Fx%23y"]


def test_a_router_that_is_away_is_waited_for_aloud(
    door: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "AWAY_S", 0.2)
    result = told("status", "batch_1", "--url", "http://127.0.0.1:1")
    assert result.exit_code == 1
    assert "http://127.0.0.1:1: " in result.stderr
    assert "asking on for 0.2 s" in result.stderr


def test_who_stops_waiting_is_told_what_goes_on(door: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    Door.body = json.dumps(BATCH | {"status": "in_progress"}).encode()
    monkeypatch.setattr(commands.time, "sleep", interrupted)
    result = told("status", "batch_1", "--wait", "--url", door)
    assert result.exit_code == 130
    assert "batch_1 goes on; `shunt batch status batch_1` tells how far it is" in result.stderr
