"""Where to find what of the state, so that what an event costs does not grow with the cluster.

Nodes and pipelines say so when they are touched, and are looked at once behind it: who sits where,
who sits nowhere, and who is at rest. Of what is at rest nothing is lacking, nothing falls due and
nothing fails, until it is touched again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from services.controller.core.cluster.node import Node
from services.controller.core.cluster.pipeline import Pipeline


@dataclass(slots=True)
class Touched:
    """Ids of nodes and pipelines that were made, changed or removed since somebody looked."""

    nodes: dict[str, None] = field(default_factory=dict)
    """Keys alone: in order."""
    pipelines: dict[str, None] = field(default_factory=dict)

    def clear(self) -> None:
        self.nodes.clear()
        self.pipelines.clear()


class Indexes:
    """Of nodes and pipelines that another one keeps, and tells of."""

    def __init__(self, nodes: Mapping[str, Node], pipelines: Mapping[str, Pipeline]) -> None:
        self._nodes = nodes
        self._pipelines = pipelines
        self.unwritten = Touched()
        """Cleared by whoever keeps notes."""
        self._unseen = Touched()
        self._ranks: dict[str, int] = {}
        """The order in which nodes and pipelines came."""
        self._next_rank = count()
        self._sitting: dict[str, tuple[str, ...]] = {}
        """Nodes by the pipeline of the plan in which they have a seat, or are to."""
        self._by_node: dict[str, dict[str, None]] = {}
        """The same by node."""
        self._seatless: set[str] = set()
        self._restless_nodes: set[str] = set()
        self._restless_pipelines: set[str] = set()

    # What is told

    def node(self, node: Node) -> None:
        """It is kept from now on."""
        node.touched = partial(self.touch_node, node.node_id)
        self._ranks.setdefault(node.node_id, next(self._next_rank))
        self.touch_node(node.node_id)

    def pipeline(self, pipeline: Pipeline) -> None:
        """It is kept from now on."""
        touched = partial(self.touch_pipeline, pipeline.pipeline_id)
        pipeline.touched = touched
        for seat in pipeline.seats:
            seat.touched = touched
        self._ranks.setdefault(pipeline.pipeline_id, next(self._next_rank))
        self.touch_pipeline(pipeline.pipeline_id)

    def touch_node(self, node_id: str) -> None:
        """It has changed, or is no more."""
        self.unwritten.nodes[node_id] = self._unseen.nodes[node_id] = None

    def touch_pipeline(self, pipeline_id: str) -> None:
        """It or a seat of it has changed, or it is no more."""
        self.unwritten.pipelines[pipeline_id] = self._unseen.pipelines[pipeline_id] = None

    # What is asked

    def pipelines_of(self, node_id: str) -> list[Pipeline]:
        """Those of the plan in which the node has a seat, or is to."""
        self._look()
        return [self._pipelines[name] for name in self._by_node.get(node_id, ())]

    def seatless(self) -> list[Node]:
        """Nodes that have no seat by the plan."""
        self._look()
        return [self._nodes[node_id] for node_id in self._in_order(self._seatless)]

    def restless_nodes(self) -> list[Node]:
        """Those that are not just there, with what they hold."""
        self._look()
        return [self._nodes[node_id] for node_id in self._in_order(self._restless_nodes)]

    def restless_pipelines(self) -> list[Pipeline]:
        """Those that do not just serve."""
        self._look()
        return [self._pipelines[name] for name in self._in_order(self._restless_pipelines)]

    def _in_order(self, names: Iterable[str]) -> list[str]:
        return sorted(names, key=self._ranks.__getitem__)

    def _look(self) -> None:
        """At what was touched."""
        unseen = self._unseen
        if not unseen.nodes and not unseen.pipelines:
            return
        for name in unseen.pipelines:
            self._seat(name)
        stirred = dict(unseen.pipelines)
        for node_id in unseen.nodes:
            stirred |= self._by_node.get(node_id, {})
            self._look_at(node_id)
        unseen.clear()
        for name in stirred:
            pipeline = self._pipelines.get(name)
            if pipeline is not None and not self._serves_at_rest(pipeline):
                self._restless_pipelines.add(name)
            else:
                self._restless_pipelines.discard(name)
            if pipeline is None:
                self._ranks.pop(name, None)

    def _seat(self, name: str) -> None:
        for node_id in self._sitting.pop(name, ()):
            places = self._by_node.get(node_id, {})
            places.pop(name, None)
            if not places:
                self._by_node.pop(node_id, None)
            self._unseen.nodes[node_id] = None
        pipeline = self._pipelines.get(name)
        if pipeline is None or pipeline.retiring:
            return
        self._sitting[name] = tuple(n for seat in pipeline.seats for n in seat.node_ids)
        for node_id in self._sitting[name]:
            self._by_node.setdefault(node_id, {})[name] = None
            self._unseen.nodes[node_id] = None

    def _look_at(self, node_id: str) -> None:
        node = self._nodes.get(node_id)
        if node is None:
            self._ranks.pop(node_id, None)
        _keep(self._seatless, node_id, node is not None and node_id not in self._by_node)
        _keep(self._restless_nodes, node_id, node is not None and not _at_rest(node))

    def _serves_at_rest(self, pipeline: Pipeline) -> bool:
        if not pipeline.is_ready or pipeline.handover is not None or pipeline.retiring:
            return False
        if pipeline.stalled or pipeline.unlike or pipeline.forms.failures:
            return False
        for seat in pipeline.seats:
            node = self._nodes.get(seat.node_id)
            if node is None or seat.successor_id or seat.launches.failures or seat.given_up:
                return False
            if not _at_rest(node) or not node.holds(seat.stage):
                return False
        return True


def _keep(names: set[str], name: str, belongs: bool) -> None:
    (names.add if belongs else names.discard)(name)


def _at_rest(node: Node) -> bool:
    """Present, it stays, and there is nothing that it has failed to do or does."""
    if node.lost or node.facts is None or node.outgoing or node.leaving:
        return False
    return node.loading is None and node.refused is None and not node.released
