"""Which pipeline a new request goes to, and whether it goes now, waits, or is refused.

It waits where no pipeline serves its model, and tolerant work where none has a free place: heads'
queues are for those who wait for an answer. Who waits goes in the order that heads keep. A request
that could not have its first token by its deadline is refused at once, and told when it may come.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from services.common.errors import ResourceExhausted
from services.common.exchange import PrefixHolder, PrefixNews, Route
from services.common.fair_queue import FairQueue, Shares, turn_of
from services.common.generation import GenerationRequest, PriorityClass
from services.router.core.balancer import Balancer
from services.router.core.least_rows import LeastRows
from services.router.core.prediction import Comer, Predictor
from services.router.core.prefixes import PrefixIndex, holder_of


@dataclass(frozen=True, slots=True, eq=False)
class Waiter:
    """A request that has no pipeline yet."""

    request: GenerationRequest
    by_s: float | None = None
    """When its first token is wanted; None: whenever it comes."""
    prompt_bytes: int = 0
    """Of its prompt's text; 0 of ids."""


@dataclass(frozen=True, slots=True)
class Sending:
    """Where a request goes."""

    route: Route
    found: int
    """Positions of its prompt that are computed there."""
    first_token_s: float | None
    """When its first token is expected, in seconds from now; None: not known, as of what may come
    from its holder: how far that is off would tell nothing of who computes all."""
    holder: PrefixHolder | None = None
    """Another pipeline that has more of its prompt computed."""


@dataclass(slots=True)
class _Room:
    """Who waits for one model."""

    shares: Shares = field(default_factory=Shares)
    queue: FairQueue[Waiter] = field(init=False)

    def __post_init__(self) -> None:
        self.queue = FairQueue(self.shares)


class Dispatcher:
    """All requests of one router that have no pipeline yet."""

    def __init__(self, balancer: Balancer) -> None:
        self.prefixes = PrefixIndex()
        self.predictor = Predictor()
        self._balancer = balancer
        self._rooms: dict[str, _Room] = {}
        """By model."""
        self._least_rows: defaultdict[str, LeastRows] = defaultdict(LeastRows)
        """By model."""
        self._arrivals = 0

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return sum(len(room.queue) for room in self._rooms.values())

    def update(self, routes: Iterable[Route]) -> None:
        """What other heads held, and how busy they were, counts no more."""
        models = {route.formation_id: route.model.model_id for route in routes}
        self.prefixes.keep(models)
        self.predictor.keep(models)
        for name in self._least_rows.keys() - models.values():
            del self._least_rows[name]

    def told(self, formation_id: str, news: PrefixNews, now_s: float) -> None:
        """A head told what it holds, and how busy it is."""
        self.prefixes.told(formation_id, news)
        if news.load is not None:
            self.predictor.told(formation_id, news.load, now_s)

    def check(
        self, model_id: str, comer: Comer, by_s: float | None, now_s: float, prompt_bytes: int = 0
    ) -> None:
        """Raises ResourceExhausted where no pipeline could answer in time a request as small as
        this, or as what prompts of so many bytes take at least."""
        routes = self._balancer.routes_of(model_id)
        if routes and by_s is not None:
            least = self._least_rows[model_id].of(prompt_bytes)
            comer = replace(comer, rows=max(comer.rows, least))
            comers = dict.fromkeys((r.formation_id for r in routes), comer)
            self._in_time(routes, comers, by_s, now_s)

    def send(self, waiter: Waiter, now_s: float, *, anyway: bool = False) -> Sending | None:
        """Where it goes now; None: it waits. `anyway`: it has waited for a free place long enough.
        Raises ResourceExhausted where it would come too late."""
        request = waiter.request
        serving = routes = self._balancer.routes_of(request.model.model_id)
        found = self.prefixes.found(request)
        comers = {
            route.formation_id: Comer.of(request, found.get(route.formation_id, 0))
            for route in routes
        }
        if routes and not (anyway or self._waits(waiter)):  # then its prompt has been counted
            rows = min(comer.rows for comer in comers.values())
            self._least_rows[request.model.model_id].saw(waiter.prompt_bytes, rows)
        if routes and waiter.by_s is not None:
            routes = self._in_time(routes, comers, waiter.by_s, now_s)
        if request.priority is PriorityClass.TOLERANT and not anyway:
            has_room = self.predictor.has_room
            routes = [r for r in routes if has_room(r.formation_id, comers[r.formation_id])]
        route = self._balancer.pick(request.model.model_id, found, routes)
        if route is None:
            return None
        formation_id = route.formation_id
        said = self.predictor.predict(formation_id, comers[formation_id])
        self.predictor.sent(formation_id, comers[formation_id], now_s)
        holder = holder_of(found, route, serving)
        first_s = said.first_token_s if said is not None and holder is None else None
        return Sending(route, found.get(formation_id, 0), first_s, holder)

    def _in_time(
        self, routes: Sequence[Route], comers: dict[str, Comer], by_s: float, now_s: float
    ) -> list[Route]:
        """Those that would answer by then, or of which nothing is known."""
        late_s: list[float] = []
        in_time = []
        for route in routes:
            said = self.predictor.predict(route.formation_id, comers[route.formation_id])
            if said is None or now_s + said.surely_s <= by_s:
                in_time.append(route)
            else:
                late_s.append(now_s + said.surely_s - by_s)
        if not in_time:
            raise ResourceExhausted(
                f"the first token would come {min(late_s):.1f} s after the deadline",
                field="deadline",
                retry_after_s=min(late_s),
            )
        return in_time

    # Those that wait

    def wait(self, waiter: Waiter) -> None:
        """It waits from now on, until it is among `released`, or leaves."""
        self._arrivals += 1
        request = waiter.request
        room = self._rooms.setdefault(request.model.model_id, _Room())
        room.shares.enter(request.tenant)
        room.queue.push(waiter, turn_of(request, self._arrivals))

    def leave(self, waiter: Waiter) -> None:
        """It waits no more, if it did."""
        if self._waits(waiter):
            room = self._rooms[waiter.request.model.model_id]
            room.queue.remove(waiter)
            room.shares.leave(waiter.request.tenant)

    def _waits(self, waiter: Waiter) -> bool:
        room = self._rooms.get(waiter.request.model.model_id)
        return room is not None and waiter in room.queue

    def released(self, now_s: float) -> list[tuple[Waiter, Sending | ResourceExhausted]]:
        """Those that wait no more, in order, and what becomes of them; to be asked whenever routes
        or loads change, and when something ends."""
        gone: list[tuple[Waiter, Sending | ResourceExhausted]] = []
        for room in self._rooms.values():
            while (waiter := room.queue.first()) is not None:
                request = waiter.request
                try:
                    outcome: Sending | ResourceExhausted | None = self.send(waiter, now_s)
                except ResourceExhausted as late:
                    outcome = late
                if outcome is None:
                    break
                self.leave(waiter)
                if isinstance(outcome, Sending):
                    tokens = len(request.prompt_ids) + request.choices * request.sampling.max_tokens
                    room.shares.charge(request.tenant, request.tenant_weight, tokens)
                gone.append((waiter, outcome))
        return gone
