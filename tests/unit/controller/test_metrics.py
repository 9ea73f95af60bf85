"""What Prometheus sees of money, faults, notices and pipelines that do not serve."""

from __future__ import annotations

import math
from typing import Any

from prometheus_client import REGISTRY

from services.common.nodes import NodeShape
from services.controller import metrics
from services.controller.core.cluster.faults import FaultKind, FaultView
from services.controller.core.cluster.market import Market, Offer
from services.controller.journal.journal import LoggedEvent


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"shunt_controller_{name}", labels)


def test_money_is_what_nodes_cost_and_nothing_where_that_is_not_known() -> None:
    market = Market()
    shape = NodeShape(1, 1.0)
    market.update(
        [
            Offer("spot", "t", shape, 4, price_per_hour=0.5, spot=True),
            Offer("sure", "t", shape, 4, price_per_hour=2.0),
        ]
    )
    market.launch("a", "spot")
    market.launch("b", "spot")
    metrics.show_money(market, 3.0)
    assert value("cost_dollars_per_hour") == 1.0
    assert value("on_demand_dollars_per_hour") == 4.0
    assert value("budget_dollars_per_hour") == 3.0
    market.found("c", "unknown")
    metrics.show_money(market, 0.0)
    assert math.isnan(value("cost_dollars_per_hour") or 0.0)
    assert math.isnan(value("on_demand_dollars_per_hour") or 0.0)


def test_a_model_that_is_deployed_no_more_is_not_told_of() -> None:
    metrics.show_down({"a": 3.0}, ["a", "b"])
    assert value("pipeline_down_seconds", model="a") == 3.0
    assert value("pipeline_down_seconds", model="b") == 0.0
    metrics.show_down({}, ["b"])
    assert value("pipeline_down_seconds", model="a") is None


def test_of_each_kind_of_fault_the_longest_row_is_told() -> None:
    def fault(kind: FaultKind, failures: int) -> FaultView:
        return FaultView(kind, "", "", "", 0.0, failures, False)

    metrics.show_faults([fault(FaultKind.LOAD, 2), fault(FaultKind.LOAD, 5)])
    assert value("faults", kind="load") == 5
    metrics.show_faults([])
    assert value("faults", kind="load") == 0


def test_notices_count_by_who_gave_them() -> None:
    def event(what: str, **attributes: Any) -> LoggedEvent:
        return LoggedEvent(1, 0.0, what, "n", "", "", attributes, 0)

    before = value("notices_total", kind="spot") or 0.0
    lost = value("events_total", kind="node_lost") or 0.0
    metrics.count_event(event("interruption_noticed", kind="spot"))
    metrics.count_event(event("node_lost", cause="connection refused"))
    assert value("notices_total", kind="spot") == before + 1
    assert value("events_total", kind="node_lost") == lost + 1
