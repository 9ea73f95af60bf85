"""`python -m services.tensorstore`: reads the settings, serves until a signal."""

from __future__ import annotations

import os
import sys

from prometheus_client import Counter
from shuntserve.tensorstore.v1 import tensorstore_pb2, tensorstore_pb2_grpc

from services.common import event_loop, logs, settings, telemetry
from services.common.errors import InvalidArgument
from services.common.roles import Role
from services.common.server import Server, until_signal
from services.tensorstore.link_share import LinkShare
from services.tensorstore.node import CachePlan, NodeStore, build
from services.tensorstore.places.remote import RemoteReader
from services.tensorstore.places.uris import open_backend
from services.tensorstore.service import TensorStoreServicer
from services.tensorstore.settings import TensorStoreSettings

SERVICE = tensorstore_pb2.DESCRIPTOR.services_by_name["TensorStoreService"].full_name
_FETCHED = Counter("shunt_tensorstore_fetched_bytes", "Weights fetched, by source", ["source"])


def build_node(chosen: TensorStoreSettings) -> NodeStore:
    """The node's store that the settings ask for."""
    peers = [
        RemoteReader(address, Role.TENSORSTORE, cached_only=True, timeout_s=chosen.peer_timeout_s)
        for address in chosen.peers
    ]
    names = [*chosen.peers, "store"]
    return build(
        open_backend(chosen.store, chosen.endpoint_url),
        CachePlan(
            directory=chosen.cache_directory,
            limit_bytes=chosen.cache_bytes,
            memory_directory=chosen.memory_directory,
            memory_limit_bytes=chosen.memory_bytes,
        ),
        peers,
        chosen.import_directory,
        lambda source, size_bytes: _FETCHED.labels(names[source]).inc(size_bytes),
    )


def build_servicer(chosen: TensorStoreSettings) -> TensorStoreServicer:
    """The service that the settings ask for."""
    share = LinkShare(chosen.link_bytes_per_s * chosen.peer_share)
    return TensorStoreServicer(
        build_node(chosen), share, max_steps=chosen.max_steps, hold_s=chosen.hold_s
    )


async def serve(chosen: TensorStoreSettings) -> None:
    server = Server(chosen, [SERVICE])
    servicer = build_servicer(chosen)
    tensorstore_pb2_grpc.add_TensorStoreServiceServicer_to_server(servicer, server.grpc_server)
    await server.start()
    await server.set_ready(True)
    print(f"tensorstore: grpc on {chosen.host}:{server.port}", flush=True)
    try:
        await until_signal()
    finally:
        await server.stop()
        telemetry.shutdown()


async def _serve_and_end(chosen: TensorStoreSettings) -> None:
    """Waits for no thread at the end: one that reads from a store that hangs may take minutes, and
    what it leaves unfinished is swept by whoever comes next."""
    await serve(chosen)
    sys.stdout.flush()
    os._exit(0)


def main() -> None:
    chosen = settings.read(TensorStoreSettings)
    logs.configure("tensorstore", chosen.log_level)
    telemetry.configure(
        "tensorstore",
        "tensorstore-0",
        metrics_host=chosen.host,
        metrics_port=chosen.metrics_port,
    )
    try:
        event_loop.run(_serve_and_end(chosen))
    except InvalidArgument as error:
        settings.refuse(chosen.name_of(error.field), error.message)


if __name__ == "__main__":
    settings.take_no_arguments(TensorStoreSettings)
    main()
