"""Instances of the filtered cloud become nodes on this machine: what their user data would start
there is started here, beside a metadata service of its own, and what the cloud ends is killed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from tests.ec2.cloud import Cloud
from tests.ec2.hosts import NODE, files_of, metadata_of, variables_of
from tests.fake_metadata import FakeEc2, serving

LOOK_S = 0.1


class Machines:
    """Of one mesh."""

    def __init__(self, cloud: Cloud, mesh: str, log_dir: Path) -> None:
        self._cloud = cloud
        self._mesh = mesh
        self._log_dir = log_dir
        self._held = AsyncExitStack()
        self._metadata: dict[str, FakeEc2] = {}
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
        async with self._held, asyncio.TaskGroup() as group:
            work = group.create_task(self._follow())
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
                    self.processes[instance_id] = await self.start(living[instance_id])
            for instance_id in self.processes.keys() - living.keys():
                self.processes[instance_id].kill()
            await asyncio.sleep(LOOK_S)

    def log_of(self, instance: Any) -> Path:
        """What its processes have said."""
        return self._log_dir / f"{instance.id}.log"

    def interrupt(self, instance_id: str, notice_s: float) -> threading.Timer:
        """The market takes an instance, and says so there and on the bus."""
        self._metadata[instance_id].mark(notice_s)
        return self._cloud.interrupt(instance_id, notice_s)

    async def start(self, instance: Any, instance_id: str = "") -> subprocess.Popen[bytes]:
        """What its user data start, on it or on another."""
        metadata = metadata_of(self._cloud, instance)
        metadata.told["instance-id"] = instance_id or instance.id
        metadata.told["instance-type"] = self.said_type or instance.instance_type
        self._metadata[metadata.told["instance-id"]] = metadata
        url = await self._held.enter_async_context(serving(metadata))
        variables = {
            **variables_of(files_of(instance)["/etc/shuntserve/node.env"]),
            "SHUNT_NODE_METADATA": url,
            "SHUNT_NODE_CLOUD": "ec2",
            "SHUNT_ENGINE_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        return self._run(self.log_of(instance), variables)

    @staticmethod
    def _run(log_path: Path, variables: dict[str, str]) -> subprocess.Popen[bytes]:
        with log_path.open("ab") as log:
            return subprocess.Popen(
                NODE,
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
