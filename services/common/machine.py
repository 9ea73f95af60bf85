"""What a node's machine is: facts that are found by its process, declared, or not known."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any


class Source(StrEnum):
    """Where a fact comes from."""

    UNKNOWN = "unknown"
    FOUND = "found"
    """The node's process looked."""
    DECLARED = "declared"
    """Its provider said so, and nobody looked."""


@dataclass(frozen=True, slots=True)
class Device:
    """An accelerator."""

    name: str
    """As its driver has it."""
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """None is not known, and none is guessed."""

    instance_type: str | None = None
    """What its provider calls such a machine."""
    zone: str | None = None
    pool: str | None = None
    """What is taken away together."""
    spot: bool | None = None
    """It may be taken away; otherwise it is on demand."""
    relative_speed: float | None = None
    cores: float | None = None
    """That its processes may use."""
    memory_bytes: int | None = None
    """The same of its memory; devices have their own."""
    devices: tuple[Device, ...] | None = None
    network_gbps: float | None = None
    """1e9 bits a second."""
    instance_id: str | None = None
    """What its provider calls this very machine."""
    declared: tuple[str, ...] = ()
    """Names of those facts that were not found, in order."""

    def source(self, name: str) -> Source:
        """Of one fact."""
        if getattr(self, name) is None:
            return Source.UNKNOWN
        return Source.DECLARED if name in self.declared else Source.FOUND

    def known(self) -> dict[str, Any]:
        """The facts that are known, by name."""
        values = {name: getattr(self, name) for name in FACTS}
        return {name: value for name, value in values.items() if value is not None}

    def found_too(self, others: MachineFacts) -> MachineFacts:
        """With what was found elsewhere."""
        return replace(self, **others.known())

    def declare(self, said: MachineFacts) -> MachineFacts:
        """With what a provider says in the place of what was found."""
        known = said.known()
        return replace(self, **known, declared=tuple(sorted({*self.declared, *known})))

    def found_alone(self) -> MachineFacts:
        """Without what was declared."""
        nothing: dict[str, Any] = dict.fromkeys(self.declared)
        return replace(self, **nothing, declared=())


FACTS = tuple(field.name for field in fields(MachineFacts) if field.name != "declared")
"""Names of all there are."""
DECLARABLE = ("instance_type", "memory_bytes", "pool", "relative_speed", "spot", "zone")
"""Names of those that a provider may declare."""
NOTHING_KNOWN = MachineFacts()
