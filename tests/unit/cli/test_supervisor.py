from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from shuntserve.controller.v1 import controller_pb2

from services.cli import processes, supervisor
from services.cli.layout import MeshOptions, ServiceSpec
from services.cli.mesh_directory import MeshDirectory, MeshError, MeshState
from services.cli.ports import free_ports
from services.cli.supervisor import Supervisor
from services.common.roles import Role


def _spec(name: str, code: str) -> ServiceSpec:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    return ServiceSpec(name, (sys.executable, "-c", code), {"TOLD": "this"}, address)


WAITS = "import os, time; assert os.environ['TOLD'] == 'this'; time.sleep(600)"


class _Watched:
    """A supervisor and the states it told."""

    def __init__(self, directory: Path, *specs: ServiceSpec) -> None:
        self.directory = MeshDirectory(directory)
        self.states: list[MeshState] = []
        self._changed = asyncio.Event()
        self.stop = asyncio.Event()
        self._supervisor = Supervisor(self.directory, specs, MeshOptions(), self._tell)

    async def run(self) -> None:
        await self._supervisor.run(self.stop)

    def _tell(self, state: MeshState) -> None:
        self.states.append(state)
        self._changed.set()

    async def until(self, condition: Callable[[MeshState], bool]) -> MeshState:
        async with asyncio.timeout(60):
            while not (self.states and condition(self.states[-1])):
                self._changed.clear()
                await self._changed.wait()
        return self.states[-1]


async def test_a_service_that_dies_is_started_again(tmp_path: Path) -> None:
    watched = _Watched(tmp_path, _spec("router-0", WAITS))
    task = asyncio.create_task(watched.run())
    first = (await watched.until(lambda s: bool(s.services) and s.services[0].pid > 0)).services[0]
    os.kill(first.pid, signal.SIGKILL)
    await watched.until(lambda s: s.services[0].pid not in (0, first.pid))
    state = watched.directory.running()
    assert state.services == watched.states[-1].services
    watched.stop.set()
    await task
    assert not processes.own_processes(state.mesh_id)


async def test_a_service_that_is_told_to_stop_returns_without_a_growing_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE_S", 600.0)
    monkeypatch.setattr(supervisor, "EARLY_DEATHS", 100)
    code = "import sys, time, signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); "
    watched = _Watched(tmp_path, _spec("router-0", code + "print('set', flush=True); " + WAITS))
    task = asyncio.create_task(watched.run())
    log, before = watched.directory.logs / "router-0.log", 0
    for life in range(1, 15):  # the pause before the last would be 80 s
        pid = before
        state = await watched.until(lambda s, old=pid: s.services[0].pid not in (0, old))
        before = state.services[0].pid
        async with asyncio.timeout(60):
            while log.read_text().count("set") < life:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        os.kill(before, signal.SIGTERM)
    watched.stop.set()
    await task


async def test_a_stop_ends_orphans_too(tmp_path: Path) -> None:
    leaves_a_child = (
        "import subprocess, sys, time; "
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], "
        "start_new_session=True); time.sleep(600)"
    )
    watched = _Watched(tmp_path, _spec("controller", leaves_a_child))
    task = asyncio.create_task(watched.run())
    state = await watched.until(lambda s: bool(s.services) and s.services[0].pid > 0)
    async with asyncio.timeout(60):
        while True:
            found = processes.own_processes(state.mesh_id)
            for process in found:
                process.close()
            if len(found) == 2:
                break
            await asyncio.sleep(0.02)
    watched.stop.set()
    await task
    assert not processes.own_processes(state.mesh_id)


async def test_a_bad_setting_ends_the_start_with_the_services_own_words(tmp_path: Path) -> None:
    code = "import sys; print('bad setting SHUNT_X'); sys.exit(2)"
    watched = _Watched(tmp_path, _spec("controller", code))
    with pytest.raises(MeshError, match=r"controller does not start:\nbad setting SHUNT_X"):
        await watched.run()
    with pytest.raises(MeshError, match="has failed: controller does not start"):
        watched.directory.running()


async def test_a_silent_death_is_not_explained_by_an_earlier_meshs_log(tmp_path: Path) -> None:
    watched = _Watched(tmp_path, _spec("controller", "import sys; sys.exit(2)"))
    watched.directory.logs.mkdir()
    (watched.directory.logs / "controller.log").write_text("bad setting SHUNT_X\n")
    with pytest.raises(MeshError, match=r"controller does not start:\nexit status 2$"):
        await watched.run()


def _loading_and_ready() -> tuple[controller_pb2.PipelineStatus, controller_pb2.PipelineStatus]:
    return (
        controller_pb2.PipelineStatus(
            pipeline_id="p1", state=controller_pb2.PIPELINE_STATE_LOADING
        ),
        controller_pb2.PipelineStatus(pipeline_id="p2", state=controller_pb2.PIPELINE_STATE_READY),
    )


async def test_a_mesh_is_ready_when_all_that_its_controller_planned_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading, ready = _loading_and_ready()
    planned = [[], [loading, ready], [ready]]

    async def status(address: str) -> controller_pb2.GetStatusResponse:
        pipelines = planned.pop(0) if len(planned) > 1 else planned[0]
        nodes = [controller_pb2.NodeStatus(state=controller_pb2.NODE_STATE_LOST)]
        return controller_pb2.GetStatusResponse(pipelines=pipelines, nodes=nodes)

    async def serving(address: str, _: Role) -> bool:
        return True

    monkeypatch.setattr(supervisor, "controller_status", status)
    monkeypatch.setattr(supervisor.health, "is_serving", serving)
    watched = _Watched(tmp_path, _spec("controller", WAITS))
    task = asyncio.create_task(watched.run())
    await watched.until(lambda s: s.phase == "ready")
    messages = list(dict.fromkeys(state.message for state in watched.states))
    assert messages[-3:] == [
        "waiting for engines: 0 so far",
        "waiting for pipelines: 1 of 2 ready, 0 engines",
        "ready",
    ]
    watched.stop.set()
    await task


@pytest.mark.parametrize("leads", ["controller", "standby-1"])
async def test_of_several_controllers_one_that_leads_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leads: str
) -> None:
    specs = {name: _spec(name, WAITS) for name in ("controller", "standby-1")}
    asked = set[str]()

    async def status(address: str) -> controller_pb2.GetStatusResponse:
        asked.add(address)
        return controller_pb2.GetStatusResponse(pipelines=[_loading_and_ready()[1]])

    led = list[bool]()

    async def serving(address: str, _: Role) -> bool:
        led.append(len(led) > 4)
        return address == specs[leads].grpc and led[-1]

    monkeypatch.setattr(supervisor, "controller_status", status)
    monkeypatch.setattr(supervisor.health, "is_serving", serving)
    watched = _Watched(tmp_path, *specs.values())
    task = asyncio.create_task(watched.run())
    await watched.until(lambda s: s.phase == "ready")
    assert "waiting for controller" in {state.message for state in watched.states}
    assert asked == {specs[leads].grpc}
    watched.stop.set()
    await task


async def test_a_mesh_that_sleeps_is_ready_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What slept when it was ended sleeps when it is started again."""
    model = controller_pb2.DeploymentStatus(objective="throughput")
    plan = controller_pb2.PlanStatus(number=3, deployments=[model])

    async def status(address: str) -> controller_pb2.GetStatusResponse:
        return controller_pb2.GetStatusResponse(plan=plan)

    async def serving(address: str, _: Role) -> bool:
        return True

    monkeypatch.setattr(supervisor, "controller_status", status)
    monkeypatch.setattr(supervisor.health, "is_serving", serving)
    watched = _Watched(tmp_path, _spec("controller", WAITS))
    task = asyncio.create_task(watched.run())
    state = await watched.until(lambda s: s.phase == "ready")
    assert state.message == "ready; it has no node until somebody asks"
    watched.stop.set()
    await task


async def test_a_process_that_cannot_be_made_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched, make = _Watched(tmp_path, _spec("router-0", WAITS)), asyncio.create_subprocess_exec
    refusals = iter([OSError("no more processes")] * 2)

    async def refusing(*arguments: Any, **options: Any) -> Any:
        if (refusal := next(refusals, None)) is not None:
            raise refusal
        return await make(*arguments, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refusing)
    task = asyncio.create_task(watched.run())
    await watched.until(lambda s: bool(s.services) and s.services[0].pid > 0)
    watched.stop.set()
    await task


async def test_a_process_that_can_never_be_made_ends_the_start_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refusing(*arguments: Any, **options: Any) -> Any:
        raise OSError("no more processes")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refusing)
    with pytest.raises(MeshError, match=r"router-0 does not start:\nno more processes"):
        await _Watched(tmp_path, _spec("router-0", WAITS)).run()


async def test_a_state_that_cannot_be_written_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched, write = _Watched(tmp_path, _spec("router-0", WAITS)), MeshDirectory.write
    full = True

    def refusing(self: MeshDirectory, state: MeshState) -> None:
        if full:
            raise OSError("no space left")
        write(self, state)

    monkeypatch.setattr(MeshDirectory, "write", refusing)
    task = asyncio.create_task(watched.run())
    first = (await watched.until(lambda s: bool(s.services) and s.services[0].pid > 0)).services[0]
    full = False
    os.kill(first.pid, signal.SIGKILL)
    state = await watched.until(lambda s: s.services[0].pid not in (0, first.pid))
    assert watched.directory.running().services == state.services
    watched.stop.set()
    await task


async def test_a_keeper_that_fails_ends_the_mesh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*arguments: Any, **options: Any) -> Any:
        raise ValueError("a mistake")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", broken)
    watched = _Watched(tmp_path, _spec("router-0", WAITS))
    with pytest.raises(MeshError, match="nobody keeps router-0 any more: a mistake"):
        await watched.run()
    with pytest.raises(MeshError, match="has failed: nobody keeps router-0"):
        watched.directory.running()


async def test_what_no_pipeline_can_run_ends_the_start_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def status(address: str) -> controller_pb2.GetStatusResponse:
        return controller_pb2.GetStatusResponse(unusable="head_dim must be even")

    async def serving(address: str, _: Role) -> bool:
        return True

    monkeypatch.setattr(supervisor, "controller_status", status)
    monkeypatch.setattr(supervisor.health, "is_serving", serving)
    watched = _Watched(tmp_path, _spec("controller", WAITS))
    with pytest.raises(MeshError, match="cannot be served: head_dim must be even"):
        await watched.run()


async def test_a_model_that_no_router_can_use_ends_the_start_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = controller_pb2.PipelineStatus(state=controller_pb2.PIPELINE_STATE_READY)

    async def status(address: str) -> controller_pb2.GetStatusResponse:
        return controller_pb2.GetStatusResponse(pipelines=[ready])

    async def serving(address: str, _: Role) -> bool:
        return True

    monkeypatch.setattr(supervisor, "controller_status", status)
    monkeypatch.setattr(supervisor.health, "is_serving", serving)
    said = supervisor.health.Complaint("m: the model has no tokenizer.json", True)
    monkeypatch.setattr(supervisor.health, "complaint", lambda url: said)
    router = replace(_spec("router-0", WAITS), http="http://127.0.0.1:1")
    watched = _Watched(tmp_path, _spec("controller", WAITS), router)
    with pytest.raises(MeshError, match=r"cannot be served: m: the model has no tokenizer\.json"):
        await watched.run()


async def test_a_mesh_is_ready_beside_a_pipeline_that_none_can_run_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading, ready = _loading_and_ready()
    fault = controller_pb2.Fault(
        kind=controller_pb2.FAULT_KIND_LOAD,
        cause="head_dim must be even",
        node_id="n1",
        pipeline_id="p1",
        failures=1,
        permanent=True,
    )

    async def status(address: str) -> controller_pb2.GetStatusResponse:
        return controller_pb2.GetStatusResponse(pipelines=[loading, ready], faults=[fault])

    async def serving(address: str, _: Role) -> bool:
        return True

    monkeypatch.setattr(supervisor, "controller_status", status)
    monkeypatch.setattr(supervisor.health, "is_serving", serving)
    watched = _Watched(tmp_path, _spec("controller", WAITS))
    task = asyncio.create_task(watched.run())
    state = await watched.until(lambda s: s.phase == "ready")
    assert state.message.startswith("1 of 2 pipelines are ready; n1 cannot load its stage of p1")
    watched.stop.set()
    await task
