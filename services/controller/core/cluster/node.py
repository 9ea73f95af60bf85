"""A node as the cluster core holds it, and what can happen to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from services.common.generation import LayerRange, ModelRef
from services.common.nodes import NodeFacts, NodeShape, StageSpec
from services.controller.core.cluster.actions import Loaded, NodeState
from services.controller.core.cluster.backoff import Backoff
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.cluster.transitions import Noun, need


@dataclass(frozen=True, slots=True)
class HeldStage:
    """What of a model a node holds, loads or has refused."""

    model: ModelRef
    layers: LayerRange
    tp_degree: int

    @property
    def spec(self) -> StageSpec:
        """Of its model."""
        return StageSpec(self.layers, self.tp_degree)


@dataclass(slots=True)
class Node(Noun):
    """A node, from its launch to some time after its loss. Only its own methods change it."""

    node_id: str
    shape: NodeShape
    since_s: float
    """Launched, registered or lost at."""
    launched: bool = False
    """The provider was asked for it; whatever else comes is not ours to end."""
    facts: NodeFacts | None = None
    """None until it registers."""
    offer_id: str = ""
    """What it was bought of, once that is known."""
    lost: bool = False
    leaving: bool = False
    """It was let go; it is not to be used again, unless it came by itself and its notice lapses."""
    held: HeldStage | None = None
    """What its next formation may count on. The stage of the one it is in stays as long as that
    lives, whatever else it is asked for."""
    kv_blocks: int = 0
    numerics_class: str = ""
    """Of the stage it holds."""
    stock: tuple[HeldStage, ...] = ()
    """What it holds in place of one stage alone: without a seat, as much as there is room for. A
    formation that is to have one of them has it hold that alone first, which loads nothing."""
    asked: tuple[HeldStage, ...] = ()
    """What it was asked to have in stock, those first that have memory first."""
    unfit: frozenset[HeldStage] = frozenset()
    """What it can never have in stock, as it said."""
    keeps: bool = False
    """What it is asked for was in stock."""
    loading: HeldStage | None = None
    fetched: HeldStage | None = None
    """What had no room beside the stage it serves with, and is in its node's store."""
    refused: HeldStage | None = None
    """What it failed to load last."""
    loads: Backoff = field(default_factory=Backoff)
    """Of what it refused."""
    served_s: float | None = None
    """When it first was in a formation that was ready."""
    deadline_s: float | None = None
    """It was given notice: it will be taken away then."""
    departs: bool = False
    """It gave that notice itself: there is no doubt about it."""
    taken: bool = False
    """A market takes it, then and no sooner: until then it may be made use of."""
    advised: bool = False
    """It is likely to be taken away: another one is to take its place, and until that can it serves
    as before."""
    released: bool = False
    """The plan it was there for is over."""
    touched: Callable[[], object] | None = field(default=None, repr=False, compare=False)

    @property
    def present(self) -> bool:
        """Registered and not lost."""
        return self.facts is not None and not self.lost

    @property
    def stays(self) -> bool:
        """It is there or starts, and is not about to go."""
        return not self.lost and not self.leaving and self.deadline_s is None

    @property
    def usable(self) -> bool:
        """It may be given a place."""
        return self.present and self.stays

    @property
    def outgoing(self) -> bool:
        """It was given notice, or advice: whoever is to follow it is looked for."""
        return self.advised or self.deadline_s is not None

    @property
    def incarnation(self) -> str:
        """Of its process; empty until it registers."""
        return self.facts.incarnation if self.facts is not None else ""

    def came_to_something(self, stable_s: float, now_s: float) -> bool:
        """It has served for a while."""
        return self.served_s is not None and now_s >= self.served_s + stable_s

    @property
    def stages(self) -> tuple[HeldStage, ...]:
        """All that it holds, but for what serves and nobody asks for any more."""
        return self.stock if self.held is None else (self.held,)

    @property
    def lacks(self) -> tuple[HeldStage, ...]:
        """What there is no room for beside what it has in stock, as far as it has said."""
        return tuple(s for s in self.asked if s not in (*self.stock, self.loading))

    def holds(self, stage: HeldStage) -> bool:
        """It is there and has this stage alone: a formation may count on it."""
        return self.present and self.held == stage

    def has(self, stage: HeldStage) -> bool:
        """It is there and need not load this stage."""
        return self.present and stage in self.stages

    def may_follow(self, settings: ClusterSettings, stage: HeldStage) -> bool:
        """Whoever runs the stage now may end for it: it has the stage, or may not load it before
        and is there."""
        return (
            self.present if not settings.strategy.concurrent_initialisation else self.holds(stage)
        )

    def has_fetched(self, stage: HeldStage) -> bool:
        """As much of it as there is room for while it serves with another one."""
        return self.present and self.fetched == stage

    def cannot_load(self, stage: HeldStage, attempts: int) -> bool:
        """It failed so often, or for good."""
        if self.loading is not None or self.refused != stage:
            return False
        return self.loads.permanent or self.loads.failures >= attempts

    def state(self, *, assigned: bool, serves: bool, spare: bool = False) -> NodeState:
        """As the status shows it; one that serves may load what it is to serve with next."""
        if self.lost:
            return NodeState.LOST
        if self.facts is None:
            return NodeState.STARTING
        if self.deadline_s is not None:
            return NodeState.DRAINING
        if self.loading is not None and not serves and not self.stock:
            return NodeState.LOADING
        if spare:
            return NodeState.SPARE
        ready = serves or (assigned and self.held is not None)
        return NodeState.READY if ready else NodeState.IDLE

    # Its life

    def register(self, facts: NodeFacts, now_s: float) -> tuple[bool, bool]:
        """Its process says what it is, for the first time or again; whether it is new, and whether
        it came back after it counted as lost. A process that is another one is another node."""
        need(
            self.facts is None or self.facts.incarnation == facts.incarnation,
            f"{self.node_id} cannot become another process",
        )
        new, returns = self.facts is None, self.facts is not None and self.lost
        if new:
            self.since_s = now_s
        self.lost = False
        self.facts, self.shape = facts, facts.shape
        return new, returns

    def replaced(self, shape: NodeShape, now_s: float) -> Node:
        """Another process has its name: another node, which the provider can end as this one."""
        return Node(self.node_id, shape, now_s, launched=self.launched)

    def lose(self, now_s: float) -> None:
        """It is gone, as far as is known."""
        need(not self.lost, f"{self.node_id} cannot be lost twice")
        self.lost, self.since_s, self.loading, self.deadline_s = True, now_s, None, None
        self.advised, self.asked = False, self.stock

    def give_notice(self, deadline_s: float, *, departs: bool = False, taken: bool = False) -> None:
        """It will be taken away then; `taken`: by a market, neither sooner nor later."""
        need(not self.lost, f"{self.node_id} is lost and cannot be given notice")
        self.deadline_s, self.taken = deadline_s, taken
        self.departs = self.departs or departs

    def advise(self) -> None:
        """It is likely to be taken away."""
        need(not self.lost, f"{self.node_id} is lost and nothing is advised of it")
        self.advised = True

    def lapse(self) -> None:
        """Its deadline passed and nothing happened: it may be used as before."""
        need(self.deadline_s is not None, f"{self.node_id} was given no notice")
        need(not self.departs, f"{self.node_id} departs: its notice does not lapse")
        self.deadline_s, self.leaving = None, False

    def leave(self) -> None:
        """It is let go."""
        self.leaving = True

    def buy(self, offer_id: str) -> None:
        """It is of this offer, whatever was planned."""
        self.offer_id = offer_id

    def release(self) -> None:
        """The plan has no place for it."""
        self.released = True

    def employ(self) -> None:
        """The plan has a place for it again."""
        self.released = False

    # What it holds

    def load(self, stage: HeldStage) -> None:
        """It is asked for a stage alone, in place of any other one; no formation may count on what
        it holds meanwhile."""
        need(self.loading != stage or bool(self.asked), f"{self.node_id} loads that already")
        if self.fetched != stage:
            self.fetched = None
        self.keeps = stage in self.stock
        self._ask(stage)
        self.stock = self.asked = ()

    def stock_up(self, stage: HeldStage, asked: tuple[HeldStage, ...]) -> None:
        """It is asked for one stage more, or again, among others, those first that have memory
        first. What stands behind it may have to make room."""
        need(self.loading is None, f"{self.node_id} loads already")
        need(stage in asked, f"{self.node_id} is asked for a stage that is left out")
        ahead = asked[: asked.index(stage)]
        self.stock = tuple(one for one in self.stages if one in ahead)
        self.fetched, self.keeps = None, False
        self._ask(stage)
        self.asked = asked

    def _ask(self, stage: HeldStage) -> None:
        need(self.present, f"{self.node_id} is not there and cannot load")
        if self.refused != stage:
            self.loads.succeed()
        self.loading, self.held = stage, None

    def loaded(self, loaded: Loaded) -> None:
        """It holds what it loaded; of what it was asked to have in stock, as much as it says."""
        need(self.loading is not None, f"{self.node_id} loads nothing")
        if self.asked:
            self.stock = tuple(one for one in self.asked if self._has_in(loaded, one))
        else:
            self.held = self.loading
            self.kv_blocks, self.numerics_class = loaded.kv_blocks, loaded.numerics_class
        self.loading, self.refused, self.fetched = None, None, None
        self.loads.succeed()

    def _has_in(self, loaded: Loaded, stage: HeldStage) -> bool:
        return loaded.held if stage == self.loading else stage.spec in loaded.beside

    def fetch(self) -> None:
        """What it was asked for has no room for now; its node's store has it."""
        need(self.loading is not None, f"{self.node_id} loads nothing")
        need(self.fetched != self.loading, f"{self.node_id} has fetched that already")
        self.fetched, self.loading, self.refused = self.loading, None, None
        self.loads.succeed()

    def refuse(self, settings: ClusterSettings, reason: str, permanent: bool, now_s: float) -> None:
        """It could not load what it was asked for."""
        need(self.loading is not None, f"{self.node_id} loads nothing")
        if permanent and self.asked and self.loading is not None:
            self.unfit |= {self.loading}
        self.refused, self.loading, self.asked = self.loading, None, self.stock
        self.loads.fail(
            now_s,
            reason,
            first_s=settings.retry_s,
            longest_s=settings.replace_max_s,
            node_id=self.node_id,
            permanent=permanent,
        )

    def forget_stage(self) -> None:
        """What it holds is of no use any more."""
        self.held, self.stock, self.asked = None, (), ()

    def serve(self, now_s: float) -> None:
        """Its formation is ready."""
        self.served_s = now_s if self.served_s is None else self.served_s
