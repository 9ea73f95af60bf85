"""What becomes of generations that leave is carried out at their head, and told."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from services.common.errors import Unavailable
from services.controller.core.departure.lengths import AnswerLengths
from services.controller.core.departure.move import Rates, Stream
from services.controller.departures import Departures, Journaled
from services.controller.event_log import EventLog
from tests.unit.controller.small_runtime import Disk

SHORT = Stream("short", 100, (10,), 12, 1000.0)
LONG = Stream("long", 100, (10,), 10_000, 1000.0)


class Head:
    """Keeps what it is told to keep; time goes by from look to look."""

    def __init__(self, streams: list[Stream], fails: bool = False) -> None:
        self.streams = streams
        self.fails = fails
        self.drains: list[tuple[str, ...]] = []
        self.now_s = 0.0

    async def drain(self, formation_id: str, head: Any, *, running: Collection[str] = ()) -> int:
        if self.fails:
            raise Unavailable("away")
        self.drains.append(tuple(sorted(running)))
        self.streams = [one for one in self.streams if one.generation_id in running]
        return 1

    def seen(self, _: str) -> list[Stream]:
        self.now_s += 0.2
        streams = self.streams
        self.streams = [one for one in streams if one is not SHORT]  # it ends by itself
        return streams


class Cluster:
    """Knows the formation until it has departed."""

    def __init__(self) -> None:
        self.departed_from: list[str] = []
        self.view = self

    def runs_at(self, formation_id: str) -> Any:
        return type("RunsAt", (), {"pipeline_id": "p", "model": "m"})

    def beside(self, formation_id: str) -> dict[str, int]:
        return {}

    def departed(self, formation_id: str, now_s: float) -> None:
        self.departed_from.append(formation_id)


def departures(head: Head, cluster: Cluster, events: EventLog) -> Departures:
    journaled = Journaled(head.seen, lambda _: AnswerLengths(), lambda _, __: Rates())
    engines: Any = head
    core: Any = cluster
    return Departures(core, engines, journaled, events, clock=lambda: head.now_s)


async def chosen(events: EventLog) -> list[tuple[str, str, str]]:
    return [
        (event.generation_id, event.attributes["choice"], event.attributes["reason"])
        async for event in events.follow(1, wait=False)
        if event.kind == "handover_chosen"
    ]


async def test_some_end_where_they_are_and_the_others_leave_at_the_end() -> None:
    disk: Any = Disk()
    events, cluster, head = EventLog(disk, lambda: 0.0, 100), Cluster(), Head([SHORT, LONG])
    action: Any = type("Depart", (), {"formation_id": "f", "head": None, "until_s": 0.5})
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
    action: Any = type("Depart", (), {"formation_id": "f", "head": None, "until_s": 1000.0})
    await departures(head, cluster, events).leave(action)
    assert cluster.departed_from == ["f"]


async def test_what_ends_at_once_is_told_of_each_that_runs() -> None:
    disk: Any = Disk()
    events = EventLog(disk, lambda: 0.0, 100)
    departures(Head([LONG]), Cluster(), events).end("f", travels=False)
    departures(Head([LONG]), Cluster(), events).end("f", travels=True)
    assert await chosen(events) == [
        ("long", "replay", "its formation ends now"),
        ("long", "push", "its formation ends now"),
    ]
