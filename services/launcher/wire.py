"""The launcher's values as messages."""

from __future__ import annotations

from shuntserve.launcher.v1 import launcher_pb2 as pb

from services.launcher.core.containers import Container
from services.launcher.launcher import Ended, Running, Said


def container_to(one: Container) -> pb.Container:
    return pb.Container(container_id=one.container_id, node_id=one.node_id, offer_id=one.offer_id)


def said_to(said: Said) -> pb.WatchResponse:
    if isinstance(said, Running):
        containers = [container_to(one) for one in said.containers]
        return pb.WatchResponse(running=pb.Running(containers=containers))
    container = container_to(said.container)
    if isinstance(said, Ended):
        return pb.WatchResponse(ended=pb.Ended(container=container, reason=said.reason))
    return pb.WatchResponse(started=container)
