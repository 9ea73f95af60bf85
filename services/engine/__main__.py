"""`python -m services.engine`: reads the settings, serves until a signal, or until orphaned."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from contextlib import suppress
from typing import Any

from shuntserve.controller.v1 import controller_pb2_grpc
from shuntserve.engine.v1 import engine_pb2, engine_pb2_grpc

from services.common import channels, event_loop, garbage, logs, settings, telemetry
from services.common.errors import Aborted
from services.common.nodes import NodeFacts
from services.common.notices import NoticeKind
from services.common.roles import Role
from services.common.server import Server
from services.engine import machine
from services.engine.assembly import assemble, make_loader
from services.engine.controller_link import ControllerLink
from services.engine.engine import Engine
from services.engine.notices import Notices
from services.engine.service import EngineService
from services.engine.settings import EngineSettings
from services.engine.starting import StartTrace

_log = logging.getLogger(__name__)

SERVICE = engine_pb2.DESCRIPTOR.services_by_name["EngineService"].full_name
LAST_CHECKPOINTS_S = 0.5
"""On the way out the journal gets this long to take what was sealed."""
ABANDONED_S, ABANDONED_LOOK_S = 1.5, 0.25
"""Told to stop, it waits no longer than this for a controller that is away, if it has no work."""


async def serve(chosen: EngineSettings, metrics_port: int) -> None:
    """Serves until a signal, or until orphaned; threads of a load may still run behind it."""
    start = StartTrace()
    notices = Notices(chosen.notice_s, time.monotonic)
    loader = make_loader(chosen)
    loader.warm()
    facts = machine.told(chosen, await asyncio.to_thread(machine.find))
    shape = machine.shape(chosen, facts)
    engine = assemble(chosen, loader, memory_bytes=shape.memory_bytes)
    server = Server(chosen, [SERVICE])
    engine_pb2_grpc.add_EngineServiceServicer_to_server(EngineService(engine), server.grpc_server)
    port = await server.start()
    await server.set_ready(True)
    address = f"{chosen.reachable_host}:{port}"
    print(f"engine {chosen.node_id}: grpc on {address}", flush=True)
    mine = NodeFacts(
        engine.node_id, engine.incarnation, address, os.getpid(), shape, facts, metrics_port
    )
    link = _link(chosen, engine, mine, start) if chosen.controller else None
    background: list[asyncio.Task[Any]] = [
        asyncio.create_task(notices.listen(to_lines=chosen.hears_notices)),
        asyncio.create_task(engine.run()),
        asyncio.create_task(_until_told(engine, link, notices)),
    ]
    try:
        if link is not None:
            background.append(asyncio.create_task(link.run()))
            background.append(asyncio.create_task(_until_orphaned(engine, link, chosen.orphan_s)))
        await asyncio.wait(background, return_when=asyncio.FIRST_COMPLETED)
        served = engine.departs_at_s is not None
        if engine.formation is not None:
            served = True
            engine.formation.end()
        if served:
            await asyncio.sleep(LAST_CHECKPOINTS_S)
    finally:
        for task in background:
            task.cancel()
        for outcome in await asyncio.gather(*background, return_exceptions=True):
            _note(outcome)
        await engine.close()
        await server.stop()
        telemetry.shutdown()


async def _until_told(engine: Engine, link: ControllerLink | None, notices: Notices) -> None:
    """Returns when told to stop and nobody is hurt by it: at once while there is no formation, else
    when its stage was handed over, when there is no work and nobody to hand over to, or when the
    notice is over; told a second time, at once. Advice is handed on."""
    told = await notices.next()
    while (deadline_s := told.deadline_s) is None:
        engine.advise(told.kind)
        told = await notices.next()
    taken = told.kind is NoticeKind.SPOT
    if link is None or not (engine.is_needed or taken):
        return
    while True:
        again = asyncio.create_task(notices.next())
        ends = (
            asyncio.create_task(engine.depart(deadline_s, told.kind)),
            asyncio.create_task(_until_abandoned(engine, link)),
        )
        try:
            left_s = max(0.0, deadline_s - time.monotonic())
            await asyncio.wait((again, *ends), timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            sooner = again.result().deadline_s if again.done() else None
            if not again.done() or any(task.done() for task in ends):
                return
        finally:
            for task in (again, *ends):
                task.cancel()
        deadline_s = deadline_s if sooner is None else min(deadline_s, sooner)


async def _until_abandoned(engine: Engine, link: ControllerLink) -> None:
    """Returns when the controller is away and no step was made for a while."""
    steps = idle_looks = 0
    while idle_looks * ABANDONED_LOOK_S < ABANDONED_S:
        await asyncio.sleep(ABANDONED_LOOK_S)
        silent = link.silent_s > ABANDONED_S
        made = engine.formation.steps if engine.formation is not None else steps
        idle_looks = idle_looks + 1 if silent and made == steps else 0
        steps = made


def _link(
    chosen: EngineSettings, engine: Engine, mine: NodeFacts, start: StartTrace
) -> ControllerLink:
    opened = [
        channels.open_channel(
            address,
            Role.CONTROLLER,
            max_message_bytes=chosen.max_message_bytes,
            tls=chosen.tls,
        )
        for address in chosen.controllers
    ]
    return ControllerLink(
        [controller_pb2_grpc.ControllerServiceStub(channel) for channel in opened],
        engine,
        mine,
        timeout_s=chosen.controller_timeout_s,
        checkpoint_interval_s=chosen.checkpoint_interval_s,
        clock=time.monotonic,
        registered=start.registered,
    )


async def _until_orphaned(engine: Engine, link: ControllerLink, orphan_s: float) -> None:
    """Returns when nobody has wanted this process for a while."""
    wanted_s = time.monotonic()
    while time.monotonic() - wanted_s < orphan_s:
        await asyncio.sleep(min(1.0, orphan_s / 4))
        wanted_s = max(wanted_s, time.monotonic() - max(0.0, link.silent_s))
        if engine.head.reader_count:
            wanted_s = time.monotonic()
    _log.warning("orphaned", extra={"silent_s": orphan_s})


def _note(outcome: object) -> None:
    if isinstance(outcome, BaseExceptionGroup):
        refused, others = outcome.split(Aborted)
        if refused is not None:
            _log.error("the controller knows a newer process of this node")
        outcome = others
    if isinstance(outcome, Exception):
        _log.error("a part failed", exc_info=outcome)


def main() -> None:
    chosen = settings.read(EngineSettings)
    # Before torch is imported: threads that spin steal the cores that stages share.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OMP_NUM_THREADS", str(chosen.threads))
    logs.configure("engine", chosen.log_level)
    metrics_port = telemetry.configure(
        "engine", chosen.node_id, metrics_host=chosen.host, metrics_port=chosen.metrics_port
    )
    garbage.spare_what_stays()
    with suppress(KeyboardInterrupt):
        event_loop.run(serve(chosen, metrics_port))
    logging.shutdown()
    sys.stdout.flush()
    # In order, but for threads that nothing ends: one that imports torch would abort the
    # interpreter on its way out.
    os._exit(0)


if __name__ == "__main__":
    settings.take_no_arguments(EngineSettings)
    main()
