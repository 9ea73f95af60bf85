"""The seam to a cloud: what it calls this machine, and what it says of its time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from services.common.errors import InvalidArgument
from services.common.machine import MachineFacts
from services.common.notices import Notice

MAX_NOTICE_S = 86_400.0
"""A deadline is not looked at before."""
STALE_S = 300.0
"""What should have happened so long ago did not: some services go on saying it."""


class Cloud(Protocol):
    """A source of facts, and of notices."""

    @property
    def name(self) -> str: ...

    @property
    def pause_s(self) -> float: ...

    async def facts(self) -> MachineFacts:
        """Raises Unavailable and InvalidArgument."""
        ...

    async def look(self) -> Iterable[Notice]: ...


@dataclass(frozen=True, slots=True)
class Clocks:
    """The two that a deadline is told on: by a wall, and for those here."""

    wall: Callable[[], float]
    here: Callable[[], float]

    def deadline_s(self, at_unix_s: float) -> float | None:
        """On the clock here; None for what is long past."""
        left_s = at_unix_s - self.wall()
        if left_s < -STALE_S:
            return None
        return self.here() + min(max(0.0, left_s), MAX_NOTICE_S)


def utc_s(text: str) -> float:
    """Seconds since 1970 of a time that ends in Z (RFC 3339); raises InvalidArgument."""
    try:
        if not text.endswith("Z") or len(text) > 40:
            raise ValueError
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC).timestamp()
    except (ValueError, OverflowError):
        raise InvalidArgument("a time reads 2026-11-27T02:00:00Z", field="time") from None


def name_of(text: str, field: str) -> str:
    """A word that a node's fact may be; raises InvalidArgument."""
    if not 1 <= len(text) <= 128 or not text.isprintable():
        raise InvalidArgument(f"{field} has 1 to 128 characters", field=field)
    return text
