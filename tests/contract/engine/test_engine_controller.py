from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from shuntserve.common.v1 import common_pb2
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc
from shuntserve.engine.v1 import engine_pb2

from services.common import channels
from services.common.errors import StaleEpoch
from services.common.machine import MachineFacts, Source
from services.common.nodes import ASKED_BEATS, NodeFacts, NodeShape
from services.common.roles import Role
from services.common.server import Server
from services.common.settings import ServiceSettings
from services.common.wire_machine import machine_from
from services.engine.controller_link import ControllerLink
from tests.contract.engine.rig import DEADLINE_S, ROOT, Rig, Worker, generate, request, until
from tests.contract.engine.tiny import expected_ids

PROMPT = [5, 6, 7]
MACHINE = MachineFacts(cores=2.0, network_gbps=10.0).declare(MachineFacts(pool="a"))


@dataclass
class Journal(controller_pb2_grpc.ControllerServiceServicer):
    """A controller that only listens; it may refuse, be silent or forget nodes."""

    registered: list[controller_pb2.RegisterRequest] = field(default_factory=list)
    beats: list[controller_pb2.HeartbeatRequest] = field(default_factory=list)
    checkpoints: list[controller_pb2.Checkpoint] = field(default_factory=list)
    ids: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    refusal: int = 0
    answering: asyncio.Event = field(default_factory=asyncio.Event)
    forget: bool = False
    interval_s: float = 0.05
    later_interval_s: float = 0.0
    """Told with every answer to a beat; 0: nothing is."""
    silent: bool = False
    """It hears beats, and answers none."""
    eager: bool = False
    """It answers each beat, as those of earlier versions do."""
    replaced: bool = False

    async def Register(self, request: Any, context: Any) -> Any:
        if self.replaced:
            raise StaleEpoch("a newer process has this node", field="incarnation")
        self.registered.append(request)
        return controller_pb2.RegisterResponse(heartbeat_interval_s=self.interval_s)

    async def Heartbeat(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        async for beat in request_iterator:
            self.beats.append(beat)
            forget, self.forget = self.forget, False
            if not self.silent and (forget or self.eager or not beat.no_answer):
                yield controller_pb2.HeartbeatResponse(
                    register_again=forget, heartbeat_interval_s=self.later_interval_s
                )

    async def StreamCheckpoints(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        async for message in request_iterator:
            results = []
            for checkpoint in message.checkpoints:
                self.checkpoints.append(checkpoint)
                results.append(self._take(checkpoint))
            await self.answering.wait()
            yield controller_pb2.StreamCheckpointsResponse(
                sequence=message.sequence, results=results
            )

    def _take(self, checkpoint: controller_pb2.Checkpoint) -> controller_pb2.CheckpointResult:
        lengths = []
        for run in checkpoint.runs:
            held = self.ids.setdefault((checkpoint.generation_id, run.choice), [])
            assert run.start <= len(held), "a gap"
            held[run.start :] = run.ids
            lengths.append(common_pb2.ChoiceLength(choice=run.choice, length=len(held)))
        return controller_pb2.CheckpointResult(
            generation_id=checkpoint.generation_id,
            epoch=checkpoint.epoch,
            lengths=lengths or [common_pb2.ChoiceLength(choice=0, length=0)],
            refusal=self.refusal,  # type: ignore[arg-type]
        )


@asynccontextmanager
async def serving(journal: Journal, port: int = 0) -> AsyncIterator[int]:
    settings = ServiceSettings(shutdown_grace_s=0, grpc_port=port)
    server = Server(settings, ["shuntserve.controller.v1.ControllerService"])
    controller_pb2_grpc.add_ControllerServiceServicer_to_server(journal, server.grpc_server)
    bound = await server.start()
    try:
        yield bound
    finally:
        await server.stop()


@asynccontextmanager
async def linked(
    worker: Worker, *ports: int, timeout_s: float = 1.0
) -> AsyncIterator[asyncio.Task[None]]:
    async with link_to(worker, *ports, timeout_s=timeout_s) as link:
        task = asyncio.create_task(link.run())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def link_to(
    worker: Worker, *ports: int, timeout_s: float = 1.0
) -> AsyncIterator[ControllerLink]:
    assert worker.engine is not None
    async with AsyncExitStack() as stack:
        opened = [channels.open_channel(f"127.0.0.1:{port}", Role.CONTROLLER) for port in ports]
        for channel in opened:
            await stack.enter_async_context(channel)
        yield ControllerLink(
            [controller_pb2_grpc.ControllerServiceStub(channel) for channel in opened],
            worker.engine,
            NodeFacts(
                worker.engine.node_id,
                worker.engine.incarnation,
                worker.address,
                4711,
                NodeShape(1 << 30, 1.5, backend="vllm"),
                MACHINE,
            ),
            timeout_s=timeout_s,
            checkpoint_interval_s=0.02,
            clock=time.monotonic,
        )


@pytest.fixture
def journal() -> Journal:
    journal = Journal()
    journal.answering.set()
    return journal


async def _eventually(condition: Any) -> None:
    async def met() -> bool:
        return bool(condition())

    await until(met)


async def test_a_node_registers_beats_and_tells_its_formation_at_once(
    rig: Rig, journal: Journal
) -> None:
    worker = await rig.worker()
    journal.interval_s = 10 * DEADLINE_S
    async with serving(journal) as port, linked(worker, port):
        await _eventually(lambda: journal.beats)
        told = journal.registered[0]
        assert (told.node_id, told.incarnation) == (worker.node_id, worker.incarnation)
        assert (told.address, told.pid) == (worker.address, 4711)
        assert (told.memory_bytes, told.relative_speed, told.device_type) == (1 << 30, 1.5, "cpu")
        assert machine_from(told.machine) == MACHINE
        assert told.backend == "vllm"
        await rig.form([worker], [], "f1")
        await _eventually(lambda: journal.beats[-1].formation_id == "f1")
        await generate(worker, request("g", PROMPT, 5), "f1").end()
        await worker.stub.Dissolve(engine_pb2.DissolveRequest(formation_id="f1"), timeout=60)
        await _eventually(lambda: journal.beats[-1].formation_id == "")
        assert journal.beats[-1].sampled_tokens == 5


async def test_a_lost_neighbour_is_told_with_the_next_beat(rig: Rig, journal: Journal) -> None:
    head, killed = await rig.worker(), await rig.process()
    async with serving(journal) as port, linked(head, port):
        await rig.form([head, killed], [2], "f1")
        assert killed.process is not None
        killed.process.kill()
        await _eventually(lambda: journal.beats and list(journal.beats[-1].lost_node_ids))
        assert list(journal.beats[-1].lost_node_ids) == [killed.node_id]
        assert journal.beats[-1].formation_id == ""


async def test_a_forgotten_node_registers_again(rig: Rig, journal: Journal) -> None:
    worker = await rig.worker()
    async with serving(journal) as port, linked(worker, port):
        await _eventually(lambda: journal.beats)
        journal.forget = True
        await _eventually(lambda: len(journal.registered) == 2)


async def test_one_beat_of_some_waits_for_an_answer_and_a_silent_controller_is_left(
    rig: Rig, journal: Journal
) -> None:
    worker = await rig.worker()
    # Longer than a busy machine withholds an answer: who waits in vain begins to count anew.
    async with serving(journal) as port, linked(worker, port, timeout_s=5.0):
        await _eventually(lambda: len(journal.beats) > 2 * ASKED_BEATS)
        asking = [number for number, beat in enumerate(journal.beats) if not beat.no_answer]
        assert asking == list(range(0, len(journal.beats), ASKED_BEATS))
        assert len(journal.registered) == 1
        journal.silent = True
        await _eventually(lambda: len(journal.registered) > 1)


async def test_what_is_answered_unasked_is_heard_when_it_comes(rig: Rig, journal: Journal) -> None:
    """Answers of a controller that answers each beat would else lie there, more and more of them,
    and before what must be told."""
    worker = await rig.worker()
    journal.eager, journal.interval_s = True, 0.01
    async with serving(journal) as port, linked(worker, port):
        await _eventually(lambda: len(journal.beats) > 80)
        journal.forget = True
        await _eventually(lambda: not journal.forget)
        told = len(journal.beats)
        await _eventually(lambda: len(journal.registered) > 1)
        assert len(journal.beats) < told + 40


async def test_a_stream_that_ends_is_seen_at_once_however_seldom_beats_are(
    rig: Rig, journal: Journal
) -> None:
    worker = await rig.worker()
    journal.interval_s = 10 * DEADLINE_S
    async with AsyncExitStack() as link:
        async with serving(journal) as port:
            await link.enter_async_context(linked(worker, port))
            await _eventually(lambda: journal.beats)
        async with serving(journal, port):
            await _eventually(lambda: len(journal.registered) > 1)


async def test_a_node_beats_as_often_as_it_is_told_last(rig: Rig, journal: Journal) -> None:
    worker = await rig.worker()
    journal.later_interval_s = 10 * DEADLINE_S
    async with serving(journal) as port, linked(worker, port):
        await _eventually(lambda: journal.beats)
        await rig.form([worker], [], "f1")  # what changes is told at once
        await _eventually(lambda: journal.beats[-1].formation_id == "f1")
        beats = len(journal.beats)
        await asyncio.sleep(10 * journal.interval_s)
        assert len(journal.beats) == beats


async def test_a_controller_that_wants_few_beats_is_not_silent_between_its_answers(
    rig: Rig, journal: Journal
) -> None:
    worker = await rig.worker()
    journal.later_interval_s = DEADLINE_S
    async with serving(journal) as port, link_to(worker, port) as link:
        running = asyncio.create_task(link.run())
        try:
            await _eventually(lambda: link.silent_s < -2 * DEADLINE_S)
            heard_s = link.last_heard_s
            await asyncio.sleep(0.1)
            assert link.last_heard_s == heard_s
            assert link.silent_s < 0
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        assert link.silent_s > 0, "there is no stream on which it could be heard"


async def test_of_several_addresses_the_controller_is_the_one_that_answers(
    rig: Rig, journal: Journal
) -> None:
    worker = await rig.worker(step_s=0.005)
    async with AsyncExitStack() as first:
        port = await first.enter_async_context(serving(journal))
        other = Journal(ids=journal.ids, answering=journal.answering)
        async with serving(other) as second_port, linked(worker, 1, port, second_port):
            await rig.form([worker], [], "f1")
            stream = generate(worker, request("g", PROMPT, 400), "f1")
            await stream.until(lambda s: len(s.ids.get(0, [])) >= 5)
            await _eventually(lambda: journal.registered and journal.checkpoints)
            assert not other.registered
            await first.aclose()
            await _eventually(lambda: other.registered and other.checkpoints)
            had = len(stream.ids[0])
            await stream.until(lambda s: len(s.ids[0]) >= had + 5)


async def test_a_replaced_process_is_told_so(rig: Rig, journal: Journal) -> None:
    worker = await rig.worker()
    journal.replaced = True
    async with serving(journal) as port, linked(worker, port) as task:
        await asyncio.wait((task,), timeout=60)
        error = task.exception()
        assert isinstance(error, BaseExceptionGroup)
        assert error.subgroup(StaleEpoch) is not None


async def test_the_journal_gets_every_id_and_the_request_first(rig: Rig, journal: Journal) -> None:
    workers = [await rig.worker(step_s=0.005), await rig.worker()]
    async with serving(journal) as port, linked(workers[0], port):
        await rig.form(workers, [3], "f1")
        stream = await generate(workers[0], request("g", PROMPT, 60), "f1").end()
        assert stream.ids[0] == expected_ids(PROMPT, 60)
        await _eventually(lambda: journal.ids.get(("g", 0)) == stream.ids[0])
        first, last = journal.checkpoints[0], journal.checkpoints[-1]
        assert first.request.generation_id == "g"
        assert not first.runs
        assert (first.incarnation, first.formation_id) == (workers[0].incarnation, "f1")
        assert last.sealed
        assert last.runs[-1].finish_reason == common_pb2.FINISH_REASON_LENGTH
        assert 2 < len(journal.checkpoints) < 40, "coalesced, but not all at the end"


async def test_a_journal_that_was_away_gets_what_it_missed(rig: Rig, journal: Journal) -> None:
    worker = await rig.worker(step_s=0.01)
    async with serving(journal) as port:
        async with linked(worker, port):
            await rig.form([worker], [], "f1")
            stream = generate(worker, request("g", PROMPT, 150), "f1")
            await stream.until(lambda s: len(s.ids.get(0, [])) >= 20)
        missed = len(journal.ids["g", 0])
        await stream.until(lambda s: len(s.ids.get(0, [])) >= missed + 20)
        async with linked(worker, port):
            await stream.end()
            await _eventually(lambda: journal.ids["g", 0] == stream.ids[0])
    assert stream.ids[0] == expected_ids(PROMPT, 150)


async def test_a_controller_that_comes_back_at_its_address_is_found(
    rig: Rig, journal: Journal
) -> None:
    worker = await rig.worker(step_s=0.01)
    async with serving(journal) as port:
        link = linked(worker, port)
        await link.__aenter__()
        await rig.form([worker], [], "f1")
        stream = generate(worker, request("g", PROMPT, 200), "f1")
        await stream.until(lambda s: len(s.ids.get(0, [])) >= 20)
    await stream.until(lambda s: len(s.ids.get(0, [])) >= 60)
    registered = len(journal.registered)
    async with serving(journal, port):
        await stream.end()
        await _eventually(lambda: journal.ids["g", 0] == stream.ids[0])
        assert len(journal.registered) > registered
        await link.__aexit__(None, None, None)


async def test_a_drain_seals_at_an_exact_position_and_waits_for_the_journal(
    rig: Rig, journal: Journal
) -> None:
    workers = [await rig.worker(step_s=0.005), await rig.worker()]
    async with serving(journal) as port, linked(workers[0], port):
        await rig.form(workers, [3], "f1")
        streams = [
            generate(workers[0], request(f"g{i}", [i, *PROMPT], 400), "f1") for i in range(4)
        ]
        for stream in streams:
            await stream.until(lambda s: len(s.ids.get(0, [])) >= 5)
        journal.answering.clear()
        drain = engine_pb2.DrainRequest(formation_id="f1")
        draining = asyncio.create_task(_drain(workers[0], drain))
        for i, stream in enumerate(streams):
            await stream.end()
            assert stream.closed == engine_pb2.CLOSE_REASON_MOVED
            assert stream.ids[0] == expected_ids([i, *PROMPT], 400)[: len(stream.ids[0])]
        assert not draining.done()
        journal.answering.set()
        assert (await draining).sealed_generations == 4
        for i, stream in enumerate(streams):
            assert journal.ids[f"g{i}", 0] == stream.ids[0]
        stats = (await workers[0].stub.Describe(engine_pb2.DescribeRequest(), timeout=60)).stats
        assert stats.used_kv_blocks == 0
        assert stats.sampled_tokens == sum(len(stream.ids[0]) for stream in streams)
        await _drain(workers[0], drain)  # Once more is no error.


async def _drain(worker: Worker, message: engine_pb2.DrainRequest) -> engine_pb2.DrainResponse:
    return await worker.stub.Drain(message, timeout=60)


async def test_a_refused_checkpoint_fences_the_generation(rig: Rig, journal: Journal) -> None:
    worker = await rig.worker(step_s=0.005)
    async with serving(journal) as port, linked(worker, port):
        await rig.form([worker], [], "f1")
        stream = generate(worker, request("g", PROMPT, 400), "f1")
        await stream.until(lambda s: len(s.ids.get(0, [])) >= 5)
        journal.refusal = controller_pb2.CHECKPOINT_REFUSAL_STALE_EPOCH
        await stream.end()
        assert stream.closed == engine_pb2.CLOSE_REASON_FENCED


def _environment(**settings: str) -> dict[str, str]:
    return {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}",
        **{f"SHUNT_ENGINE_{name.upper()}": value for name, value in settings.items()},
    }


async def _process(**settings: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.engine",
        cwd=ROOT,
        env=_environment(**settings),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_a_process_nobody_wants_ends_itself() -> None:
    process = await _process(node_id="n", controller="127.0.0.1:1", orphan_s="0.5")
    _, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, errors
    assert b"orphaned" in errors


async def test_a_process_registers_serves_and_ends_on_a_signal(journal: Journal) -> None:
    async with serving(journal) as port:
        metrics_port = _free_port()
        process = await _process(
            node_id="n7", controller=f"127.0.0.1:{port}", metrics_port=str(metrics_port)
        )
        await _eventually(lambda: journal.beats)
        url = f"http://127.0.0.1:{metrics_port}/metrics"
        metrics = (await asyncio.to_thread(httpx.get, url)).text
        for name in ("running", "queued", "steps_total", "sampled_tokens_total", "used_kv_blocks"):
            assert f"shunt_engine_{name} 0.0" in metrics
        assert "shunt_engine_decode_batch_bucket" in metrics
        assert journal.registered[0].node_id == "n7"
        assert journal.registered[0].metrics_port == metrics_port
        assert journal.registered[0].pid == process.pid
        os.kill(process.pid, signal.SIGTERM)
        _, errors = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 0, errors


async def test_a_process_tells_what_it_found_and_what_it_was_told(journal: Journal) -> None:
    async with serving(journal) as port:
        process = await _process(
            node_id="n8",
            controller=f"127.0.0.1:{port}",
            memory_bytes=str(1 << 30),
            relative_speed="3",
            declared='{"instance_type": "big", "spot": true}',
        )
        await _eventually(lambda: journal.registered)
        process.kill()
        await process.communicate()
    told = journal.registered[0]
    machine = machine_from(told.machine)
    assert (told.memory_bytes, told.relative_speed, told.device_type) == (1 << 30, 3.0, "cpu")
    assert (machine.instance_type, machine.spot, machine.memory_bytes) == ("big", True, 1 << 30)
    assert machine.declared == ("instance_type", "memory_bytes", "relative_speed", "spot")
    assert machine.source("cores") is Source.FOUND
    assert (machine.zone, machine.pool) == (None, None)


async def test_a_declaration_of_what_nobody_may_declare_names_its_field() -> None:
    process = await _process(node_id="n", declared='{"cores": 64}')
    _, errors = await process.communicate()
    assert process.returncode == 2
    assert b"SHUNT_ENGINE_DECLARED__CORES" in errors


async def test_a_bad_setting_names_its_field() -> None:
    process = await _process(node_id="n", token_budget="0")
    _, errors = await process.communicate()
    assert process.returncode == 2
    assert b"SHUNT_ENGINE_TOKEN_BUDGET" in errors
