"""Wires a node together: `python -m services.cli.node`."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from pathlib import Path

from services.cli.node import parts
from services.cli.node.child import BAD_SETTING, Child, Restarts
from services.cli.node.machine import devices, told_by
from services.cli.node.metadata.cloud import Clocks, Cloud
from services.cli.node.metadata.clouds import maker, open_cloud
from services.cli.node.notices import NoticeSource
from services.cli.node.parts import Part
from services.cli.node.settings import NodeSettings
from services.cli.node.supervisor import Node, SignalSource
from services.common import logs, mesh_token, settings, telemetry
from services.common.errors import FailedPrecondition, InvalidArgument
from services.common.server import Server

_log = logging.getLogger(__name__)


async def run(chosen: NodeSettings) -> int:
    """The exit status."""
    signals = SignalSource(chosen.drain_s, time.monotonic)
    cloud = _cloud(chosen)
    machine, found = await asyncio.gather(told_by(cloud, chosen.metadata_wait_s), devices())
    token, host = mesh_token.own(), socket.gethostname()
    node_id = parts.name_of(chosen, token, machine, host)
    telemetry.configure("node", node_id, metrics_host=chosen.host, metrics_port=chosen.metrics_port)
    known = {name: str(value) for name, value in machine.known().items()}
    _log.info("machine", extra={"node_id": node_id, "gpus": len(found), **known})
    store, engine = parts.parts_of(chosen, node_id, machine, found, parts.own_environment())
    told: list[bytes] = []
    server = Server(chosen, [])
    node = Node(
        _child(chosen, parts.without_token(store)),
        _child(chosen, engine, told),
        told,
        stop_grace_s=chosen.stop_grace_s,
        set_ready=server.set_ready,
    )
    port = await server.start()
    print(f"node {node_id}: health on {chosen.host}:{port}", flush=True)
    sources: list[NoticeSource] = [signals] if cloud is None else [signals, cloud]
    try:
        await node.run(sources)
    except FailedPrecondition as error:
        _log.error(error.message)
        return BAD_SETTING
    finally:
        await server.stop()
        telemetry.shutdown()
    return 0


def _cloud(chosen: NodeSettings) -> Cloud | None:
    name: str = chosen.cloud
    if name == "auto":
        name = maker(Path("/")) or ("ec2" if chosen.metadata else "none")
    return open_cloud(
        name,
        chosen.metadata,
        Clocks(time.time, time.monotonic),
        timeout_s=chosen.metadata_timeout_s,
        pause_s=chosen.notice_poll_s,
    )


def _child(chosen: NodeSettings, part: Part, greeting: list[bytes] | None = None) -> Child:
    restarts = Restarts(chosen.restart_first_s, chosen.restart_longest_s, chosen.stable_s)
    return Child(
        part.name,
        part.command,
        part.environment,
        part.address,
        restarts,
        greeting=greeting if greeting is not None else (),
    )


def main() -> None:
    chosen = settings.read(NodeSettings)
    try:
        os.environ.update(parts.secrets_of(chosen))
    except InvalidArgument as error:
        settings.refuse(chosen.name_of(error.field), error.message)
    chosen = settings.read(NodeSettings)  # now with what it proves itself by
    logs.configure("node", chosen.log_level)
    sys.exit(asyncio.run(run(chosen)))


if __name__ == "__main__":
    main()
