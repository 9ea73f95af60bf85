"""Which engines Prometheus is to ask, in the form of its HTTP service discovery
(https://prometheus.io/docs/prometheus/latest/http_sd/): a group a node, told by labels that its
relabelling may keep."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

from services.controller.core.cluster.actions import NodeState
from services.controller.core.cluster.market import Offer
from services.controller.core.cluster.views import NodeView

NOBODY = b"[]"
LABELS = ("node", "pipeline", "stage", "model", "zone", "market", "pool", "instance_type")
"""Each behind `__meta_shunt_`; empty where it is not known."""


def targets(nodes: Iterable[NodeView], offer_of: Callable[[str], Offer | None]) -> bytes:
    """Of the nodes that are there and show metrics."""
    asked = (node for node in nodes if node.metrics_address and node.state is not NodeState.LOST)
    return json.dumps([_group(node, offer_of(node.node_id)) for node in asked]).encode()


def _group(node: NodeView, offer: Offer | None) -> dict[str, object]:
    machine = node.machine
    spot = machine.spot if machine.spot is not None or offer is None else offer.spot
    values = (
        node.node_id,
        node.pipeline_id,
        "" if node.stage_index is None else str(node.stage_index),
        node.model_id,
        machine.zone or "",
        {None: "", True: "spot", False: "on_demand"}[spot],
        machine.pool or (offer.pool if offer is not None else ""),
        machine.instance_type or (offer.instance_type if offer is not None else ""),
    )
    return {
        "targets": [node.metrics_address],
        "labels": {f"__meta_shunt_{k}": v for k, v in zip(LABELS, values, strict=True)},
    }
