"""Blocks follow a prompt that is long to where it was promised to go on."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest

from services.common.errors import Unavailable
from services.common.exchange import KvMember, KvSource, Route
from services.common.generation import GenerationRequest, LayerRange, ModelRef, Sampling
from services.common.nodes import Member
from services.controller.core.ledger.outcomes import ServingHead
from services.controller.core.ledger.records import HeadBound
from services.controller.engines import Heir
from services.controller.hand_ons import FEWEST_POSITIONS, FOLLOWED_S, HandOns

MODEL = ModelRef("m", "d")
ALL = LayerRange(0, 4)
HEAD = ServingHead(Route("p-b", "f-b", "i-b", "b:1", 1.0, MODEL, 4096), True)


class Mesh:
    """A cluster of two formations, and their engines."""

    def __init__(self) -> None:
        self.view = self
        self.fails = False
        self.gone: set[str] = set()
        self.copied: list[tuple[str, str, tuple[Heir, ...], float, bool]] = []

    def members(self, formation_id: str) -> tuple[Member, ...]:
        if formation_id in self.gone:
            return ()
        name = formation_id.removeprefix("f-")
        return (Member(f"n-{name}", f"i-{name}", f"{name}:1", ALL),)

    async def copy_ahead(
        self,
        source: KvSource,
        head: Member,
        heirs: Sequence[Heir],
        limit_s: float,
        *,
        follows: bool = False,
    ) -> None:
        self.copied.append((source.formation_id, head.address, tuple(heirs), limit_s, follows))
        if self.fails:
            raise Unavailable("away")


async def begins(mesh: Mesh, positions: int, head: ServingHead | None = HEAD) -> list[str]:
    """A generation of so many positions; nodes by which what was started for it ends."""
    begun: list[str] = []
    tasks: list[asyncio.Task[None]] = []

    def begin(work: Coroutine[None, None, None], node_id: str | None) -> None:
        begun.append(node_id or "")
        tasks.append(asyncio.ensure_future(work))

    anything: Any = mesh
    hand_ons = HandOns(anything, anything, lambda name: head, begin=begin)
    request = GenerationRequest("g", MODEL, tuple(range(positions)), Sampling(max_tokens=8))
    hand_ons.began(HeadBound("g", "i-a", "f-a", "p-a", request))
    await asyncio.gather(*tasks)
    return begun


async def test_a_long_prompts_blocks_follow_to_the_formation_that_was_promised() -> None:
    mesh = Mesh()
    assert await begins(mesh, FEWEST_POSITIONS) == ["n-a"]
    heir = Heir((KvMember("b:1", "i-b", ALL),), frozenset({"g"}), "f-b")
    assert mesh.copied == [("f-a", "a:1", (heir,), FOLLOWED_S, True)]


@pytest.mark.parametrize("gone", ["f-a", "f-b"])
async def test_nothing_follows_where_somebody_is_gone(gone: str) -> None:
    mesh = Mesh()
    mesh.gone = {gone}
    assert await begins(mesh, FEWEST_POSITIONS) == []


async def test_what_is_short_or_stays_is_left_alone() -> None:
    mesh = Mesh()
    assert await begins(mesh, FEWEST_POSITIONS - 1) == []
    assert await begins(mesh, FEWEST_POSITIONS, None) == []
    assert mesh.copied == []


async def test_a_head_that_does_not_answer_costs_nothing_but_the_blocks() -> None:
    mesh = Mesh()
    mesh.fails = True
    assert await begins(mesh, 2 * FEWEST_POSITIONS) == ["n-a"]
    assert len(mesh.copied) == 1
