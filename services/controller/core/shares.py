"""Which share each router has of what a tenant may take, by what is asked of whom.

A router is told its shares in answer to what it reports. It is given what others do not hold: as
long as the same routers are there, the shares of one tenant that routers hold come to 1 at most,
however late reports and answers are. A router that comes brings what it was told before; one that
was told nothing yet holds nothing, for it is not ready before that. It gets a part of what is dealt
out evenly at once, also while the others hold all: where it is the n-th, shares come to at most
1 + EVEN / n until the others have heard of it, and of limits that nobody asked for to 1 + 1 / n. A
controller that has just begun raises no other share before each router has said what it holds,
those that the one before it dealt out to among them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from services.common.demand import Shares, TenantDemand

EVEN = 0.2
"""Of every limit this part is dealt out evenly, so that who is asked next has some at once."""
LOST_AFTER_S = 10.0
"""A router that says nothing for so long is there no more."""
_FADES = 0.5
"""What was asked before a report counts for so much behind it."""


@dataclass(slots=True)
class _Asked:
    """Of one router for one tenant: counts as it told them last, and what they grew by of late."""

    requests: int
    tokens: int
    recent_requests: float = 0.0
    recent_tokens: float = 0.0

    def grow(self, demand: TenantDemand) -> None:
        """Counts that went down are another process's."""
        self.recent_requests *= _FADES
        self.recent_tokens *= _FADES
        self.recent_requests += max(0, demand.requests - self.requests)
        self.recent_tokens += max(0, demand.tokens - self.tokens)
        self.requests, self.tokens = demand.requests, demand.tokens


@dataclass(slots=True)
class _Router:
    heard_s: float = 0.0
    asked: dict[str, _Asked] = field(default_factory=dict)
    held: dict[str, float] = field(default_factory=dict)
    """The largest share of a tenant's limits that it may hold by now."""
    equal: float = 0.0
    """The same of limits that it was told nothing of."""

    def holds(self, name: str) -> float:
        return self.held.get(name, self.equal)


class TenantShares:
    """Deals every tenant's limits out to the routers that there are."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        """`known`: names of the routers that another controller dealt out to."""
        self._known = frozenset(known)
        self._routers: dict[str, _Router] = {}
        self._began_s: float | None = None

    @property
    def names(self) -> frozenset[str]:
        """Of the routers that there are; behind a start, of those that are known, too."""
        return self._known | self._routers.keys()

    def reported(
        self, router_id: str, routers: int, demands: Mapping[str, TenantDemand], now_s: float
    ) -> Shares:
        """A router says how many it was told are there, 0 where nobody told it yet, and what
        tenants asked of it."""
        if self._began_s is None:
            self._began_s = now_s
        if now_s - self._began_s > LOST_AFTER_S:
            self._known = frozenset()
        lost = [name for name, r in self._routers.items() if now_s - r.heard_s > LOST_AFTER_S]
        for name in lost:
            del self._routers[name]
        router = self._routers.setdefault(router_id, _Router())
        router.heard_s, router.equal = now_s, 1.0 / routers if routers else 0.0
        router.held = {name: one.share if routers else 0.0 for name, one in demands.items()}
        for name, demand in demands.items():
            router.asked.setdefault(name, _Asked(demand.requests, demand.tokens)).grow(demand)
        for name in router.asked.keys() - demands.keys():
            del router.asked[name]
        there = self._count(now_s)
        tenants = {name for one in self._routers.values() for name in one.asked}
        told = {name: self._share(router, name, there, new=not routers) for name in sorted(tenants)}
        for name, share in told.items():
            router.held[name] = max(share, router.holds(name))  # until it says that it heard
        router.equal = max(router.equal, 1.0 / there)
        return Shares(there, told)

    def _count(self, now_s: float) -> int:
        """Routers that there are; behind a start, as many as they were told of before."""
        there = len(self.names)
        if self._began_s is not None and now_s - self._began_s <= LOST_AFTER_S:
            told = [round(1.0 / one.equal) for one in self._routers.values() if one.equal]
            there = max(there, *told, 0)
        return there

    def _share(self, router: _Router, name: str, there: int, *, new: bool) -> float:
        wanted = EVEN / there + (1.0 - EVEN) * self._part(router, name, there)
        if len(self._routers) < there:  # the rest is held by those that have not said so yet
            return min(wanted, EVEN / there if new else router.holds(name))
        others = sum(one.holds(name) for one in self._routers.values() if one is not router)
        return min(wanted, max(EVEN / there, 1.0 - others))

    def _part(self, router: _Router, name: str, there: int) -> float:
        """Which part of what a tenant asked of late was asked here, of requests and of tokens."""
        asked = [one.asked[name] for one in self._routers.values() if name in one.asked]
        own = router.asked.get(name)
        parts = []
        for mine, total in (
            (own.recent_requests if own else 0.0, sum(a.recent_requests for a in asked)),
            (own.recent_tokens if own else 0.0, sum(a.recent_tokens for a in asked)),
        ):
            if total > 0:
                parts.append(mine / total)
        return sum(parts) / len(parts) if parts else 1.0 / there
