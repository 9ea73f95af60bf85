"""Instances of the filtered cloud become processes of this machine: what their user data would
start there is started here, and what the cloud ends is killed."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.ec2.cloud import Cloud

LOOK_S = 0.1


class Machines:
    """Of one mesh."""

    def __init__(self, cloud: Cloud, mesh: str, log_dir: Path) -> None:
        self._cloud = cloud
        self._mesh = mesh
        self._log_dir = log_dir
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        """By instance, dead ones too."""
        self.barren: list[str] = []
        """Instances on which nothing came up."""
        self.next_barren = 0
        """How many of the next ones will be so."""
        self.said_type = ""
        """What the next instances say that they are, whatever was ordered."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Machines]:
        """Started and killed inside the block, and all killed behind it."""
        self._log_dir.mkdir(parents=True)
        work = asyncio.create_task(self._follow())
        try:
            yield self
        finally:
            work.cancel()
            for process in self.processes.values():
                process.kill()
                process.wait()

    async def _follow(self) -> None:
        while True:
            living = {one.id: one for one in self._cloud.instances(self._mesh)}
            for instance_id in living.keys() - self.processes.keys() - set(self.barren):
                if self.next_barren:
                    self.next_barren -= 1
                    self.barren.append(instance_id)
                else:
                    self.processes[instance_id] = self.start(living[instance_id])
            for instance_id in self.processes.keys() - living.keys():
                self.processes[instance_id].kill()
            await asyncio.sleep(LOOK_S)

    def log_of(self, instance: Any) -> Path:
        """What its processes have said."""
        return self._log_dir / f"{instance.id}.log"

    def start(self, instance: Any, instance_id: str = "") -> subprocess.Popen[bytes]:
        """What its user data start, on it or on another."""
        given = environment_of(instance)
        found = {
            "INSTANCE_ID": instance_id or instance.id,
            "INSTANCE_TYPE": self.said_type or instance.instance_type,
            "SPOT": str(instance.lifecycle == "spot").lower(),
        }
        variables = {
            **given,
            "SHUNT_ENGINE_NODE_ID": given["SHUNT_NODE_ID"],
            "SHUNT_ENGINE_CONTROLLER": given["SHUNT_NODE_CONTROLLER"],
            "SHUNT_ENGINE_STORE": given["SHUNT_NODE_STORE"],
            **{f"SHUNT_ENGINE_FOUND__{name}": value for name, value in found.items()},
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        with self.log_of(instance).open("ab") as log:
            return subprocess.Popen(
                (sys.executable, "-m", "services.engine"),
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )


def environment_of(instance: Any) -> dict[str, str]:
    """What its user data write into the node's environment file."""
    document = json.loads(b64decode(instance.user_data).decode().removeprefix("#cloud-config\n"))
    lines = document["write_files"][0]["content"].splitlines()
    pairs = (line.split("=", 1) for line in lines)
    return {name: json.loads(value) for name, value in pairs}
