"""The provider against moto behind the filter."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from base64 import b64decode
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.common.errors import FailedPrecondition, PermissionDenied
from services.common.machine import MachineFacts
from services.common.nodes import NodeFacts, NodeShape
from services.common.notices import NoticeKind
from services.controller.core.cluster.market import (
    LaunchFailed,
    NodeGone,
    NodeNotice,
    OffersChanged,
)
from services.controller.providers.ec2.failures import Refusal
from services.controller.providers.ec2.provider import Ec2Provider
from tests.ec2.cloud import NOTICE, REBALANCE, Cloud, read_prices
from tests.unit.controller.providers.ec2.small_ec2 import Controller, offer, said
from tests.waiting import until

SPOT = "g6e.xlarge/use1-az1/spot"
ON_DEMAND = "g6e.xlarge/use1-az1/on-demand"
RESERVED = "g6e.xlarge/use1-az2/cr-0123456789abcdef0"


@pytest.fixture
def controller(tmp_path: Path, types_file: Path) -> Controller:
    return Controller(tmp_path, types_file)


def facts(node_id: str, instance_id: str | None) -> NodeFacts:
    machine = MachineFacts(instance_id=instance_id)
    return NodeFacts(node_id, "incarnation", "10.0.0.1:1", 1, NodeShape(1 << 30, 1.0), machine)


async def test_it_offers_each_type_in_each_zone_on_each_market(
    cloud: Cloud, controller: Controller
) -> None:
    cloud.scores = {"use1-az1": 10, "use1-az2": 5}
    async with controller.provider(score_s=1.0) as provider:
        offers = {one.offer_id: one for one in provider.offers()}
    spot, dearer = offers[SPOT], offers["g6e.xlarge/use1-az2/spot"]
    assert (spot.price_per_hour, spot.spot, spot.pool) == (0.70, True, "g6e.xlarge/use1-az1")
    assert (spot.launch_s, dearer.launch_s) == (1.0, 2.0)
    assert (spot.interruptions_per_hour, spot.count) == (0.05, 4)
    assert spot.shape == NodeShape(40_000_000_000, 2.0, "l40s")
    assert (offers[ON_DEMAND].price_per_hour, offers[ON_DEMAND].spot) == (1.861, False)
    assert (offers[RESERVED].price_per_hour, offers[RESERVED].count) == (1.2, 1)
    assert "g5.xlarge/use1-az4/spot" not in offers
    assert "g5.xlarge/use1-az4/on-demand" in offers


@pytest.mark.parametrize(
    ("offer_id", "lifecycle"), [(SPOT, "spot"), (ON_DEMAND, None), (RESERVED, None)]
)
async def test_a_launch_is_one_instance_of_the_offer_that_knows_whose_it_is(
    cloud: Cloud, controller: Controller, offer_id: str, lifecycle: str | None
) -> None:
    cloud.reservations = {"cr-0123456789abcdef0": (("g6e.xlarge", "use1-az2"), 1)}
    async with controller.provider() as provider:
        handle = await provider.launch("node-1", offer(provider, offer_id))
        (instance,) = cloud.instances(controller.mesh)
        assert handle == instance.id
        assert (instance.instance_type, instance.lifecycle) == ("g6e.xlarge", lifecycle)
        assert instance.subnet_id == cloud.subnets()[offer_id.split("/")[1]]
        assert (
            cloud.tags(instance).items()
            >= {
                "shuntserve:mesh": controller.mesh,
                "shuntserve:node": "node-1",
                "shuntserve:offer": offer_id,
                "shuntserve:plan": "7",
            }.items()
        )
        document = b64decode(instance.user_data).decode()
        content = json.loads(document.removeprefix("#cloud-config\n"))["write_files"][0]["content"]
        assert content.splitlines() == ['SHUNT_NODE_ID="node-1"', 'SPEED="2.0"']
        assert provider.holds("node-1")
        assert provider.offer_of("node-1") == offer_id
        assert await provider.launch("node-1", offer(provider, offer_id)) == handle
    assert len(cloud.instances(controller.mesh)) == 1


async def test_what_is_ended_is_gone_once_ec2_says_so(cloud: Cloud, controller: Controller) -> None:
    async with controller.provider() as provider:
        await provider.launch("node-1", offer(provider, SPOT))
        await provider.terminate("node-1", 2.0)
        gone = await said(provider, NodeGone)
        assert gone.node_id == "node-1"
        assert "terminated" in gone.reason
        assert not provider.holds("node-1")
        with pytest.raises(FailedPrecondition):
            await provider.terminate("node-1", 2.0)
        with pytest.raises(FailedPrecondition):
            provider.give_notice("node-1", 1.0, NoticeKind.OPERATOR)
    assert cloud.instances(controller.mesh) == []


async def test_an_end_that_ec2_did_not_take_is_asked_for_again(
    cloud: Cloud, controller: Controller
) -> None:
    async with controller.provider() as provider:
        await provider.launch("node-1", offer(provider, SPOT))
        cloud.errors["TerminateInstances"] = [("UnauthorizedOperation", 403)] * 1000
        with pytest.raises(Refusal):
            await provider.terminate("node-1", 2.0)
        cloud.errors.clear()
        assert (await said(provider, NodeGone)).node_id == "node-1"
    assert cloud.instances(controller.mesh) == []


async def test_a_pool_without_capacity_refuses_and_is_left_alone(
    cloud: Cloud, controller: Controller
) -> None:
    cloud.capacity = {("g6e.xlarge", "use1-az1"): 0}
    async with controller.provider(capacity_pause_s=33) as provider:
        assert await provider.launch("node-1", offer(provider, SPOT)) == ""
        assert await said(provider, LaunchFailed) == LaunchFailed("node-1", "no capacity", 33)
        assert await provider.launch("node-2", offer(provider, "g6e.xlarge/use1-az2/spot"))


async def test_within_the_slack_ec2_chooses_another_zone_and_the_node_is_of_what_came(
    cloud: Cloud, controller: Controller
) -> None:
    cloud.capacity = {("g6e.xlarge", "use1-az1"): 0}
    async with controller.provider(price_slack=0.1) as provider:
        handle = await provider.launch("node-1", offer(provider, SPOT))
        (instance,) = cloud.instances(controller.mesh)
        assert instance.subnet_id == cloud.subnets()["use1-az2"]
        await until(lambda: provider.offer_of("node-1") == "g6e.xlarge/use1-az2/spot")
        assert await provider.recognise(facts("node-1", handle)) == handle


@pytest.mark.parametrize(
    "code", ["VcpuLimitExceeded", "UnauthorizedOperation", "InvalidAMIID.NotFound"]
)
async def test_an_operators_matter_is_told_once(
    cloud: Cloud, controller: Controller, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with controller.provider() as provider:
        cloud.errors["CreateFleet"] = [(code, 400)] * 3
        for number in (1, 2, 3):
            await provider.launch(f"node-{number}", offer(provider, SPOT))
            failed = await said(provider, LaunchFailed)
            assert failed.retry_after_s == 600
            assert code in failed.reason
    told = [one for one in caplog.records if one.message == "EC2 refuses"]
    assert [(one.levelno, one.tried) for one in told] == [(logging.ERROR, "launch")]
    assert cloud.count("CreateFleet") == 3


@pytest.mark.parametrize(
    ("code", "status"), [("RequestLimitExceeded", 503), ("InternalError", 500)]
)
async def test_what_passes_is_tried_again_with_the_same_token(
    cloud: Cloud, controller: Controller, code: str, status: int
) -> None:
    async with controller.provider() as provider:
        cloud.errors["CreateFleet"] = [(code, status)] * 2
        assert await provider.launch("node-1", offer(provider, SPOT))
    tokens = [form["ClientToken"] for action, form in cloud.calls if action == "CreateFleet"]
    assert len(tokens) == 3
    assert len(set(tokens)) == 1


async def test_a_lost_answer_starts_nothing_twice(cloud: Cloud, controller: Controller) -> None:
    async with controller.provider() as provider:
        cloud.lost_answers = 1
        handle = await provider.launch("node-1", offer(provider, SPOT))
        assert [one.id for one in cloud.instances(controller.mesh)] == [handle]


async def test_an_order_that_is_never_answered_is_found_by_its_tags(
    cloud: Cloud, controller: Controller
) -> None:
    async with controller.provider(call_limit_s=0.3) as provider:
        cloud.lost_answers = 100
        assert await provider.launch("node-1", offer(provider, SPOT)) == ""
        (instance,) = cloud.instances(controller.mesh)
        looks = cloud.count("DescribeInstances")
        await until(lambda: cloud.count("DescribeInstances") > looks + 1)
        assert await provider.recognise(facts("node-1", instance.id)) == instance.id
        assert await provider.recognise(facts("node-1", None)) == instance.id


async def test_an_order_that_came_to_nothing_without_an_answer_is_told(
    cloud: Cloud, controller: Controller
) -> None:
    async with controller.provider(call_limit_s=0.3) as provider:
        cloud.errors["CreateFleet"] = [("InternalError", 500)] * 100
        await provider.launch("node-1", offer(provider, SPOT))
        failed = await said(provider, LaunchFailed)
        assert (failed.node_id, failed.retry_after_s) == ("node-1", 0.0)
        assert not provider.holds("node-1")


async def test_the_bounds_stop_what_a_plan_would_buy(cloud: Cloud, controller: Controller) -> None:
    async with controller.provider(max_instances=2) as provider:
        await asyncio.gather(
            *(provider.launch(f"node-{n}", offer(provider, SPOT)) for n in range(4))
        )
        for _ in range(2):
            assert "max_instances is 2" in (await said(provider, LaunchFailed)).reason
    assert len(cloud.instances(controller.mesh)) == 2


async def test_dollars_count_as_on_demand_whatever_spot_costs(
    cloud: Cloud, controller: Controller
) -> None:
    async with controller.provider(max_dollars_per_hour=3.7) as provider:
        assert await provider.launch("node-1", offer(provider, SPOT))
        await provider.launch("node-2", offer(provider, SPOT))
        assert "max_dollars_per_hour is 3.7" in (await said(provider, LaunchFailed)).reason
    assert len(cloud.instances(controller.mesh)) == 1


async def test_a_stranger_without_the_tag_is_never_touched(
    cloud: Cloud, controller: Controller
) -> None:
    stranger = cloud.start_stranger({"shuntserve:node": "node-1"})
    other_mesh = cloud.start_stranger({"shuntserve:mesh": "another", "shuntserve:node": "node-2"})
    controller.known = set()
    async with controller.provider() as provider:
        await provider.adopt("node-1", stranger)
        await provider.adopt("node-2", other_mesh)
        for node_id in ("node-1", "node-2"):
            with pytest.raises(FailedPrecondition):
                await provider.terminate(node_id, 0)
        await until(lambda: cloud.count("DescribeInstances") > 5)
    assert cloud.count("TerminateInstances") == 0
    assert {one.id for one in cloud.instances()} == {stranger, other_mesh}


async def test_orphans_are_ended_once_the_cluster_knows_its_nodes(
    cloud: Cloud, controller: Controller
) -> None:
    tags = {"shuntserve:mesh": controller.mesh}
    orphan = cloud.start_stranger(tags | {"shuntserve:node": "node-9"})
    nameless = cloud.start_stranger(tags)
    kept = cloud.start_stranger(tags | {"shuntserve:node": "node-1"})
    async with controller.provider() as provider:
        looks = cloud.count("DescribeInstances")
        await until(lambda: cloud.count("DescribeInstances") > looks + 2)
        assert {one.id for one in cloud.instances(controller.mesh)} == {orphan, kept}
        controller.known = {"node-1"}
        await until(lambda: len(cloud.instances(controller.mesh)) == 1)
        assert provider.holds("node-1")
    assert [one.id for one in cloud.instances(controller.mesh)] == [kept]
    assert nameless not in {one.id for one in cloud.instances()}


async def test_of_two_that_carry_a_name_one_is_the_node(
    cloud: Cloud, controller: Controller
) -> None:
    cloud.extra = 1
    async with controller.provider() as provider:
        handle = await provider.launch("node-1", offer(provider, SPOT))
        await until(lambda: len(cloud.instances(controller.mesh)) == 1)
        assert [one.id for one in cloud.instances(controller.mesh)] == [handle]
        with pytest.raises(PermissionDenied):
            await provider.recognise(facts("node-1", "i-0000000000000dead"))
        assert await provider.recognise(facts("node-1", None)) == handle
        assert await provider.recognise(facts("node-2", handle)) == ""


async def test_the_cheaper_pool_is_offered_once_prices_move(
    cloud: Cloud, controller: Controller
) -> None:
    cloud.prices += read_prices("60,g6e.xlarge,use1-az4,0.30")
    async with controller.provider() as provider:
        assert offer(provider, "g6e.xlarge/use1-az4/spot").price_per_hour == 0.90
        cloud.now_s = 60
        changed = await said(
            provider,
            OffersChanged,
            lambda event: any(one.price_per_hour == 0.30 for one in event.offers),
        )
        assert changed.offers == provider.offers()


async def test_a_warning_is_a_notice_with_its_deadline(
    cloud: Cloud, controller: Controller
) -> None:
    url = cloud.make_queue()
    async with controller.provider(queue_url=url) as provider:
        handle = await provider.launch("node-1", offer(provider, SPOT))
        now_s = asyncio.get_running_loop().time
        begun_s = now_s()
        timer = cloud.interrupt(handle, 1.5)
        warned_s = now_s()
        notice = await said(provider, NodeNotice)
        assert (notice.node_id, notice.kind) == ("node-1", NoticeKind.SPOT)
        # However late it is read; two clocks are read one behind the other.
        assert begun_s < notice.deadline_s <= warned_s + 1.5 + 1.0
        gone = await said(provider, NodeGone)
        assert "SpotInstanceTermination" in gone.reason
        timer.join()
        spot = await said(
            provider,
            OffersChanged,
            lambda event: any(
                one.offer_id == SPOT and one.interruptions_per_hour > 0.05 for one in event.offers
            ),
        )
        assert spot.offers


def warning(instance_id: str, event_id: str, age_s: float = 0.0) -> str:
    at = datetime.fromtimestamp(time.time() - age_s, UTC).isoformat()
    return json.dumps(
        {
            "id": event_id,
            "source": "aws.ec2",
            "detail-type": NOTICE,
            "time": at,
            "detail": {"instance-id": instance_id, "instance-action": "terminate"},
        }
    )


async def test_messages_come_twice_late_strange_or_as_garbage_and_each_counts_once(
    cloud: Cloud, controller: Controller
) -> None:
    url = cloud.make_queue()
    stranger = cloud.start_stranger()
    async with controller.provider(queue_url=url) as provider:
        handle = await provider.launch("node-1", offer(provider, SPOT))
        bodies = ["{", "[]", warning(stranger, "e-0"), warning("i-0dead", "e-1")]
        bodies += [warning(handle, "e-2"), warning(handle, "e-2"), warning(handle, "e-3", 500.0)]
        for body in bodies:
            cloud.deliver(body)
        cloud.say(REBALANCE, {"instance-id": handle})
        notices = [await said(provider, NodeNotice) for _ in range(3)]
        now_s = asyncio.get_running_loop().time()
        assert {notice.node_id for notice in notices} == {"node-1"}
        spot = [notice for notice in notices if notice.kind is NoticeKind.SPOT]
        left_s = sorted(notice.deadline_s - now_s for notice in spot)
        assert left_s[0] <= 0 < 60 < left_s[1] <= 120
        assert [n.kind for n in notices if n not in spot] == [NoticeKind.REBALANCE]
        await until(lambda: cloud.waiting() == 0)
        await asyncio.sleep(0)
        assert [e for e in _left(provider) if not isinstance(e, OffersChanged)] == []
    assert {one.id for one in cloud.instances()} == {stranger, handle}


def _left(provider: Ec2Provider) -> list[object]:
    """Events that nobody has heard yet."""
    events = []
    while not provider._events.empty():
        events.append(provider._events.get_nowait())
    return events


async def test_a_warning_that_comes_before_its_instance_is_known_is_not_lost(
    cloud: Cloud, controller: Controller
) -> None:
    url = cloud.make_queue()
    tags = {"shuntserve:mesh": controller.mesh, "shuntserve:node": "node-1"}
    instance_id = cloud.start_stranger(tags)
    cloud.hidden.add(instance_id)
    async with controller.provider(queue_url=url) as provider:
        cloud.deliver(warning(instance_id, "e-1"))
        await until(lambda: cloud.waiting() == 0)
        assert not provider.holds("node-1")
        cloud.hidden.clear()
        assert (await said(provider, NodeNotice)).node_id == "node-1"
