"""The market of a local mesh, as somebody writes it down: offers, and what happens to them when."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from services.common.errors import InvalidArgument
from services.common.nodes import Backend, NodeShape
from services.common.speeds import MAX_SPEED
from services.common.yaml_file import Row, read_yaml
from services.controller.core.cluster.market import (
    MAX_COUNT,
    MAX_INTERRUPTIONS_PER_HOUR,
    MAX_LAUNCH_S,
    MAX_NAME_CHARS,
    MAX_NOTICE_S,
    MAX_OFFERS,
    MAX_PRICE_PER_HOUR,
    Offer,
)

MAX_EVENTS = 10_000
MAX_AT_S = 30 * 86_400.0
NOTICE_S = 120.0
"""Of a `take` that names none, as clouds give it."""

Name = Annotated[str, Field(max_length=MAX_NAME_CHARS, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Price = Annotated[float, Field(gt=0, le=MAX_PRICE_PER_HOUR, allow_inf_nan=False)]


class OfferRow(Row):
    """One offer."""

    id: Name
    instance_type: Name | None = None
    """The id where there is none."""
    count: Count
    price_per_hour: Price
    pool: Name = "local"
    spot: bool = False
    interruptions_per_hour: float = Field(
        default=0.0, ge=0, le=MAX_INTERRUPTIONS_PER_HOUR, allow_inf_nan=False
    )
    """Told to whoever plans; nobody is taken away for it."""
    relative_speed: float = Field(default=1.0, gt=0, le=MAX_SPEED, allow_inf_nan=False)
    memory_bytes: int | None = Field(default=None, gt=0, le=1 << 62)
    backend: Backend | None = None
    """What its nodes compute with; the mesh's where nothing is said."""
    launch_s: float = Field(default=0.0, ge=0, le=MAX_LAUNCH_S, allow_inf_nan=False)


class EventRow(Row):
    """What happens to one offer: one of count, price_per_hour and take."""

    at_s: float = Field(ge=0, le=MAX_AT_S, allow_inf_nan=False)
    offer: Name
    count: Count | None = None
    price_per_hour: Price | None = None
    take: Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = None
    notice_s: float | None = Field(default=None, ge=0, le=MAX_NOTICE_S, allow_inf_nan=False)

    @model_validator(mode="after")
    def _one_thing(self) -> Self:
        if sum(v is not None for v in (self.count, self.price_per_hour, self.take)) != 1:
            raise ValueError("an event has one of count, price_per_hour and take")
        if self.notice_s is not None and self.take is None:
            raise ValueError("notice_s goes with take")
        return self


class MarketDocument(Row):
    """The whole file."""

    offers: tuple[OfferRow, ...] = Field(min_length=1, max_length=MAX_OFFERS)
    events: tuple[EventRow, ...] = Field(default=(), max_length=MAX_EVENTS)


@dataclass(frozen=True, slots=True)
class MarketEvent:
    """A count or a price from now on, or nodes that are taken away."""

    at_s: float
    """Since the mesh was ready."""
    offer_id: str
    count: int | None = None
    price_per_hour: float | None = None
    take: int = 0
    notice_s: float = 0.0


@dataclass(frozen=True, slots=True)
class MarketScript:
    """A market file that was read."""

    name: str
    """Of the file."""
    offers: tuple[Offer, ...]
    events: tuple[MarketEvent, ...] = ()
    """As they were written, which is the order of their times."""
    digest: str = ""
    """Of what it says."""

    def shapes(self, kinds: Iterable[tuple[float, Backend]]) -> tuple[NodeShape, ...]:
        """What to launch for these speeds and backends: of each the cheapest offer's shape, spot
        first. Raises InvalidArgument for a speed that is not offered, or not with its backend."""
        ranked = sorted(self.offers, key=lambda o: (o.price_per_hour or 0.0, not o.spot))
        shapes = []
        for speed, backend in kinds:
            alike = [o.shape for o in ranked if o.shape.relative_speed == speed]
            if not alike:
                raise InvalidArgument(
                    f"{self.name}: no offer has the relative_speed {speed:g} of node_speeds",
                    field="relative_speed",
                )
            found = next((shape for shape in alike if shape.backend == backend), None)
            if found is None:
                raise InvalidArgument(
                    f"{self.name}: no offer of relative_speed {speed:g} has the backend {backend}",
                    field="backend",
                )
            shapes.append(found)
        return tuple(shapes)

    def most_by_speed(self) -> dict[float, int]:
        """Nodes of each speed that are offered together at most, each offer at its best time."""
        most = {offer.offer_id: offer.count for offer in self.offers}
        for event in self.events:
            if event.count is not None:
                most[event.offer_id] = max(most[event.offer_id], event.count)
        counts: dict[float, int] = {}
        for offer in self.offers:
            speed = offer.shape.relative_speed
            counts[speed] = counts.get(speed, 0) + most[offer.offer_id]
        return {speed: count for speed, count in counts.items() if count}

    @property
    def longest_launch_s(self) -> float:
        return max(offer.launch_s for offer in self.offers)


def read_market(
    path: Path,
    *,
    memory_bytes: int,
    device_type: str,
    backend: Backend = "native",
    kind: type[MarketDocument] = MarketDocument,
) -> MarketScript:
    """`memory_bytes` and `backend` are a node's whose offer names none; `kind` is what else the
    file may say. Raises InvalidArgument, naming file, entry and field, and NotFound for one that
    cannot be read."""
    document = read_yaml(path, kind)
    rows = {row.id: row for row in document.offers}
    if len(rows) < len(document.offers):
        ids = [row.id for row in document.offers]
        index = next(i for i, name in enumerate(ids) if name in ids[:i])
        raise _wrong(path, f"offers.{index}.id", f"another offer is called {ids[index]}")
    before_s = 0.0
    for index, event in enumerate(document.events):
        if event.offer not in rows:
            raise _wrong(path, f"events.{index}.offer", f"no offer is called {event.offer}")
        if event.at_s < before_s:
            reason = f"{event.at_s:g} goes backwards: the event before it is at {before_s:g}"
            raise _wrong(path, f"events.{index}.at_s", reason)
        before_s = event.at_s
    return MarketScript(
        path.name,
        tuple(_offer(row, memory_bytes, device_type, backend) for row in document.offers),
        tuple(_event(row) for row in document.events),
        sha256(document.model_dump_json().encode()).hexdigest(),
    )


def _wrong(path: Path, field: str, reason: str) -> InvalidArgument:
    return InvalidArgument(f"{path.name}: {field}: {reason}", field=field)


def _offer(row: OfferRow, memory_bytes: int, device_type: str, backend: Backend) -> Offer:
    return Offer(
        row.id,
        row.instance_type or row.id,
        NodeShape(
            row.memory_bytes or memory_bytes,
            row.relative_speed,
            device_type,
            backend=row.backend or backend,
        ),
        count=row.count,
        price_per_hour=row.price_per_hour,
        pool=row.pool,
        spot=row.spot,
        interruptions_per_hour=row.interruptions_per_hour,
        launch_s=row.launch_s,
        declared=True,
    )


def _event(row: EventRow) -> MarketEvent:
    return MarketEvent(
        row.at_s,
        row.offer,
        row.count,
        row.price_per_hour,
        row.take or 0,
        NOTICE_S if row.notice_s is None else row.notice_s,
    )
