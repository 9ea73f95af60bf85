"""Engine processes that are told to stop."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from shuntserve.common.v1 import common_pb2
from shuntserve.engine.v1 import engine_pb2

from services.common.notices import Notice, NoticeKind
from services.engine.notices import line_of
from tests.contract.engine.rig import ROOT, Rig, Worker, generate, request
from tests.contract.engine.test_engine_controller import Journal, serving
from tests.contract.engine.tiny import LAYERS, expected_ids
from tests.waiting import until

PROMPT = [5, 6, 7]


@pytest.fixture
def journal() -> Journal:
    journal = Journal()
    journal.answering.set()
    return journal


@asynccontextmanager
async def departing(
    rig: Rig, journal: Journal, port: int, *arguments: str, **settings: str
) -> AsyncIterator[Worker]:
    """A process that has registered."""
    chosen = {"node_id": "n1", "controller": f"127.0.0.1:{port}", **settings}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.contract.engine.departing_process", *arguments),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}",
            **{f"SHUNT_ENGINE_{name.upper()}": value for name, value in chosen.items()},
        },
    )
    try:
        await until(lambda: journal.beats)
        said = journal.registered[0]
        stub = await rig.stub(said.address)
        yield Worker(said.node_id, said.incarnation, said.address, stub, process=process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def ends(worker: Worker) -> int:
    assert worker.process is not None
    async with asyncio.timeout(60):
        return await worker.process.wait()


def tell(worker: Worker) -> None:
    assert worker.process is not None
    worker.process.send_signal(signal.SIGTERM)


def lives(worker: Worker) -> bool:
    return worker.process is not None and worker.process.returncode is None


async def test_it_says_so_and_serves_until_its_stage_was_handed_over(
    rig: Rig, journal: Journal
) -> None:
    async with serving(journal) as port, departing(rig, journal, port, notice_s="600") as worker:
        await rig.form([worker], [], "f1")
        stream = generate(worker, request("g", PROMPT, 400), "f1")
        await stream.until(lambda s: len(s.ids.get(0, [])) >= 5)
        assert not journal.beats[-1].HasField("departs_in_s")
        tell(worker)
        await until(lambda: journal.beats[-1].HasField("departs_in_s"))
        assert 590 < journal.beats[-1].departs_in_s <= 600
        had = len(stream.ids[0])
        await stream.until(lambda s: len(s.ids[0]) >= had + 20)
        assert lives(worker)
        drained = await worker.stub.Drain(engine_pb2.DrainRequest(formation_id="f1"), timeout=60)
        assert drained.sealed_generations == 1
        await stream.end()
        assert stream.closed == engine_pb2.CLOSE_REASON_MOVED
        await worker.stub.Dissolve(engine_pb2.DissolveRequest(formation_id="f1"), timeout=60)
        assert await ends(worker) == 0
    ids = journal.ids["g", 0]
    assert ids == expected_ids(PROMPT, len(ids))
    assert len(ids) >= len(stream.ids[0])


@pytest.mark.parametrize("how", ["its notice is over", "it is told again"])
async def test_it_seals_what_it_has_when_nobody_takes_over(
    rig: Rig, journal: Journal, how: str
) -> None:
    notice_s = "0.5" if how == "its notice is over" else "600"
    async with serving(journal) as port, departing(rig, journal, port, notice_s=notice_s) as worker:
        await rig.form([worker], [], "f1")
        stream = generate(worker, request("g", PROMPT, 400), "f1")
        await stream.until(lambda s: len(s.ids.get(0, [])) >= 5)
        tell(worker)
        if how == "it is told again":
            await until(lambda: journal.beats[-1].HasField("departs_in_s"))
            tell(worker)
        await stream.end()
        assert await ends(worker) == 0
    assert journal.checkpoints[-1].sealed
    assert len(journal.ids["g", 0]) >= len(stream.ids[0])


async def test_it_ends_at_once_when_it_serves_in_no_formation(rig: Rig, journal: Journal) -> None:
    async with serving(journal) as port, departing(rig, journal, port, notice_s="600") as worker:
        tell(worker)
        assert await ends(worker) == 0
    assert not any(beat.HasField("departs_in_s") for beat in journal.beats)


async def test_it_ends_at_once_while_it_loads(rig: Rig, journal: Journal) -> None:
    async with serving(journal) as port, departing(rig, journal, port, "stuck") as worker:
        call = worker.stub.Hold(rig.hold_request((0, LAYERS)), timeout=60)
        assert await call.read()
        tell(worker)
        assert await ends(worker) == 0
        call.cancel()


async def test_it_does_not_wait_for_a_controller_that_is_gone_when_it_has_no_work(
    rig: Rig, journal: Journal
) -> None:
    async with AsyncExitStack() as controller:
        port = await controller.enter_async_context(serving(journal))
        async with departing(rig, journal, port, notice_s="600") as worker:
            await rig.form([worker], [], "f1")
            await controller.aclose()
            tell(worker)
            assert await ends(worker) == 0


def write(worker: Worker, kind: NoticeKind, in_s: float | None) -> None:
    """As `shunt node` does."""
    assert worker.process is not None
    assert worker.process.stdin is not None
    deadline_s = None if in_s is None else time.monotonic() + in_s
    worker.process.stdin.write(line_of(Notice(kind, deadline_s)))


async def test_it_hands_on_what_its_node_is_told(rig: Rig, journal: Journal) -> None:
    async with (
        serving(journal) as port,
        departing(rig, journal, port, hears_notices="true") as worker,
    ):
        await rig.form([worker], [], "f1")
        stream = generate(worker, request("g", PROMPT, 400), "f1")
        await stream.until(lambda s: len(s.ids.get(0, [])) >= 5)
        assert worker.process is not None
        assert worker.process.stdin is not None
        worker.process.stdin.write(b"no notice\n" + b"x" * 5000 + b"\n")
        write(worker, NoticeKind.REBALANCE, None)
        await until(lambda: journal.beats[-1].notice == common_pb2.NOTICE_KIND_REBALANCE)
        assert not journal.beats[-1].HasField("departs_in_s")
        had = len(stream.ids[0])
        await stream.until(lambda s: len(s.ids[0]) >= had + 5)
        write(worker, NoticeKind.SPOT, 600.0)
        await until(lambda: journal.beats[-1].HasField("departs_in_s"))
        assert journal.beats[-1].notice == common_pb2.NOTICE_KIND_SPOT
        assert 590 < journal.beats[-1].departs_in_s <= 600
        write(worker, NoticeKind.SHUTDOWN, 800.0)  # a later deadline changes nothing
        write(worker, NoticeKind.SPOT, 60.0)
        await until(lambda: journal.beats[-1].departs_in_s <= 60)
        assert lives(worker)
        await worker.stub.Drain(engine_pb2.DrainRequest(formation_id="f1"), timeout=60)
        await stream.end()
        await worker.stub.Dissolve(engine_pb2.DissolveRequest(formation_id="f1"), timeout=60)
        assert await ends(worker) == 0


async def test_one_that_will_be_taken_says_so_before_it_ends_for_want_of_a_formation(
    rig: Rig, journal: Journal
) -> None:
    async with (
        serving(journal) as port,
        departing(rig, journal, port, hears_notices="true") as worker,
    ):
        write(worker, NoticeKind.SPOT, 600.0)
        assert await ends(worker) == 0
    assert journal.beats[-1].HasField("departs_in_s")
