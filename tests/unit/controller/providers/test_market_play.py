from __future__ import annotations

import asyncio
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest

from services.common.nodes import NodeShape
from services.controller.core.cluster.market import Offer
from services.controller.providers.market_file import MarketEvent, MarketScript
from services.controller.providers.market_play import MarketPlay

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


async def _ready() -> None:
    return


async def _played(play: MarketPlay, count: int) -> list[tuple[Any, ...]]:
    provider: Any = Asked()
    async with play.playing(provider, _ready):
        return await provider.heard(count)


async def test_nothing_happens_before_the_mesh_is_ready(tmp_path: Path) -> None:
    provider: Any = Asked()
    ready = asyncio.Event()

    async def until_ready() -> None:
        await ready.wait()

    times = chain((0.0,), repeat(101.0))
    play = MarketPlay(SCRIPT, tmp_path / "p", "run", lambda: next(times))
    async with play.playing(provider, until_ready):
        for _ in range(5):
            await asyncio.sleep(0)
        assert provider.told == []
        ready.set()
        assert await provider.heard(3) == [
            ("change", 2, None),
            ("take", 1, 5.0),
            ("change", None, 0.9),
        ]


async def test_a_restarted_controller_goes_on_where_the_market_was(tmp_path: Path) -> None:
    progress = tmp_path / "p"
    assert len(await _played(MarketPlay(SCRIPT, progress, "run", lambda: 0.0), 1)) == 1
    after = MarketPlay(SCRIPT, progress, "run", lambda: 101.0)
    assert after.offers()[0].count == 2
    assert await _played(after, 2) == [("take", 1, 5.0), ("change", None, 0.9)]
    last = MarketPlay(SCRIPT, progress, "run", lambda: 1e6)
    assert (last.offers()[0].count, last.offers()[0].price_per_hour) == (2, 0.9)
    assert await _played(last, 1) == [("change", 7, None)]
    assert MarketPlay(SCRIPT, progress, "run", lambda: 1e6).offers()[0].count == 7


@pytest.mark.parametrize("kept", ["", "[]", "{}", '{"run": "run/d", "ready_unix_s": []}'])
async def test_progress_that_cannot_be_read_is_none(tmp_path: Path, kept: str) -> None:
    progress = tmp_path / "p"
    progress.write_text(kept)
    play = MarketPlay(SCRIPT, progress, "run", lambda: 0.0)
    assert play.offers() == (OFFER,)
    assert len(await _played(play, 1)) == 1


@pytest.mark.parametrize("change", ["run", "script"])
async def test_another_run_or_another_market_begins_anew(tmp_path: Path, change: str) -> None:
    progress = tmp_path / "p"
    await _played(MarketPlay(SCRIPT, progress, "run", lambda: 0.0), 1)
    script, run_id = SCRIPT, "run"
    if change == "run":
        run_id = "another"
    else:
        script = MarketScript("market.yaml", (OFFER,), SCRIPT.events, digest="e")
    assert MarketPlay(script, progress, run_id, lambda: 0.0).offers() == (OFFER,)


async def test_a_market_whose_progress_cannot_be_kept_goes_on(tmp_path: Path) -> None:
    play = MarketPlay(SCRIPT, tmp_path / "none" / "p", "run", lambda: 1e6)
    assert await _played(play, 1)
