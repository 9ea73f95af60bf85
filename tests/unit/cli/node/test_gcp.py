from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import PlainTextResponse

from services.cli.node.metadata.cloud import Clocks
from services.cli.node.metadata.gcp import PREEMPTION_S, Gcp, truth_of
from services.cli.node.metadata.service import MetadataService
from services.common.errors import InvalidArgument, ShuntError, Unavailable
from services.common.machine import MachineFacts
from services.common.notices import NoticeKind
from tests.fake_metadata import FakeGcp, serving


@pytest.fixture
async def fake() -> FakeGcp:
    return FakeGcp()


@pytest.fixture
async def gcp(fake: FakeGcp) -> AsyncIterator[Gcp]:
    async with serving(fake) as url:
        yield Gcp(MetadataService(url, 0.5), Clocks(time.time, lambda: 100.0), pause_s=5.0)


async def test_a_vm_says_what_it_is(gcp: Gcp, fake: FakeGcp) -> None:
    assert await gcp.facts() == MachineFacts(
        instance_id="4711", instance_type="g2-standard-4", zone="europe-west4-a", spot=True
    )
    fake.told["scheduling/preemptible"] = "FALSE"
    assert (await gcp.facts()).spot is False


async def test_it_hears_of_its_preemption_at_once_and_once(gcp: Gcp, fake: FakeGcp) -> None:
    assert list(await gcp.look()) == []
    waiting = asyncio.create_task(gcp.look())  # type: ignore[arg-type]
    await asyncio.sleep(0)
    assert not waiting.done()
    fake.preempted.set()
    (notice,) = await waiting
    assert (notice.kind, notice.deadline_s) == (NoticeKind.SPOT, 100.0 + PREEMPTION_S)


async def test_whoever_else_answers_there_is_not_believed(gcp: Gcp, fake: FakeGcp) -> None:
    fake.flavour = "vanilla"
    with pytest.raises(Unavailable):
        await gcp.look()
    with pytest.raises(Unavailable):
        await gcp.facts()


@pytest.mark.parametrize("status", [200, 404, 500, 503])
async def test_garbage_is_no_preemption(gcp: Gcp, fake: FakeGcp, status: int) -> None:
    headers = {"Metadata-Flavor": "Google"}
    fake.wrong = lambda _: PlainTextResponse("perhaps", status, headers)
    with pytest.raises(ShuntError):
        await gcp.look()


async def test_a_wait_is_broken_off_with_whoever_waits(gcp: Gcp, fake: FakeGcp) -> None:
    await gcp.look()
    waiting = asyncio.create_task(gcp.look())  # type: ignore[arg-type]
    while len(fake.asked) < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    waiting.cancel()
    async with asyncio.timeout(60):
        with pytest.raises(asyncio.CancelledError):
            await waiting


@given(st.text(max_size=10).filter(lambda text: text not in ("TRUE", "FALSE")))
def test_a_truth_is_true_or_false(text: str) -> None:
    with pytest.raises(InvalidArgument):
        truth_of(text)
