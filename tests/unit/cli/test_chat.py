from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from services.cli.mesh_directory import MeshDirectory, MeshState, ServiceRecord

ROUTER = ServiceRecord("router-0", 1, "127.0.0.1:9", "http://127.0.0.1:9")
STATE = MeshState("abc", os.getpid(), "m", "ready", "ready", (ROUTER,))


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
        assert child.wait(20) == 0
    finally:
        child.kill()
        child.wait()
        os.close(keyboard)
        os.close(terminal)
