"""Keeps the services of a local mesh running: starts them, restarts what dies, stops them all."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shuntserve.controller.v1 import controller_pb2

from services.cli import processes
from services.cli.layout import MeshOptions, ServiceSpec, operators_of
from services.cli.mesh_directory import (
    STANDBY,
    MeshDirectory,
    MeshError,
    MeshState,
    Phase,
    ServiceRecord,
    may_lead,
)
from services.cli.mesh_status import asleep, controller_status, fault_json, ready_pipelines
from services.cli.status_table import fault_line
from services.common import health, logs

_log = logging.getLogger(__name__)
READY_TIMEOUT_S = 240.0
STABLE_S = 10.0
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0
EARLY_DEATHS = 4
STOP_GRACE_S = 4.0
POLL_S = 0.2
BAD_SETTING = 2
"""Exit status of a service with a setting it cannot use: starting it again is of no use."""


@dataclass
class _Running:
    spec: ServiceSpec
    pid: int = 0
    process: asyncio.subprocess.Process | None = None
    """The last one that was made."""
    deaths: int = 0
    last_exit: int = 0
    fault: str = ""
    """Why its process could not be made."""
    log_start: int = 0
    """Where its log of this mesh begins, in bytes; earlier ones stand before it."""


class Supervisor:
    """One mesh. `tell` gets every new state."""

    def __init__(
        self,
        directory: MeshDirectory,
        specs: Sequence[ServiceSpec],
        options: MeshOptions,
        tell: Callable[[MeshState], None],
    ) -> None:
        self._directory = directory
        self._tell = tell
        self._services = [_Running(spec) for spec in specs]
        self._stopping = False
        self._remark = ""
        """What is to be known of a mesh that is ready."""
        self._written: MeshState | None = None
        """The state that mesh.json holds."""
        self._state = MeshState(
            mesh_id=os.urandom(8).hex(),
            supervisor_pid=os.getpid(),
            model=options.model,
            phase="starting",
            message="starting the services",
            services=(),
            certificates=operators_of(options),
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until `stop` is set; raises MeshError when the mesh does not come up."""
        self._directory.logs.mkdir(parents=True, exist_ok=True)
        for service in self._services:
            service.log_start = self._directory.log_size_bytes(service.spec.name)
        self._save("starting", "starting the services")
        keepers = [asyncio.create_task(self._keep(service)) for service in self._services]
        stopped = asyncio.create_task(stop.wait())
        ready = asyncio.create_task(self._until_ready())
        try:
            await self._first(stopped, ready, keepers)
            if not stopped.done():
                await ready
                self._save("ready", self._remark or "ready")
                await self._first(stopped, stopped, keepers)
        except MeshError as error:
            self._save("failed", str(error))
            raise
        finally:
            self._stopping = True
            for task in (stopped, ready, *keepers):
                task.cancel()
            await asyncio.gather(stopped, ready, *keepers, return_exceptions=True)
            if self._state.phase != "failed":
                self._save("stopping", "stopping")
            made = [service.process for service in self._services if service.process is not None]
            ends = [asyncio.create_task(process.wait()) for process in made]
            await asyncio.to_thread(self.end_all)
            await asyncio.gather(*ends)

    async def _first(
        self,
        stopped: asyncio.Task[bool],
        awaited: asyncio.Task[Any],
        keepers: Sequence[asyncio.Task[None]],
    ) -> None:
        """Returns when one of the two has ended; raises MeshError when a keeper has, for none
        should."""
        await asyncio.wait([stopped, awaited, *keepers], return_when=asyncio.FIRST_COMPLETED)
        for service, keeper in zip(self._services, keepers, strict=True):
            if keeper.done():
                reason = keeper.exception()
                raise MeshError(f"nobody keeps {service.spec.name} any more: {reason}")

    def end_all(self) -> None:
        """Ends every process of the mesh, engines too; first those that would start others."""
        names = ("router", "controller", STANDBY)
        first = (s.pid for s in self._services if s.spec.name.startswith(names))
        opened = (processes.open_own(pid, self._state.mesh_id) for pid in first if pid)
        processes.end([process for process in opened if process is not None], STOP_GRACE_S)
        processes.end(processes.own_processes(self._state.mesh_id), STOP_GRACE_S)

    async def _keep(self, service: _Running) -> None:
        await self._until_serving(service.spec.after)
        pause_s = FIRST_PAUSE_S
        while not self._stopping:
            started = time.monotonic()
            try:
                process = service.process = await self._start(service.spec)
            except OSError as error:
                service.fault = str(error)
            else:
                service.pid, service.fault = process.pid, ""
                self._save(self._state.phase, self._state.message)
                service.last_exit = await process.wait()
            service.pid = 0
            service.deaths += 1
            self._save(self._state.phase, self._state.message)
            was_told_to = not service.fault and service.last_exit == 0
            if was_told_to or time.monotonic() - started > STABLE_S:
                pause_s = FIRST_PAUSE_S
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _until_serving(self, names: Sequence[str]) -> None:
        for other in (s for s in self._services if s.spec.name in names):
            while True:
                if other.pid and await health.is_serving(other.spec.grpc, other.spec.role):
                    break
                await asyncio.sleep(POLL_S)

    async def _start(self, spec: ServiceSpec) -> asyncio.subprocess.Process:
        environment = {
            **os.environ,
            **spec.environment,
            processes.MESH_ID_VARIABLE: self._state.mesh_id,
            logs.FILE_LIMIT_VARIABLE: str(logs.FILE_LIMIT_BYTES),
        }
        with (self._directory.logs / f"{spec.name}.log").open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *spec.command,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def _until_ready(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while (message := await self._what_is_missing()) is not None:
            self._save("starting", message)
            for service in self._services:
                if service.last_exit == BAD_SETTING or service.deaths >= EARLY_DEATHS:
                    name = service.spec.name
                    tail = self._directory.log_tail(name, start=service.log_start)
                    said = "\n".join(dict.fromkeys(tail.splitlines()))  # each start says the same
                    reason = service.fault or said or f"exit status {service.last_exit}"
                    raise MeshError(f"{name} does not start:\n{reason}")
            if time.monotonic() > deadline:
                raise MeshError(f"not ready after {READY_TIMEOUT_S:.0f} s: {message}")
            await asyncio.sleep(POLL_S)

    async def _what_is_missing(self) -> str | None:
        """What the mesh waits for, None when it is ready."""
        serve = [
            service
            for service in self._services
            if service.pid and await health.is_serving(service.spec.grpc, service.spec.role)
        ]
        leads = [service for service in serve if may_lead(service.spec.name)]
        for service in self._services:
            stands_by = bool(leads) and bool(service.pid) and may_lead(service.spec.name)
            if service not in serve and not stands_by:
                return f"waiting for {service.spec.name}"
        status = await controller_status(leads[0].spec.grpc)
        if status is None:
            return "waiting for controller"
        engines = sum(node.state != controller_pb2.NODE_STATE_LOST for node in status.nodes)
        planned = len(status.pipelines)  # as many as the planner made
        if status.unusable:
            raise MeshError(f"{self._state.model} cannot be served: {status.unusable}")
        faults = [fault_line(fault_json(fault)) for fault in status.faults]
        because = f"; {faults[0]}" if faults else ""
        sleeps = asleep(status)
        if not planned and not sleeps:
            return f"waiting for engines: {engines} so far{because}"
        hopeless = {fault.pipeline_id for fault in status.faults if fault.permanent}
        ready = ready_pipelines(status)
        if not sleeps and (not ready or ready < planned - len(hopeless)):
            message = f"waiting for pipelines: {ready} of {planned} ready, {engines} engines"
            return message + because
        for service in self._services:
            url = service.spec.http
            complaint = await asyncio.to_thread(health.complaint, f"{url}/readyz") if url else None
            if complaint is not None and complaint.permanent:
                raise MeshError(f"{self._state.model} cannot be served: {complaint.reason}")
            if complaint is not None:
                return f"waiting for {service.spec.name}: {complaint.reason}"
        self._remark = f"{ready} of {planned} pipelines are ready{because}" if hopeless else ""
        if sleeps:
            self._remark = "ready; it has no node until somebody asks"
        return None

    def _save(self, phase: Phase, message: str) -> None:
        records = tuple(
            ServiceRecord(s.spec.name, s.pid, s.spec.grpc, s.spec.http) for s in self._services
        )
        state = replace(self._state, phase=phase, message=message, services=records)
        if state != self._written:
            try:
                self._directory.write(state)
                self._written = state
            except OSError as error:  # the next change tries again; services go on meanwhile
                _log.warning("the state cannot be written", extra={"reason": str(error)})
        if state != self._state:
            self._state = state
            self._tell(state)
