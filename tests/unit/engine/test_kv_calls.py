"""A stage that fails at blocks is one that does not answer, be it the head's own."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, ClassVar

import grpc

from services.common.exchange import KvSource
from services.engine.core.incoming import KvFetch
from services.engine.kv_calls import KvCalls
from services.engine.kv_moves import Brought
from services.engine.peers import Peers


class Failing:
    """A process whose stage can neither read its cache nor write to it."""

    incarnation = "i"

    async def keep(self, *asked: Any, **more: Any) -> int:
        raise RuntimeError("out of pinned memory")

    async def fetch(self, *asked: Any, **more: Any) -> Any:
        raise RuntimeError("out of pinned memory")


def nobody(address: str) -> grpc.aio.Channel:
    raise AssertionError("there is no other stage")


class Alone:
    """A formation of one stage."""

    id = "f"
    membership = SimpleNamespace(members=[SimpleNamespace(node_id="n")], stage_index=0)

    def __init__(self) -> None:
        self.given_up: list[int] = []

    async def give_up(self, number: int) -> None:
        self.given_up.append(number)


async def test_blocks_are_waited_for_as_long_as_their_grant_says() -> None:
    """Else for as long as the process has it."""

    class Slow(Failing):
        waited_s: ClassVar[list[float]] = []

        async def fetch(self, *asked: Any, waits: bool) -> Any:
            self.waited_s.append(asked[-1])
            assert waits
            return SimpleNamespace(blocks=1, fetched_bytes=7, rounded=True)

    slow: Any = Slow()
    formation: Any = Alone()
    calls = KvCalls(slow, Peers(nobody), 5.0)
    for source in (KvSource("g", ()), KvSource("g", (), 40.0)):
        brought = await calls.fetch(formation, KvFetch(2, source, ((b"a", 0),)))
        assert brought == Brought(1, 7, rounded=True)
    assert Slow.waited_s == [5.0, 40.0]


async def test_blocks_may_take_as_long_to_be_kept_as_they_are_worth_waiting_for() -> None:
    """By the process or, where that is longer, by who drains."""

    class Slow(Failing):
        def __init__(self) -> None:
            self.copied = asyncio.Event()

        async def keep(self, *asked: Any, **more: Any) -> int:
            await self.copied.wait()
            return 1

    slow: Any = Slow()
    formation: Any = Alone()
    calls = KvCalls(slow, Peers(nobody), 0.01)
    assert await calls.keep(formation, 1, [(b"a", 0)], last=True) is None
    keeping = asyncio.create_task(calls.keep(formation, 1, [(b"a", 0)], last=True, keep_s=60.0))
    await asyncio.sleep(0.05)
    slow.copied.set()
    assert await keeping == 1


async def test_a_heads_own_stage_that_fails_at_blocks_does_not_answer() -> None:
    """A drain goes on without them: what it has sealed is computed again."""
    failing: Any = Failing()
    formation: Any = Alone()
    calls = KvCalls(failing, Peers(nobody), 60.0)
    assert await calls.keep(formation, 1, [(b"a", 0)], last=True) is None
    brought = await calls.fetch(formation, KvFetch(2, KvSource("g", ()), ((b"a", 0),)))
    assert brought.count is None
    assert await calls.end(formation, 1)
    assert formation.given_up == [1]
