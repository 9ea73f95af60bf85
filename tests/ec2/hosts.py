"""Instances of a stack become processes of this machine: what their user data would start there is
started here, on loopback, and what the cloud ends is killed.

Hosts of the stack run the services of their units, nodes run `shunt node`; each shows the
certificates of its role, which it fetches from the Parameter Store by their names as the hosts'
script does. An address that user data name is where that service was started.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
from base64 import b64decode
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.ec2.cloud import Cloud
from tests.fake_metadata import FakeEc2, serving

LOOK_S = 0.1
STACK_TAG, MESH_TAG, ROLE_TAG = "shuntserve:stack", "shuntserve:mesh", "shuntserve:role"
UNITS = {
    "controller": ("tensorstore", "placement", "controller"),
    "router": ("tensorstore", "router"),
}
"""Of each role, as its user data enable them."""
NODE = (sys.executable, "-m", "services.cli", "node")
"""What an instance of a node runs."""
_FILES = ("certificate.pem", "key.pem", "authority.pem")


class Hosts:
    """Of one mesh."""

    def __init__(self, cloud: Cloud, mesh: str, directory: Path, ports: Mapping[int, int]) -> None:
        """`ports`: where on loopback what the whole mesh reaches by these ports is to be."""
        self._cloud = cloud
        self._mesh = mesh
        self._directory = directory
        self._ports = dict(ports)
        self._ssm = cloud.client("ssm")
        self.processes: dict[str, list[subprocess.Popen[bytes]]] = {}
        """By instance, dead ones too."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Hosts]:
        """Started and killed inside the block, and all killed behind it."""
        async with AsyncExitStack() as held, asyncio.TaskGroup() as group:
            work = group.create_task(self._follow(held))
            try:
                yield self
            finally:
                work.cancel()
                for process in (p for own in self.processes.values() for p in own):
                    process.kill()
                    process.wait()

    async def _follow(self, held: AsyncExitStack) -> None:
        while True:
            living = {
                one.id: one
                for tag in (STACK_TAG, MESH_TAG)
                for one in self._cloud.instances()
                if self._cloud.tags(one).get(tag) == self._mesh
            }
            for instance_id in living.keys() - self.processes.keys():
                role = self._cloud.tags(living[instance_id]).get(ROLE_TAG, "engine")
                if self._certificates(role):
                    self.processes[instance_id] = await self._start(living[instance_id], role, held)
            for instance_id in self.processes.keys() - living.keys():
                for process in self.processes[instance_id]:
                    process.kill()
            await asyncio.sleep(LOOK_S)

    def _certificates(self, role: str) -> bool:
        """Fetches those of a host of this role; False where they are not there yet."""
        for one in UNITS.get(role, (role,)):
            directory = self._directory / "certificates" / one
            directory.mkdir(parents=True, exist_ok=True)
            for name in _FILES:
                value = self._parameter(f"certificates/{one}/{name}")
                if value is None:
                    return False
                (directory / name).write_text(value)
        if role == "router":
            keys = self._parameter("keys")
            if keys is None:
                return False
            (self._directory / "certificates" / role / "keys.json").write_text(keys)
        return True

    def _parameter(self, name: str) -> str | None:
        try:
            answer = self._ssm.get_parameter(
                Name=f"/shuntserve/{self._mesh}/{name}", WithDecryption=True
            )
        except self._ssm.exceptions.ParameterNotFound:
            return None
        value: str = answer["Parameter"]["Value"]
        return value

    async def _start(
        self, instance: Any, role: str, held: AsyncExitStack
    ) -> list[subprocess.Popen[bytes]]:
        files = files_of(instance)
        if role not in UNITS:
            return [await self._node(instance, files["/etc/shuntserve/node.env"], held)]
        place = self._directory / instance.id
        market = place / "market"
        market.mkdir(parents=True)
        if role == "controller":
            (market / "types.yaml").write_text(self._parameter("types") or "")
            (market / "node.yaml").write_text(files["/etc/shuntserve/market/node.yaml"])
        own = {port: free_port() for port in (7003, 7004, 9100)}  # of the host alone
        moved = {
            "0.0.0.0": "127.0.0.1",
            "/etc/shuntserve/market": str(market),
            "/etc/shuntserve/certificates": str(self._directory / "certificates" / role),
            "/var/lib/shunt": str(place),
            f"controller.{self._mesh}.shunt.internal": "127.0.0.1",
        }
        return [
            self._run(
                (sys.executable, "-m", f"services.{unit}"),
                instance.id,
                self._moved(files[f"/etc/shuntserve/{unit}.env"], moved, own),
                unit,
            )
            for unit in UNITS[role]
        ]

    async def _node(
        self, instance: Any, given: str, held: AsyncExitStack
    ) -> subprocess.Popen[bytes]:
        url = await held.enter_async_context(serving(metadata_of(self._cloud, instance)))
        variables = {
            **self._moved(given, {}, {}),
            "SHUNT_NODE_METADATA": url,
            "SHUNT_NODE_CLOUD": "ec2",
            "SHUNT_NODE_CERTIFICATES": str(self._directory / "certificates/engine"),
            "SHUNT_NODE_CACHE_DIRECTORY": str(self._directory / instance.id),
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        return self._run(NODE, instance.id, variables, "engine")

    def _moved(self, text: str, moved: Mapping[str, str], own: Mapping[int, int]) -> dict[str, str]:
        """An environment file's variables, with places and ports of this machine."""
        for before, now in moved.items():
            text = text.replace(before, now)
        variables = variables_of(text)
        for name, value in variables.items():
            for port, here in {**self._ports, **own}.items():
                value = re.sub(rf"(^|:){port}$", rf"\g<1>{here}", value)
            variables[name] = value
        return {name: value for name, value in variables.items() if name.startswith("SHUNT_")}

    def _run(
        self, command: tuple[str, ...], instance_id: str, variables: Mapping[str, str], unit: str
    ) -> subprocess.Popen[bytes]:
        certificates = self._directory / "certificates" / unit
        with (self._directory / f"{instance_id}.{unit}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                env={**os.environ, "SHUNT_TLS_DIRECTORY": str(certificates), **variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )


def files_of(instance: Any) -> dict[str, str]:
    """What its user data write, by path."""
    text = b64decode(str(instance.user_data)).decode()
    return {
        file["path"]: b64decode(file["content"]).decode()
        if file.get("encoding") == "b64"
        else file["content"]
        for file in yaml.safe_load(text)["write_files"]
    }


def variables_of(text: str) -> dict[str, str]:
    """Of an environment file."""
    pairs = (line.split("=", 1) for line in text.splitlines() if line)
    return {name: value.strip('"') for name, value in pairs}


def metadata_of(cloud: Cloud, instance: Any) -> FakeEc2:
    """What an instance's metadata service says of it."""
    metadata = FakeEc2(instance.id, spot=instance.lifecycle == "spot")
    metadata.told["instance-type"] = instance.instance_type
    metadata.told["placement/availability-zone-id"] = cloud.zone_of(instance)
    return metadata


def free_port() -> int:
    """Of loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
