"""A mesh whose services know one another by certificates, each with its own role."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from bench import mesh as meshes
from services.cli.certs.authority import LIFE, Wish, hosts_of, identity_from
from services.cli.certs.directory import (
    AuthorityDirectory,
    create_authority,
    holders,
    read,
    read_issued_in,
    write,
)
from services.cli.mesh_status import controller_status
from services.common import channels
from services.common.roles import Role
from services.common.settings import TlsSettings
from tests.mesh.lasting import sampled

QUESTIONS = sampled(120)
REFUSED = {
    "controller": "shuntserve.controller.v1.ControllerService/GetStatus",
    "placement": "shuntserve.placement.v1.PlacementService/Estimate",
    "tensorstore": "shuntserve.tensorstore.v1.TensorStoreService/List",
    "router": "shuntserve.router.v1.RouterService/ListModels",
    "engine": "shuntserve.engine.v1.EngineService/Describe",
    "launcher": "shuntserve.launcher.v1.LauncherService/End",
}
"""Of each service an RPC that placement may not call."""


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AuthorityDirectory:
    """This process looks at the mesh as its operator."""
    path = tmp_path / "certificates"
    create_authority(path, "test", 30, datetime.now(UTC) - timedelta(days=2))
    monkeypatch.setenv("SHUNT_TLS_DIRECTORY", str(path / "operator"))
    write(_issued(AuthorityDirectory(path), "operator"), path / "operator")
    return AuthorityDirectory(path)


def _issued(authority: AuthorityDirectory, role: str, age: timedelta = timedelta(0)) -> Any:
    wish = Wish(identity_from(role), hosts_of(()), LIFE)
    return authority.issue(wish, datetime.now(UTC) - age)


def _renew_all(authority: AuthorityDirectory) -> None:
    for home in holders(authority.path):
        write(authority.issue(read_issued_in(home).wish, datetime.now(UTC)), home)


def _shown_by(address: str, home: Path) -> bytes:
    """The certificate that a port shows to a new connection."""
    context = ssl.create_default_context(cafile=home / "authority.pem")
    context.load_cert_chain(home / "certificate.pem", home / "key.pem")
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname=host) as wrapped,
    ):
        return ssl.DER_cert_to_PEM_cert(wrapped.getpeercert(binary_form=True) or b"").encode()


async def strangers_are_refused(
    ports: Mapping[str, str], authority: AuthorityDirectory, directory: Path
) -> None:
    """At each address, which is of this role: who shows no certificate, another authority's, one
    that has ended, and one of another role."""
    create_authority(directory / "foreign", "test", 30, datetime.now(UTC))
    strangers: dict[str, TlsSettings | None] = {"no certificate": None}
    for name, pem in (
        ("another authority", _issued(AuthorityDirectory(directory / "foreign"), "operator")),
        ("ended", _issued(authority, "operator", LIFE + timedelta(minutes=1))),
        ("wrong role", _issued(authority, "placement")),
    ):
        write(pem, directory / name)
        (directory / name / "authority.pem").write_bytes(authority.authority.pem)
        strangers[name] = TlsSettings(directory=directory / name)
    for address, role in ports.items():
        for name, tls in strangers.items():
            code = await _answer(address, role, tls)
            expected = (
                grpc.StatusCode.PERMISSION_DENIED
                if name == "wrong role"
                else grpc.StatusCode.UNAVAILABLE
            )
            assert code is expected, (role, name)


async def _answer(address: str, role: str, tls: TlsSettings | None) -> grpc.StatusCode:
    async with channels.open_channel(address, Role(role), tls=tls) as channel:
        try:
            await channel.unary_unary(f"/{REFUSED[role]}")(b"", timeout=60)
        except grpc.aio.AioRpcError as refused:
            return refused.code()
    return grpc.StatusCode.OK


async def _ports(mesh: meshes.Mesh) -> Mapping[str, str]:
    """Role by address of every gRPC port of the mesh."""
    status = await mesh.status()
    services = {service["grpc"]: service["name"].split("-")[0] for service in status["services"]}
    controller = next(address for address, role in services.items() if role == "controller")
    found = await controller_status(controller)
    assert found is not None
    return services | {node.address: "engine" for node in found.nodes}


async def test_every_port_is_for_those_whose_role_may_call_it_and_certificates_are_renewed(
    tmp_path: Path, store: Path, client: httpx.AsyncClient, authority: AuthorityDirectory
) -> None:
    path = authority.path
    options = ("--certificates", str(path), "--node-speeds", "3:2")
    async with meshes.running(tmp_path / "mesh", store=store, options=options, pipelines=1) as mesh:
        ports = await _ports(mesh)
        assert sorted([*ports.values(), "launcher"]) == sorted([*REFUSED, "engine"])

        # Certificates are replaced three times while streams run; they are the streams.
        expected = await meshes.undisturbed(client, mesh.url(), QUESTIONS)
        records = [meshes.StreamRecord() for _ in QUESTIONS]
        streaming = [
            asyncio.create_task(meshes.stream_chat(client, mesh.url(), body, record))
            for body, record in zip(QUESTIONS, records, strict=True)
        ]
        for times in range(1, 4):
            await meshes.until(lambda n=times: all(len(r.arrivals_s) > 5 * n for r in records))
            _renew_all(authority)
        assert not any(task.done() for task in streaming)
        await asyncio.gather(*streaming)
        for record, wanted in zip(records, expected, strict=True):
            assert record.complete, record.error
            assert (record.text, record.usage) == (wanted.text, wanted.usage)
        for address, role in ports.items():
            newest = read(path / role).certificate
            await meshes.until(lambda a=address, n=newest: _shown_by(a, path / "operator") == n)
        assert "Paris" in await meshes.run_shunt(
            *("chat", "What is the capital of France?", "--data-dir", str(mesh.data_dir)),
            timeout_s=60,
            env={name: value for name, value in os.environ.items() if "TLS" not in name},
        )
        events = (await mesh.shunt("events", "--json")).splitlines()
        kinds = [json.loads(line)["kind"] for line in events]
        assert (kinds.count("node_registered"), kinds.count("pipeline_ready")) == (2, 1), kinds

        await strangers_are_refused(ports, authority, tmp_path)
