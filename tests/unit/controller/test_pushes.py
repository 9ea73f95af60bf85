"""Blocks go in rounds, one generation's after another's; what goes wrong with one is its own."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any

import pytest

from services.common.errors import Unavailable
from services.common.exchange import KvMember, KvSource
from services.common.generation import LayerRange
from services.common.link import UNSEEN_BYTES_PER_S
from services.common.nodes import Member
from services.controller.core.departure.links import Links
from services.controller.core.departure.move import Stream
from services.controller.engines import Heir, WentAhead
from services.controller.pushes import ROUND_S, Pushes

BLOCK_BYTES = 1000
TOOK_S = 0.5
MOVED_S = 0.1
"""Of that without rests."""
HEAD = Member("n", "i-f", "a:1", LayerRange(0, 4))
THERE = (KvMember("a:2", "i-there", LayerRange(0, 4)),)


class Heads:
    """Sends so many blocks a round."""

    def __init__(
        self,
        blocks: dict[str, list[int]],
        free: Collection[str] = (),
        full: Collection[str] = (),
    ) -> None:
        self.blocks = blocks
        """Of each generation, round by round, how many are over in all; -1: no answer."""
        self.free = free
        """No bytes go for these."""
        self.full = full
        """Whoever goes on with these has no room."""
        self.asked: list[str] = []
        self.now_s = 0.0

    async def copy_ahead(
        self,
        source: KvSource,
        head: Member,
        heirs: Sequence[Heir],
        limit_s: float,
        *,
        max_rounds: int,
    ) -> WentAhead:
        ((name,),) = (heir.generation_ids for heir in heirs)
        assert (source.formation_id, head, heirs[0].members) == ("f", HEAD, THERE)
        assert (limit_s, max_rounds) == (ROUND_S, 1)
        self.asked.append(name)
        self.now_s += TOOK_S
        rounds = self.blocks[name]
        over = rounds.pop(0)
        if over < 0:
            raise Unavailable("away")
        size_bytes = 0 if name in self.free or name in self.full else 500
        full = name in self.full
        return WentAhead(1, over, size_bytes=size_bytes, took_s=MOVED_S, over=not rounds, full=full)


async def pushed(
    blocks: dict[str, list[int]],
    free: Collection[str] = (),
    full: Collection[str] = (),
    over: dict[str, int] | None = None,
) -> tuple[Pushes, Heads, Links]:
    """When all that was to go has gone, as far as it does; so many blocks of each were `over`."""
    heads, links = Heads(blocks, free, full), Links()
    engines: Any = heads
    pushes = Pushes(
        engines,
        links,
        KvSource("f", ()),
        HEAD,
        block_bytes=BLOCK_BYTES,
        block_positions=16,
        over=over or {},
        clock=lambda: heads.now_s,
    )
    for name in blocks:
        pushes.begin(name, Heir(THERE, frozenset({name})))
    going = asyncio.create_task(pushes.run())
    for _ in range(100):
        await asyncio.sleep(0)
    going.cancel()
    assert not pushes._going
    return pushes, heads, links


def stream(name: str, positions: int = 100) -> Stream:
    return Stream(name, positions, (10,), 1000, 10.0)


async def test_one_goes_after_another_and_what_is_over_travels_no_more() -> None:
    pushes, heads, links = await pushed({"a": [2, 4], "b": [3]})
    assert heads.asked == ["a", "a", "b"]
    assert pushes.seen(stream("a")).bytes == 0
    assert pushes.seen(stream("other")).bytes == 6 * BLOCK_BYTES
    assert pushes.went.is_set()
    assert links.ahead.bytes_per_s(heads.now_s) == 500 / TOOK_S
    assert links.behind.bytes_per_s(heads.now_s) == pytest.approx(500 / MOVED_S)


async def test_what_was_begun_anew_goes_on() -> None:
    """A head forgets what it sent when it is not asked for more soon: nothing is lost but time."""
    pushes, heads, links = await pushed({"a": [6, 2, 4, 8]}, free=("a",))
    assert heads.asked == ["a"] * 4
    assert pushes.seen(stream("a")).bytes == 0
    assert links.ahead.bytes_per_s(heads.now_s) == UNSEEN_BYTES_PER_S
    pushes, heads, _ = await pushed({"a": [6, 0, 0, 0]})
    assert heads.asked == ["a"] * 3
    assert pushes.seen(stream("a")).bytes is None


async def test_what_lies_there_already_says_nothing_of_the_link() -> None:
    """Nor does the call that finds no more to send; that nothing comes of what was to go does."""
    _, heads, links = await pushed({"a": [4, 4], "b": [4]}, free=("a", "b"))
    assert heads.asked == ["a", "a", "b"]
    assert links.ahead.bytes_per_s(heads.now_s) == UNSEEN_BYTES_PER_S
    _, heads, links = await pushed({"a": [0, 0]}, free=("a",))
    assert heads.asked == ["a"]
    assert links.ahead.bytes_per_s(heads.now_s) == 0.0


async def test_what_went_ahead_before_is_no_sign_that_nobody_takes_more() -> None:
    """The head counts anew where the heir is another one, or some time has passed: its first round
    finds there what is there, and that is as much as before."""
    pushes, heads, links = await pushed({"a": [4, 6]}, free=("a",), over={"a": 4})
    assert heads.asked == ["a", "a"]
    assert pushes.seen(stream("a")).bytes == 0
    assert links.ahead.bytes_per_s(heads.now_s) == UNSEEN_BYTES_PER_S


async def test_no_room_where_one_goes_says_nothing_of_the_link() -> None:
    """It is replayed; the others are pushed as they would have been."""
    pushes, heads, links = await pushed({"a": [0, 0], "b": [4]}, free=("b",), full=("a",))
    assert heads.asked == ["a", "b"]
    assert pushes.seen(stream("a")).bytes is None
    assert pushes.seen(stream("b")).bytes == 0
    assert links.ahead.bytes_per_s(heads.now_s) == UNSEEN_BYTES_PER_S


def test_a_call_that_found_nothing_to_send_says_nothing_of_the_link() -> None:
    """Of one that waits for a place in the batch."""
    assert not WentAhead(rounds=0).tells_of_link()
    assert WentAhead(rounds=1).tells_of_link()


async def test_of_one_that_is_on_its_way_the_rest_travels() -> None:
    heads = Heads({"a": [2, 4, 6]})
    engines: Any = heads
    pushes = Pushes(
        engines,
        Links(),
        KvSource("f", ()),
        HEAD,
        block_bytes=BLOCK_BYTES,
        block_positions=16,
        over={},
        clock=lambda: heads.now_s,
    )
    pushes.begin("a", Heir(THERE, frozenset({"a"})))
    await pushes._go("a", pushes._going["a"])
    assert pushes.seen(stream("a")).bytes == 4 * BLOCK_BYTES
    pushes.keep(())
    assert not pushes._going, "it is replayed, and no more of it is sent"


async def test_whose_next_head_takes_nothing_more_is_replayed() -> None:
    """The others go all the same."""
    pushes, heads, _ = await pushed({"a": [2, 2, 0], "b": [-1, 0], "c": [4]})
    assert heads.asked == ["a", "a", "b", "c"]
    assert pushes.seen(stream("a")).bytes is None
    assert pushes.seen(stream("b")).bytes is None
    assert pushes.seen(stream("c")).bytes == 0


async def test_who_has_nobody_to_go_to_is_replayed() -> None:
    pushes, _, _ = await pushed({"a": [4]})
    pushes.stays("b")
    assert pushes.seen(stream("b")).bytes is None
