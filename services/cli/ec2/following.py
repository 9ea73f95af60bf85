"""What becomes of a mesh until it answers, told as it happens."""

from __future__ import annotations

import time

from services.cli.ec2.gateway import Told, controller_told, waits_for
from services.cli.ec2.home import Home
from services.cli.ec2.machines import Machine, describe
from services.cli.ec2.stack import StackView, Tell
from services.cli.event_lines import text_line
from services.cli.mesh_directory import MeshError
from services.cli.status_table import fault_line

POLL_S = 3.0


class Changes:
    """Of machines, pipelines and faults: what was told is not told again."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._machines: dict[str, Machine] = {}
        self._pipelines: dict[str, str] = {}
        self._faults: set[str] = set()
        self._waits = ""
        self.next_event = 0
        """The first that was not told."""

    def machines(self, found: list[Machine]) -> None:
        """What is there, and what is no more."""
        now = {machine.instance_id: machine for machine in found}
        for instance_id, machine in now.items():
            before = self._machines.get(instance_id)
            if before is None or before.state != machine.state:
                self._tell(f"  {machine.state:<10} {describe(machine)}")
        for instance_id in self._machines.keys() - now.keys():
            self._tell(f"  gone       {describe(self._machines[instance_id])}")
        self._machines = now

    def controller(self, told: Told) -> None:
        """Events, pipelines and what keeps failing, as its controller knows them."""
        for event in told.events:
            self._tell(f"  {text_line(event).plain}")
            self.next_event = event.number + 1
        for pipeline in told.status["pipelines"]:
            name, state = pipeline["id"], pipeline["state"]
            if self._pipelines.get(name) != state:
                self._pipelines[name] = state
                self._tell(f"  {state:<10} pipeline {name}")
        for fault in map(fault_line, told.status["faults"]):
            if fault not in self._faults:
                self._faults.add(fault)
                self._tell(f"  {fault}")

    def gateway(self, waits: str) -> None:
        """What it waits for."""
        if waits != self._waits:
            self._waits = waits
            self._tell(f"the gateway is not ready: {waits}")


def follow(
    home: Home, view: StackView, tell: Tell, limit_s: float, *, poll_s: float = POLL_S
) -> None:
    """Until the gateway is ready. Raises MeshError where it will not be by itself, or not in
    time."""
    changes, deadline = Changes(tell), time.monotonic() + limit_s
    address = view.outputs.get("OperatorAddress", "")
    while True:
        changes.machines(home.machines.all())
        told = controller_told(address, home.keyring.operator, changes.next_event)
        if told is not None:
            changes.controller(told)
        complaint = waits_for(view.outputs["GatewayUrl"])
        if complaint is None:
            return
        changes.gateway(complaint.reason)
        if complaint.permanent:
            raise MeshError(f"the mesh will not answer: {complaint.reason}")
        if time.monotonic() > deadline:
            raise MeshError(
                f"the gateway is not ready after {limit_s:g} s: {complaint.reason}; the same"
                f" command goes on, `shunt ec2 status --mesh {home.mesh}` says what is there"
            )
        time.sleep(poll_s)
