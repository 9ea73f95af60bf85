"""What a node is told when it comes, and when it is to hold something."""

from __future__ import annotations

from services.controller.core.cluster.actions import Action, LaunchNode, LoadStage, LogEvent
from services.controller.core.cluster.node import HeldStage, Node


def launched(node: Node, pipeline_id: str = "", offer_id: str = "") -> list[Action]:
    """Starts the node, and says so; those for the first plan are of no pipeline yet."""
    return [
        LaunchNode(node.node_id, node.shape, offer_id),
        LogEvent("node_launched", node.node_id, pipeline_id),
    ]


def load(node: Node, stage: HeldStage) -> LoadStage:
    """Has a node that registered hold a stage, beside whatever else it was asked for."""
    if node.facts is None:
        raise AssertionError
    return LoadStage(
        node.node_id,
        node.facts.incarnation,
        node.facts.address,
        stage.model,
        stage.layers,
        stage.tp_degree,
        tuple(one.spec for one in node.asked),
    )
