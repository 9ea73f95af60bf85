"""Parts of a node as real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.cli.node.child import BAD_SETTING, Child, Restarts
from services.common.errors import FailedPrecondition
from tests.waiting import until

ROOT = Path(__file__).parents[4]
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}"}
QUICK = Restarts(0.01, 0.05, 10.0)


def sleeper(file: Path, then: str = "time.sleep(60)") -> tuple[str, ...]:
    """Notes its pid, a line a start, and goes on."""
    note = f"print(os.getpid(), file=open({str(file)!r}, 'a'))"
    return (sys.executable, "-c", f"import os, sys, time; {note}; {then}")


def pids(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []


def lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@asynccontextmanager
async def kept(child: Child) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(child.keep())
    try:
        yield task
    finally:
        await child.end(5.0)
        await asyncio.gather(task, return_exceptions=True)


async def test_a_part_that_dies_is_started_again(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    async with kept(Child("engine", sleeper(file), ENVIRONMENT, "", QUICK)) as task:
        await until(lambda: len(pids(file)) == 1)
        os.kill(pids(file)[0], signal.SIGKILL)
        await until(lambda: len(pids(file)) == 2)
        assert not task.done()
    assert not any(lives(pid) for pid in pids(file))


async def test_it_starts_with_what_there_is_to_say_and_hears_what_comes(tmp_path: Path) -> None:
    file, heard = tmp_path / "pids", tmp_path / "heard"
    hears = f"[print(line, end='', file=open({str(heard)!r}, 'a')) for line in sys.stdin]"
    greeting = [b"first\n"]
    child = Child("engine", sleeper(file, hears), ENVIRONMENT, "", QUICK, greeting=greeting)
    async with kept(child):
        await until(heard.exists)
        child.say(b"second\n")
        greeting.append(b"second\n")
        await until(lambda: heard.read_text() == "first\nsecond\n")
        os.kill(pids(file)[0], signal.SIGKILL)
        await until(lambda: heard.read_text() == "first\nsecond\n" * 2)


async def test_one_that_is_let_go_is_not_started_again(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    child = Child("engine", sleeper(file), ENVIRONMENT, "", QUICK)
    async with kept(child) as task:
        await until(lambda: pids(file))
        child.let_go()
        os.kill(pids(file)[0], signal.SIGTERM)
        await asyncio.wait_for(task, 60)
    assert len(pids(file)) == 1


async def test_one_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    child = Child("engine", sleeper(file, stubborn), ENVIRONMENT, "", QUICK)
    task = asyncio.create_task(child.keep())
    await until(lambda: pids(file))
    await child.end(0.2)
    await asyncio.wait_for(task, 60)
    assert not lives(pids(file)[0])


async def test_a_bad_setting_is_said_and_not_tried_again(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    child = Child("engine", sleeper(file, f"sys.exit({BAD_SETTING})"), ENVIRONMENT, "", QUICK)
    with pytest.raises(FailedPrecondition, match="engine"):
        await child.keep()
    assert len(pids(file)) == 1
    assert child.ended.is_set()


PARENT = """
import asyncio, sys
from pathlib import Path
from services.cli.node.child import Child, Restarts
sys.path.insert(0, {root!r})
from tests.unit.cli.node.test_child import ENVIRONMENT, QUICK, sleeper

async def run():
    parts = [Child(n, sleeper(Path({folder!r}) / n), ENVIRONMENT, "", QUICK) for n in ("a", "b")]
    await asyncio.gather(*(part.keep() for part in parts))

asyncio.run(run())
"""


async def test_nothing_outlives_a_node_that_is_killed(tmp_path: Path) -> None:
    script = PARENT.format(root=str(ROOT), folder=str(tmp_path))
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, env=ENVIRONMENT, cwd=ROOT
    )
    files = [tmp_path / "a", tmp_path / "b"]
    try:
        await until(lambda: all(pids(file) for file in files))
        assert all(lives(pids(file)[0]) for file in files)
    finally:
        parent.kill()
        await parent.wait()
    await until(lambda: not any(lives(pid) for file in files for pid in pids(file)))
