"""What every provider that launches must hold to, whoever starts its nodes."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from services.common.errors import FailedPrecondition, PermissionDenied
from services.common.machine import MachineFacts
from services.common.nodes import NodeFacts, NodeShape
from services.controller.core.cluster.market import (
    LaunchFailed,
    NodeGone,
    NodeNotice,
    Offer,
    OffersChanged,
    ProviderEvent,
    check,
)
from services.controller.providers.docker import DockerProvider
from services.controller.providers.local import LocalProvider
from services.controller.providers.provider import Provider
from tests.contract.launcher.running import running_launcher
from tests.ec2.cloud import Cloud
from tests.played_docker import PlayedDocker, played_docker
from tests.unit.controller.providers.ec2.small_ec2 import Controller
from tests.waiting import until

SLEEPER = (sys.executable, "-c", "import time; time.sleep(600)")
SHAPE = NodeShape(1 << 30, 1.0)
OFFERS = (Offer("a", "laptop", SHAPE, count=2, price_per_hour=0.5, pool="a", spot=True),)


@dataclass
class Local:
    """Processes of this machine."""

    directory: Path
    pids: list[int] = field(default_factory=list)
    offer_id: str = "a"

    def __post_init__(self) -> None:
        self._stack = AsyncExitStack()

    async def begin(self) -> Provider:
        return LocalProvider(
            offers=OFFERS,
            environment=lambda offer: {},
            log_dir=self.directory,
            command=lambda offer: SLEEPER,
        )

    async def crash(self, provider: Provider) -> None:
        """Its controller is killed."""
        await provider.close()

    def facts(self, node_id: str, handle: str) -> NodeFacts:
        """As the node's process registers."""
        pid = int(handle.partition(":")[0])
        self.pids.append(pid)
        while not Path(f"/proc/{pid}/environ").read_bytes():
            os.sched_yield()  # it shows none for a moment behind its start
        return NodeFacts(node_id, "one", "127.0.0.1:1", pid, SHAPE)

    def take(self, handle: str) -> None:
        """The machine ends, and nobody was asked."""
        os.kill(int(handle.partition(":")[0]), 9)

    def exhaust(self) -> None: ...

    async def end(self) -> None:
        await asyncio.to_thread(self._reap)

    def _reap(self) -> None:
        for pid in self.pids:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


@dataclass
class OnEc2:
    """Instances of the filtered cloud."""

    cloud: Cloud
    controller: Controller
    offer_id: str = "g6e.xlarge/use1-az1/spot"

    def __post_init__(self) -> None:
        self._stack = AsyncExitStack()

    async def begin(self) -> Provider:
        return await self._stack.enter_async_context(self.controller.provider())

    async def crash(self, provider: Provider) -> None:
        await self._stack.aclose()

    def facts(self, node_id: str, handle: str) -> NodeFacts:
        machine = MachineFacts(instance_id=handle)
        return NodeFacts(node_id, "one", "10.0.0.1:1", 1, SHAPE, machine)

    def take(self, handle: str) -> None:
        self.cloud.take(handle)

    def exhaust(self) -> None:
        self.cloud.capacity = {("g6e.xlarge", "use1-az1"): 2}

    async def end(self) -> None:
        await self._stack.aclose()


@dataclass
class InContainers:
    """Containers of a played Docker, by a launcher over gRPC."""

    docker: PlayedDocker
    most: int = 16
    offer_id: str = "a"

    def __post_init__(self) -> None:
        self._stack = AsyncExitStack()

    async def begin(self) -> Provider:
        launcher = running_launcher(self.docker, max_containers=self.most)
        provider = DockerProvider(
            await self._stack.enter_async_context(launcher),
            offers=OFFERS,
            environment=lambda offer: {},
            known=lambda: None,
        )
        await self._stack.enter_async_context(provider.running())
        return provider

    async def crash(self, provider: Provider) -> None:
        """Its controller is killed, and its launcher, too."""
        await self._stack.aclose()

    def facts(self, node_id: str, handle: str) -> NodeFacts:
        machine = MachineFacts(instance_id=handle)
        return NodeFacts(node_id, "one", f"{node_id}:1", 1, SHAPE, machine)

    def take(self, handle: str) -> None:
        self.docker.die(handle)

    def exhaust(self) -> None:
        self.most = 2

    async def end(self) -> None:
        await self._stack.aclose()


Place = Local | OnEc2 | InContainers


@pytest.fixture(params=["local", "ec2", "docker"])
async def place(
    request: pytest.FixtureRequest, tmp_path: Path, types_file: Path
) -> AsyncIterator[Place]:
    made: Place
    if request.param == "local":
        made = Local(tmp_path / "logs")
    elif request.param == "docker":
        with played_docker(tmp_path) as docker:
            made = InContainers(docker)
            yield made
            await made.end()
        return
    else:
        controller = Controller(tmp_path, types_file)
        made = OnEc2(await asyncio.to_thread(request.getfixturevalue, "cloud"), controller)
    yield made
    await made.end()


async def said(provider: Provider) -> ProviderEvent:
    """The next event that is none of the market's."""
    async with asyncio.timeout(60):
        async for event in provider.events():
            if not isinstance(event, OffersChanged):
                return event
    raise AssertionError("closed")


async def launched(place: Place, provider: Provider, node_id: str) -> str:
    return await provider.launch(node_id, offer_of(place, provider))


def offer_of(place: Place, provider: Provider) -> Offer:
    return next(one for one in provider.offers() if one.offer_id == place.offer_id)


async def test_what_it_offers_is_sound_and_has_names_of_its_own(place: Any) -> None:
    provider = await place.begin()
    offers = provider.offers()
    for one in offers:
        check(one)
    assert len({one.offer_id for one in offers}) == len(offers) > 0
    assert provider.capabilities.launches
    assert provider.capabilities.ends


async def test_a_node_is_held_from_its_launch_to_its_end(place: Any) -> None:
    provider = await place.begin()
    handle = await launched(place, provider, "n-1")
    assert handle
    assert provider.holds("n-1")
    assert provider.offer_of("n-1") == place.offer_id
    assert await provider.recognise(place.facts("n-1", handle)) == handle
    await provider.terminate("n-1", 0)
    gone = await said(provider)
    assert isinstance(gone, NodeGone)
    assert (gone.node_id, bool(gone.reason)) == ("n-1", True)
    assert not provider.holds("n-1")


async def test_the_same_launch_again_is_the_same_node(place: Any) -> None:
    provider = await place.begin()
    handle = await launched(place, provider, "n-1")
    assert await launched(place, provider, "n-1") == handle
    await provider.terminate("n-1", 0)
    assert isinstance(await said(provider), NodeGone)


async def test_a_node_that_ends_by_itself_is_told(place: Any) -> None:
    provider = await place.begin()
    place.take(await launched(place, provider, "n-1"))
    assert isinstance(await said(provider), NodeGone)
    assert not provider.holds("n-1")


async def test_without_capacity_a_launch_comes_to_nothing_and_raises_nothing(place: Any) -> None:
    place.exhaust()
    provider = await place.begin()
    for number in (1, 2):
        assert await launched(place, provider, f"n-{number}")
    assert await launched(place, provider, "n-3") == ""
    failed = await said(provider)
    assert isinstance(failed, LaunchFailed)
    assert (failed.node_id, failed.reason) == ("n-3", "no capacity")
    assert failed.retry_after_s > 0
    assert not provider.holds("n-3")
    for number in (1, 2):
        await provider.terminate(f"n-{number}", 0)
        assert isinstance(await said(provider), NodeGone)


async def test_an_offer_that_is_none_comes_to_nothing_too(place: Any) -> None:
    provider = await place.begin()
    strange = replace(offer_of(place, provider), offer_id="no/such/offer")
    assert await provider.launch("n-1", strange) == ""
    assert isinstance(await said(provider), LaunchFailed)


async def test_an_unknown_node_cannot_be_ended(place: Any) -> None:
    provider = await place.begin()
    with pytest.raises(FailedPrecondition):
        await provider.terminate("n-9", 0)
    assert not provider.holds("n-9")


async def test_the_next_controller_takes_its_nodes_back(place: Any) -> None:
    before = await place.begin()
    handles = {name: await launched(place, before, name) for name in ("n-1", "n-2")}
    await place.crash(before)
    after = await place.begin()
    assert await after.adopt("n-1", handles["n-1"])  # its handle was journaled
    facts = place.facts("n-2", handles["n-2"])  # this one's was not
    assert await after.recognise(facts) == handles["n-2"]
    for name in ("n-1", "n-2"):
        assert after.holds(name)
        await until(lambda name=name: after.offer_of(name) == place.offer_id)
        assert await launched(place, after, name) == handles[name]
        await after.terminate(name, 0)
        gone = await said(after)
        assert isinstance(gone, NodeGone)
        assert gone.node_id == name


async def test_another_process_is_not_taken_for_the_node(place: Any) -> None:
    provider = await place.begin()
    handle = await launched(place, provider, "n-1")
    true = place.facts("n-1", handle)
    false = replace(true, pid=os.getpid(), machine=MachineFacts(instance_id="i-00000000deadbeef"))
    with pytest.raises(PermissionDenied):
        await provider.recognise(false)
    await provider.terminate("n-1", 0)
    assert isinstance(await said(provider), NodeGone)


async def test_an_end_that_is_asked_for_early_is_an_end(place: Any) -> None:
    """Whether the launch was carried out by then or not."""
    provider = await place.begin()
    launch = asyncio.create_task(launched(place, provider, "n-1"))
    await until(lambda: provider.holds("n-1"))
    await provider.terminate("n-1", 0)
    await launch
    event = await said(provider)
    assert isinstance(event, NodeGone | LaunchFailed)
    assert not isinstance(event, NodeNotice)
    await until(lambda: not provider.holds("n-1"))
