from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from services.cli import processes

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "print('set', flush=True); time.sleep(600)"
)


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    children: list[subprocess.Popen[str]] = []
    yield children
    for child in children:
        child.kill()
        child.communicate()


def _start(started: list[subprocess.Popen[str]], mesh_id: str, code: str) -> subprocess.Popen[str]:
    environment = {**os.environ, processes.MESH_ID_VARIABLE: mesh_id}
    child = subprocess.Popen(
        (sys.executable, "-c", code), env=environment, stdout=subprocess.PIPE, text=True
    )
    started.append(child)
    assert child.stdout is not None
    assert child.stdout.readline() == "set\n", f"it ended, with {child.poll()}: see above"
    return child


WAIT = "import time; print('set', flush=True); time.sleep(600)"


def test_only_processes_of_the_mesh_are_found(started: list[subprocess.Popen[str]]) -> None:
    mine = _start(started, "mine", WAIT)
    other = _start(started, "mine-too", WAIT)
    found = processes.own_processes("mine")
    assert [process.pid for process in found] == [mine.pid]
    assert processes.open_own(other.pid, "mine") is None
    processes.end(found, grace_s=5)
    assert mine.wait(60) == -signal.SIGTERM
    assert other.poll() is None


def test_a_stranger_whose_id_is_no_text_is_passed_over(
    started: list[subprocess.Popen[str]],
) -> None:
    stranger = _start(started, os.fsdecode(b"\xff"), WAIT)
    assert processes.own_processes("mine") == []
    assert stranger.poll() is None


def test_an_empty_id_is_nobodys() -> None:
    assert processes.own_processes("") == []


def test_a_process_that_will_not_stop_is_killed(started: list[subprocess.Popen[str]]) -> None:
    child = _start(started, "mine", STUBBORN)
    processes.end(processes.own_processes("mine"), grace_s=0.2)
    assert child.wait(60) == -signal.SIGKILL


def test_a_frozen_process_is_killed(started: list[subprocess.Popen[str]]) -> None:
    child = _start(started, "mine", WAIT)
    child.send_signal(signal.SIGSTOP)
    processes.end(processes.own_processes("mine"), grace_s=0.2)
    assert child.wait(60) in (-signal.SIGKILL, -signal.SIGTERM)


def test_a_pid_nobody_has_is_not_ours() -> None:
    assert processes.open_own(2**22 + 1, "mine") is None


def test_a_process_lives_until_it_ends_though_nobody_waits_for_it(
    started: list[subprocess.Popen[str]],
) -> None:
    child = _start(started, "mine", WAIT)
    assert processes.lives(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not processes.lives(child.pid)
    child.wait()
    assert not processes.lives(child.pid)


def test_a_process_that_would_first_serve_on_is_asked_twice(
    started: list[subprocess.Popen[str]],
) -> None:
    code = (
        "import signal, sys, time; told = []; "
        "signal.signal(signal.SIGTERM, lambda *_: told and sys.exit(7) or told.append(1)); "
        "print('set', flush=True); [time.sleep(0.01) for _ in range(60_000)]"
    )
    mine = _start(started, "mine", code)
    processes.end(processes.own_processes("mine"), grace_s=20)
    assert mine.wait(60) == 7
