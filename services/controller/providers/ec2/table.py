"""Which instance types may be bought, as an operator writes them down, and what each one is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Annotated

from pydantic import Field

from services.common.errors import InvalidArgument
from services.common.nodes import MOST_DEVICES, Backend, NodeShape
from services.common.speeds import MAX_SPEED
from services.common.yaml_file import Row, parse_yaml, read_yaml
from services.controller.core.cluster.market import (
    MAX_COUNT,
    MAX_INTERRUPTIONS_PER_HOUR,
    MAX_LAUNCH_S,
    MAX_PRICE_PER_HOUR,
)

MAX_TYPES = 30
"""With three zones and both markets they are far from `MAX_OFFERS`."""
MAX_RESERVATIONS = 100

TypeName = Annotated[str, Field(max_length=64, pattern=r"^[a-z0-9][a-z0-9-]*\.[a-z0-9-]+$")]
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Price = Annotated[float, Field(gt=0, le=MAX_PRICE_PER_HOUR, allow_inf_nan=False)]


class TypeRow(Row):
    """One instance type."""

    instance_type: TypeName
    device_type: str = Field(default="cpu", min_length=1, max_length=64)
    devices: int = Field(default=1, ge=1, le=MOST_DEVICES)
    """Ranks that may share a stage of its nodes."""
    memory_bytes: int = Field(gt=0, le=1 << 62)
    """Of all its devices."""
    relative_speed: float = Field(default=1.0, gt=0, le=MAX_SPEED, allow_inf_nan=False)
    count: Count
    price_per_hour: Price
    interruptions_per_hour: float = Field(
        default=0.0, ge=0, le=MAX_INTERRUPTIONS_PER_HOUR, allow_inf_nan=False
    )
    launch_s: float = Field(default=60.0, ge=0, le=MAX_LAUNCH_S, allow_inf_nan=False)
    spot: bool = True
    on_demand: bool = True
    backend: Backend = "native"
    """What its nodes compute with."""


class ReservationRow(Row):
    """Capacity that is paid for anyway."""

    id: str = Field(pattern=r"^cr-[0-9a-f]{8,17}$")
    instance_type: TypeName
    zone_id: str = Field(pattern=r"^[a-z0-9-]{4,32}$")
    count: Count
    price_per_hour: Price


class TableDocument(Row):
    """The whole file."""

    types: tuple[TypeRow, ...] = Field(min_length=1, max_length=MAX_TYPES)
    reservations: tuple[ReservationRow, ...] = Field(default=(), max_length=MAX_RESERVATIONS)


@dataclass(frozen=True, slots=True)
class InstanceType:
    """What may be bought of one type, in every zone that has it."""

    name: str
    shape: NodeShape
    count: int
    """In each zone and market."""
    price_per_hour: float
    """On demand: what one costs at most, for a spot price never exceeds it."""
    interruptions_per_hour: float = 0.0
    """Of one on spot, before any was seen."""
    launch_s: float = 60.0
    """From the order to the start of the node's process."""
    spot: bool = True
    on_demand: bool = True


@dataclass(frozen=True, slots=True)
class Reservation:
    """A capacity reservation."""

    reservation_id: str
    instance_type: str
    zone_id: str
    count: int
    price_per_hour: float


@dataclass(frozen=True, slots=True)
class Table:
    """All that may be bought."""

    types: Mapping[str, InstanceType]
    reservations: tuple[Reservation, ...] = ()

    def dollars_per_hour(self, instance_type: str) -> float:
        """What one costs at most, on whichever market; nobody knows what one costs that is not in
        the table: more than there is."""
        known = self.types.get(instance_type)
        if known is None:
            return inf
        own = [r.price_per_hour for r in self.reservations if r.instance_type == instance_type]
        return max([known.price_per_hour, *own])

    @property
    def dearest_per_hour(self) -> float:
        return max(self.dollars_per_hour(name) for name in self.types)

    @property
    def longest_launch_s(self) -> float:
        return max(one.launch_s for one in self.types.values())


def read_table(path: Path) -> Table:
    """Raises InvalidArgument, naming file, entry and field, and NotFound for a file that cannot be
    read."""
    return _table(read_yaml(path, TableDocument), path.name)


def parse_table(text: str, name: str) -> Table:
    """The same of a file's text, which goes by this name."""
    return _table(parse_yaml(text, name, TableDocument), name)


def _table(document: TableDocument, file: str) -> Table:
    types: dict[str, InstanceType] = {}
    for index, row in enumerate(document.types):
        if row.instance_type in types:
            raise _wrong(file, f"types.{index}.instance_type", f"{row.instance_type} stands twice")
        if not (row.spot or row.on_demand):
            raise _wrong(file, f"types.{index}.spot", "neither on spot nor on demand is no offer")
        types[row.instance_type] = _type(row)
    names: set[str] = set()
    for index, reserved in enumerate(document.reservations):
        field = f"reservations.{index}"
        if reserved.instance_type not in types:
            name = reserved.instance_type
            raise _wrong(file, f"{field}.instance_type", f"no type is called {name}")
        if reserved.id in names:
            raise _wrong(file, f"{field}.id", f"{reserved.id} stands twice")
        names.add(reserved.id)
    return Table(types, tuple(_reservation(row) for row in document.reservations))


def _type(row: TypeRow) -> InstanceType:
    return InstanceType(
        row.instance_type,
        NodeShape(row.memory_bytes, row.relative_speed, row.device_type, row.devices, row.backend),
        row.count,
        row.price_per_hour,
        row.interruptions_per_hour,
        row.launch_s,
        row.spot,
        row.on_demand,
    )


def _reservation(row: ReservationRow) -> Reservation:
    return Reservation(row.id, row.instance_type, row.zone_id, row.count, row.price_per_hour)


def _wrong(file: str, field: str, reason: str) -> InvalidArgument:
    return InvalidArgument(f"{file}: {field}: {reason}", field=field)
