"""What is to be served: the models, and what each one's pipelines are chosen for.

The wish of operators, durable by itself: a plan follows from it, and a plan that lacks one of them,
or has one of which nobody knows any more, is made anew.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from services.common.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from services.common.generation import ModelRef
from services.controller.core.cluster.plan import THROUGHPUT
from services.controller.core.model_facts import ModelFacts

VERSION = 1
MAX_GOALS = 64
"""Models in one mesh; a router keeps as many."""
MAX_WEIGHT = 1e6
MAX_TARGET_S = 1e6
OBJECTIVES = (THROUGHPUT, "throughput-per-cost", "goodput-per-cost")
"""What a better plan has more of."""


@dataclass(frozen=True, slots=True)
class Aim:
    """What a model's pipelines are chosen for. Raises InvalidArgument, naming the field."""

    objective: str = THROUGHPUT
    ttft_target_s: float = 0.0
    """Longest mean time to first token; 0 does not bind."""
    tpot_target_s: float = 0.0
    """Longest mean time per output token; 0 does not bind."""
    weight: float = 1.0
    """Its share against the others', where they compete for nodes."""

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise InvalidArgument(f"objective is one of {', '.join(OBJECTIVES)}", field="objective")
        for name in ("ttft_target_s", "tpot_target_s"):
            if not 0 <= getattr(self, name) <= MAX_TARGET_S:
                raise InvalidArgument(f"{name} lies in [0, {MAX_TARGET_S:g}]", field=name)
        if not (math.isfinite(self.weight) and 0 < self.weight <= MAX_WEIGHT):
            raise InvalidArgument(f"weight lies in (0, {MAX_WEIGHT:g}]", field="weight")

    @property
    def is_plain(self) -> bool:
        """Requests a second and nothing else: what every planner looks for."""
        targets = self.ttft_target_s or self.tpot_target_s
        return self.objective == THROUGHPUT and not targets


@dataclass(frozen=True, slots=True)
class Goal:
    """A model that is to be served."""

    facts: ModelFacts
    aim: Aim = field(default_factory=Aim)

    @property
    def model(self) -> ModelRef:
        return self.facts.ref


@dataclass(frozen=True, slots=True)
class Goals:
    """All of them. Raises InvalidArgument for none, and for two of one name."""

    first: Goal
    """What the settings name; operators may have taken it out since."""
    deployed: tuple[Goal, ...]
    _by_name: dict[str, Goal] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        named = {goal.model.model_id: goal for goal in self.deployed}
        if not named or len(named) != len(self.deployed):
            raise InvalidArgument("one model at least, each of them once", field="deployments")
        object.__setattr__(self, "_by_name", named)

    @classmethod
    def of(cls, first: Goal) -> Goals:
        """One model."""
        return cls(first, (first,))

    def begun_with(self, first: Goal) -> Goals:
        """The same after a start whose settings name `first`: what they named before goes, where
        they name something else now, and what operators deployed stays."""
        if first.model == self.first.model:
            deployed = tuple(first if one.model == first.model else one for one in self.deployed)
            return Goals(first, deployed)
        others = {first.model.model_id, self.first.model.model_id}
        rest = (goal for goal in self.deployed if goal.model.model_id not in others)
        return Goals(first, (first, *rest))

    def find(self, model_id: str) -> Goal | None:
        """By its name."""
        return self._by_name.get(model_id)

    def have(self, model: ModelRef) -> bool:
        """This very version is to be served."""
        goal = self.find(model.model_id)
        return goal is not None and goal.facts.digest == model.digest

    @property
    def models(self) -> frozenset[ModelRef]:
        return frozenset(goal.model for goal in self.deployed)

    def adding(self, goal: Goal) -> Goals:
        """Raises AlreadyExists, and ResourceExhausted for more than there may be."""
        model = goal.model
        held = self.find(model.model_id)
        if held is not None:
            digest = held.model.digest[:12]
            same = "" if held.model == model else "; undeploy it to serve another version"
            message = f"{model.model_id} is deployed, in version {digest}{same}"
            raise AlreadyExists(message, field="model")
        if len(self.deployed) >= MAX_GOALS:
            raise ResourceExhausted(f"a mesh serves at most {MAX_GOALS} models", field="model")
        return replace(self, deployed=(*self.deployed, goal))

    def removing(self, model_id: str) -> Goals:
        """Raises NotFound, and FailedPrecondition for the last one."""
        if self.find(model_id) is None:
            raise NotFound(f"{model_id} is not deployed", field="model")
        rest = tuple(goal for goal in self.deployed if goal.model.model_id != model_id)
        if not rest:
            message = f"{model_id} is the last model that is deployed; `shunt down` ends the mesh"
            raise FailedPrecondition(message, field="model")
        return replace(self, deployed=rest)

    # As a note

    def to_json(self) -> str:
        """One line, keys sorted."""
        document = {
            "version": VERSION,
            "first": asdict(self.first),
            "deployed": [asdict(goal) for goal in self.deployed],
        }
        return json.dumps(document, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Goals:
        """Raises DataLoss for what `to_json` never wrote."""
        try:
            document = json.loads(text)
            return cls(_goal(document["first"]), tuple(map(_goal, document["deployed"])))
        except (TypeError, ValueError, KeyError, InvalidArgument) as error:
            raise DataLoss(f"the journaled deployments cannot be read: {error}") from error


def _goal(item: Any) -> Goal:
    return Goal(ModelFacts.of(item["facts"]), Aim(**item["aim"]))
