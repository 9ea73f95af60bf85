"""Engines that cannot start, that cannot load, and that are killed: what it costs, and what is
said."""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from shuntserve.controller.v1 import controller_pb2

from bench import mesh as meshes
from tests.mesh import tiny_mesh
from tests.mesh.tiny_mesh import Machine, Up

WHOLE_S = 120.0
RETRY_S = 0.5
"""The controller's first pause."""
BAD = "bad setting SHUNT_ENGINE_THREADS: Input should be greater than or equal to 1"
TOO_SMALL = "leave no room for a KV cache"
ENVIRONMENT = {
    "SHUNT_ENGINE_DTYPE": "fp32",  # which placement knows nothing of
    "SHUNT_CONTROLLER_STABLE_S": "2",
    "SHUNT_ROUTER_RECOVER_S": "240",  # a busy machine starts an engine slowly
}
CHAT = {
    "model": tiny_mesh.NAME,
    "messages": [{"role": "user", "content": "Count."}],
    "temperature": 0,
    "max_tokens": 60,
    "ignore_eos": True,
}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(tmp_path_factory.mktemp("failing") / "machine")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("tiny")
    model = tiny_mesh.reference()
    files = tiny_mesh.thinking_files()
    asyncio.run(tiny_mesh.import_model(model, base / "source", base / "store", files))
    return base / "store"


def with_store(data_dir: Path, store: Path) -> Path:
    """A mesh's directory that has the model already."""
    shutil.copytree(store, data_dir / "store")
    return data_dir


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, store: Path, machine: Machine
) -> Iterator[meshes.Mesh]:
    """Two pipelines of an engine each."""
    with asyncio.Runner() as runner:
        context = meshes.running(
            with_store(tmp_path_factory.mktemp("tiny-mesh"), store),
            env={**machine.environment, **ENVIRONMENT},
            options=("--model", tiny_mesh.NAME, "--node-speeds", "1,1"),
        )
        mesh = runner.run(context.__aenter__())
        try:
            yield mesh
        finally:
            runner.run(context.__aexit__(None, None, None))


@pytest.fixture
async def tiny(shared: meshes.Mesh, machine: Machine) -> meshes.Mesh:
    """The same at the start of every test, whatever the one before was cut off at: who was given up
    for good is killed, for nobody else would launch another one."""
    machine.heal()
    killed = set[str]()
    async with asyncio.timeout(WHOLE_S):
        while True:
            status = await shared.status()
            ready = [pipeline["state"] for pipeline in status["pipelines"]] == ["ready"] * 2
            if ready and not status["faults"]:
                return shared
            given_up = {fault["pipeline"] for fault in status["faults"] if fault["permanent"]}
            for pipeline in status["pipelines"]:
                node = pipeline["stages"][0]["node"]
                if pipeline["id"] in given_up and node and node not in killed:
                    killed.add(node)
                    await shared.shunt("interrupt", node, "--kill")
            await asyncio.sleep(0.2)


@pytest.fixture
def broken(machine: Machine) -> Iterator[Machine]:
    """Whole again behind the test."""
    yield machine
    machine.heal()


def starts(fault: dict[str, Any], failures: int) -> bool:
    return fault["kind"] == "start" and fault["failures"] >= failures


def assert_bounded(events: list[controller_pb2.WatchEventsResponse], first_s: float) -> list[float]:
    """No launch comes before its pause, which doubles from failure to failure; returns the times
    from launch to launch, in which the pauses are. `events` are of one place."""
    launched = [e.time_unix_s for e in events if e.kind == "node_launched"]
    # An event is dated when it is carried out, behind the write that it waited for. On a busy disk
    # a loss may be dated by when its pause is over; between two launches is a start, too.
    pauses = [launch - before for before, launch in pairwise(launched)]
    for number, pause_s in enumerate(pauses):
        assert pause_s >= 0.9 * RETRY_S * 2**number
    window_s = events[-1].time_unix_s - first_s
    assert len(launched) <= 2 + math.log2(window_s / RETRY_S + 1)
    return pauses


def warnings(mesh: meshes.Mesh, message: str) -> list[dict[str, Any]]:
    """Lines of the controller's log from WARNING on."""
    text = (mesh.data_dir / "logs" / "controller.log").read_text()
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    loud = [line for line in lines if line["level"] in ("WARNING", "ERROR")]
    return [line for line in loud if line["message"] == message]


def first_words(text: str) -> str:
    """What a command printed, on one line."""
    return " ".join(text.split())


THINKS = {
    "model": tiny_mesh.NAME,
    "max_tokens": 1200,
    # Nothing that ends it is sampled, and what ends its thoughts a little later than it would be.
    "logit_bias": {"290": -100, "301": -100, "292": -0.5},
    "chat_template_kwargs": {"enable_thinking": True},
}
QUESTIONS = ("Why is the sky blue?", "Name a bird.", "Tell a tale.", "Hello!")
"""Greedy, some 400 to 800 ids of thoughts come before each answer."""


async def test_thoughts_and_the_answer_behind_them_are_the_same_through_kills(
    tiny: meshes.Mesh, client: httpx.AsyncClient
) -> None:
    ways: list[dict[str, Any]] = [{"temperature": 0}, {"temperature": 0.4, "seed": 3}]
    bodies = [
        {**THINKS, **way, "messages": [{"role": "user", "content": question}]}
        for question in QUESTIONS
        for way in ways
    ]
    expected = await meshes.undisturbed(client, tiny.url(), bodies)
    assert all(record.thoughts for record in expected)
    assert sum(bool(record.text) for record in expected) >= len(QUESTIONS)
    status = await tiny.until_ready(2)
    pids = {node["id"]: node["pid"] for node in status["nodes"]}
    first, second = (pids[pipeline["stages"][0]["node"]] for pipeline in status["pipelines"])
    records = [meshes.StreamRecord() for _ in bodies]
    async with asyncio.TaskGroup() as readers:
        for body, record in zip(bodies, records, strict=True):
            readers.create_task(meshes.stream_chat(client, tiny.url(), body, record))
        await meshes.until(lambda: all(record.thoughts for record in records), 120.0)
        os.kill(first, signal.SIGKILL)
        await meshes.until(lambda: any(record.text for record in records), 120.0)
        os.kill(second, signal.SIGKILL)
    epochs = [
        (await client.get(f"{tiny.url()}/v1/generations/{record.generation_id}")).json()["epoch"]
        for record in records
    ]
    print(f"epochs {epochs}, thoughts {[len(record.thoughts) for record in records]}")
    assert max(epochs) > 1
    for record, wanted in zip(records, expected, strict=True):
        assert record.complete, record.error
        assert (record.thoughts, record.text) == (wanted.thoughts, wanted.text)
        assert (record.finish_reason, record.usage) == (wanted.finish_reason, wanted.usage)
    await tiny.until_ready(2, 120.0)


async def test_a_mesh_whose_engines_never_start_says_why_and_comes_up_once_they_do(
    tmp_path: Path, store: Path, broken: Machine
) -> None:
    broken.set(threads="0")
    up = Up(with_store(tmp_path, store), pipelines=1)
    async with up.running({**broken.environment, **ENVIRONMENT}):
        await meshes.until(lambda: f"3 times: exit status 2: {BAD}" in up.said)
        status = await up.mesh.status()
        fault = status["faults"][0]
        assert starts(fault, 3)
        assert fault["cause"] == f"exit status 2: {BAD}"
        assert not fault["permanent"]
        shown = first_words(await up.mesh.shunt("status"))
        assert shown.startswith("nodes of the first plan come to nothing, node-")
        assert BAD in shown
        events = await tiny_mesh.events(up.mesh)
        print(f"pauses {assert_bounded(events, events[0].time_unix_s)}")
        assert {line["cause"] for line in warnings(up.mesh, "node_lost")} == {fault["cause"]}
        broken.heal()
        await up.mesh.until_ready(1)
        await meshes.until(lambda: "Ctrl-C stops everything." in up.said)


async def test_a_place_where_no_engine_starts_takes_nothing_from_the_others(
    tiny: meshes.Mesh, broken: Machine, client: httpx.AsyncClient
) -> None:
    (alone,) = await meshes.undisturbed(client, tiny.url(), [CHAT])
    before = await tiny.until_ready(2)
    number = (await tiny_mesh.events(tiny))[-1].number
    stays, goes = before["pipelines"]
    broken.set(threads="0")
    answers: list[meshes.StreamRecord] = []
    failing: list[dict[str, Any]] = []

    async def ask() -> None:
        while not failing:
            record = meshes.StreamRecord()
            await meshes.stream_chat(client, tiny.url(), CHAT, record)
            answers.append(record)

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(ask())
        await tiny.shunt("interrupt", goes["stages"][0]["node"], "--kill")
        status = await tiny_mesh.until_status(
            tiny, lambda s: any(starts(fault, 3) for fault in s["faults"])
        )
        failing += status["faults"]

    assert failing[0]["pipeline"] == goes["id"]
    assert failing[0]["cause"] == f"exit status 2: {BAD}"
    assert stays in status["pipelines"], "the other pipeline has its node and its formation"
    assert not any(service["reason"] for service in status["services"])
    shown = first_words(await tiny.shunt("status"))
    assert shown.startswith(f"nodes of {goes['id']} come to nothing, ")
    assert BAD in shown
    events = [e for e in await tiny_mesh.events(tiny) if e.number > number]
    lost = next(i for i, e in enumerate(events) if e.kind == "node_lost")
    pauses = assert_bounded(
        [e for e in events[lost + 1 :] if e.kind in ("node_launched", "node_lost")],
        events[lost].time_unix_s,
    )
    print(f"pauses {pauses}, {len(answers)} answers meanwhile")
    assert {e.pipeline_id for e in events if e.kind == "pipeline_lost"} == {goes["id"]}
    assert BAD in warnings(tiny, "node_lost")[-1]["cause"]
    assert len(answers) >= 8
    for record in answers:
        if not record.complete:  # it ran where the engine was killed, and readers come back
            await meshes.resume_stream(client, tiny.url(), record)
        assert (record.text, record.usage) == (alone.text, alone.usage)

    broken.heal()
    await tiny.until_ready(2)
    await tiny_mesh.until_status(tiny, lambda s: not s["faults"])


async def test_engines_that_refuse_their_load_for_good_are_not_launched_again(
    tiny: meshes.Mesh, broken: Machine, client: httpx.AsyncClient
) -> None:
    before = await tiny.until_ready(2)
    number = (await tiny_mesh.events(tiny))[-1].number
    broken.set(memory_bytes=str(2 << 20))
    for pipeline in before["pipelines"]:
        await tiny.shunt("interrupt", pipeline["stages"][0]["node"], "--kill")
    status = await tiny_mesh.until_status(
        tiny, lambda s: sum(f["permanent"] for f in s["faults"]) == 2
    )
    for _ in range(6):
        status = json.loads(await tiny.shunt("status", "--json"))  # takes a moment by itself
        assert [fault["failures"] for fault in status["faults"] if fault["permanent"]] == [1, 1]
    events = [e for e in await tiny_mesh.events(tiny) if e.number > number]
    assert sum(e.kind == "node_launched" for e in events) == 2
    assert sum(e.kind == "load_failed" for e in events) == 2
    assert all(TOO_SMALL in line["reason"] for line in warnings(tiny, "load_failed"))

    assert [fault["kind"] for fault in status["faults"][:2]] == ["load", "load"]
    cause = status["faults"][0]["cause"]
    assert TOO_SMALL in cause
    reason = f"no pipeline can run the model: {cause}"
    shown = first_words(await tiny.shunt("status"))
    assert shown.startswith(f"router-0 takes no requests: {reason}")
    readyz = await client.get(f"{tiny.url()}/readyz")
    assert readyz.status_code == 503
    assert readyz.json() == {"ready": False, "reason": reason, "permanent": True}
    refused = await client.post(f"{tiny.url()}/v1/chat/completions", json=CHAT)
    assert refused.status_code == 500
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers
    assert cause in refused.json()["error"]["message"]

    broken.heal()
    for pipeline in status["pipelines"]:
        await tiny.shunt("interrupt", pipeline["stages"][0]["node"], "--kill")
    await tiny.until_ready(2)
    assert (await client.get(f"{tiny.url()}/readyz")).status_code == 200
    await tiny_mesh.until_status(tiny, lambda s: not s["faults"])


async def test_up_ends_with_the_reason_when_no_engine_can_ever_load_the_model(
    tmp_path: Path, store: Path, machine: Machine
) -> None:
    up = Up(with_store(tmp_path, store), pipelines=1)
    memory = {"SHUNT_CONTROLLER_NODE_MEMORY_BYTES": str(5_000_000)}
    async with up.running({**machine.environment, **ENVIRONMENT, **memory}):
        assert await asyncio.wait_for(up.process.wait(), 120) == 1
    last = first_words(up.said).rpartition("shunt: ")[2]
    assert last.startswith(f"{tiny_mesh.NAME} cannot be served: ")
    assert TOO_SMALL in last
    log = (tmp_path / "logs" / "controller.log").read_text()
    assert log.count('"node_launched"') == 1
    assert len(warnings(up.mesh, "load_failed")) == 1
