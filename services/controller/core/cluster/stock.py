"""What nodes without a place are to hold: as many stages each as fit, the likeliest to be lost
first, and each first what those before it lack. It looks at no others, so that all come to rest.

One stage more at a time, so that what is there counts at once and a failure is known for its own.
How much fits is the node's to say: it is told in which order stages have memory, and what it has no
room for stays left out until that order is another one. Stages that are equally likely to be lost
are in the order in which they are held, so none makes room for its like.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from services.common.nodes import MOST_STAGES
from services.controller.core.cluster.node import HeldStage, Node

Fits = Callable[[Node, HeldStage], bool]
"""A node could sit where the stage is."""


@dataclass(frozen=True, slots=True)
class StageAtRisk:
    """A stage of the plan, and how likely its loss is."""

    stage: HeldStage
    hazard: float = 0.0
    """Interruptions an hour of all nodes that have it."""
    on_spot: int = 0
    """How many of them may be taken away."""
    nodes: int = 1

    @property
    def rank(self) -> tuple[float, int, int]:
        """The likeliest to be lost first."""
        return -self.hazard, -self.on_spot, -self.nodes

    @property
    def tie(self) -> tuple[int, str, int]:
        """Among equals, what takes longest to load."""
        layers = self.stage.layers
        return layers.start - layers.end, self.stage.model.model_id, layers.start


@dataclass(frozen=True, slots=True)
class More:
    """What a node is to be asked for."""

    node: Node
    stage: HeldStage
    """What it is to hold now."""
    among: tuple[HeldStage, ...]
    """All it is to hold, those first that have memory first."""


def by_risk(stages: Iterable[StageAtRisk]) -> list[StageAtRisk]:
    """The likeliest to be lost first."""
    return sorted(stages, key=lambda one: (one.rank, one.tie))


def restock(nodes: Sequence[Node], stages: Sequence[StageAtRisk], fits: Fits) -> list[More]:
    """What to ask next of those that load nothing, one stage each at most; in the order in which
    they came. What nodes of another backend have counts for nothing."""
    of_backends: dict[str, Counter[HeldStage]] = {}
    asks = []
    for node in nodes:
        copies = of_backends.setdefault(node.shape.backend, Counter())
        more = None
        if node.loading is None:
            more = _more(node, _wanted(node, stages, copies, fits))
        if more is not None:
            asks.append(more)
        loading = node.loading if more is None else more.stage
        copies.update(node.stages)
        if loading is not None and loading not in node.stages:
            copies[loading] += 1  # there may be no room for it: it will say so
    return asks


def _wanted(
    node: Node, stages: Sequence[StageAtRisk], copies: Counter[HeldStage], fits: Fits
) -> list[HeldStage]:
    """What is wanted of a node, the most wanted first: what fewest of those before it have, as
    `copies` says, and of that what is likeliest to be lost. All of one model, as an engine holds
    them."""

    def order(one: StageAtRisk) -> tuple[int, tuple[float, int, int], bool, tuple[int, str, int]]:
        return copies[one.stage], one.rank, one.stage not in node.stages, one.tie

    able = [one for one in stages if one.stage not in node.unfit and fits(node, one.stage)]
    found = [one.stage for one in sorted(able, key=order)]
    return [one for one in found if one.model == found[0].model][:MOST_STAGES]


def _more(node: Node, wanted: Sequence[HeldStage]) -> More | None:
    """The next stage that it is to hold, or to try again since others have memory behind it now;
    None where it has all that it can."""
    known = node.asked or node.stages
    tried = tuple(stage for stage in wanted if stage in known)
    for place, stage in enumerate(tried):
        ahead = tried[:place]
        if stage not in node.stages and _makes_room(node, known[: known.index(stage)], ahead):
            return More(node, stage, tried)
    new = next((stage for stage in wanted if stage not in known), None)
    if new is None:
        return None
    return More(node, new, tuple(one for one in wanted if one in known or one == new))


def _makes_room(node: Node, before: Sequence[HeldStage], ahead: Sequence[HeldStage]) -> bool:
    """Something that it holds had memory `before` a stage, and is not `ahead` of that any more."""
    return any(one in node.stages and one not in ahead for one in before)
