"""A service of replicas, each whole on one node, in the controller's place: what SkyServe decides,
done to the same provider, nodes and router."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from services.common.demand import Demand
from services.common.errors import FailedPrecondition, ShuntError
from services.common.exchange import Route
from services.common.generation import LayerRange, ModelRef
from services.common.nodes import Member, NodeFacts
from services.controller.core.cluster.actions import FormPipeline, Loaded, LoadStage
from services.controller.core.cluster.market import LaunchFailed, NodeGone, Offer, ProviderEvent
from services.controller.core.ledger.outcomes import ServingHead
from services.engine.backend import BLOCK_SIZE
from simulator.environment.addresses import CONTROLLER, ROUTERS
from simulator.environment.environment import Environment
from simulator.environment.network import Process, Reply, Stream
from simulator.fleet.skyserve import Counts, SpotHedge
from simulator.processes.provider import SimulatedProvider

DECIDES_S = 10.0
"""Between two decisions."""
LEAVES_S = 60.0
"""A replica that is not needed takes nothing new, and ends so much later."""
CALL_S = 7200.0


@dataclass(slots=True)
class _Replica:
    node_id: str
    offer: Offer
    route: Route | None = None
    """Once it is ready."""
    leaves: bool = False


class Replicas(Process):
    """Notices are not heard of: a replica that is taken is missed when it is gone."""

    def __init__(
        self,
        environment: Environment,
        provider: SimulatedProvider,
        model: ModelRef,
        layers: int,
        target: int,
        extra: int,
    ) -> None:
        super().__init__(CONTROLLER, environment.network)
        self._provider, self._model, self._layers = provider, model, LayerRange(0, layers)
        self._target = target
        offers = {offer.offer_id: offer for offer in provider.offers()}
        self._zones = [name for name, offer in offers.items() if offer.spot]
        self._policy = SpotHedge(self._zones, target, extra)
        self._replicas: dict[str, _Replica] = {}
        self._launched = 0
        self.every(DECIDES_S, self._decide)

    @property
    def pipelines(self) -> int:
        """Replicas that take requests."""
        return len(self._routes())

    def heads(self, now_s: float) -> tuple[ServingHead, ...]:
        """None has a phase, and nothing is handed on."""
        return ()

    def serves_whole(self) -> bool:
        """As many as should be ready are."""
        return self.pipelines >= self._target

    # Decisions

    def _decide(self) -> None:
        mine = [one for one in self._replicas.values() if not one.leaves]
        spot = [one for one in mine if one.offer.spot]
        ready = sum(one.route is not None for one in spot)
        step = self._policy.step(Counts(len(spot), ready, len(mine) - len(spot)))
        offers = {offer.offer_id: offer for offer in self._provider.offers()}
        prices = {name: offers[name].price_per_hour or 0.0 for name in self._zones}
        placed = Counter(one.offer.offer_id for one in spot)
        for _ in range(step.spot):
            zone = self._policy.zone(prices, placed)
            placed[zone] += 1
            self._launch(offers[zone])
        firm = [offer for offer in offers.values() if not offer.spot]
        for _ in range(step.on_demand if firm else 0):
            self._launch(min(firm, key=lambda offer: offer.price_per_hour or 0.0))
        surplus = [one for one in mine if not one.offer.spot][: max(0, -step.on_demand)]
        for one in surplus:
            self._let_go(one)

    def _launch(self, offer: Offer) -> None:
        self._launched += 1
        replica = _Replica(f"replica-{self._launched}", offer)
        self._replicas[replica.node_id] = replica
        self._provider.launch(replica.node_id, offer)

    def _let_go(self, replica: _Replica) -> None:
        replica.leaves = True
        self._tell_routes()
        self.after(LEAVES_S if replica.route is not None else 0.0, self._end, replica)

    def _end(self, replica: _Replica) -> None:
        try:
            self._provider.terminate(replica.node_id)
        except FailedPrecondition:
            self._replicas.pop(replica.node_id, None)

    # What others tell

    def provider_says(self, event: ProviderEvent) -> None:
        """A node has ended, or a launch came to nothing."""
        if not isinstance(event, NodeGone | LaunchFailed):
            return
        replica = self._replicas.pop(event.node_id, None)
        if replica is None:
            return
        if replica.offer.spot and not replica.leaves:
            self._policy.took(replica.offer.offer_id)
        self._tell_routes()

    def reported(self, router_id: str, measured_s: float, demands: dict[str, Demand]) -> None:
        """What a router was asked for: as many replicas as before."""

    def beats(self, stream: Stream, incarnation: str) -> None:
        """A node's signs of life."""

    def register(self, reply: Reply, facts: NodeFacts) -> None:
        """A node is there: it loads the whole model."""
        reply(None)
        load = LoadStage(
            facts.node_id,
            facts.incarnation,
            facts.address,
            self._model,
            self._layers,
            facts.shape.device_count,
        )
        loaded = partial(self._loaded, facts)
        self.call(facts.incarnation, "hold", (load,), loaded, CALL_S)

    def _loaded(self, facts: NodeFacts, result: ShuntError | Loaded) -> None:
        replica = self._replicas.get(facts.node_id)
        if isinstance(result, ShuntError) or replica is None or replica.route is not None:
            return
        name, degree = f"{facts.node_id}-whole", facts.shape.device_count
        member = Member(facts.node_id, facts.incarnation, facts.address, self._layers, degree)
        form = FormPipeline(name, facts.node_id, self._model, (member,), result.kv_blocks)
        positions = result.kv_blocks * BLOCK_SIZE
        route = Route(name, name, facts.incarnation, facts.address, 1.0, self._model, positions)
        self.call(
            facts.incarnation, "form", (form, 0), partial(self._formed, replica, route), CALL_S
        )

    def _formed(self, replica: _Replica, route: Route, result: ShuntError | None) -> None:
        if result is None and self._replicas.get(replica.node_id) is replica:
            replica.route = route
            if replica.offer.spot:
                self._policy.gave(replica.offer.offer_id)
            self._tell_routes()

    def _routes(self) -> Sequence[Route]:
        return [
            one.route for one in self._replicas.values() if one.route is not None and not one.leaves
        ]

    def _tell_routes(self) -> None:
        for router in self.network.living(ROUTERS):
            self.network.tell(router, "update", tuple(self._routes()), (), after_s=0.002)
