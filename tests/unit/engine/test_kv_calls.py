"""A stage that fails at blocks is one that does not answer, be it the head's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import grpc

from services.common.exchange import KvSource
from services.engine.core.incoming import KvFetch
from services.engine.kv_calls import KvCalls


class Failing:
    """A process whose stage can neither read its cache nor write to it."""

    incarnation = "i"

    async def keep(self, *asked: Any, **more: Any) -> int:
        raise RuntimeError("out of pinned memory")

    async def fetch(self, *asked: Any) -> Any:
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


async def test_a_heads_own_stage_that_fails_at_blocks_does_not_answer() -> None:
    """A drain goes on without them: what it has sealed is computed again."""
    failing: Any = Failing()
    formation: Any = Alone()
    calls = KvCalls(failing, nobody, 60.0)
    assert await calls.keep(formation, 1, [(b"a", 0)], last=True) is None
    assert await calls.fetch(formation, KvFetch(2, KvSource("g", ()), ((b"a", 0),))) is None
    assert await calls.end(formation, 1)
    assert formation.given_up == [1]
