"""Which services a local mesh has, with their commands, settings and addresses."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from services.cli.backends import engine_python
from services.cli.mesh_directory import STANDBY, MeshDirectory, role_of
from services.cli.ports import HOST, free_ports
from services.common.backends import parse_backends
from services.common.nodes import Backend
from services.common.roles import Role
from services.common.speeds import parse_speeds

MODEL = "smollm2-135m-instruct"
NODE_SPEEDS = "3:2,3:2"
"""Declared speeds of the local nodes. There are as many pipelines as parts between commas; which
nodes share one is the planner's choice."""


VLLM_SPARES = 1
"""Warm spares of each backend where nothing is said: a process imports vLLM for seconds before it
can load, and one that waits has done both."""


@dataclass(frozen=True, slots=True)
class MeshOptions:
    """What `shunt up` was asked for."""

    routers: int = 1
    http_port: int = 8080
    grpc_port: int = 50051
    model: str = MODEL
    node_speeds: str = NODE_SPEEDS
    backend: str = "native"
    """What computes the stages of the local nodes; native,vllm: of their pipelines, in turn."""
    market: Path | None = None
    """What nodes are launched from, and what happens to them; a file of the controller's."""
    objective: str | None = None
    """What plans are made for; the controller's own where nothing is said, as the next five."""
    budget_per_hour: float | None = None
    nodes_min: int | None = None
    nodes_max: int | None = None
    spares: int | None = None
    strategy: str | None = None
    stages: str | None = None
    """Of every pipeline; the planner's choice where nothing is said."""
    phases: str | None = None
    """One a pipeline; all do both where nothing is said."""
    journal: str | None = None
    """Where the controller keeps its journal; in the mesh's directory where nothing is said."""
    certificates: Path | None = None
    """An authority's directory: services speak mutual TLS by certificates that it issues."""
    keys: Path | None = None
    """File of the API keys that routers ask for; they ask for none where nothing is said."""
    standbys: int = 0
    """Controllers beside the first one, over the same journal in PostgreSQL: any of them may
    lead."""

    @property
    def pipelines(self) -> int:
        return len(parse_speeds(self.node_speeds))

    @property
    def backends(self) -> tuple[Backend, ...]:
        """Those that there are to be, each once."""
        return tuple(dict.fromkeys(parse_backends(self.backend)))

    @property
    def wishes(self) -> dict[str, str]:
        """Settings of the controller as they are called there, those that were given."""
        given = {
            "objective": self.objective,
            "budget_per_hour": self.budget_per_hour,
            "nodes_min": self.nodes_min,
            "nodes_max": self.nodes_max,
            "spares": VLLM_SPARES * len(self.backends)
            if self.spares is None and "vllm" in self.backends
            else self.spares,
            "strategy": self.strategy,
            "stages": self.stages,
            "phases": self.phases,
            "journal": self.journal,
        }
        return {name: str(value) for name, value in given.items() if value is not None}


def operators_of(options: MeshOptions) -> str | None:
    """Directory of the certificates that the mesh's operator shows, if there are any."""
    if options.certificates is None:
        return None
    return str((options.certificates / Role.OPERATOR).absolute())


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

    @property
    def role(self) -> Role:
        return role_of(self.name)


def local_mesh(
    directory: MeshDirectory, options: MeshOptions, model_digest: str
) -> list[ServiceSpec]:
    """The services in the order they start; the controller launches the engines."""
    ports = free_ports(3 + options.standbys)
    tensorstore, placement, *controllers = (f"{HOST}:{port}" for port in ports)
    controller = _service(
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
            "NODE_BACKEND": options.backend,
            "VLLM_PYTHON": str(engine_python(options.backends)),
            **{name.upper(): value for name, value in options.wishes.items()},
            **_market(options),
        },
        after=("tensorstore", "placement"),
    )
    specs = [
        _service("tensorstore", ports[0], {"STORE": str(directory.store)}),
        _service("placement", ports[1], {}),
        *_with_standbys(controller, controllers, directory),
    ]
    for index in range(options.routers):
        http_port = options.http_port + index
        settings = {
            "ROUTER_ID": f"router-{index}",
            "HTTP_PORT": str(http_port),
            "CONTROLLER_ADDRESS": ",".join(controllers),
            "TENSORSTORE_ADDRESS": tensorstore,
            "FILES": str(directory.files),
        }
        if options.keys is not None:
            settings["KEYS"] = str(options.keys.absolute())
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


def _with_standbys(
    first: ServiceSpec, addresses: Sequence[str], directory: MeshDirectory
) -> list[ServiceSpec]:
    """The controller that leads at first, and one more for every other address, which keeps what is
    its own in a directory of its own; each tells nodes its own address first."""
    if len(addresses) == 1:
        return [first]
    specs = []
    for turn, address in enumerate(addresses):
        others = (one for one in addresses if one != address)
        name = f"{STANDBY}{turn}" if turn else first.name
        own = {
            "GRPC_PORT": address.rpartition(":")[2],
            "DATA_DIR": str(directory.path / name),
            "ADVERTISE_ADDRESS": ",".join((address, *others)),
        }
        environment = {f"SHUNT_CONTROLLER_{key}": value for key, value in own.items()}
        specs.append(
            replace(
                first,
                name=name,
                grpc=address,
                environment={**first.environment, **environment},
                after=(*first.after, first.name) if turn else first.after,
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
