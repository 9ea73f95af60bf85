from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import REGISTRY

from services.common.errors import Diverged, NotFound, ResourceExhausted, Unavailable
from services.common.exchange import (
    Checkpoint,
    CheckpointRefusal,
    GenerationState,
    GenerationView,
    KvSource,
    ResumeQuestion,
    Route,
)
from services.common.generation import GenerationRequest, ModelRef, Sampling, TokenSpan
from services.controller.core.ledger.ledger import Ledger
from services.controller.core.ledger.outcomes import LedgerSettings, RunsAt, ServingHead
from services.controller.core.ledger.records import Forgotten, HeadBound, IdsAppended, Kept
from services.controller.event_log import EventLog
from services.controller.generations import LedgerRuntime
from services.controller.journal.journal import Item, JournalRoom, Outlived, Recovered
from services.controller.signal import Signal

REQUEST = GenerationRequest("g", ModelRef("m", "d"), (1,), Sampling(max_tokens=50))


class Store:
    """A journal in memory that can be full, fail, or hold something unreadable."""

    def __init__(self) -> None:
        self.full = False
        self.room = JournalRoom.ENOUGH
        self.fails = False
        self.items: list[Item] = []
        self.recoveries = 0
        self.defect: Exception | None = None

    def write(self, items: Sequence[Item], *, fsync: bool = False) -> asyncio.Future[None]:
        if self.full:
            raise ResourceExhausted("full")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.fails:
            done.set_exception(ResourceExhausted("disk full"))
        else:
            self.items += items
            done.set_result(None)
        return done

    async def kept(self, generation_id: str) -> GenerationView | None:
        kept = [item for item in self.items if isinstance(item, Kept)]
        return next((k.view for k in kept if k.generation_id == generation_id), None)

    async def settled(self) -> None:
        if self.fails:
            raise Unavailable("no answer")

    async def confirmed(self) -> None: ...

    async def recover(self) -> Recovered:
        self.recoveries += 1
        if self.defect is not None:
            raise self.defect
        return Recovered()


def make(
    store: Store,
    heads: Sequence[ServingHead] = (),
    kv_source: Callable[[str, str, bool], KvSource | None] = lambda left, name, handed_on: None,
    began: Callable[[HeadBound], object] = lambda bound: None,
) -> LedgerRuntime:
    journal: Any = store
    return LedgerRuntime(
        LedgerSettings(),
        journal,
        EventLog(journal, lambda: 0.0, 10),
        heads=lambda: heads,
        coming=lambda: (),
        kv_source=kv_source,
        runs_at=lambda formation_id: RunsAt("p", REQUEST.model),
        deployed=lambda model: True,
        began=began,
        heads_changed=Signal(),
        clock=lambda: 0.0,
    )


def said(*ids: int) -> Checkpoint:
    return Checkpoint("g", 1, "i", "f", REQUEST, (TokenSpan(0, 0, ids),))


def diverged() -> float:
    return REGISTRY.get_sample_value("shunt_controller_diverged_total") or 0.0


async def test_what_was_asked_for_by_who_is_gone_can_be_claimed_by_a_retry() -> None:
    generations = make(Store())
    request = replace(REQUEST, ask_digest="d")
    await generations.checkpoint([replace(said(5), request=request)])
    question = ResumeQuestion("g", 1, None, (), "f")
    with pytest.raises(NotFound):
        await generations.claim("d")
    asking = asyncio.create_task(generations.resume(question, 60.0))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert (await generations.claim("d")).request == request
    again = asyncio.create_task(generations.resume(question, 60.0))
    await asyncio.sleep(0)
    with pytest.raises(NotFound):
        await generations.claim("d")
    again.cancel()
    await asyncio.gather(again, return_exceptions=True)


async def test_a_grant_says_where_blocks_are_of_the_formation_that_was_left() -> None:
    """To who asks again behind it, too: the first answer may not have come."""
    heads = [
        ServingHead(Route("p", name, f"i-{name}", "a:1", 1.0, REQUEST.model, 100), name == "f2")
        for name in ("f", "f2")
    ]
    asked: list[tuple[str, str, bool]] = []

    def kept(formation_id: str, generation_id: str, handed_on: bool) -> KvSource | None:
        asked.append((formation_id, generation_id, handed_on))
        return KvSource(formation_id, ())

    generations = make(Store(), heads, kept)
    await generations.checkpoint([replace(said(5), sealed=True)])
    question = ResumeQuestion("g", 1, None, (TokenSpan(0, 0, (5,)),))
    grant = await generations.resume(question, 60.0)
    assert (grant.epoch, grant.kv_source) == (2, KvSource("f", ()))
    again = await generations.resume(question, 60.0)
    assert (again.epoch, again.head, again.kv_source) == (2, grant.head, grant.kv_source)
    assert asked == [("f", "g", False)] * 2


async def test_what_left_memory_is_read_from_the_journal_until_it_is_deleted() -> None:
    store = Store()
    runtime = make(store)
    view = GenerationView(REQUEST, (TokenSpan(0, 0, (1,)),), 1, None, GenerationState.FINISHED)
    store.items.append(Kept("g", view))
    assert await runtime.view("g") == view
    with pytest.raises(NotFound):
        await runtime.view("h")
    store.fails = True
    with pytest.raises(Unavailable):
        await runtime.view("g")
    store.fails = False
    await runtime.delete("g")
    assert Forgotten("g") in store.items


async def test_what_is_stored_for_too_long_is_looked_for_now_and_then() -> None:
    store = Store()
    runtime = make(store)
    for _ in range(3):
        await runtime.tick()
    (outlived,) = [item for item in store.items if isinstance(item, Outlived)]
    settings = LedgerSettings()
    assert outlived.before_unix_s <= time.time() - settings.stored_retention_s
    assert outlived.at_most == settings.max_stored


async def test_a_full_journal_sheds_before_anything_changes() -> None:
    store = Store()
    generations = make(store)
    await generations.checkpoint([said(5)])
    store.full = True
    with pytest.raises(ResourceExhausted):
        await generations.checkpoint([said(5, 6)])
    store.full = False
    (result,) = await generations.checkpoint([said(5, 6)])
    assert result.lengths == (2,)
    spans = [item.span.ids for item in store.items if isinstance(item, IdsAppended)]
    assert (spans, store.recoveries) == ([(5,), (6,)], 0)


async def test_ids_unlike_those_held_are_counted() -> None:
    generations = make(Store())
    await generations.checkpoint([said(5)])
    before = diverged()
    (result,) = await generations.checkpoint([said(6)])
    assert (result.refusal, diverged() - before) == (CheckpointRefusal.DIVERGED, 1)
    with pytest.raises(Diverged):
        await generations.resume(ResumeQuestion("g", 1, REQUEST, (TokenSpan(0, 0, (6,)),)), 0.0)
    assert diverged() - before == 2


async def test_the_loop_runs_on_while_the_ledger_is_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, running = Store(), threading.Event()
    generations, loop = make(store), asyncio.get_running_loop()

    def read(settings: LedgerSettings, *_: object) -> Ledger:
        loop.call_soon_threadsafe(running.set)
        assert running.wait(60)
        return Ledger(settings)

    monkeypatch.setattr(Ledger, "recover", read)
    store.fails = True
    with pytest.raises(ResourceExhausted):
        await generations.checkpoint([said(5)])
    store.fails = False
    recovering = generations._recovering
    assert recovering is not None
    await recovering
    (result,) = await generations.checkpoint([said(5)])
    assert result.lengths == (1,)


async def test_a_defect_while_the_journal_is_read_again_is_not_waited_for() -> None:
    store = Store()
    generations = make(store)
    store.fails, store.defect = True, RuntimeError("a defect")
    with pytest.raises(ResourceExhausted):
        await generations.checkpoint([said(5)])
    recovering = generations._recovering
    assert recovering is not None
    await asyncio.wait([recovering])
    with pytest.raises(RuntimeError, match="a defect"):
        await generations.tick()


async def test_a_journal_that_does_not_answer_is_refused_for_and_read_again() -> None:
    store = Store()
    generations = make(store)
    await generations.checkpoint([said(5)])
    store.room, store.fails = JournalRoom.AWAY, True
    with pytest.raises(Unavailable, match="does not answer"):
        await generations.checkpoint([said(5, 6)])
    with pytest.raises(Unavailable, match="does not answer"):
        await generations.resume(ResumeQuestion("g", 1, REQUEST, ()), 0.0)
    with pytest.raises(Unavailable, match="no answer"):
        await generations.tick()
    recovering = generations._recovering
    assert recovering is not None
    await recovering
    assert store.recoveries == 1


async def test_whoever_wants_to_know_is_told_once_of_each_generation_that_begins() -> None:
    began: list[str] = []
    generations = make(Store(), began=lambda bound: began.append(bound.generation_id))
    await generations.checkpoint([said()])
    await generations.checkpoint([said(5)])
    assert began == ["g"]
