"""A node over parts that are real processes, and sources that say what they are told to."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from services.cli.node.child import Child
from services.cli.node.notices import NoticeSource
from services.cli.node.supervisor import Node, SignalSource
from services.common.errors import FailedPrecondition
from services.common.notices import Notice, NoticeKind
from services.engine.notices import notice_of
from tests.unit.cli.node.test_child import ENVIRONMENT, QUICK, lives, pids, sleeper
from tests.waiting import until

HEARS = """
for line in sys.stdin:
    print(line, end='', file=open({heard!r}, 'a'))
    if 'null' not in line and {leaves}:
        break
else:
    time.sleep(60)
"""


class Source:
    """Says each notice once."""

    name, pause_s = "somebody", 0.001

    def __init__(self) -> None:
        self.said: asyncio.Queue[Notice] = asyncio.Queue()

    async def look(self) -> Iterable[Notice]:
        return [await self.said.get()]


class Rig:
    """A node with an engine that ends when it is given notice, or does not."""

    def __init__(self, folder: Path, *, leaves: bool = True, then: str = "") -> None:
        self.store_file, self.engine_file = folder / "store", folder / "engine"
        self._heard = folder / "heard"
        script = folder / "engine.py"
        script.write_text(
            f"import os, sys, time\nprint(os.getpid(), file=open({str(self.engine_file)!r}, 'a'))\n"
            + (then or HEARS.format(heard=str(self._heard), leaves=leaves))
        )
        told: list[bytes] = []
        engine_command = (sys.executable, str(script))
        self.node = Node(
            Child("tensorstore", sleeper(self.store_file), ENVIRONMENT, "127.0.0.1:1", QUICK),
            Child("engine", engine_command, ENVIRONMENT, "127.0.0.1:1", QUICK, greeting=told),
            told,
            stop_grace_s=1.0,
            set_ready=self._set_ready,
        )
        self.source = Source()

    async def _set_ready(self, ready: bool) -> None:
        raise AssertionError(f"nothing here is ready: {ready}")

    def run(self, *more: NoticeSource) -> asyncio.Task[None]:
        return asyncio.create_task(self.node.run([self.source, *more]))

    async def started(self) -> None:
        await until(lambda: pids(self.store_file) and pids(self.engine_file))

    def heard(self) -> Sequence[Notice]:
        lines = self._heard.read_bytes().splitlines() if self._heard.exists() else []
        return [notice_of(line) for line in lines]

    def all_ended(self) -> bool:
        return not any(lives(pid) for f in (self.store_file, self.engine_file) for pid in pids(f))


def soon(in_s: float, kind: NoticeKind = NoticeKind.SPOT) -> Notice:
    return Notice(kind, time.monotonic() + in_s)


ADVICE = Notice(NoticeKind.REBALANCE, None)


async def test_it_ends_whole_once_its_engine_has_gone(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    running = rig.run()
    await rig.started()
    notice = soon(600.0)
    rig.source.said.put_nowait(notice)
    await asyncio.wait_for(running, 60)
    assert rig.heard() == [notice]
    assert rig.all_ended()
    assert len(pids(rig.engine_file)) == 1, "whoever leaves is not started again"


async def test_an_engine_that_does_not_go_is_ended_behind_its_deadline(tmp_path: Path) -> None:
    rig = Rig(tmp_path, leaves=False)
    running = rig.run()
    await rig.started()
    rig.source.said.put_nowait(soon(600.0))
    await until(lambda: rig.heard())
    rig.source.said.put_nowait(soon(900.0))
    sooner = soon(0.2)
    rig.source.said.put_nowait(sooner)
    await asyncio.wait_for(running, 60)
    assert rig.heard()[1:] == [sooner], "of several deadlines the earliest counts"
    assert rig.all_ended()


async def test_advice_ends_nothing_and_is_told_to_whoever_comes_next(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    running = rig.run()
    await rig.started()
    rig.source.said.put_nowait(ADVICE)
    rig.source.said.put_nowait(ADVICE)
    await until(lambda: rig.heard() == [ADVICE])
    os.kill(pids(rig.engine_file)[0], signal.SIGKILL)
    await until(lambda: rig.heard() == [ADVICE] * 2)
    assert not running.done()
    rig.source.said.put_nowait(soon(600.0))
    await asyncio.wait_for(running, 60)
    assert rig.all_ended()


async def test_a_part_with_a_bad_setting_ends_the_node(tmp_path: Path) -> None:
    rig = Rig(tmp_path, then="sys.exit(2)")
    with pytest.raises(FailedPrecondition, match="engine"):
        await asyncio.wait_for(rig.run(), 60)
    assert rig.all_ended()


@pytest.mark.parametrize(
    ("number", "kind"),
    [(signal.SIGTERM, NoticeKind.SHUTDOWN), (signal.SIGINT, NoticeKind.OPERATOR)],
)
async def test_a_signal_is_a_notice_and_a_second_one_leaves_no_time(
    tmp_path: Path, number: signal.Signals, kind: NoticeKind
) -> None:
    rig = Rig(tmp_path, leaves=False)
    loop = asyncio.get_running_loop()
    running = rig.run(SignalSource(600.0, time.monotonic))
    try:
        await rig.started()
        os.kill(os.getpid(), number)
        await until(lambda: rig.heard())
        (notice,) = rig.heard()
        assert (notice.kind, notice.deadline_s) == (
            kind,
            pytest.approx(time.monotonic() + 600.0, abs=60.0),
        )
        assert not running.done()
        os.kill(os.getpid(), number)
        await asyncio.wait_for(running, 60)
        assert rig.all_ended()
    finally:
        for signalled in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(signalled)
