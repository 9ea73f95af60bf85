"""The parts of a node: which processes there are, with their commands and settings."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.cli.certs.directory import read_issued_in
from services.cli.node.machine import is_loopback, own_address
from services.cli.node.settings import NodeSettings
from services.cli.ports import HOST, free_ports
from services.common import mesh_token
from services.common.channels import address_of
from services.common.errors import InvalidArgument, ShuntError
from services.common.host import usable_cores, usable_memory_bytes
from services.common.machine import Device, MachineFacts
from services.common.roles import Role
from services.common.settings import TLS_FILES, TlsSettings
from services.tensorstore.places.uris import StoreService

GPU_SHARE, HOST_SHARE = 0.9, 0.6
_FACTS = ("instance_id", "instance_type", "zone", "spot")
"""Those that only the machine's cloud can know; the engine finds the others."""


@dataclass(frozen=True, slots=True)
class Part:
    """One process."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    address: str


def secrets_of(settings: NodeSettings) -> dict[str, str]:
    """Environment variables by which a process proves whose it is. Raises InvalidArgument."""
    found = dict[str, str]()
    if settings.join_token is not None:
        found |= {mesh_token.FILE_VARIABLE: str(settings.join_token), mesh_token.VARIABLE: ""}
    if settings.certificates is not None:
        for field, name in TLS_FILES.items():
            path = settings.certificates / name
            if not path.is_file():
                raise InvalidArgument(f"{path} is not there", field="certificates")
            found[TlsSettings.name_of(field)] = str(path)
        _own_node(settings)
    return found


def name_of(settings: NodeSettings, token: str, machine: MachineFacts, host: str) -> str:
    """The node's: as somebody says, as its token or certificate has it, or what this machine is
    called."""
    proved = mesh_token.node_of(token) or _own_node(settings)
    return settings.id or proved or machine.instance_id or host


def _own_node(settings: NodeSettings) -> str:
    """The only node that the certificate is for; empty where there is none, or it is for any.
    Raises InvalidArgument for another role's, and another node's."""
    if settings.certificates is None:
        return ""
    try:
        identity = read_issued_in(settings.certificates).wish.identity
    except ShuntError as error:
        raise InvalidArgument(error.message, field="certificates") from error
    if identity.role is not Role.ENGINE:
        raise InvalidArgument(
            f"the certificate is of the role {identity.role}, a node's is of engine",
            field="certificates",
        )
    if identity.node_id and settings.id not in ("", identity.node_id):
        raise InvalidArgument(f"the certificate is node {identity.node_id}'s alone", field="id")
    return identity.node_id


def parts_of(
    settings: NodeSettings,
    node_id: str,
    machine: MachineFacts,
    devices: Sequence[Device],
    environment: Mapping[str, str],
) -> tuple[Part, Part]:
    """Tensor store and engine. What the environment says of them counts, but for what joins."""
    store_port, free = free_ports(2)
    here = own_address(settings.controllers[0])
    only_here = is_loopback(here)
    engine_host = settings.engine_host or (HOST if only_here else "0.0.0.0")
    engine_port = settings.engine_port or free
    store = _part(
        "tensorstore",
        store_port,
        environment,
        {
            "CACHE_DIRECTORY": _text(settings.cache_directory),
            "CACHE_BYTES": _text(settings.cache_bytes),
        },
        {"STORE": settings.store, "HOST": HOST},
    )
    engine = _part(
        "engine",
        engine_port,
        environment,
        {
            "ADVERTISE_HOST": settings.advertise_host or here,
            **_computing(settings, devices, environment),
            **{f"FOUND__{name.upper()}": _text(getattr(machine, name)) for name in _FACTS},
        },
        {
            "NODE_ID": node_id,
            "CONTROLLER": settings.controller,
            "STORE": StoreService(store.address, Role.ENGINE).uri,
            "HOST": engine_host,
            "NOTICE_S": f"{settings.drain_s:g}",
            "HEARS_NOTICES": "true",
        },
    )
    return store, engine


def _computing(
    settings: NodeSettings, devices: Sequence[Device], environment: Mapping[str, str]
) -> dict[str, str]:
    """Where the engine computes, and with what."""
    if devices:
        smallest_bytes = min(device.memory_bytes for device in devices)
        size_bytes: float | None = smallest_bytes * _sharing(environment, len(devices))
        share, where = settings.memory_share or GPU_SHARE, {"DEVICE": "cuda"}
    else:
        size_bytes = usable_memory_bytes()
        share = settings.memory_share or HOST_SHARE
        where = {"DEVICE": "cpu", "THREADS": str(max(1, int(usable_cores())))}
    if size_bytes is not None:
        where["MEMORY_BYTES"] = str(int(size_bytes * share))
    return where


def _sharing(environment: Mapping[str, str], devices: int) -> int:
    """Of so many devices, those that the engine is told to share a stage among: vLLM's can."""
    said = environment.get("SHUNT_ENGINE_RANKS", "")
    if environment.get("SHUNT_ENGINE_BACKEND") != "vllm" or not said.isdecimal():
        return 1
    return min(int(said) or devices, devices)


def _part(
    service: str,
    port: int,
    environment: Mapping[str, str],
    usual: Mapping[str, str],
    fixed: Mapping[str, str],
) -> Part:
    """Settings that are `usual` give way to the environment's; empty ones are none. A part has no
    certificate of its own: it shows the node's."""
    prefix = f"SHUNT_{service.upper()}_"
    set_here = {f"{prefix}{name}": value for name, value in usual.items() if value}
    joined = {f"{prefix}{name}": value for name, value in fixed.items()}
    joined[f"{prefix}GRPC_PORT"] = str(port)
    said = {k: value for k, value in environment.items() if not k.startswith(f"{prefix}TLS__")}
    command = (sys.executable, "-m", f"services.{service}")
    return Part(service, command, {**set_here, **said, **joined}, address_of(HOST, port))


def without_token(part: Part) -> Part:
    """A store that only this host reaches needs none, and a node's own is none for it."""
    tokens = (mesh_token.VARIABLE, mesh_token.FILE_VARIABLE)
    kept = {name: value for name, value in part.environment.items() if name not in tokens}
    return Part(part.name, part.command, kept, part.address)


def _text(value: Path | str | int | bool | None) -> str:
    return "" if value is None else str(value)


def own_environment() -> dict[str, str]:
    """Of this process, for its parts: without what is said to it alone."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SHUNT_NODE_")}
