"""Which services a local mesh has, with their commands, settings and addresses."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from services.cli.mesh_directory import MeshDirectory
from services.cli.ports import HOST, free_ports
from services.common.speeds import parse_speeds

MODEL = "smollm2-135m-instruct"
NODE_SPEEDS = "3:2,3:2"
"""Declared speeds of the local nodes. There are as many pipelines as parts between commas; which
nodes share one is the planner's choice."""


@dataclass(frozen=True, slots=True)
class MeshOptions:
    """What `shunt up` was asked for."""

    routers: int = 1
    http_port: int = 8080
    grpc_port: int = 50051
    model: str = MODEL
    node_speeds: str = NODE_SPEEDS
    market: Path | None = None
    """What nodes are launched from, and what happens to them; a file of the controller's."""
    objective: str | None = None
    """What plans are made for; the controller's own where nothing is said, as the next five."""
    budget_per_hour: float | None = None
    nodes_min: int | None = None
    nodes_max: int | None = None
    spares: int | None = None
    strategy: str | None = None

    @property
    def pipelines(self) -> int:
        return len(parse_speeds(self.node_speeds))

    @property
    def wishes(self) -> dict[str, str]:
        """Settings of the controller that say what a plan is to be like, those that were given."""
        given = {
            "objective": self.objective,
            "budget_per_hour": self.budget_per_hour,
            "nodes_min": self.nodes_min,
            "nodes_max": self.nodes_max,
            "spares": self.spares,
            "strategy": self.strategy,
        }
        return {name: str(value) for name, value in given.items() if value is not None}


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """One process to keep running."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    grpc: str
    http: str | None = None
    after: tuple[str, ...] = ()
    """Services that must have served once before its first start."""


def local_mesh(
    directory: MeshDirectory, options: MeshOptions, model_digest: str
) -> list[ServiceSpec]:
    """The services in the order they start; the controller launches the engines."""
    ports = free_ports(3)
    tensorstore, placement, controller = (f"{HOST}:{port}" for port in ports)
    specs = [
        _service("tensorstore", ports[0], {"STORE": str(directory.store)}),
        _service("placement", ports[1], {}),
        _service(
            "controller",
            ports[2],
            {
                "DATA_DIR": str(directory.controller),
                "MODEL_ID": options.model,
                "MODEL_DIGEST": model_digest,
                "TENSORSTORE_ADDRESS": tensorstore,
                "PLACEMENT_ADDRESS": placement,
                "NODE_SPEEDS": options.node_speeds,
                "PIPELINES": str(options.pipelines),
                **{name.upper(): value for name, value in options.wishes.items()},
                **_market(options),
            },
            after=("tensorstore", "placement"),
        ),
    ]
    for index in range(options.routers):
        http_port = options.http_port + index
        settings = {
            "ROUTER_ID": f"router-{index}",
            "HTTP_PORT": str(http_port),
            "CONTROLLER_ADDRESS": controller,
            "TENSORSTORE_ADDRESS": tensorstore,
        }
        specs.append(
            _service(
                "router",
                options.grpc_port + index,
                settings,
                name=f"router-{index}",
                http=f"http://{HOST}:{http_port}",
                after=("tensorstore",),
            )
        )
    return specs


def _market(options: MeshOptions) -> dict[str, str]:
    """Its events are played once by each mesh, however often the controller restarts."""
    if options.market is None:
        return {}
    return {"MARKET_FILE": str(options.market.absolute()), "MARKET_RUN": os.urandom(8).hex()}


def _service(
    service: str,
    port: int,
    settings: Mapping[str, str],
    *,
    name: str | None = None,
    http: str | None = None,
    after: tuple[str, ...] = (),
) -> ServiceSpec:
    prefix = f"SHUNT_{service.upper()}_"
    environment = {f"{prefix}{key}": value for key, value in settings.items()}
    environment |= {f"{prefix}HOST": HOST, f"{prefix}GRPC_PORT": str(port)}
    command = (sys.executable, "-m", f"services.{service}")
    return ServiceSpec(name or service, command, environment, f"{HOST}:{port}", http, after)
