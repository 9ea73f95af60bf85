"""What becomes of generations that leave is carried out at their head, and told."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from math import inf
from typing import Any

from services.common.errors import Unavailable
from services.common.exchange import KvMember, KvSource, Route
from services.common.generation import LayerRange, ModelRef
from services.common.link import UNSEEN_BYTES_PER_S
from services.common.nodes import Member
from services.controller.core.cluster.actions import CopyAhead, DepartFormation
from services.controller.core.departure.lengths import AnswerLengths
from services.controller.core.departure.move import Choice, Move, Rates, Reason, Stream
from services.controller.core.ledger.outcomes import RunsAt, ServingHead
from services.controller.departures import Departures, Journaled
from services.controller.engines import Heir, WentAhead
from services.controller.event_log import EventLog
from services.controller.kv_sources import Handover, KvSources
from tests.unit.controller.small_runtime import Disk

MODEL = ModelRef("m", "d")
NOTHING_SEEN = Rates()
SHORT = Stream("short", 100, (10,), 12, 1000.0)
LONG = Stream("long", 100, (10,), 10_000, 1000.0)


MEMBERS = (Member("n", "i-f", "a:1", LayerRange(0, 4)),)


class Head:
    """Keeps what it is told to keep; time goes by from look to look."""

    def __init__(self, streams: list[Stream], fails: bool = False) -> None:
        self.streams = streams
        self.fails = fails
        self.over = False
        self.blocks, self.size_bytes, self.took_s = 30, 4000, 0.0
        """Of what goes ahead."""
        self.blocks_of = {"long": 6}
        self.meanwhile: Callable[[], object] = lambda: None
        """What happens while blocks go ahead."""
        self.measured = 0
        """How often it was asked for the size of its blocks."""
        self.drains: list[tuple[str, ...]] = []
        self.kept: list[tuple[bool, tuple[str, ...]]] = []
        self.copied: list[tuple[str, tuple[Heir, ...], float]] = []
        self.now_s = 0.0

    async def drain(
        self,
        formation_id: str,
        head: Any,
        *,
        keep_kv: bool = False,
        keep_s: float = 0.0,
        replayed: Collection[str] = (),
        running: Collection[str] = (),
    ) -> int:
        if self.fails:
            raise Unavailable("away")
        self.drains.append(tuple(sorted(running)))
        self.kept.append((keep_kv, tuple(sorted(replayed))))
        self.streams = [one for one in self.streams if one.generation_id in running]
        return 1

    async def copy_ahead(
        self,
        source: KvSource,
        head: Any,
        heirs: Sequence[Heir],
        limit_s: float,
        *,
        max_rounds: int = 0,
    ) -> WentAhead:
        self.copied.append((source.formation_id, tuple(heirs), limit_s))
        self.meanwhile()
        self.now_s += self.took_s
        return WentAhead(
            2, self.blocks, 20, self.size_bytes, 0.25, self.over, blocks_of=self.blocks_of
        )

    async def block_bytes(self, formation_id: str, head: Member) -> int:
        self.measured += 1
        if self.fails:
            raise Unavailable("away")
        return 100

    def seen(self, _: str) -> list[Stream]:
        self.now_s += 0.2
        streams = self.streams
        self.streams = [one for one in streams if one is not SHORT]  # it ends by itself
        return streams


class Cluster:
    """Knows the formation until it has departed."""

    def __init__(self, block_bytes: int | None = 100) -> None:
        self.departed_from: list[str] = []
        self.block_bytes = block_bytes
        self.stays = False
        """Nothing leaves the formation after all."""
        self.ends_s = inf
        """When its node is taken away."""
        self.view = self

    def ends_at_s(self, formation_id: str) -> float:
        return self.ends_s

    def goes(self, formation_id: str) -> bool:
        return not self.stays

    def runs_at(self, formation_id: str) -> Any:
        return RunsAt("p", MODEL, self.block_bytes)

    def measured(self, formation_id: str, block_bytes: int) -> None:
        self.block_bytes = block_bytes

    def members(self, formation_id: str) -> tuple[Member, ...]:
        return (Member("n", f"i-{formation_id}", "a:1", LayerRange(0, 4)),)

    def beside(self, formation_id: str) -> dict[str, int]:
        return {}

    def departed(self, formation_id: str, now_s: float) -> None:
        self.departed_from.append(formation_id)


def departures(
    head: Head,
    cluster: Cluster,
    events: EventLog,
    handover: Handover = "replay",
    rates: Rates = NOTHING_SEEN,
    promised: Mapping[str, ServingHead] | None = None,
) -> Departures:
    journaled = Journaled(
        head.seen, lambda _: AnswerLengths(), lambda _, __: rates, lambda _: promised or {}
    )
    engines: Any = head
    core: Any = cluster
    clock = lambda: head.now_s  # noqa: E731
    kv = KvSources(handover, 5.0, clock, lambda _: (), fetch_s=60.0)
    return Departures(core, engines, journaled, events, kv=kv, block_positions=16, clock=clock)


def replayed(moves: Sequence[Move]) -> set[str]:
    return {move.generation_id for move in moves if move.choice is Choice.REPLAY}


async def chosen(events: EventLog) -> list[tuple[str, str, str]]:
    return [
        (event.generation_id, event.attributes["choice"], event.attributes["reason"])
        async for event in events.follow(1, wait=False)
        if event.kind == "handover_chosen"
    ]


async def test_some_end_where_they_are_and_the_others_leave_at_the_end() -> None:
    disk: Any = Disk()
    events, cluster, head = EventLog(disk, lambda: 0.0, 100), Cluster(), Head([SHORT, LONG])
    action = DepartFormation("f", MEMBERS, 0.5)
    await departures(head, cluster, events).leave(action)
    assert head.drains == [("long", "short"), ("long",), ()]
    assert cluster.departed_from == ["f"]
    assert await chosen(events) == [
        ("long", "replay", "nothing may travel"),
        ("short", "finish", "its limit comes first"),
    ]


async def test_a_head_that_does_not_answer_is_given_up() -> None:
    disk: Any = Disk()
    events, cluster = EventLog(disk, lambda: 0.0, 100), Cluster()
    head = Head([LONG], fails=True)
    action = DepartFormation("f", MEMBERS, 1000.0)
    await departures(head, cluster, events).leave(action)
    assert cluster.departed_from == ["f"]


async def test_what_ends_at_once_is_told_of_each_that_runs() -> None:
    disk: Any = Disk()
    events = EventLog(disk, lambda: 0.0, 100)
    assert replayed(departures(Head([LONG]), Cluster(), events).end("f")) == {"long"}
    assert replayed(departures(Head([LONG]), Cluster(), events, "kv").end("f")) == set()
    assert await chosen(events) == [
        ("long", "replay", "its formation ends now"),
        ("long", "push", "its formation ends now"),
    ]


FEW = Stream("few", 40, (10,), 10_000, 1000.0)
SLOWEST = Rates(replay_s=0.02, replay_positions_per_s=10.0, push_s=0.06)
SLOW = Rates(replay_s=0.02, replay_positions_per_s=1000.0, push_s=0.06)


async def test_each_leaves_as_its_reader_waits_least() -> None:
    """40 positions are computed in 60 ms, their tail alone in 32; 100 are not."""
    disk: Any = Disk()
    events = EventLog(disk, lambda: 0.0, 100)
    leaving = departures(Head([LONG, FEW]), Cluster(), events, "auto", SLOW)
    assert replayed(leaving.end("f")) == {"few"}
    assert sorted(await chosen(events)) == [
        ("few", "replay", "its ids are computed as fast as its cache travels"),
        ("long", "push", "its cache travels faster than it is computed"),
    ]


async def test_what_did_not_go_ahead_is_worth_no_journey_over_a_slow_link() -> None:
    """600 bytes take six seconds behind the seal; those that went ahead take none."""
    disk: Any = Disk()
    events, head = EventLog(disk, lambda: 0.0, 100), Head([LONG])
    leaving = departures(head, Cluster(), events, "auto", SLOW, {"long": other("f2")})
    leaving._links.behind.carried(100, 1.0, 0.0)
    assert replayed(leaving.end("f")) == {"long"}
    await leaving.copy_ahead(CopyAhead("f", MEMBERS, (), 3.0))
    leaving._links.behind.carried(100, 1000.0, 0.0)
    assert replayed(leaving.end("f")) == set()
    assert replayed(leaving.end("f")) == {"long"}, "once"
    await leaving.copy_ahead(CopyAhead("f", MEMBERS, (), 3.0))
    assert leaving._ahead == {"f": {"long": 6}}
    leaving.forget("f")
    assert leaving._ahead == {}, "it was lost before it was drained"


async def test_what_would_not_be_there_in_time_is_replayed() -> None:
    """However long that takes: what is not there by then is computed all the same, and later. It
    is no push, and the link is for those who are."""
    disk: Any = Disk()
    events, cluster = EventLog(disk, lambda: 0.0, 100), Cluster()
    large = Stream("large", 16_000, (10,), 10_000, 1000.0)
    leaving = departures(Head([LONG, large]), cluster, events, "auto", SLOWEST)
    leaving._links.behind.carried(1_000, 1.0, 0.0)
    assert replayed(leaving.end("f")) == {"large"}, "100 s of the link, and 60 are waited for"
    leaving._links.behind.carried(100_000, 10.0, 0.0)
    cluster.ends_s = 100.0
    assert replayed(leaving.end("f")) == set()
    cluster.ends_s = 8.0
    assert replayed(leaving.end("f")) == {"large"}, "its node is gone before"
    told = [reason for name, _, reason in await chosen(events) if name == "large"]
    assert told[0] == told[2] == Reason.LINK.value
    moves = {move.generation_id: move for move in leaving.end("f")}
    assert moves["long"].ends_s > moves["long"].begins_s


async def test_what_went_ahead_is_known_of_each_generation() -> None:
    """One that came behind the copies, and one that its heir did not take, travel behind the seal
    over a slow link; the one that went ahead lacks no more than its last blocks."""
    disk: Any = Disk()
    events, late = EventLog(disk, lambda: 0.0, 100), Stream("late", 100, (10,), 10_000, 1000.0)
    head = Head([LONG, late])
    promised = {"long": other("f2"), "late": other("f2")}
    leaving = departures(head, Cluster(), events, "auto", SLOW, promised)
    await leaving.copy_ahead(CopyAhead("f", MEMBERS, (), 3.0))
    leaving._links.behind.carried(100, 1000.0, 0.0)
    assert replayed(leaving.end("f")) == {"late"}
    told = {name: choice for name, choice, _ in await chosen(events)}
    assert told == {"long": "push", "late": "replay"}


async def test_what_goes_ahead_while_others_leave_is_noted_beside_what_was_pushed() -> None:
    disk: Any = Disk()
    events, head = EventLog(disk, lambda: 0.0, 100), Head([LONG])
    leaving = departures(head, Cluster(), events, "auto", SLOW, {"long": other("f2")})
    pushed: dict[str, int] = {}

    def departs() -> None:
        nonlocal pushed
        pushed = leaving._ahead.setdefault("f", {"late": 3})

    head.meanwhile = departs
    await leaving.copy_ahead(CopyAhead("f", MEMBERS, (), 3.0))
    assert pushed == {"late": 3, "long": 6}


async def test_what_went_ahead_of_a_hand_over_that_was_withdrawn_counts_no_more() -> None:
    """Another one may have other heirs, and shelves keep blocks for some seconds alone."""
    disk: Any = Disk()
    events, head, cluster = EventLog(disk, lambda: 0.0, 100), Head([LONG]), Cluster()
    leaving = departures(head, cluster, events, "auto", SLOW, {"long": other("f2")})
    await leaving.copy_ahead(CopyAhead("f", MEMBERS, (), 3.0))
    leaving.forget_stayed()
    assert leaving._ahead == {"f": {"long": 6}}
    cluster.stays = True
    leaving.forget_stayed()
    assert leaving._ahead == {}
    await leaving.copy_ahead(CopyAhead("f", MEMBERS, (), 3.0))
    assert leaving._ahead == {}, "it was withdrawn while they went"
    cluster.stays = False
    await leaving.copy_ahead(CopyAhead("f", MEMBERS, (), 3.0))
    head.blocks_of = {"other": 2}
    await leaving.copy_ahead(CopyAhead("f", MEMBERS, (), 3.0))
    assert leaving._ahead == {"f": {"other": 2}}, "of the next one its own alone"


def other(formation: str) -> ServingHead:
    route = Route("p2", formation, f"i-{formation}", "a:1", 1.0, ModelRef("m", "d"), 1000)
    return ServingHead(route, True)


def follower(formation: str) -> KvMember:
    return KvMember("a:1", f"i-{formation}", LayerRange(0, 4))


async def test_blocks_go_ahead_to_the_head_that_was_promised_or_to_what_follows() -> None:
    disk: Any = Disk()
    events, head = EventLog(disk, lambda: 0.0, 100), Head([LONG, FEW])
    followers = (Member("n", "i-next", "a:1", LayerRange(0, 4)),)
    leaving = departures(head, Cluster(), events, "kv", promised={"few": other("f2")})
    await leaving.copy_ahead(CopyAhead("f", MEMBERS, followers, 3.0))
    ((formation, heirs, limit_s),) = head.copied
    assert (formation, limit_s) == ("f", 3.0)
    assert set(heirs) == {
        Heir((follower("f2"),), frozenset({"few"}), "f2"),
        Heir((follower("next"),), frozenset({"long"})),
    }
    (told,) = [e async for e in events.follow(1, wait=False) if e.kind == "blocks_went_ahead"]
    assert told.attributes == {
        "rounds": "2",
        "blocks": "30",
        "cached": "20",
        "bytes": "4000",
        "took_s": "0.250",
    }


async def test_blocks_that_lie_there_already_say_nothing_of_the_link() -> None:
    disk: Any = Disk()
    events, head = EventLog(disk, lambda: 0.0, 100), Head([LONG])
    head.size_bytes, head.took_s = 0, 1.0
    leaving = departures(head, Cluster(), events, "kv", promised={"long": other("f2")})
    await leaving.copy_ahead(CopyAhead("f", MEMBERS, (), 3.0))
    assert leaving._links.behind.bytes_per_s(head.now_s) == UNSEEN_BYTES_PER_S
    head.blocks = 0
    await leaving.copy_ahead(CopyAhead("f", MEMBERS, (), 3.0))
    assert leaving._links.behind.bytes_per_s(head.now_s) == 0.0


async def test_nothing_goes_ahead_of_what_is_read_again() -> None:
    disk: Any = Disk()
    events, head = EventLog(disk, lambda: 0.0, 100), Head([FEW])
    leaving = departures(head, Cluster(), events, "auto", SLOW)
    await leaving.copy_ahead(CopyAhead("f", MEMBERS, (), 3.0))
    assert head.copied == []


async def test_what_departs_has_its_blocks_go_ahead_and_is_sealed_when_they_are_over() -> None:
    """What its limit ends first stays; only the pushed one's blocks are kept, and may be had."""
    disk: Any = Disk()
    events, head = EventLog(disk, lambda: 0.0, 100), Head([SHORT, LONG])
    head.over = True
    slow = Rates(replay_positions_per_s=100.0)
    leaving = departures(head, Cluster(), events, "kv", slow, {"long": other("f2")})
    await leaving.leave(DepartFormation("f", MEMBERS, 1.0))
    ((formation, heirs, _),) = head.copied
    assert (formation, heirs) == ("f", (Heir((follower("f2"),), frozenset({"long"}), "f2"),))
    assert head.drains[0] == ("long", "short")
    assert head.drains[-1] == ()
    assert head.kept[-1] == (True, ("short",))
    assert leaving._kv.of("f", "long", False) is not None
    assert leaving._kv.of("f", "short", False) is None
    assert await chosen(events) == [
        ("long", "push", "its cache travels faster than it is computed"),
        ("short", "finish", "its limit comes first"),
    ]
    told = [e async for e in events.follow(1, wait=False) if e.generation_id == "long"]
    assert told[0].attributes["bytes"] == "600"


async def test_a_head_that_older_notes_tell_of_is_asked_how_large_its_blocks_are() -> None:
    disk: Any = Disk()
    events, head, cluster = EventLog(disk, lambda: 0.0, 100), Head([LONG]), Cluster(None)
    leaving = departures(head, cluster, events, "kv", promised={"long": other("f2")})
    for _ in range(2):
        await leaving.copy_ahead(CopyAhead("f", MEMBERS, (), 3.0))
    assert (len(head.copied), head.measured, cluster.block_bytes) == (2, 1, 100)
    silent, cluster = Head([LONG], fails=True), Cluster(None)
    leaving = departures(silent, cluster, events, "kv", promised={"long": other("f2")})
    await leaving.copy_ahead(CopyAhead("f", MEMBERS, (), 3.0))
    assert (silent.copied, cluster.block_bytes) == ([], None)


async def test_one_whose_blocks_nobody_takes_is_replayed() -> None:
    disk: Any = Disk()
    events, head = EventLog(disk, lambda: 0.0, 100), Head([LONG])
    leaving = departures(head, Cluster(), events, "kv", Rates(replay_positions_per_s=100.0))
    await leaving.leave(DepartFormation("f", MEMBERS, 1.0))
    assert head.copied == []
    assert [choice for _, choice, _ in await chosen(events)] == ["push", "replay"]
    assert head.kept[-1] == (False, ("long",))
