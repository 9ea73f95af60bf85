from __future__ import annotations

import json
from dataclasses import replace

import pytest

from services.common.errors import InvalidArgument, Unavailable
from services.common.generation import LayerRange
from services.controller.core.cluster.market import Market, Offer
from services.controller.diffs import Estimated, Estimating, PlanDiff, plan_diff
from tests.unit.controller.small_cluster import PATIENT, SHAPE, ready

OFFER = Offer("spot", "spot", SHAPE, count=3, price_per_hour=0.5)
FAST = Offer("fast", "fast", replace(SHAPE, relative_speed=9.0), count=3, price_per_hour=2.0)
WHOLE = LayerRange(0, 30)


class Estimator:
    """Placement, which finds everything equal."""

    def __init__(self, *, away: bool = False) -> None:
        self.asked: list[Estimating] = []
        self.away = away

    async def estimate(self, question: Estimating) -> Estimated:
        self.asked.append(question)
        if self.away:
            raise Unavailable("placement is away")
        return Estimated(10.0 * len(question.pipelines), dict.fromkeys(question.nodes, 7))


def plan_of(*nodes: str, offer: str = "") -> str:
    """A pipeline a node; one without a name is bought."""
    pipelines = [
        {
            "id": f"p{n}",
            "stages": [{"layers": [0, 30], "node": node, "offer": "" if node else offer}],
        }
        for n, node in enumerate(nodes)
    ]
    return json.dumps({"deployments": [{"model": "m", "pipelines": pipelines}]})


async def found(text: str, market: Market, placement: Estimator) -> PlanDiff:
    cluster = ready(PATIENT)
    return await plan_diff(text, cluster=cluster, market=market, placement=placement, now_s=1.0)


def market_of(*offers: Offer) -> Market:
    market = Market()
    market.update(offers)
    for node_id in ("node-1", "node-2"):
        market.found(node_id, "spot")
    return market


async def test_what_is_launched_and_freed_is_in_the_cost() -> None:
    placement = Estimator()
    diff = await found(plan_of("node-1", "", offer="fast"), market_of(OFFER, FAST), placement)
    assert (diff.cost_before, diff.cost_after) == (1.0, 2.5)
    assert {name: offer and offer.offer_id for name, offer in diff.launched.items()} == {
        "node-3": "fast"
    }
    assert diff.cluster.freed == ("node-2",)
    assert (diff.now, diff.after) == (
        Estimated(10.0, {"node-1": 7, "node-2": 7}),
        Estimated(20.0, {"node-1": 7, "node-3": 7}),
    )
    now, after = placement.asked
    assert [[s.layers for s in stages] for stages in now.pipelines] == [
        [LayerRange(0, 18), LayerRange(18, 30)]
    ]
    assert after.nodes == {"node-1": (SHAPE, OFFER), "node-3": (FAST.shape, FAST)}
    assert after.resident.keys() == {"node-1"}


async def test_a_price_that_nobody_names_makes_the_cost_unknown() -> None:
    unpriced = replace(FAST, price_per_hour=None)
    diff = await found(plan_of("node-1", "", offer="fast"), market_of(OFFER, unpriced), Estimator())
    assert (diff.cost_before, diff.cost_after) == (1.0, None)
    nobody = await found(plan_of("node-1", ""), Market(), Estimator())
    assert nobody.launched == {"node-3": None}
    assert (nobody.cost_before, nobody.cost_after) == (None, None)


async def test_without_placement_the_rest_is_told() -> None:
    diff = await found(plan_of("node-1"), market_of(OFFER), Estimator(away=True))
    assert (diff.now, diff.after, diff.estimates_lack) == (None, None, "placement is away")
    assert diff.cluster.freed == ("node-2",)
    assert diff.cost_after == 0.5


async def test_it_is_refused_as_its_application_would_be() -> None:
    text = plan_of("node-1").replace('"model": "m"', '"model": "x"')
    with pytest.raises(InvalidArgument, match="m is what is served"):
        await found(text, Market(), Estimator())
