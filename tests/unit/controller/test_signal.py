from __future__ import annotations

import asyncio

from services.controller.signal import Signal


async def test_everyone_who_waits_goes_on() -> None:
    signal = Signal()
    waiting = [asyncio.create_task(signal.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    signal.fire()
    await asyncio.wait_for(asyncio.gather(*waiting), 60)


async def test_an_old_firing_wakes_nobody() -> None:
    signal = Signal()
    signal.fire()
    waiting = asyncio.create_task(signal.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    signal.fire()
    await asyncio.wait_for(waiting, 60)


async def test_waiting_ends_at_its_limit() -> None:
    await asyncio.wait_for(Signal().wait(0.001), 60)
