"""`python -m services.engine`: reads the settings, serves until a signal, or until orphaned."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from contextlib import suppress
from typing import Any

import uvloop
from shuntserve.controller.v1 import controller_pb2_grpc
from shuntserve.engine.v1 import engine_pb2, engine_pb2_grpc

from services.common import channels, logs, settings, telemetry
from services.common.errors import Aborted
from services.common.nodes import NodeFacts
from services.common.server import Server, Signals
from services.engine import machine
from services.engine.assembly import assemble
from services.engine.controller_link import ControllerLink
from services.engine.engine import Engine
from services.engine.native.loader import NativeLoader, NativeOptions
from services.engine.service import EngineService
from services.engine.settings import EngineSettings

_log = logging.getLogger(__name__)

SERVICE = engine_pb2.DESCRIPTOR.services_by_name["EngineService"].full_name
LAST_CHECKPOINTS_S = 0.5
"""On the way out the journal gets this long to take what was sealed."""
ABANDONED_S, ABANDONED_LOOK_S = 1.5, 0.25
"""Told to stop, it waits no longer than this for a controller that is away, if it has no work."""


async def serve(chosen: EngineSettings) -> bool:
    """Serves until a signal, or until orphaned. True when a load still runs behind it."""
    signals = Signals()
    loader = NativeLoader(
        NativeOptions(
            chosen.store,
            chosen.dtype,
            chosen.device,
            chosen.threads,
            chosen.kernel_cache,
        )
    )
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
    mine = NodeFacts(engine.node_id, engine.incarnation, address, os.getpid(), shape, facts)
    link = _link(chosen, engine, mine) if chosen.controller else None
    background: list[asyncio.Task[Any]] = [
        asyncio.create_task(engine.run()),
        asyncio.create_task(_until_told(engine, link, signals, chosen.notice_s)),
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
    return engine.stages.loading


async def _until_told(
    engine: Engine, link: ControllerLink | None, signals: Signals, notice_s: float
) -> None:
    """Returns when told to stop and nobody is hurt by it: at once while there is no formation, else
    when its stage was handed over, when there is no work and nobody to hand over to, or when the
    notice is over; told a second time, at once."""
    await signals.next()
    if link is None or engine.formation is None:
        return
    ends = (
        asyncio.create_task(signals.next()),
        asyncio.create_task(engine.depart(time.monotonic() + notice_s)),
        asyncio.create_task(_until_abandoned(engine, link)),
    )
    try:
        await asyncio.wait(ends, timeout=notice_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in ends:
            task.cancel()


async def _until_abandoned(engine: Engine, link: ControllerLink) -> None:
    """Returns when the controller is away and no step was made for a while."""
    steps = idle_looks = 0
    while idle_looks * ABANDONED_LOOK_S < ABANDONED_S:
        await asyncio.sleep(ABANDONED_LOOK_S)
        silent = time.monotonic() - link.last_heard_s > ABANDONED_S
        made = engine.formation.steps if engine.formation is not None else steps
        idle_looks = idle_looks + 1 if silent and made == steps else 0
        steps = made


def _link(chosen: EngineSettings, engine: Engine, mine: NodeFacts) -> ControllerLink:
    channel = channels.open_channel(
        chosen.controller, max_message_bytes=chosen.max_message_bytes, tls=chosen.tls
    )
    return ControllerLink(
        controller_pb2_grpc.ControllerServiceStub(channel),
        engine,
        mine,
        timeout_s=chosen.controller_timeout_s,
        checkpoint_interval_s=chosen.checkpoint_interval_s,
        clock=time.monotonic,
    )


async def _until_orphaned(engine: Engine, link: ControllerLink, orphan_s: float) -> None:
    """Returns when nobody has wanted this process for a while."""
    wanted_s = time.monotonic()
    while time.monotonic() - wanted_s < orphan_s:
        await asyncio.sleep(min(1.0, orphan_s / 4))
        wanted_s = max(wanted_s, link.last_heard_s)
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
    telemetry.configure(
        "engine", chosen.node_id, metrics_host=chosen.host, metrics_port=chosen.metrics_port
    )
    loads = False
    with suppress(KeyboardInterrupt):
        loads = uvloop.run(serve(chosen))
    if loads:
        sys.stdout.flush()
        os._exit(0)  # in order, but for a thread that nothing ends


if __name__ == "__main__":
    main()
