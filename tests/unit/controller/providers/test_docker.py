"""The provider against a launcher that the test plays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from shuntserve.launcher.v1 import launcher_pb2 as pb

from services.common import mesh_token
from services.common.errors import FailedPrecondition, Unavailable
from services.common.nodes import NodeShape
from services.common.notices import NoticeKind
from services.controller.core.cluster.market import LaunchFailed, NodeGone, Offer, ProviderEvent
from services.controller.providers import docker
from services.controller.providers.docker import DockerProvider
from tests.waiting import until

OFFER = Offer("a", "docker", NodeShape(1 << 30, 1.0), count=9)
ONE = pb.Container(container_id="c1", node_id="n-1", offer_id="a")


def status(code: grpc.StatusCode, details: str = "told") -> grpc.aio.AioRpcError:
    none = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, none, none, details)


@dataclass
class Watching:
    """One call of Watch."""

    said: asyncio.Queue[pb.WatchResponse | Exception] = field(default_factory=asyncio.Queue)

    def __aiter__(self) -> AsyncIterator[pb.WatchResponse]:
        return self._read()

    async def _read(self) -> AsyncIterator[pb.WatchResponse]:
        while True:
            message = await self.said.get()
            if isinstance(message, Exception):
                raise message
            yield message

    def cancel(self) -> None: ...


@dataclass
class PlayedLauncher:
    """Answers what it is told to."""

    answers: list[Any] = field(default_factory=list)
    launches: list[pb.LaunchRequest] = field(default_factory=list)
    ends: list[pb.EndRequest] = field(default_factory=list)
    end_fails: int = 0
    runs: list[pb.Container] = field(default_factory=list)
    watching: Watching = field(default_factory=Watching)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    async def Launch(self, request: pb.LaunchRequest, **_: Any) -> pb.LaunchResponse:
        self.launches.append(request)
        await self.gate.wait()
        answer = self.answers.pop(0) if self.answers else ONE
        if isinstance(answer, Exception):
            raise answer
        return pb.LaunchResponse(container=answer)

    async def End(self, request: pb.EndRequest, **_: Any) -> pb.EndResponse:
        self.ends.append(request)
        if self.end_fails:
            self.end_fails -= 1
            raise status(grpc.StatusCode.UNAVAILABLE)
        return pb.EndResponse()

    def Watch(self, request: pb.WatchRequest) -> Watching:
        self.watching = Watching()
        self.say(pb.WatchResponse(running=pb.Running(containers=self.runs)))
        return self.watching

    def say(self, message: pb.WatchResponse | Exception) -> None:
        self.watching.said.put_nowait(message)

    def ended(self, container: pb.Container, reason: str = "exit status 137") -> None:
        self.say(pb.WatchResponse(ended=pb.Ended(container=container, reason=reason)))


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAUSE_S", "STRANGERS_S"):
        monkeypatch.setattr(docker, name, 0.01)


@asynccontextmanager
async def provider_of(
    launcher: PlayedLauncher, known: Set[str] | None = None, launch_s: float = 60.0
) -> AsyncIterator[DockerProvider]:
    provider = DockerProvider(
        launcher,
        offers=(OFFER,),
        environment=lambda offer: {"SHUNT_ENGINE_RELATIVE_SPEED": "3"},
        known=lambda: known,
        launch_s=launch_s,
    )
    async with provider.running():
        yield provider


async def said(provider: DockerProvider) -> ProviderEvent:
    async with asyncio.timeout(60):
        async for event in provider.events():
            return event
    raise AssertionError("closed")


async def test_a_node_is_told_its_shape_its_name_and_its_own_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    token = "a-token-of-the-mesh"
    monkeypatch.setenv(mesh_token.VARIABLE, token)
    launcher = PlayedLauncher()
    async with provider_of(launcher) as provider:
        assert await provider.launch("n-1", OFFER) == "c1"
    [request] = launcher.launches
    assert (request.node_id, request.offer_id) == ("n-1", "a")
    assert dict(request.variables) == {
        "SHUNT_ENGINE_RELATIVE_SPEED": "3",
        "SHUNT_ENGINE_NODE_ID": "n-1",
        mesh_token.VARIABLE: mesh_token.of_node(token, "n-1"),
        mesh_token.FILE_VARIABLE: "",
    }


async def test_a_launcher_that_is_away_is_asked_again() -> None:
    launcher = PlayedLauncher([status(grpc.StatusCode.UNAVAILABLE)] * 2)
    async with provider_of(launcher) as provider:
        assert await provider.launch("n-1", OFFER) == "c1"
    assert len(launcher.launches) == 3
    assert not launcher.ends


async def test_what_may_have_come_of_a_launch_without_an_answer_is_ended() -> None:
    launcher = PlayedLauncher([status(grpc.StatusCode.UNAVAILABLE, "gone away")])
    async with provider_of(launcher, launch_s=0.0) as provider:
        assert await provider.launch("n-1", OFFER) == ""
        assert await said(provider) == LaunchFailed("n-1", "gone away")
        assert not provider.holds("n-1")
        launcher.say(pb.WatchResponse(started=ONE))
        await until(lambda: launcher.ends)
        assert launcher.ends[0].node_id == "n-1"
        launcher.ended(ONE)
        await said(provider)
        assert not provider.holds("n-1")


@pytest.mark.parametrize(
    ("code", "reason", "pause_s"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "no capacity", docker.RETRY_AFTER_S),
        (grpc.StatusCode.FAILED_PRECONDITION, "told", 0.0),
        (grpc.StatusCode.NOT_FOUND, "told", 0.0),
    ],
)
async def test_a_refusal_is_a_launch_that_failed(
    code: grpc.StatusCode, reason: str, pause_s: float
) -> None:
    async with provider_of(PlayedLauncher([status(code)])) as provider:
        assert await provider.launch("n-1", OFFER) == ""
        assert await said(provider) == LaunchFailed("n-1", reason, pause_s)


async def test_a_container_that_ended_before_its_launch_was_answered_is_gone() -> None:
    launcher = PlayedLauncher()
    launcher.gate.clear()
    async with provider_of(launcher) as provider:
        launch = asyncio.create_task(provider.launch("n-1", OFFER))
        await until(lambda: launcher.launches)
        launcher.say(pb.WatchResponse(started=ONE))
        launcher.ended(ONE, "exit status 2")
        await until(lambda: launcher.watching.said.empty())
        launcher.gate.set()
        await launch
        assert await said(provider) == NodeGone("n-1", "exit status 2")
        assert not provider.holds("n-1")


async def test_what_nobody_knows_is_ended_and_what_is_known_is_not() -> None:
    two = pb.Container(container_id="c2", node_id="n-2", offer_id="a")
    launcher = PlayedLauncher(runs=[ONE, two])
    async with provider_of(launcher, known={"n-2"}):
        await until(lambda: len(launcher.ends) > 2)
    assert {request.node_id for request in launcher.ends} == {"n-1"}


async def test_before_the_cluster_knows_its_nodes_nothing_is_ended() -> None:
    launcher = PlayedLauncher(runs=[ONE])
    async with provider_of(launcher, known=None) as provider:
        await asyncio.sleep(0.1)
        assert not launcher.ends
        assert await provider.adopt("n-1", "c1")
        assert not await provider.adopt("n-3", "c3")


async def test_a_node_whose_container_is_missing_behind_a_gap_is_gone() -> None:
    launcher = PlayedLauncher(runs=[ONE])
    async with provider_of(launcher) as provider:
        assert provider.holds("n-1")
        launcher.runs = []
        launcher.say(status(grpc.StatusCode.UNAVAILABLE))
        gone = await said(provider)
        assert isinstance(gone, NodeGone)
        assert "not to be found" in gone.reason


async def test_the_end_of_another_container_of_that_name_is_not_the_nodes() -> None:
    launcher = PlayedLauncher(runs=[ONE])
    async with provider_of(launcher) as provider:
        launcher.ended(pb.Container(container_id="c0", node_id="n-1"))
        launcher.ended(ONE, "last")
        assert await said(provider) == NodeGone("n-1", "last")


async def test_an_end_that_failed_is_carried_out_later() -> None:
    launcher = PlayedLauncher(runs=[ONE], end_fails=1)
    async with provider_of(launcher) as provider:
        with pytest.raises(Unavailable):
            await provider.terminate("n-1", 2.0)
        await until(lambda: len(launcher.ends) > 1)
    assert [request.grace_s for request in launcher.ends[:2]] == [2.0, 0.0]


async def test_it_takes_no_node_away_behind_a_notice() -> None:
    async with provider_of(PlayedLauncher(runs=[ONE])) as provider:
        assert not provider.capabilities.gives_notice
        with pytest.raises(FailedPrecondition):
            provider.give_notice("n-1", 1.0, NoticeKind.SPOT)
