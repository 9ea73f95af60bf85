"""`python -m services.launcher`: reads the settings, serves until a signal."""

from __future__ import annotations

import sys

from shuntserve.launcher.v1 import launcher_pb2, launcher_pb2_grpc

from services.common import event_loop, logs, settings, telemetry
from services.common.errors import ShuntError
from services.common.server import Server, until_signal
from services.launcher.core.confinement import Confinement
from services.launcher.hands import Hands
from services.launcher.launcher import Launcher
from services.launcher.service import LauncherServicer
from services.launcher.settings import LauncherSettings

SERVICE = launcher_pb2.DESCRIPTOR.services_by_name["LauncherService"].full_name


async def serve(chosen: LauncherSettings) -> None:
    confinement = Confinement(chosen.project, chosen.image, chosen.only_network)
    hands = Hands(chosen.socket, confinement, call_timeout_s=chosen.call_timeout_s)
    launcher = Launcher(chosen, hands)
    server = Server(chosen, [SERVICE])
    launcher_pb2_grpc.add_LauncherServiceServicer_to_server(
        LauncherServicer(launcher), server.grpc_server
    )
    async with launcher.running():
        await server.start()
        try:
            await launcher.looked.wait()
            await server.set_ready(True)
            print(f"launcher: grpc on {chosen.host}:{server.port}", flush=True)
            await until_signal()
        finally:
            await server.stop()
    telemetry.shutdown()


def main() -> None:
    chosen = settings.read(LauncherSettings)
    logs.configure("launcher", chosen.log_level)
    telemetry.configure(
        "launcher", "launcher-0", metrics_host=chosen.host, metrics_port=chosen.metrics_port
    )
    try:
        event_loop.run(serve(chosen))
    except ShuntError as error:
        print(f"launcher: {error.message}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    settings.take_no_arguments(LauncherSettings)
    main()
