"""The fleet's router: admission, the production balancer, and readers that follow generations.

A generation whose pipeline ends goes on at the next one: from what it holds where the strategy
migrates, else from its prompt. Who finds no pipeline waits, those that were moved first. Where
pipelines have phases, one that has begun goes on where the production grant has it go on, and what
was computed of its prompt goes with it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from services.common.demand import Demand
from services.common.errors import ResourceExhausted
from services.common.exchange import Route
from services.common.generation import ModelRef
from services.controller.core.ledger.granting import HandedOn, Needs, best_head
from services.controller.core.ledger.outcomes import ServingHead
from services.engine.backend import BLOCK_SIZE
from services.router.core.admission import Admission
from services.router.core.balancer import Balancer
from simulator.environment.addresses import CONTROLLER, ROUTERS
from simulator.environment.environment import Environment
from simulator.environment.network import Process
from simulator.fleet import result
from simulator.fleet.batch import Batch, Generation
from simulator.fleet.counts import Counts
from simulator.fleet.meter import NotConserved
from simulator.fleet.node import NUMERICS, FleetNode
from simulator.fleet.result import Account, Moves, Targets, percentiles
from simulator.fleet.workload import Request

REPORT_S = 5.0


@dataclass(frozen=True, slots=True)
class Move:
    """A generation that went on elsewhere."""

    at_s: float
    sequence: Generation


@dataclass(slots=True)
class _Reported:
    requests: int = 0
    input_tokens: int = 0
    answers: int = 0
    output_tokens: int = 0


@dataclass(slots=True)
class Pending:
    """What is under way."""

    waiting: deque[Generation] = field(default_factory=deque)
    """Without a pipeline."""
    at: dict[Generation, str] = field(default_factory=dict)
    """By sequence, the formation that has it."""

    def __len__(self) -> int:
        return len(self.waiting) + len(self.at)


class FleetFront(Process):
    """One router. Requests come at their times, or, where `concurrency` is given, as soon as fewer
    than so many are under way."""

    def __init__(
        self,
        environment: Environment,
        model: ModelRef,
        requests: Sequence[Request],
        *,
        migration: bool,
        places: int,
        concurrency: int,
        tolerant: bool,
        heads: Callable[[], Sequence[ServingHead]],
    ) -> None:
        """`heads`: as the controller knows them."""
        super().__init__(f"{ROUTERS}0", environment.network)
        self.counts = Counts()
        self.done: list[Generation] = []
        self._moved: list[Move] = []
        self.pending = Pending()
        self._model, self._migration = model, migration
        self._requests, self._next = requests, 0
        self._concurrency, self._tolerant = concurrency, tolerant
        self._coming: dict[str, list[Generation]] = {}
        """By formation, those that are on their way to its head; none without one."""
        self._balancer = Balancer()
        self._admission = Admission(places)
        self._reported = _Reported()
        self._routes: tuple[Route, ...] = ()
        self._heads = heads
        self._onward = HandedOn()
        self._link_free_s: dict[str, float] = {}
        """By formation that may take more, when all that is on its way there will have come."""

    # Arrivals

    def begin(self) -> None:
        """The workload's time begins now."""
        self._began_s = self.clock.now_s
        self.every(REPORT_S, self._report)
        if self._concurrency:
            self._fill()
        else:
            self._await()

    def _await(self) -> None:
        if self._next < len(self._requests):
            at_s = self._began_s + self._requests[self._next].arrival_s
            self.after(max(0.0, at_s - self.clock.now_s), self._arrive)

    def _arrive(self) -> None:
        now_s = self.clock.now_s - self._began_s
        while self._next < len(self._requests):
            request = self._requests[self._next]
            if request.arrival_s > now_s + 1e-9:
                break
            self._take(request)
        self._await()

    def _fill(self) -> None:
        while len(self.pending) < self._concurrency and self._next < len(self._requests):
            self._take(self._requests[self._next])

    def _take(self, request: Request) -> None:
        sequence = Generation(
            self._next, self.clock.now_s, request.input, request.output, request.prefix
        )
        self._next += 1
        self.counts.arrived += 1
        self._reported.requests += 1
        self._reported.input_tokens += request.input
        try:
            self._admission.check(self._model.model_id, (self._model.model_id,))
        except ResourceExhausted:
            self.counts.refused += 1
            return
        self._admission.take(self._model.model_id, "", 1)
        self._send(sequence)

    def _report(self) -> None:
        told = self._reported
        demand = Demand(
            told.requests, told.input_tokens, told.answers, told.output_tokens, len(self.pending)
        )
        demands = {self._model.model_id: demand}
        args = (self.name, self.clock.now_s, demands)
        self.network.tell(CONTROLLER, "reported", *args, after_s=0.002)

    # Pipelines

    def update(self, routes: tuple[Route, ...], handing_over: tuple[str, ...]) -> None:
        """The controller told the routes."""
        self._routes = routes
        if self._link_free_s:
            there = {head.route.formation_id for head in self._heads()}
            self._link_free_s = {k: v for k, v in self._link_free_s.items() if k in there}
        self._balancer.update(routes, handing_over)
        self._release()

    def _release(self) -> None:
        """Those that wait go on, in their order, as far as there are pipelines for them."""
        waiting = self.pending.waiting
        while waiting and self._sent(waiting[0]):
            waiting.popleft()
        if self._concurrency and self._next:  # one that none of them can hold leaves its place
            self._fill()

    def _send(self, sequence: Generation) -> None:
        if self.pending.waiting or not self._sent(sequence):
            self.pending.waiting.append(sequence)

    def _sent(self, sequence: Generation) -> bool:
        """It is on its way, or has failed; False: it waits."""
        routes = self._routes_for(sequence)
        heads = {route.formation_id: self._head(route) for route in routes}
        able = [
            route
            for route in routes
            if (batch := heads[route.formation_id].batch) is not None and batch.fits(sequence)
        ]
        if routes and not able and all(head.batch is not None for head in heads.values()):
            self.counts.failed += 1
            self.counts.lost += sequence.held
            self._admission.leave(self._model.model_id, "")
            return True
        if self._tolerant:
            able = [
                route
                for route in able
                if (batch := heads[route.formation_id].batch) is not None
                and batch.has_place(sequence, self._coming.get(route.formation_id, ()))
            ]
        route = self._picked(sequence, able) if able else None
        if route is None:
            return False
        formation_id = route.formation_id
        sequence.hands_on = route.hands_on and not sequence.held
        if sequence.began_at:
            self._onward.count(sequence.began_at, formation_id, 1)
        self._balancer.began(formation_id)
        self.pending.at[sequence] = formation_id
        self._coming.setdefault(formation_id, []).append(sequence)
        head = heads[formation_id]
        after_s = self.network.latency_s() + self._travels_s(sequence, head, formation_id)
        self.clock.after(after_s, self._arrives, head, formation_id, sequence)
        return True

    def _routes_for(self, sequence: Generation) -> list[Route]:
        """Pipelines that may have it: where there are phases, one that has begun may go on
        anywhere, and which is best, the grant says."""
        if sequence.held and self._is_split:
            return [head.route for head in self._heads() if head.takes_new]
        return self._balancer.routes_of(self._model.model_id)

    @property
    def _is_split(self) -> bool:
        return any(route.hands_on for route in self._routes)

    def _picked(self, sequence: Generation, able: Sequence[Route]) -> Route | None:
        if not sequence.held or not self._is_split:
            return self._balancer.pick(self._model.model_id, among=able)
        there = self._heads()
        onward = {head.route.pipeline_id: head.onward for head in there}
        weights = onward.get(sequence.began_at, {})
        at = self._onward.loads(sequence.began_at) if weights else Counter(self.pending.at.values())
        head = best_head(
            Needs(self._model, sequence.prompt + sequence.output),
            NUMERICS,
            [head for head in there if head.route in able],
            at,
            weights,
            goes_on=True,
        )
        return head.route if head is not None else None

    def _travels_s(self, sequence: Generation, head: FleetNode, formation_id: str) -> float:
        """Until the last of what comes with it is there: blocks follow while a prompt is read, and
        what others have on their way there comes first."""
        if not sequence.came:
            return 0.0
        now_s, rate = self.clock.now_s, min(head.kv_positions_per_s, sequence.sent_at)
        last = min(sequence.came, head.times.profile.token_budget if head.times else 0)
        all_s = self._link_free_s.get(formation_id, 0.0) + sequence.came / rate
        self._link_free_s[formation_id] = there_s = max(now_s + last / rate, all_s)
        return there_s - now_s

    def _arrives(self, head: FleetNode, formation_id: str, sequence: Generation) -> None:
        coming = self._coming[formation_id]
        coming.remove(sequence)
        if not coming:
            del self._coming[formation_id]
        head.generate(formation_id, sequence)

    def _head(self, route: Route) -> FleetNode:
        return self.network.process(route.incarnation, FleetNode)

    # What heads tell

    def ended(self, formation_id: str, sequences: Sequence[Generation]) -> None:
        """They have come to their end."""
        for sequence in sequences:
            self._left(formation_id, sequence)
            self.counts.finished += 1
            self._reported.answers += 1
            self._reported.output_tokens += sequence.output
            self._admission.leave(self._model.model_id, "")
            self.done.append(sequence)
        if self._tolerant:
            self._release()
        if self._concurrency:
            self._fill()

    def broken(self, formation_id: str, sequences: Iterable[Generation]) -> None:
        """Their pipeline is of no use any more: they go on elsewhere, the oldest first."""
        now_s = self.clock.now_s
        moved = sorted(sequences, key=lambda one: one.number)
        for sequence in moved:
            self._left(formation_id, sequence)
            if sequence.first_s is None:
                continue
            sequence.moves += 1
            sequence.left_s = now_s if sequence.left_s is None else sequence.left_s
            sequence.again += sequence.prompt + sequence.held
            self.counts.moves += 1
            self._moved.append(Move(now_s, sequence))
            if not self._migration:
                self.counts.lost += sequence.held
                sequence.held = 0
        self.pending.waiting.extendleft(reversed(moved))
        self.after(self.network.latency_s(), self._release)

    def handed_on(self, formation_id: str, sequences: Iterable[Generation]) -> None:
        """They have their first token, and go on where is decoded."""
        began = {head.route.formation_id: head.route for head in self._heads()}.get(formation_id)
        for sequence in sequences:
            self._left(formation_id, sequence)
            rows = sequence.prompt + sequence.held - 1
            sequence.came = rows // BLOCK_SIZE * BLOCK_SIZE if began is not None else 0
            sequence.began_at = began.pipeline_id if began is not None else ""
            sequence.sent_at = self._head(began).kv_positions_per_s if began is not None else 0.0
            self._send(sequence)

    def _left(self, formation_id: str, sequence: Generation) -> None:
        self._balancer.ended(formation_id)
        del self.pending.at[sequence]
        if sequence.began_at:
            self._onward.count(sequence.began_at, formation_id, -1)
            sequence.began_at = ""
        sequence.came = 0

    # What came of it

    def crowd(self, batches: Sequence[Batch]) -> tuple[int, int]:
        """Generations in these batches, and those that wait there or here."""
        waiting = len(self.pending.waiting) + sum(one.waiting for one in batches)
        return sum(one.running for one in batches), waiting

    def account(self, batches: Sequence[Batch], sampled: int, targets: Targets) -> Account:
        """Of these batches, all there are, whose nodes sampled so many tokens. Raises NotConserved
        where what went in did not come out and is not there."""
        for batch in batches:
            batch.settle()
        under_way, done = [*self.pending.waiting, *self.pending.at], self.done
        self._check(under_way, sampled)
        return Account(
            len(under_way),
            self.counts.finished + self.counts.refused + self.counts.failed,
            sum(result.within(one, targets) for one in done),
            percentiles([result.ttft_s(one) for one in done]),
            percentiles([result.tpot_s(one) for one in done]),
            percentiles([result.e2e_s(one) for one in done]),
            sum(one.again for one in (*done, *under_way)),
            sum(one.shown for one in (*done, *under_way)),
            tuple(done),
        )

    def _check(self, under_way: list[Generation], sampled: int) -> None:
        counts, done = self.counts, self.done
        over = counts.finished + counts.refused + counts.failed + len(under_way)
        if counts.arrived != over or counts.finished != len(done):
            raise NotConserved(f"{counts.arrived} requests came, and {over} are accounted for")
        held = sum(one.held for one in (*done, *under_way)) + counts.lost
        if sampled != held or any(one.held != one.output for one in done):
            raise NotConserved(f"{sampled} tokens were sampled, and {held} are accounted for")

    def moves_between(self, from_s: float, until_s: float) -> Moves:
        """Of generations that left a pipeline in that time."""
        moved = {move.sequence for move in self._moved if from_s <= move.at_s < until_s}
        gaps = sorted(one.gap_s for one in moved)
        return Moves(len(moved), result.quantile(gaps, 0.5), max(gaps, default=0.0))
