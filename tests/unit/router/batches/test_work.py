"""A batch whose runners die at any moment: every line has exactly one result."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress

import pytest

from services.common.errors import ShuntError
from services.router.batches import outputs as outputs_module
from services.router.batches import work as work_module
from services.router.core.batches.batch import Status, Usage
from services.router.core.files import name_of
from tests.unit.router.batches.stage import LEASE_S, LINES, Stage
from tests.waiting import until


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    async def in_turn(call: Callable[..., object], *given: object) -> object:
        await asyncio.sleep(0)
        return call(*given)

    monkeypatch.setattr(asyncio, "to_thread", in_turn)
    for module in (work_module, outputs_module):
        monkeypatch.setattr(module, "AGAIN_S", 0.0005)
    monkeypatch.setattr(work_module, "LONGEST_PAUSE_S", 0.001)


def expected(lines: int = LINES) -> list[str]:
    return sorted(f"line-{n}" for n in range(lines))


def custom_ids(results: Sequence[dict[str, object]]) -> list[str]:
    return sorted(str(result["custom_id"]) for result in results)


async def test_a_batch_comes_to_its_end() -> None:
    stage = Stage(1, faults=0.0)
    batch = await stage.ended()
    assert batch.status is Status.COMPLETED
    assert (batch.total, batch.completed, batch.failed) == (30, 26, 4)
    assert batch.usage == Usage(52, 78)
    assert custom_ids(stage.results()) == expected()
    assert not list(stage.place.names("pieces"))
    statuses = {
        str(line["custom_id"]): line["response"]["status_code"]  # type: ignore[index]
        for line in stage.results()
    }
    assert statuses["line-3"] == 400
    assert statuses["line-4"] == 200


@pytest.mark.parametrize("seed", range(25))
async def test_each_line_has_one_result_whatever_kills_its_runners(seed: int) -> None:
    stage = Stage(seed)
    while not stage.batch.ended and stage.chance.random() < 0.95:
        await stage.killed(stage.runner(), stage.chance.randrange(400))
        stage.controller.now_s += LEASE_S
    batch = await stage.ended()
    assert batch.status is Status.COMPLETED
    assert custom_ids(stage.results()) == expected()
    assert batch.completed + batch.failed == batch.total == LINES


@pytest.mark.parametrize("seed", range(10))
async def test_who_lost_the_loan_changes_nothing(seed: int) -> None:
    """Stopped for longer than its loan, it goes on while another one has the batch."""
    stage = Stage(seed)
    first = stage.runner()
    task = asyncio.create_task(first.run())
    for _ in range(stage.chance.randrange(200)):
        await asyncio.sleep(0)
    stage.controller.now_s += LEASE_S
    batch = await stage.ended()
    with suppress(ShuntError):  # unless it had come to the end before
        await task
    assert custom_ids(stage.results()) == expected()
    assert batch.completed + batch.failed == LINES


@pytest.mark.parametrize("seed", range(10))
async def test_a_cancelled_batch_keeps_what_was_done(seed: int) -> None:
    stage = Stage(seed)
    await stage.killed(stage.runner(), stage.chance.randrange(300))
    stage.controller.now_s += LEASE_S
    if not stage.batch.ended and stage.batch.status is not Status.FINALIZING:
        kept = stage.controller.documents.put(
            stage.batch.cancelling(1001.0).document(), holds_lease=False
        )
        stage.controller.documents.keep(kept)
    done = len(stage.batch.done)
    batch = await stage.ended()
    if batch.status is Status.CANCELLED and batch.total:
        errors = [line["error"]["code"] for line in stage.results() if line["error"]]  # type: ignore[index]
        assert errors == ["batch_cancelled"] * (LINES - done)
        assert custom_ids(stage.results()) == expected()


async def test_cancelled_in_the_middle_its_generations_end() -> None:
    stage = Stage(3, faults=0.0)
    stage.answers.holds = True
    task = asyncio.create_task(stage.ticking(stage.runner()))
    await until(lambda: sum(stage.answers.asked.values()) == 8)
    document = stage.batch.cancelling(1001.0).document()
    stage.controller.documents.keep(stage.controller.documents.put(document, holds_lease=False))
    stage.controller.now_s += LEASE_S / 4
    await task
    assert stage.batch.status is Status.CANCELLED
    assert sorted(stage.answers.given_up) == list(range(8))
    assert custom_ids(stage.results()) == expected()


async def test_an_expired_batch_says_so_of_each_line_that_is_left() -> None:
    stage = Stage(4, faults=0.0)
    stage.answers.holds = True
    await stage.killed(stage.runner(), 300)
    assert stage.batch.status is Status.IN_PROGRESS
    stage.controller.unix_s += 86400
    stage.controller.now_s += LEASE_S
    batch = await stage.ended()
    assert batch.status is Status.EXPIRED
    codes = [line["error"]["code"] for line in stage.results()]  # type: ignore[index]
    assert codes == ["batch_expired"] * LINES


async def test_a_file_that_cannot_be_asked_fails_its_batch() -> None:
    stage = Stage(5, faults=0.0)
    stage.place.kept[name_of("file-in")] += b'{"custom_id": "line-0"}\n{\n'
    batch = await stage.ended()
    assert batch.status is Status.FAILED
    told = [(fault.code, fault.line) for fault in batch.faults]
    assert told == [("invalid_method", 31), ("invalid_json_line", 32)]
    assert not stage.answers.asked
    assert batch.document().due_unix_s == 1000 + 3600


@pytest.mark.parametrize("turns", [0, 60])
async def test_a_file_that_is_deleted_fails_its_batch(turns: int) -> None:
    stage = Stage(6, faults=0.0)
    stage.answers.holds = True
    await stage.killed(stage.runner(), turns)
    stage.controller.now_s += LEASE_S
    del stage.place.kept[name_of("file-in")]
    batch = await stage.ended()
    assert batch.status is Status.FAILED
    assert [fault.code for fault in batch.faults] == ["file_not_found"]


async def test_a_router_that_leaves_gives_back_what_it_has_and_what_it_knows() -> None:
    stage = Stage(7, faults=0.0)
    work = stage.runner()
    task = asyncio.create_task(work.run())
    await until(lambda: sum(stage.answers.asked.values()) > 10)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert stage.under_way.lines == 0
    await work.leave()
    asked = Counter(stage.answers.asked)
    assert len(stage.batch.done) > 0
    batch = await stage.ended()  # lent at once
    assert batch.lease == 2
    again = [line for line, times in stage.answers.asked.items() if times > asked[line] > 0]
    assert len(again) <= 8
    assert custom_ids(stage.results()) == expected()
