from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest

from services.common.errors import Unavailable
from services.common.nodes import NodeShape
from services.controller.core.cluster.market import Offer
from services.controller.journal.journal import Journal, Saved
from services.controller.journal.place import PostgresPlace, place_of
from services.controller.journal.postgres.journal import PostgresJournal
from services.controller.journal.sqlite import SqliteJournal
from services.controller.providers import market_play
from services.controller.providers.market_file import MarketEvent, MarketScript
from services.controller.providers.market_play import NOTE, MarketPlay

OFFER = Offer("spot-a", "big", NodeShape(1, 1.0), count=3, price_per_hour=0.4)
SCRIPT = MarketScript(
    "market.yaml",
    (OFFER,),
    (
        MarketEvent(0.0, "spot-a", count=2),
        MarketEvent(100.0, "spot-a", take=1, notice_s=5.0),
        MarketEvent(100.5, "spot-a", price_per_hour=0.9),
        MarketEvent(5000.0, "spot-a", count=7),
    ),
    digest="d",
)


class Asked:
    """A provider that notes what the market does to it."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.grown = asyncio.Event()

    def change(self, offer_id: str, *, count: int | None, price_per_hour: float | None) -> None:
        self._note("change", count, price_per_hour)

    def take(self, offer_id: str, count: int, notice_s: float) -> None:
        self._note("take", count, notice_s)

    def _note(self, *what: Any) -> None:
        self.told.append(what)
        self.grown.set()

    async def heard(self, count: int) -> list[tuple[Any, ...]]:
        async with asyncio.timeout(60):
            while len(self.told) < count:
                self.grown.clear()
                await self.grown.wait()
        return self.told


Lead = Callable[[], Any]
"""A new controller's journal, and what it finds in it; the one before leads no more."""


@pytest.fixture(params=["sqlite", "postgres"])
async def lead(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Lead]:
    async with AsyncExitStack() as stack:
        before: list[SqliteJournal] = []
        uri = "" if request.param == "sqlite" else request.getfixturevalue("cluster").new_journal()

        async def in_a_file() -> tuple[Journal, Any]:
            for journal in before:
                await journal.close()
            journal = SqliteJournal(tmp_path / "journal.db", commit_interval_s=0.0)
            before[:] = [journal]
            return journal, (await journal.recover()).saved

        async def as_a_standby() -> tuple[Journal, Any]:
            place = place_of(uri, tmp_path)
            assert isinstance(place, PostgresPlace)
            journal = PostgresJournal(place, commit_interval_s=0.0, lease_s=0.6)
            stack.push_async_callback(journal.close)
            for renewing in led:
                renewing.cancel()  # the leader is stopped, and says so to nobody
            found = await journal.lead()
            assert journal._renewing is not None
            led.append(journal._renewing)
            return journal, found.saved

        led: list[asyncio.Task[Any]] = []
        yield as_a_standby if uri else in_a_file
        for journal in before:
            await journal.close()


class Noting:
    """A journal that keeps notes, as often as it is not away."""

    def __init__(self, away: int = 0) -> None:
        self.saved: dict[str, str] = {}
        self._away = away

    async def write(self, items: list[Saved], *, fsync: bool) -> None:
        assert fsync, "an event that happened is not forgotten with the machine"
        if self._away:
            self._away -= 1
            raise Unavailable("the journal is away")
        self.saved |= {item.key: item.value or "" for item in items}


def _play(journal: Any, run_id: str = "run", at_s: float = 0.0, **more: Any) -> MarketPlay:
    return MarketPlay(more.get("script", SCRIPT), run_id, journal, journal.saved, lambda: at_s)


async def _ready() -> None:
    return


async def _played(play: MarketPlay, count: int) -> list[tuple[Any, ...]]:
    provider: Any = Asked()
    async with play.playing(provider, _ready):
        return await provider.heard(count)


async def test_nothing_happens_before_the_mesh_is_ready() -> None:
    provider: Any = Asked()
    ready = asyncio.Event()

    async def until_ready() -> None:
        await ready.wait()

    times = chain((0.0,), repeat(101.0))
    journal: Any = Noting()
    play = MarketPlay(SCRIPT, "run", journal, {}, lambda: next(times))
    async with play.playing(provider, until_ready):
        for _ in range(5):
            await asyncio.sleep(0)
        assert (provider.told, journal.saved) == ([], {})
        ready.set()
        assert await provider.heard(3) == [
            ("change", 2, None),
            ("take", 1, 5.0),
            ("change", None, 0.9),
        ]


async def test_the_next_controller_goes_on_where_the_market_was(lead: Lead) -> None:
    journal, saved = await lead()
    assert len(await _played(MarketPlay(SCRIPT, "run", journal, saved, lambda: 0.0), 1)) == 1
    journal, saved = await lead()
    after = MarketPlay(SCRIPT, "run", journal, saved, lambda: 101.0)
    assert after.offers()[0].count == 2
    assert await _played(after, 2) == [("take", 1, 5.0), ("change", None, 0.9)]
    journal, saved = await lead()
    last = MarketPlay(SCRIPT, "run", journal, saved, lambda: 1e6)
    assert (last.offers()[0].count, last.offers()[0].price_per_hour) == (2, 0.9)
    assert await _played(last, 1) == [("change", 7, None)]
    _, saved = await lead()
    assert MarketPlay(SCRIPT, "run", journal, saved).offers()[0].count == 7


@pytest.mark.parametrize("lead", ["postgres"], indirect=True)
async def test_who_was_followed_plays_nothing_more(lead: Lead) -> None:
    journal, saved = await lead()
    before = MarketPlay(SCRIPT, "run", journal, saved, lambda: 0.0)
    assert len(await _played(before, 1)) == 1
    journal, saved = await lead()
    provider: Any = Asked()
    assert before._ready_unix_s is not None
    before._ready_unix_s -= 1e6
    async with before.playing(provider, _ready):
        after = MarketPlay(SCRIPT, "run", journal, saved, lambda: 1e6)
        assert len(await _played(after, 3)) == 3
    assert provider.told == []


@pytest.mark.parametrize("kept", ["", "[]", "{}", '{"run": "run/d", "ready_unix_s": []}'])
async def test_progress_that_cannot_be_read_is_none(kept: str) -> None:
    journal = Noting()
    journal.saved[NOTE] = kept
    play = _play(journal)
    assert play.offers() == (OFFER,)
    assert len(await _played(play, 1)) == 1


@pytest.mark.parametrize("change", ["run", "script"])
async def test_another_run_or_another_market_begins_anew(change: str) -> None:
    journal = Noting()
    await _played(_play(journal), 1)
    another = MarketScript("market.yaml", (OFFER,), SCRIPT.events, digest="e")
    play = _play(journal, "another") if change == "run" else _play(journal, script=another)
    assert play.offers() == (OFFER,)


async def test_a_market_stands_still_while_it_cannot_be_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(market_play, "RETRY_S", 0.0)
    journal = Noting(away=3)
    assert await _played(_play(journal), 1) == [("change", 2, None)]
    assert [r.message for r in caplog.records] == ["the market stands still"]
