from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import grpc
import pytest
from shuntserve.controller.v1 import controller_pb2 as pb

from services.common.nodes import NodeShape
from services.common.notices import NoticeKind
from services.controller.core.cluster.market import (
    LaunchFailed,
    NodeNotice,
    OffersChanged,
)

World = Any
CALL_S = 60.0
MARKET = """
offers:
  - {id: spot, instance_type: big, count: 5, price_per_hour: 0.25, pool: a, spot: true,
     relative_speed: 3, interruptions_per_hour: 0.5}
  - {id: demand, instance_type: big, count: 9, price_per_hour: 1, relative_speed: 3, launch_s: 2}
"""


async def _start(world: World, tmp_path: Path, **more: Any) -> list[Any]:
    path = tmp_path / "market.yaml"
    path.write_text(MARKET)
    await world.start(market_file=path, node_speeds="3:3,3:3", **more)
    return await world.routes(2)


async def _until(world: World, holds: Callable[[Any], bool]) -> Any:
    """The first status that holds."""
    async with asyncio.timeout(CALL_S):
        while True:
            status = await world.status()
            if holds(status):
                return status
            await asyncio.sleep(0.01)


def _offers(status: Any) -> Counter[str]:
    lost = pb.NODE_STATE_LOST
    return Counter(node.offer_id for node in status.nodes if node.state != lost)


async def test_the_status_tells_offers_and_what_the_nodes_cost(
    world: World, tmp_path: Path
) -> None:
    await _start(world, tmp_path)
    status = await world.status()
    spot, demand = status.offers
    assert (spot.offer_id, spot.instance_type, spot.count, spot.running) == ("spot", "big", 5, 4)
    assert (spot.price_per_hour, spot.pool, spot.spot) == (0.25, "a", True)
    assert (spot.relative_speed, spot.interruptions_per_hour, spot.declared) == (3.0, 0.5, True)
    assert (demand.offer_id, demand.running, demand.spot, demand.launch_s) == (
        "demand",
        0,
        False,
        2.0,
    )
    assert status.cost_per_hour == pytest.approx(1.0)
    assert status.on_demand_cost_per_hour == pytest.approx(4.0)
    assert _offers(status) == {"spot": 4}
    assert all(node.declared for node in status.nodes)


async def test_a_budget_counts_until_the_settings_name_another(
    world: World, tmp_path: Path
) -> None:
    await _start(world, tmp_path, budget_per_hour=2.0)
    status = await world.status()
    assert (status.budget_per_hour, status.strategy) == (2.0, "full")
    for wrong in (-1.0, nan):
        with pytest.raises(grpc.RpcError) as caught:
            await world.stub.Replan(pb.ReplanRequest(budget_per_hour=wrong), timeout=CALL_S)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "budget_per_hour lies in [0, 1e+09)" in caught.value.details()
    with pytest.raises(grpc.RpcError):  # this placement makes no next plan
        await world.stub.Replan(pb.ReplanRequest(budget_per_hour=1.25), timeout=CALL_S)
    event = await world.until_event("budget_changed")
    assert event.attributes == {"before": "2", "now": "1.25"}
    for named, counts in ((2.0, 1.25), (3.0, 3.0)):
        await world.stop()
        await world.start(budget_per_hour=named)
        assert (await world.status()).budget_per_hour == counts


async def test_without_prices_a_cost_is_not_known(world: World) -> None:
    await world.start()
    await world.routes(2)
    status = await world.status()
    assert len(status.offers) == 2
    assert not status.offers[0].HasField("price_per_hour")
    assert not status.HasField("cost_per_hour")
    assert not status.HasField("on_demand_cost_per_hour")


async def test_a_replacement_is_launched_from_the_cheapest_open_offer(
    world: World, tmp_path: Path
) -> None:
    routes = await _start(world, tmp_path)
    await world.provider.kill(world.head(routes[0]).node_id)
    await _until(world, lambda s: _offers(s) == {"spot": 4})
    shut = tuple(replace(o, count=0) if o.spot else o for o in world.provider.stock)
    world.provider.tell(OffersChanged(shut))
    event = await world.until_event("offers_changed")
    await world.provider.kill(world.head(routes[1]).node_id)
    status = await _until(world, lambda s: _offers(s) == {"spot": 3, "demand": 1})
    assert status.cost_per_hour == pytest.approx(1.75)
    assert event.attributes == {"offers": "2", "changed": "demand, spot"}


async def test_an_offer_that_said_no_is_left_alone(world: World, tmp_path: Path) -> None:
    launch, asked = world.provider.launch, []

    async def refuse(node_id: str, offer: Any) -> str:
        asked.append(offer.offer_id)
        if offer.spot and len(asked) > 4:
            world.provider.tell(LaunchFailed(node_id, "no capacity", 60.0))
            return ""
        return await launch(node_id, offer)

    world.provider.launch = refuse  # type: ignore[method-assign]
    routes = await _start(world, tmp_path)
    await world.provider.kill(world.head(routes[0]).node_id)
    await _until(world, lambda s: _offers(s) == {"spot": 3, "demand": 1})
    assert asked == ["spot"] * 5 + ["demand"]


async def test_absurd_offers_are_dropped_and_the_mesh_serves_on(
    world: World, tmp_path: Path
) -> None:
    routes = await _start(world, tmp_path)
    spot, demand = world.provider.stock
    absurd = replace(spot, price_per_hour=nan)
    many = tuple(replace(demand, offer_id=f"o{number}") for number in range(2000))
    world.provider.tell(OffersChanged((absurd, demand, *many)))
    event = await world.until_event("offers_dropped")
    assert event.attributes == {
        "count": "2",
        "offer": "spot",
        "field": "price_per_hour",
        "reason": "price_per_hour lies in (0, 1e+06]",
    }
    status = await world.status()
    assert len(status.offers) == 999
    assert status.cost_per_hour == pytest.approx(1.0), "what runs costs what it did"
    assert {r.formation_id for r in await world.routes(2)} == {r.formation_id for r in routes}


async def test_a_notice_that_the_market_gives_moves_the_stage(world: World, tmp_path: Path) -> None:
    routes = await _start(world, tmp_path)
    victim = world.head(routes[0]).node_id
    world.provider.tell(NodeNotice(victim, time.monotonic() + 600.0, NoticeKind.SPOT))
    await world.until_event("interruption_noticed", node_id=victim)
    await _until(world, lambda s: victim not in {m.node_id for p in s.pipelines for m in p.stages})
    await world.routes(2)
    assert world.provider.notices == []


async def test_nodes_are_of_their_offers_after_a_restart(world: World, tmp_path: Path) -> None:
    await _start(world, tmp_path)
    await world.stop()
    await _start(world, tmp_path)
    status = await world.status()
    assert _offers(status) == {"spot": 4}
    assert status.cost_per_hour == pytest.approx(1.0)


async def test_an_operator_s_notice_is_given_by_the_provider(world: World, tmp_path: Path) -> None:
    routes = await _start(world, tmp_path)
    victim = world.head(routes[0]).node_id
    notice = pb.ReportInterruptionRequest(node_id=victim, notice_s=600.0)
    reply = await world.stub.ReportInterruption(notice, timeout=CALL_S)
    assert world.provider.notices == [(victim, 600.0)]
    events = await world.events()
    assert events[reply.event_number - 1].kind == "interruption_noticed"


async def test_nodes_of_their_own_have_no_offer(world: World) -> None:
    await world.start(provider="external", expected_nodes=4)
    for number in range(4):
        await world.provider.start(f"own-{number}", NodeShape(1 << 30, 3.0 - number % 2))
    await world.routes(2)
    status = await world.status()
    assert (len(status.offers), status.HasField("cost_per_hour")) == (0, False)
    assert _offers(status) == {"": 4}
    assert not any(node.declared for node in status.nodes)


async def test_the_status_tells_spares_what_they_hold_and_what_they_cost(
    world: World, tmp_path: Path
) -> None:
    await _start(world, tmp_path, spares=1)
    stages = {_range(s.layers) for p in (await world.status()).pipelines for s in p.stages}
    assert len(stages) > 1
    status = await _until(world, lambda s: any(len(o.held) == len(stages) for o in s.spares))
    (spare,) = status.spares
    assert {_range(layers) for layers in spare.held} == stages
    assert (spare.layers, spare.model_id, list(spare.lacks)) == (spare.held[0], "tiny", [])
    (node,) = [node for node in status.nodes if node.state == pb.NODE_STATE_SPARE]
    assert (spare.node_id, node.offer_id, node.pipeline_id) == (node.node_id, "spot", "")
    assert (status.cost_per_hour, status.spares_cost_per_hour) == (1.25, 0.25)
    assert spare.price_per_hour == 0.25
    assert list((await world.stub.ExplainPlan(pb.ExplainPlanRequest(), timeout=60)).spares) == [
        spare
    ]
    lost = next(s for p in status.pipelines for s in p.stages if s.layers == spare.held[-1])
    await world.provider.kill(lost.node_id)
    kept = await world.until_event("stage_kept")
    assert kept.node_id == spare.node_id
    calls = world.provider.engines[spare.node_id].calls
    assert [call for call in calls if call[0] == "hold"][-1] == ("hold", _range(lost.layers))


async def test_what_a_spare_has_no_room_for_is_told(world: World, tmp_path: Path) -> None:
    world.provider.prepare = lambda engine: setattr(engine, "room", 1)
    await _start(world, tmp_path, spares=1)
    status = await _until(world, lambda s: any(one.lacks for one in s.spares))
    (spare,) = status.spares
    assert len(spare.held) == 1
    assert not set(map(_range, spare.held)) & set(map(_range, spare.lacks))


def _range(layers: Any) -> tuple[int, int]:
    return layers.start, layers.end


async def test_no_spare_is_launched_above_the_budget(world: World, tmp_path: Path) -> None:
    await _start(world, tmp_path, spares=2, budget_per_hour=1.3, replan=False)
    status = await _until(world, lambda s: any(one.HasField("layers") for one in s.spares))
    (spare,) = status.spares
    assert status.cost_per_hour == 1.25
    world.provider.tell(
        OffersChanged(tuple(replace(o, price_per_hour=0.3) for o in world.provider.stock))
    )
    status = await _until(world, lambda s: not s.spares)
    assert (await world.until_event("node_released")).node_id == spare.node_id
