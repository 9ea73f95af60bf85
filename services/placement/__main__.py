"""`python -m services.placement`: reads the settings, serves until a signal."""

from __future__ import annotations

from shuntserve.placement.v1 import placement_pb2, placement_pb2_grpc

from services.common import event_loop, logs, settings, telemetry
from services.common.server import Server, until_signal
from services.placement.estimate.catalogue import load_catalogue
from services.placement.service import PlacementServicer
from services.placement.settings import PlacementSettings

SERVICE = placement_pb2.DESCRIPTOR.services_by_name["PlacementService"].full_name


async def serve(chosen: PlacementSettings) -> None:
    server = Server(chosen, [SERVICE])
    servicer = PlacementServicer(chosen, load_catalogue(chosen.catalogue))
    placement_pb2_grpc.add_PlacementServiceServicer_to_server(servicer, server.grpc_server)
    await server.start()
    await server.set_ready(True)
    print(f"placement: grpc on {chosen.host}:{server.port}", flush=True)
    try:
        await until_signal()
    finally:
        await server.stop()
        servicer.close()
        telemetry.shutdown()


def main() -> None:
    chosen = settings.read(PlacementSettings)
    logs.configure("placement", chosen.log_level)
    telemetry.configure(
        "placement",
        "placement-0",
        metrics_host=chosen.host,
        metrics_port=chosen.metrics_port,
    )
    event_loop.run(serve(chosen))


if __name__ == "__main__":
    settings.take_no_arguments(PlacementSettings)
    main()
