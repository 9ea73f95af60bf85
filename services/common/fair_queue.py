"""Who comes next of those that wait: fair between tenants by tokens, then by class and arrival.

A tenant's count is what it has had, in tokens over its weight. Of the tenants that wait, those of
the lowest round of counts come first; among them a class goes before another, and then who came
first. With one tenant that is its classes in order, and within a class first come, first served.

Source: the virtual token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI
2024, algorithm 2). Two things differ. Counts are compared in rounds, so that classes mean something
between tenants. And who comes anew is put ALLOWANCE below the least of those that are there, not
level with it, as Linux' CFS does with tasks that have slept: who asks for little is served at once,
and who asks for much has used that up in a moment.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from math import inf
from typing import Generic, TypeVar

from services.common.generation import GenerationRequest, PriorityClass

ROUND = 512
"""Tokens of weight 1; tenants whose counts lie in one round have had the same."""
ALLOWANCE = 4 * ROUND
"""What a tenant that comes anew may have before it is level with the others."""
MAX_REMEMBERED = 4096
"""Tenants that are not there and whose counts are kept."""
_RANKS = {PriorityClass.PROTECTED: 0, PriorityClass.STANDARD: 1, PriorityClass.TOLERANT: 2}

T = TypeVar("T", bound=Hashable)


class Shares:
    """What each tenant has had."""

    def __init__(self) -> None:
        self._had: dict[str, float] = {}
        self._there: dict[str, int] = {}
        """How much of each tenant's waits or runs."""
        self._floor = 0.0
        """The least count of those that are there, or were last; it never falls."""

    def enter(self, tenant: str) -> None:
        """One of the tenant's comes to wait."""
        if tenant not in self._there:
            self._raise_floor()
            before = self._had.get(tenant, -inf)
            self._had[tenant] = max(before, self._floor - (ALLOWANCE if self._there else 0))
        self._there[tenant] = self._there.get(tenant, 0) + 1

    def leave(self, tenant: str) -> None:
        """It neither waits nor runs any more."""
        self._raise_floor()
        self._there[tenant] -= 1
        if not self._there[tenant]:
            del self._there[tenant]
        if len(self._had) - len(self._there) > MAX_REMEMBERED:
            self._forget()

    def charge(self, tenant: str, weight: int, tokens: int) -> None:
        """The tenant had so many tokens more."""
        self._had[tenant] = self._had.get(tenant, 0.0) + tokens / weight

    def round_of(self, tenant: str) -> int:
        """The lower, the sooner it is the tenant's turn."""
        return int(self._had.get(tenant, 0.0) // ROUND)

    def _raise_floor(self) -> None:
        least = min((self._had[tenant] for tenant in self._there), default=self._floor)
        self._floor = max(self._floor, least)

    def _forget(self) -> None:
        """Those whose count would be raised if they came; if all are above, the lowest."""
        absent = sorted((t for t in self._had if t not in self._there), key=self._had.__getitem__)
        for tenant in absent[: len(absent) - MAX_REMEMBERED // 2]:
            del self._had[tenant]


@dataclass(frozen=True, slots=True)
class Turn:
    """One's place among those that wait, apart from what its tenant has had."""

    lane: int
    """Nobody of a lane comes before anybody of a lower one."""
    tenant: str
    order: tuple[int, int, int]
    """Among those of its tenant, and between tenants in one round."""


def lane_of(priority: PriorityClass, *, unread: bool = False) -> int:
    """What nobody reads yields to all that is read, and what is tolerant to all that is not."""
    return 2 * unread + (priority is PriorityClass.TOLERANT)


def turn_of(
    request: GenerationRequest, arrival: int, *, unread: bool = False, begun: bool = False
) -> Turn:
    """An answer that was begun goes on before another begins. `arrival` is unique and rises."""
    order = (int(not begun), _RANKS[request.priority], arrival)
    return Turn(lane_of(request.priority, unread=unread), request.tenant, order)


class FairQueue(Generic[T]):
    """Those that wait."""

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._turns: dict[T, Turn] = {}
        self._lanes: dict[int, dict[str, list[tuple[tuple[int, int, int], T]]]] = {}
        """By lane and tenant, in order."""

    def __len__(self) -> int:
        return len(self._turns)

    def __contains__(self, item: T) -> bool:
        return item in self._turns

    def __iter__(self) -> Iterator[T]:
        """In no order."""
        return iter(self._turns)

    def push(self, item: T, turn: Turn) -> None:
        """It waits from now on."""
        self._turns[item] = turn
        line = self._lanes.setdefault(turn.lane, {}).setdefault(turn.tenant, [])
        insort(line, (turn.order, item), key=_order_of)

    def remove(self, item: T) -> None:
        """It waits no more; nothing for one that does not."""
        turn = self._turns.pop(item, None)
        if turn is None:
            return
        tenants = self._lanes[turn.lane]
        line = tenants[turn.tenant]
        del line[bisect_left(line, turn.order, key=_order_of)]
        if not line:
            del tenants[turn.tenant]
        if not tenants:
            del self._lanes[turn.lane]

    def first(self) -> T | None:
        """Whose turn it is; None when nobody waits."""
        if not self._lanes:
            return None
        lines = self._lanes[min(self._lanes)]
        tenant = min(lines, key=lambda name: (self._shares.round_of(name), lines[name][0][0]))
        return lines[tenant][0][1]


def _order_of(entry: tuple[tuple[int, int, int], object]) -> tuple[int, int, int]:
    return entry[0]
