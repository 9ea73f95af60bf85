"""The fleet's router where requests are a flow: it follows routes and reports what was asked of it.

Admission is a number of places; which pipeline has which request is not told apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from services.common.demand import Demand
from services.common.exchange import Route
from services.common.generation import ModelRef
from services.placement.estimate.cluster import Workload
from services.placement.estimate.step_times import StepTimes
from simulator.environment.addresses import CONTROLLER, ROUTERS
from simulator.environment.environment import Environment
from simulator.environment.network import Process
from simulator.fleet.batch import Batch, Generation
from simulator.fleet.counts import Counts
from simulator.fleet.flow import Flow
from simulator.fleet.front import REPORT_S
from simulator.fleet.meter import NotConserved
from simulator.fleet.node import FleetNode
from simulator.fleet.result import (
    Account,
    Moves,
    Targets,
    e2e_s,
    tpot_s,
    ttft_s,
    weighted,
    within,
)
from simulator.fleet.steady import Steady

CONSERVED = 1e-6
"""Share by which sums of so many parts may differ."""


class FlowFront(Process):
    """One router. Time begins with `begin`."""

    def __init__(
        self, environment: Environment, model: ModelRef, flow: Flow, workload: Workload
    ) -> None:
        super().__init__(f"{ROUTERS}0", environment.network)
        self._model, self._flow, self._workload = model, flow, workload
        self._began_s: float | None = None
        self._steady: dict[StepTimes, Steady] = {}
        self._routes: tuple[str, ...] = ()
        """Formations that take requests."""
        self._there: dict[str, Steady] = {}
        """By formation, until it ends."""

    @property
    def counts(self) -> Counts:
        """In whole requests, rounded so that no more are over than came."""
        flow = self._flow
        arrived = round(flow.arrived)
        over = min(arrived, round(flow.finished + flow.refused))
        finished = min(over, round(flow.finished))
        return Counts(
            arrived=arrived,
            finished=finished,
            refused=over - finished,
            moves=round(flow.moves),
            lost=round(flow.lost),
        )

    def begin(self) -> None:
        """The workload's time begins now."""
        self._began_s = self.clock.now_s
        self.every(REPORT_S, self._report)

    def _now_s(self) -> float:
        """Of the workload."""
        return self.clock.now_s - self._began_s if self._began_s is not None else 0.0

    def _report(self) -> None:
        flow, lengths = self._flow, self._flow.lengths
        flow.pass_to(self._now_s())
        demand = Demand(
            round(flow.arrived),
            round(flow.arrived * lengths.input),
            round(flow.finished),
            round(flow.finished * lengths.output),
            round(flow.waiting + flow.running),
        )
        demands = {self._model.model_id: demand}
        args = (self.name, self.clock.now_s, demands)
        self.network.tell(CONTROLLER, "reported", *args, after_s=0.002)

    # Pipelines

    def update(self, routes: tuple[Route, ...], handing_over: tuple[str, ...]) -> None:
        """The controller told the routes."""
        for route in routes:
            if route.formation_id not in self._there:
                times = self.network.process(route.incarnation, FleetNode).times
                if times is not None:
                    self._there[route.formation_id] = self._of(times)
        self._routes = tuple(route.formation_id for route in routes)
        self._serve()

    def _serve(self) -> None:
        there = self._there
        pipelines = [there[name] for name in self._routes if name in there]
        self._flow.serve_by(pipelines, self._now_s())

    def _of(self, times: StepTimes) -> Steady:
        if times not in self._steady:
            self._steady[times] = Steady(times, self._workload)
        return self._steady[times]

    def broken(self, formation_id: str, sequences: Iterable[Generation]) -> None:
        """A pipeline has ended, with its share of what there is."""
        by = self._there.pop(formation_id, None)
        if by is None:
            return
        alike = 1 + sum(one is by for one in self._there.values())
        self._flow.ended(by, alike, self._now_s())
        self._serve()

    def ended(self, formation_id: str, sequences: Sequence[Generation]) -> None:
        """Nodes have no generations here."""
        raise AssertionError

    def handed_on(self, formation_id: str, sequences: Sequence[Generation]) -> None:
        """Nodes have no generations here."""
        raise AssertionError

    # What came of it

    def crowd(self, batches: Sequence[Batch]) -> tuple[int, int]:
        """Requests in batches, and those that wait."""
        self._flow.pass_to(self._now_s())
        return round(self._flow.running), round(self._flow.waiting)

    def account(self, batches: Sequence[Batch], sampled: int, targets: Targets) -> Account:
        """Raises NotConserved where what went in did not come out and is not there."""
        flow, output = self._flow, self._flow.lengths.output
        flow.pass_to(self._now_s())
        under_way = flow.waiting + flow.running
        over = flow.finished + flow.refused + under_way
        if abs(over - flow.arrived) > CONSERVED * max(1.0, flow.arrived):
            raise NotConserved(f"{flow.arrived} requests came, and {over} are accounted for")
        done = [
            Generation(
                number,
                one.arrival_s,
                flow.lengths.input,
                output,
                held=output,
                shown=output,
                first_s=one.first_s,
                last_s=one.last_s,
            )
            for number, one in enumerate(flow.done)
        ]
        parcels = [(one, parcel.requests) for one, parcel in zip(done, flow.done, strict=True)]
        counts = self.counts
        return Account(
            counts.arrived - counts.finished - counts.refused,
            flow.finished + flow.refused,
            sum(requests for one, requests in parcels if within(one, targets)),
            weighted([(ttft_s(one), requests) for one, requests in parcels]),
            weighted([(tpot_s(one), requests) for one, requests in parcels]),
            weighted([(e2e_s(one), requests) for one, requests in parcels]),
            round(flow.again),
            round(flow.finished * output + flow.tokens()),
            tuple(done),
        )

    def moves_between(self, from_s: float, until_s: float) -> Moves:
        """Of requests that left a pipeline in that time, and have gone on."""
        began_s = self._began_s if self._began_s is not None else 0.0
        found = [
            (one.gap_s, one.requests)
            for one in self._flow.moved
            if from_s <= began_s + one.at_s < until_s
        ]
        count = round(sum(requests for _, requests in found))
        longest = max((gap_s for gap_s, _ in found), default=0.0)
        return Moves(count, weighted(found)["p50"], longest)
