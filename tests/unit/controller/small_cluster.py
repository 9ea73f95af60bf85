"""A cluster core of one pipeline on two nodes, and what its tests say and read."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf
from typing import Any, TypeVar

from services.common.generation import LayerRange, ModelRef
from services.common.nodes import NodeFacts, NodeShape, StageSpec
from services.controller.core.cluster.actions import (
    Action,
    AskPlan,
    Beat,
    FormPipeline,
    Loaded,
    LoadStage,
    LogEvent,
    PersistCluster,
    RoutesChanged,
)
from services.controller.core.cluster.cluster import Cluster
from services.controller.core.cluster.goals import Goal
from services.controller.core.cluster.plan import (
    THROUGHPUT,
    Deployment,
    Plan,
    PlannedPipeline,
    PlannedStage,
)
from services.controller.core.cluster.settings import ClusterSettings
from services.controller.core.model_facts import ModelFacts

SHAPE = NodeShape(1 << 30, 1.0)
GOAL = Goal(ModelFacts("m", "d", 30, 1000, 8192, "{}"))
SETTINGS = ClusterSettings(GOAL, (SHAPE, SHAPE), expected_nodes=2, pipelines=1, node_lost_s=1.0)
PATIENT = replace(SETTINGS, node_lost_s=1e6, empty_node_lost_s=1e6)
"""Nobody needs to beat."""
FRONT, BACK = LayerRange(0, 18), LayerRange(18, 30)
A = TypeVar("A", bound=Action)


class Prompt:
    """A cluster that is asked behind each event what comes of it: events answer with actions, and
    `tick` is an advance without one."""

    def __init__(self, settings: ClusterSettings, draw_id: Callable[[], str], *more: Any):
        self.core = Cluster(settings, draw_id, *more)
        self.saved: dict[str, str] = {}
        """The notes that stand."""

    @classmethod
    def recover(
        cls,
        settings: ClusterSettings,
        draw_id: Callable[[], str],
        saved: dict[str, str],
        *more: Any,
    ) -> "Prompt":
        """`more`: the times, and what is deployed."""
        prompt = cls(settings, draw_id, *more)
        prompt.saved = dict(saved)
        prompt.core = Cluster.recover(settings, draw_id, saved, *more)
        return prompt

    def tick(self, now_s: float) -> list[Action]:
        actions = self.core.advance(now_s)
        for persist in all_of(actions, PersistCluster):
            save(self.saved, persist)
        return actions

    def __getattr__(self, name: str) -> Any:
        asked = getattr(self.core, name)
        if name not in EVENTS:
            return asked

        def told(*args: Any) -> list[Action]:
            asked(*args)
            stirred = self.core.wakes_at_s() == -inf
            return self.tick(args[-1]) if stirred else []

        return told


EVENTS = (
    "start",
    "register",
    "heartbeat",
    "node_gone",
    "launch_failed",
    "aim_at",
    "offers_changed",
    "plan_ready",
    "plan_failed",
    "load_done",
    "load_failed",
    "formed",
    "form_failed",
    "interrupt",
    "drained",
    "copied",
    "drain_failed",
)
"""The last argument of each is the time."""


def save(saved: dict[str, str], persist: PersistCluster) -> None:
    """As the journal does."""
    for key, note in persist.notes.items():
        if note is None:
            del saved[key]
        else:
            saved[key] = note


class Drawer:
    """Gives f1, f2 and so on."""

    def __init__(self) -> None:
        self.drawn = 0

    def __call__(self) -> str:
        self.drawn += 1
        return f"f{self.drawn}"


def drawer() -> Drawer:
    return Drawer()


def facts(node_id: str, incarnation: str = "") -> NodeFacts:
    name = incarnation or f"i-{node_id}"
    return NodeFacts(node_id, name, f"{name}:1", 7, SHAPE)


Stages = dict[str, LayerRange]
"""Layers by node, head first."""
PAIR: Stages = {"node-1": FRONT, "node-2": BACK}


def planned(
    *pipelines: Stages, number: int = 1, weight: float = 50.0, model: ModelRef = GOAL.model
) -> Plan:
    """Pipelines that are called pipeline-1, pipeline-2 and so on; stages of "?1" and "?2" are for
    any node."""
    made = tuple(
        PlannedPipeline(
            f"pipeline-{index}",
            tuple(
                PlannedStage(layers, 1, SHAPE, "" if node_id.startswith("?") else node_id)
                for node_id, layers in stages.items()
            ),
            weight,
        )
        for index, stages in enumerate(pipelines, 1)
    )
    return Plan(number, (Deployment(model, THROUGHPUT, made),))


def all_of(actions: Sequence[Action], kind: type[A]) -> list[A]:
    return [action for action in actions if isinstance(action, kind)]


def one_of(actions: Sequence[Action], kind: type[A]) -> A:
    (action,) = all_of(actions, kind)
    return action


def said(actions: Sequence[Action]) -> list[str]:
    return [event.kind for event in all_of(actions, LogEvent)]


def beat(
    cluster: Prompt, node_id: str, formation: str, now_s: float, **more: object
) -> list[Action]:
    return cluster.heartbeat(
        Beat(node_id, f"i-{node_id}", formation, **more),  # type: ignore[arg-type]
        now_s,
    )


def loaded(
    cluster: Prompt,
    node_id: str,
    layers: LayerRange,
    now_s: float,
    *,
    kv_blocks: int = 64,
    numerics_class: str = "a",
    held: bool = True,
    beside: Sequence[StageSpec] = (),
    model: ModelRef = GOAL.model,
) -> list[Action]:
    found = Loaded(kv_blocks, numerics_class, held, tuple(beside))
    return cluster.load_done(asked(node_id, layers, model), found, now_s)


def load_failed(
    cluster: Prompt,
    node_id: str,
    layers: LayerRange,
    now_s: float,
    reason: str = "no weights",
    *,
    permanent: bool = False,
    model: ModelRef = GOAL.model,
) -> list[Action]:
    return cluster.load_failed(asked(node_id, layers, model), reason, permanent, now_s)


def asked(node_id: str, layers: LayerRange, model: ModelRef = GOAL.model) -> LoadStage:
    """What the core asks a node's engine for."""
    return LoadStage(node_id, f"i-{node_id}", f"i-{node_id}:1", model, layers, 1)


def ready(settings: ClusterSettings = SETTINGS) -> Prompt:
    """One pipeline of node-1 and node-2, ready at 0 s in formation f1."""
    cluster = Prompt(settings, drawer(), 0.0, 0.0)
    cluster.start(0.0)
    cluster.register(facts("node-1"), 0.0)
    ask = one_of(cluster.register(facts("node-2"), 0.0), AskPlan)
    assert [node.node_id for node in ask.nodes] == ["node-1", "node-2"]
    loads = all_of(cluster.plan_ready(planned(PAIR), 0.0), LoadStage)
    assert [(load.node_id, load.layers) for load in loads] == [("node-1", FRONT), ("node-2", BACK)]
    assert all_of(loaded(cluster, "node-1", FRONT, 0.0), FormPipeline) == []
    form = one_of(loaded(cluster, "node-2", BACK, 0.0, kv_blocks=32), FormPipeline)
    assert ([m.node_id for m in form.members], form.kv_blocks) == (["node-1", "node-2"], 32)
    assert one_of(cluster.formed(form.formation_id, 0.0), RoutesChanged).version == 1
    return cluster


def replaced(cluster: Prompt, now_s: float, layers: LayerRange = BACK) -> list[Action]:
    """node-3 comes and loads."""
    load = one_of(cluster.register(facts("node-3"), now_s), LoadStage)
    assert load.layers == layers
    return loaded(cluster, "node-3", layers, now_s)
