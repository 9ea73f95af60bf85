from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from services.common.errors import DeadlineExceeded, NotFound, Unavailable
from services.router.controllers import Controllers

WAIT_S = 60.0


class Peer:
    """A controller that answers with its name, refuses, or never answers."""

    def __init__(self, name: str, refusal: grpc.StatusCode | None = None) -> None:
        self.name = name
        self.refusal = refusal
        self.silent = False
        self.asked = 0

    async def ask(self, left_s: float) -> str:
        self.asked += 1
        if self.silent:
            await asyncio.sleep(left_s)
            raise self._error(grpc.StatusCode.DEADLINE_EXCEEDED)
        if self.refusal is not None:
            raise self._error(self.refusal)
        return self.name

    def _error(self, code: grpc.StatusCode) -> grpc.aio.AioRpcError:
        empty = grpc.aio.Metadata()
        return grpc.aio.AioRpcError(code, empty, empty, details=f"{self.name} says no")


def _among(*peers: Peer) -> Controllers:
    stubs: Any = peers
    return Controllers(stubs)


def _ask(controllers: Controllers, limit_s: float = WAIT_S) -> Any:
    make: Callable[[Any, float], Any] = lambda peer, left_s: peer.ask(left_s)  # noqa: E731
    return controllers.call(make, limit_s)


async def test_a_refusal_is_asked_of_the_next_and_the_next_is_remembered() -> None:
    standby, leader = Peer("standby", grpc.StatusCode.UNAVAILABLE), Peer("leader")
    controllers = _among(standby, leader)
    assert [await _ask(controllers) for _ in range(3)] == ["leader"] * 3
    assert standby.asked == 1


async def test_when_all_refuse_each_was_asked_once() -> None:
    peers = [Peer(str(n), grpc.StatusCode.UNAVAILABLE) for n in range(3)]
    with pytest.raises(Unavailable, match="says no"):
        await _ask(_among(*peers))
    assert [peer.asked for peer in peers] == [1, 1, 1]


async def test_an_answer_that_says_no_is_an_answer() -> None:
    leader, other = Peer("leader", grpc.StatusCode.NOT_FOUND), Peer("other")
    with pytest.raises(NotFound):
        await _ask(_among(leader, other))
    assert other.asked == 0


async def test_one_that_never_answers_is_left_for_one_that_begins_to_lead() -> None:
    stopped, next_one = Peer("stopped"), Peer("next")
    stopped.silent = True
    controllers = _among(stopped, next_one)
    assert controllers.heard(0)
    waiting = asyncio.ensure_future(_ask(controllers))
    await asyncio.sleep(0)
    assert controllers.heard(1)
    async with asyncio.timeout(WAIT_S):
        assert await waiting == "next"


async def test_news_of_one_that_was_followed_counts_no_more() -> None:
    controllers = _among(Peer("a"), Peer("b"))
    assert controllers.heard(0)
    assert controllers.heard(1)
    assert not controllers.heard(0)
    assert controllers.lost(0) is None
    assert controllers.leader == 1


async def test_when_the_last_to_begin_is_lost_the_one_before_counts_again() -> None:
    controllers = _among(Peer("a"), Peer("b"))
    controllers.heard(0)
    controllers.heard(1)
    assert controllers.lost(1) == 0
    assert controllers.heard(0)
    assert controllers.lost(0) is None


async def test_a_deadline_is_the_calls_own_however_often_it_walks_on() -> None:
    standby, slow = Peer("standby", grpc.StatusCode.UNAVAILABLE), Peer("slow")
    slow.silent = True
    with pytest.raises(DeadlineExceeded):
        await _ask(_among(standby, slow), 0.05)
