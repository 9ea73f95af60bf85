"""A mesh whose nodes are instances of the filtered cloud, each with a `shunt node` of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench import mesh as meshes
from services.controller.core.cluster.market import NO_CAPACITY
from soak.machines import Machines
from tests.ec2.cloud import Cloud, read_prices
from tests.mesh.lasting import Lasting, lasting, sampled

MESH = "on-ec2"
TOKENS = 400
STREAMS = 4
NOTICE_S = 40.0
"""It is over once the node was replaced."""
POOL = ("c7i.xlarge", "use1-az1")
TYPES = """
types:
  - {instance_type: c7i.xlarge, memory_bytes: 2147483648, count: 4, price_per_hour: 0.1785,
     launch_s: 1}
"""
PRICES = """
0,c7i.xlarge,use1-az1,0.07
0,c7i.xlarge,use1-az2,0.30
"""

CHEAPER = """
0,c7i.xlarge,use1-az1,0.07
0,c7i.xlarge,use1-az2,0.03
"""


def settings(cloud: Cloud, directory: Path, **changes: str) -> dict[str, str]:
    """Of the mesh, with some of EC2's by name."""
    types = directory / "types.yaml"
    types.write_text(TYPES)
    ec2 = {
        "MESH": MESH,
        "LAUNCH_TEMPLATE": "node",
        "TYPES_FILE": str(types),
        "FIRST_NODES": "c7i.xlarge:2",
        "QUEUE_URL": cloud.make_queue(),
        "QUEUE_WAIT_S": "2",
        "LOOK_S": "0.5",
        "PRICE_S": "1",
        "SCORE_S": "0",
        "CONSISTENCY_S": "1",
        "MAX_INSTANCES": "3",
        "CAPACITY_PAUSE_S": "3",
        **changes,
    }
    return {
        "SHUNT_CONTROLLER_PROVIDER": "ec2",
        "SHUNT_CONTROLLER_STORE": str(directory / "mesh/store"),
        **{f"SHUNT_CONTROLLER_EC2__{name}": value for name, value in ec2.items()},
    }


@asynccontextmanager
async def on_ec2(
    cloud: Cloud,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    *options: str,
    **changes: str,
) -> AsyncIterator[tuple[meshes.Mesh, Machines]]:
    """A mesh that serves on instances, with options of `shunt up`."""
    cloud.prices = read_prices(PRICES)
    for name, value in settings(cloud, directory, **changes).items():
        monkeypatch.setenv(name, value)
    machines = Machines(cloud, MESH, directory / "logs")
    running = meshes.running(directory / "mesh", options=options)
    async with machines.running(), running as mesh:
        yield mesh, machines


class Readers:
    """Streams whose texts are known beforehand."""

    def __init__(
        self, client: httpx.AsyncClient, mesh: meshes.Mesh, streams: int, lasts_s: float = 0.0
    ) -> None:
        """So many at once, each of which lasts for so long with nothing in its way."""
        self._client, self._url = client, mesh.url()
        self._streams, self._lasts_s = streams, lasts_s
        self._known: Lasting | None = None

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """All of them are well on their way at the beginning of the block, and each is read again
        and again until its end; behind it all that was read is compared."""
        if self._known is None:
            url, lasts_s = self._url, self._lasts_s
            self._known = await lasting(self._client, url, TOKENS, lasts_s, self._asked)
        read: list[list[meshes.StreamRecord]] = [[] for _ in self._known.bodies]
        over = asyncio.Event()
        async with asyncio.TaskGroup() as readers:
            for body, records in zip(self._known.bodies, read, strict=True):
                readers.create_task(self._read_on(body, records, over))
            await meshes.until(lambda: all(r and len(r[0].arrivals_s) > 10 for r in read))
            yield
            over.set()
        for records, wanted in zip(read, self._known.expected, strict=True):
            for record in records:
                assert record.complete, record.error
                assert (record.text, record.usage) == (wanted.text, wanted.usage)
        print(f"{sum(map(len, read))} streams, none failed, none differs", flush=True)

    def _asked(self, tokens: int) -> list[dict[str, Any]]:
        every = [body | {"ignore_eos": True} for body in meshes.request_bodies(tokens)]
        return ((sampled(tokens) if self._lasts_s else every) * 2)[: self._streams]

    async def _read_on(
        self, body: dict[str, Any], records: list[meshes.StreamRecord], over: asyncio.Event
    ) -> None:
        while not over.is_set():
            records.append(meshes.StreamRecord())
            await meshes.stream_chat(self._client, self._url, body, records[-1])
            if not records[-1].complete:
                return


def lifecycles(cloud: Cloud) -> list[str]:
    """Of what runs, in order."""
    return sorted(one.lifecycle or "on-demand" for one in cloud.instances(MESH))


async def until_all_are_in(mesh: meshes.Mesh, zone: str, timeout_s: float) -> None:
    """There are nodes that are ready, and all nodes that live were bought in the zone."""
    async with asyncio.timeout(timeout_s):
        while True:
            nodes = [node for node in (await mesh.status())["nodes"] if node["state"] != "lost"]
            if nodes and all(f"/{zone}/" in (node["offer"] or "") for node in nodes):
                return
            await asyncio.sleep(0.5)


async def until_all_are(cloud: Cloud, lifecycle: str, timeout_s: float = 90.0) -> None:
    """There are instances, and all of them were bought so."""
    try:
        await meshes.until(lambda: set(lifecycles(cloud)) == {lifecycle}, timeout_s)
    except TimeoutError:
        assert set(lifecycles(cloud)) == {lifecycle}


@pytest.mark.timeout(600)
async def test_a_spot_notice_leads_to_a_replacement_and_no_stream_notices(
    cloud: Cloud, tmp_path: Path, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with on_ec2(cloud, tmp_path, monkeypatch) as (mesh, machines):
        first = await mesh.status()
        assert {node["offer"] for node in first["nodes"]} == {"c7i.xlarge/use1-az1/spot"}
        assert first["cost_per_hour"] == pytest.approx(0.14)
        # An answer that ends before the deadline is left to end.
        async with Readers(client, mesh, 8, NOTICE_S + 15).reading():
            cloud.capacity[POOL] = 0  # what is bought in its place is on demand
            taken = cloud.instances(MESH)[0].id
            timer = machines.interrupt(taken, NOTICE_S)
            ended = NOTICE_S + 30
            await meshes.until(lambda: machines.processes[taken].poll() is not None, ended)
            timer.cancel()
            last = await mesh.until_ready(2)
        assert taken not in {one.id for one in cloud.instances(MESH)}
        assert lifecycles(cloud) == ["on-demand", "spot"]
        offers = sorted(node["offer"] for node in last["nodes"] if node["state"] == "ready")
        assert [name.split("/")[2] for name in offers] == ["on-demand", "spot"]
        events = await mesh_events(mesh)
        kinds = [event["kind"] for event in events]
        # By a successor in its seat, or by a plan that the market's change led to.
        noticed, sealed = kinds.index("interruption_noticed"), kinds.index("handover_finished")
        assert noticed < sealed
        assert events[sealed]["at"] < events[noticed]["at"] + NOTICE_S
        assert int(events[sealed]["attributes"]["sealed"]) > 0
        assert "pipeline_lost" not in kinds[:sealed]
    assert len(machines.processes) == 3


@pytest.mark.timeout(400)
async def test_three_notices_at_once_buy_on_demand_and_spot_again_when_it_is_back(
    cloud: Cloud, tmp_path: Path, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHUNT_CONTROLLER_REPLAN_COOL_DOWN_S", "5")
    monkeypatch.setenv("SHUNT_CONTROLLER_REPLAN_STEADY_S", "5")
    # For longer than a plan takes that makes do without.
    pause = {"CAPACITY_PAUSE_S": "20"}
    changes = {"FIRST_NODES": "c7i.xlarge:3", "MAX_INSTANCES": "7", **pause}
    # Or the plan of a mesh that nobody asks yet makes do with fewer.
    options = ("--objective", "throughput-per-cost", "--nodes-min", "3", "--nodes-max", "6")
    on = on_ec2(cloud, tmp_path, monkeypatch, *options, **changes)
    async with on as (mesh, machines):
        readers = Readers(client, mesh, 8)
        taken = [one.id for one in cloud.instances(MESH)]
        async with readers.reading():
            cloud.capacity[POOL] = 0
            timers = [machines.interrupt(one, NOTICE_S) for one in taken]
            await until_all_are(cloud, "on-demand")
            await mesh.until_ready(1)
        for timer in timers:
            timer.cancel()
        async with readers.reading():
            del cloud.capacity[POOL]
            await until_all_are(cloud, "spot", 150.0)
            await mesh.until_ready(1)
    assert not {one for one in taken if machines.processes[one].poll() is None}


@pytest.mark.timeout(400)
async def test_the_next_plan_goes_where_it_is_cheaper_and_no_stream_notices(
    cloud: Cloud, tmp_path: Path, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHUNT_CONTROLLER_REPLAN_COOL_DOWN_S", "5")
    monkeypatch.setenv("SHUNT_CONTROLLER_REPLAN_STEADY_S", "5")
    options = ("--objective", "throughput-per-cost", "--nodes-min", "2", "--nodes-max", "4")
    on = on_ec2(cloud, tmp_path, monkeypatch, *options, MAX_INSTANCES="5")
    async with on as (mesh, machines):
        first = await mesh.status()
        assert {node["offer"] for node in first["nodes"]} == {"c7i.xlarge/use1-az1/spot"}
        readers = Readers(client, mesh, 8)
        async with readers.reading():
            cloud.prices = read_prices(CHEAPER)
            await until_all_are_in(mesh, "use1-az2", 150.0)
        last = await mesh.until_ready(1)
        assert last["cost_per_hour"] == pytest.approx(0.06)
        chosen = [one for one in await mesh_events(mesh) if one["kind"] == "plan_chosen"]
        (moved,) = [one for one in chosen if "offers_changed" in one["attributes"]["causes"]]
        assert float(moved["attributes"]["gain"]) > 1.0
    assert len(machines.processes) == 4, "two and two, and none in vain"


@pytest.mark.timeout(300)
async def test_an_offer_that_always_refuses_is_asked_ever_less(
    cloud: Cloud, tmp_path: Path, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHUNT_CONTROLLER_REPLAN_COOL_DOWN_S", "5")
    monkeypatch.setenv("SHUNT_CONTROLLER_REPLAN_STEADY_S", "1")
    options = ("--objective", "throughput-per-cost", "--nodes-min", "2", "--nodes-max", "4")
    changes = {"MAX_INSTANCES": "5", "CAPACITY_PAUSE_S": "3"}
    async with on_ec2(cloud, tmp_path, monkeypatch, *options, **changes) as (mesh, machines):
        async with Readers(client, mesh, STREAMS).reading():
            cloud.capacity[POOL] = 0
            for one in cloud.instances(MESH):
                machines.processes[one.id].kill()
                cloud.take(one.id)
        await until_all_are(cloud, "on-demand")
        asked = list[float]()
        async with asyncio.timeout(200):
            while len(asked) < 5:
                await asyncio.sleep(1.0)
                events = await mesh_events(mesh)
                asked = refusals(events)
        (told,) = [event for event in events if event["kind"] == "offer_refuses"]
        assert told["attributes"]["offer"] == "c7i.xlarge/use1-az1/spot"
        gaps = [later - before for before, later in pairwise(asked)]
        assert gaps[-3] < gaps[-2] < gaps[-1], gaps  # the first was of a mesh that came back


def refusals(events: list[dict[str, Any]]) -> list[float]:
    """When launches were refused for want of capacity; those that were refused together once."""
    found = list[float]()
    for event in events:
        if event["attributes"].get("cause") == NO_CAPACITY and event["at"] > sum(found[-1:]) + 1.5:
            found.append(event["at"])
    return found


@pytest.mark.timeout(300)
async def test_an_instance_that_goes_without_a_word_is_bought_again(
    cloud: Cloud, tmp_path: Path, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with on_ec2(cloud, tmp_path, monkeypatch) as (mesh, machines):
        async with Readers(client, mesh, STREAMS).reading():
            taken = cloud.instances(MESH)[0].id
            machines.processes[taken].kill()
            cloud.take(taken)
            await meshes.until(lambda: len(machines.processes) == 3)
            await mesh.until_ready(2)
        assert lifecycles(cloud) == ["spot", "spot"]
    assert len(machines.processes) == 3


@pytest.mark.timeout(300)
async def test_launches_that_bring_no_node_or_two_or_another_cost_nothing_but_time(
    cloud: Cloud, tmp_path: Path, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHUNT_CONTROLLER_LAUNCH_TIMEOUT_S", "8")
    async with on_ec2(cloud, tmp_path, monkeypatch, MAX_INSTANCES="4") as (mesh, machines):
        readers = Readers(client, mesh, STREAMS)
        async with readers.reading():
            machines.next_barren = 1
            cloud.take(cloud.instances(MESH)[0].id)
            await meshes.until(lambda: len(machines.processes) == 3, 90.0)
        (barren,) = machines.barren
        await meshes.until(lambda: barren not in {one.id for one in cloud.instances(MESH)})
        status = await mesh.until_ready(2)
        # A second process that says it is the same node, on another instance, changes nothing.
        second = cloud.instances(MESH)[0]
        twin = await machines.start(second, instance_id="i-0123456789abcdef0")
        try:
            log = machines.log_of(second)
            await meshes.until(lambda: "another instance has this node's name" in log.read_text())
            name, now = cloud.tags(second)["shuntserve:node"], await mesh.status()
            before, after = (
                next(node for node in one["nodes"] if node["id"] == name) for one in (status, now)
            )
            assert before == after  # of others a plan may have changed something meanwhile
        finally:
            twin.kill()
            await asyncio.to_thread(twin.wait)
        # One of another type than was ordered serves as what it is.
        machines.said_type = "c7i.2xlarge"
        async with readers.reading():
            cloud.take(second.id)
            await meshes.until(lambda: len(machines.processes) == 4)
            other = await mesh.until_ready(2)
        ready = [node for node in other["nodes"] if node["state"] == "ready"]
        types = {node["machine"]["instance_type"]["value"] for node in ready}
        assert types == {"c7i.xlarge", "c7i.2xlarge"}


async def mesh_events(mesh: meshes.Mesh) -> list[dict[str, Any]]:
    said = await mesh.shunt("events", "--json")
    return [json.loads(line) for line in said.splitlines()]
