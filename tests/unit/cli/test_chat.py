from __future__ import annotations

import asyncio
import io
import os
import pty
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from rich.console import Console
from shuntserve.router.v1 import router_pb2

from services.cli import chat
from services.cli.mesh_directory import MeshDirectory, MeshError, MeshState, ServiceRecord

ROUTER = ServiceRecord("router-0", 1, "127.0.0.1:9", "http://127.0.0.1:9")
STATE = MeshState("abc", os.getpid(), "m", "ready", "ready", (ROUTER,))


async def test_an_error_in_mid_answer_stands_on_a_line_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def cut(*_: object) -> AsyncIterator[router_pb2.GenerateResponse]:
        yield router_pb2.GenerateResponse(deltas=[router_pb2.Delta(text="The sea")])
        raise MeshError("cut")

    monkeypatch.setattr(chat, "stream", cut)
    shown = io.StringIO()
    with pytest.raises(MeshError, match="cut"):
        await chat.answer(Console(file=shown), [], "m", [("user", "Hi")], 9)
    assert shown.getvalue() == "The sea\n"


def test_ctrl_c_in_mid_answer_stops_the_answer_and_asks_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[list[str]] = []

    async def answer(
        _console: object, _routers: object, _model: str, turns: list[tuple[str, str]], _: int
    ) -> str:
        asked.append([text for _, text in turns])
        if len(asked) == 1:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(10)
        return "Wide."

    def read(_console: object, _prompt: str) -> str:
        if questions:
            return questions.pop(0)
        raise EOFError

    questions = ["How is the sea?", "And now?"]
    monkeypatch.setattr(chat, "answer", answer)
    monkeypatch.setattr(Console, "input", read)
    chat.converse(Console(file=io.StringIO()), [], "m", 9)
    assert asked == [["How is the sea?"], ["And now?"]]


def _ctrl_c(child: subprocess.Popen[bytes], keyboard: int) -> None:
    child.send_signal(signal.SIGINT)


def _ctrl_d(child: subprocess.Popen[bytes], keyboard: int) -> None:
    os.write(keyboard, b"\x04")


def _sleeps(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


@pytest.mark.parametrize("press", [_ctrl_c, _ctrl_d])
def test_one_key_at_the_prompt_ends_a_conversation(
    tmp_path: Path, press: Callable[[subprocess.Popen[bytes], int], None]
) -> None:
    MeshDirectory(tmp_path).write(STATE)
    command = (sys.executable, "-m", "services.cli", "chat", "--data-dir", str(tmp_path))
    keyboard, terminal = pty.openpty()
    child = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal)
    try:
        shown = b""
        while b"> " not in shown:
            shown += os.read(keyboard, 1024)
        while not _sleeps(child.pid):  # a signal between the prompt and the read is nobody's
            os.sched_yield()
        press(child, keyboard)
        assert child.wait(60) == 0
    finally:
        child.kill()
        child.wait()
        os.close(keyboard)
        os.close(terminal)
