"""Where blocks may be had, for as long as they may."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from services.common.exchange import KvMember
from services.common.generation import LayerRange
from services.common.nodes import Member
from services.controller.core.departure.move import Choice, Move, Reason
from services.controller.kv_sources import KvSources

MEMBERS = (
    Member("n0", "i0", "a:1", LayerRange(0, 2)),
    Member("n1", "i1", "a:2", LayerRange(2, 5)),
)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def move(name: str, choice: Choice) -> Move:
    return Move(name, choice, Reason.CHEAPER, 0.0, 0.0)


def nobody(formation_id: str) -> Sequence[Member]:
    return ()


def test_blocks_may_be_had_from_the_drain_on_until_a_while_behind_the_seal() -> None:
    clock = Clock()
    sources = KvSources("kv", 5.0, clock, nobody, fetch_s=60.0)
    assert sources.travels
    sources.drains("f", MEMBERS, ())
    clock.now_s += 60
    source = sources.of("f", "a", False)
    assert source is not None
    assert source.formation_id == "f"
    assert source.members == (
        KvMember("a:1", "i0", LayerRange(0, 2)),
        KvMember("a:2", "i1", LayerRange(2, 5)),
    )
    sources.drained("f", sealed=True)
    clock.now_s += 4.9
    assert sources.of("f", "a", False) == source
    assert sources.of("g", "a", True) is None
    clock.now_s += 0.1
    assert sources.of("f", "a", False) is None


def test_of_a_drain_that_failed_nothing_is_told() -> None:
    sources = KvSources("kv", 5.0, Clock(), nobody, fetch_s=60.0)
    sources.drains("f", MEMBERS, ())
    sources.drained("f", sealed=False)
    assert sources.of("f", "a", False) is None


def test_where_ids_are_replayed_nothing_is_ever_told() -> None:
    sources = KvSources("replay", 5.0, Clock(), nobody, fetch_s=60.0)
    assert not sources.travels
    sources.drains("f", MEMBERS, ())
    sources.drained("f", sealed=True)
    assert sources.of("f", "a", False) is None


async def test_a_node_may_end_when_nobody_is_told_of_it_any_more() -> None:
    loop = asyncio.get_running_loop()
    sources = KvSources("kv", 0.05, loop.time, nobody, fetch_s=60.0)
    await sources.over("n0")
    sources.drains("f", MEMBERS, ())
    over = asyncio.create_task(sources.over("n0"))
    await sources.over("n2")
    await asyncio.sleep(0)
    assert not over.done()
    sources.drained("f", sealed=True)
    await asyncio.wait_for(over, 60)
    assert sources.of("f", "a", False) is None


def test_what_is_handed_on_has_its_blocks_where_it_began_for_as_long_as_that_lives() -> None:
    """Whatever becomes of generations in other hand-overs."""
    living = {"f": MEMBERS}
    sources = KvSources("replay", 5.0, Clock(), lambda name: living.get(name, ()), fetch_s=60.0)
    source = sources.of("f", "a", True)
    assert source is not None
    assert [member.incarnation for member in source.members] == ["i0", "i1"]
    assert sources.of("f", "a", False) is None
    del living["f"]
    assert sources.of("f", "a", True) is None


def test_of_a_formation_that_is_left_one_by_one_those_have_blocks_that_were_pushed() -> None:
    clock = Clock()
    sources = KvSources("auto", 5.0, clock, nobody, fetch_s=60.0)
    sources.departs("f", MEMBERS)
    assert sources.of("f", "runs on", False) is None
    sources.seals("f", {"pushed"}, {"replayed"})
    assert sources.of("f", "pushed", False) is not None
    assert sources.of("f", "replayed", False) is None
    assert sources.drains("f", MEMBERS, [move("too short", Choice.REPLAY)]) == {"too short"}
    told = {name: sources.of("f", name, False) is not None for name in ("runs on", "replayed")}
    assert told == {"runs on": True, "replayed": False}
    assert sources.of("f", "too short", False) is None


async def test_what_takes_long_over_the_link_is_kept_and_waited_for_so_long() -> None:
    """And a node stays for it; no longer than is allowed, and where less is enough as ever."""
    for took_s, lasts_s in ((2.0, 0.0), (20.0, 30.0), (300.0, 60.0)):
        clock = Clock()
        sources = KvSources("auto", 5.0, clock, nobody, fetch_s=60.0)
        pushed = replace(move("a", Choice.PUSH), ends_s=took_s)
        sources.drains("f", MEMBERS, [pushed])
        assert sources.lasts_s("f") == lasts_s
        told = sources.of("f", "a", False)
        assert told is not None
        assert told.fetch_s == lasts_s
        sources.drained("f", sealed=True)
        clock.now_s += 4.0
        told = sources.of("f", "a", False)
        assert told is not None
        assert told.fetch_s == max(0.0, lasts_s - 4.0)
        clock.now_s += max(1.0, lasts_s - 4.0) - 0.1
        assert sources.of("f", "a", False) is not None
        clock.now_s += 0.2
        assert sources.of("f", "a", False) is None


async def test_where_all_ids_are_read_again_no_node_stays_for_blocks() -> None:
    """Chosen for each of them, that is; else what nobody has told of yet may have some."""
    none, some = [move("a", Choice.REPLAY)], [move("a", Choice.REPLAY), move("b", Choice.PUSH)]
    for handover, moves, said in (
        ("auto", (), None),
        ("auto", none, None),
        ("auto", some, {"a"}),
        ("kv", (), set()),
        ("replay", some, None),
    ):
        sources = KvSources(handover, 5.0, Clock(), nobody, fetch_s=60.0)
        assert sources.drains("f", MEMBERS, moves) == said
        assert (sources.of("f", "b", False) is None) is (said is None)
        if said is None:
            await asyncio.wait_for(sources.over("n0"), 60)


async def test_a_node_whose_formation_was_lost_while_it_was_left_may_end() -> None:
    clock = Clock()
    sources = KvSources("auto", 5.0, clock, nobody, fetch_s=60.0)
    sources.departs("f", MEMBERS)
    sources.seals("f", {"a"}, ())
    sources.dissolved("f")
    clock.now_s += 4.9
    assert sources.of("f", "a", False) is not None
    clock.now_s += 0.1
    await asyncio.wait_for(sources.over("n0"), 60)
    sources.dissolved("another")
    assert sources.of("f", "a", False) is None
