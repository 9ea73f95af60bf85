"""A launcher over real gRPC, and the Docker engine that it is of."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from shuntserve.launcher.v1 import launcher_pb2_grpc

from services.common import channels
from services.common.roles import Role
from services.common.server import ErrorInterceptor
from services.launcher.core.confinement import Confinement
from services.launcher.hands import Hands
from services.launcher.launcher import Launcher
from services.launcher.service import LauncherServicer
from services.launcher.settings import LauncherSettings
from tests.played_docker import IMAGE, PROJECT, PlayedDocker


def settings_of(docker: PlayedDocker, **more: Any) -> LauncherSettings:
    given: dict[str, Any] = {"socket": docker.socket, "retry_s": 0.05} | more
    return LauncherSettings(project=PROJECT, image=IMAGE, **given)


@asynccontextmanager
async def running_launcher(docker: PlayedDocker, **more: Any) -> AsyncIterator[Any]:
    """Its stub."""
    settings = settings_of(docker, **more)
    confinement = Confinement(settings.project, settings.image, settings.only_network)
    launcher = Launcher(settings, Hands(settings.socket, confinement, call_timeout_s=10))
    server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=channels.options(1 << 20))
    launcher_pb2_grpc.add_LauncherServiceServicer_to_server(LauncherServicer(launcher), server)
    port = server.add_insecure_port("127.0.0.1:0")
    async with launcher.running():
        await server.start()
        await launcher.looked.wait()
        try:
            async with channels.open_channel(f"127.0.0.1:{port}", Role.LAUNCHER) as channel:
                yield launcher_pb2_grpc.LauncherServiceStub(channel)
        finally:
            await server.stop(0)
