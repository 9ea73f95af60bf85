from __future__ import annotations

import asyncio
from itertools import pairwise

from services.router.slices import Slices


async def test_a_crowd_goes_on_a_few_at_a_time_in_order_and_others_come_between() -> None:
    slices, gone, seen = Slices(3), list[int](), list[int]()

    async def leave(number: int) -> None:
        await slices.turn()
        gone.append(number)

    async def other() -> None:
        while len(gone) < 30:
            await asyncio.sleep(0)
            seen.append(len(gone))

    await asyncio.gather(*(leave(number) for number in range(30)), other())
    assert gone == list(range(30))
    steps = [after - before for before, after in pairwise(seen)]
    assert max(steps) <= 3
    assert sum(steps) + seen[0] == 30


async def test_who_gives_up_keeps_nobody_from_his_turn() -> None:
    slices = Slices(1)
    await slices.turn()
    crowd = [asyncio.create_task(slices.turn()) for _ in range(8)]
    await asyncio.sleep(0)
    for task in crowd[1:7]:  # the first may have had its turn
        task.cancel()
    await crowd[7]
    assert all(task.cancelled() for task in crowd[1:7])


async def test_few_do_not_wait() -> None:
    slices = Slices(2)
    for _ in range(4):
        turn = slices.turn()
        await asyncio.wait_for(turn, 60)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert not slices._waiting
