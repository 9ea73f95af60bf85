from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import PlainTextResponse

from services.cli.node.metadata.azure import MAX_EVENTS, Azure, events_of
from services.cli.node.metadata.cloud import Clocks
from services.cli.node.metadata.service import MetadataService
from services.common.errors import InvalidArgument, ShuntError
from services.common.machine import MachineFacts
from services.common.notices import NoticeKind
from tests.fake_metadata import FakeAzure, serving


@pytest.fixture
async def fake() -> FakeAzure:
    return FakeAzure()


@pytest.fixture
async def azure(fake: FakeAzure) -> AsyncIterator[Azure]:
    async with serving(fake) as url:
        yield Azure(MetadataService(url, 0.5), Clocks(time.time, lambda: 100.0), pause_s=5.0)


async def test_a_vm_says_what_it_is(azure: Azure, fake: FakeAzure) -> None:
    assert await azure.facts() == MachineFacts(
        instance_id="02aab8a4-74ef-476e-8182-f6d2ba4166a6",
        instance_type="Standard_NC24ads_A100_v4",
        zone="westeurope-2",
        spot=True,
    )
    fake.compute |= {"zone": "", "priority": "Regular"}
    facts = await azure.facts()
    assert (facts.zone, facts.spot) == ("westeurope", False)
    fake.compute["priority"] = ""
    assert (await azure.facts()).spot is None


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        ("Preempt", NoticeKind.SPOT),
        ("Terminate", NoticeKind.SHUTDOWN),
        ("Redeploy", NoticeKind.SHUTDOWN),
        ("Reboot", NoticeKind.SHUTDOWN),
        ("Freeze", None),
        ("Later", None),
    ],
)
async def test_events_that_end_it_are_notices(
    azure: Azure, fake: FakeAzure, event: str, kind: NoticeKind | None
) -> None:
    assert list(await azure.look()) == []
    fake.schedule(event, 30.0, vm="another")
    fake.schedule(event, 30.0)
    notices = list(await azure.look())
    assert [notice.kind for notice in notices] == ([] if kind is None else [kind])
    for notice in notices:
        assert notice.deadline_s == pytest.approx(130.0, abs=2.0)


async def test_what_has_begun_is_now(azure: Azure, fake: FakeAzure) -> None:
    fake.schedule("Preempt", 30.0)
    fake.events[0] |= {"EventStatus": "Started", "NotBefore": ""}
    (notice,) = await azure.look()
    assert notice.deadline_s == 100.0


@pytest.mark.parametrize("status", [200, 404, 500])
async def test_garbage_is_no_notice(azure: Azure, fake: FakeAzure, status: int) -> None:
    await azure.look()
    fake.wrong = lambda _: PlainTextResponse("[]", status)
    with pytest.raises(ShuntError):
        await azure.look()
    with pytest.raises(ShuntError):
        await azure.facts()


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)


@given(st.text(max_size=80) | JSON.map(json.dumps))
def test_a_document_without_events_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        events_of(text, "vm_7")


@given(st.fixed_dictionaries({"NotBefore": JSON, "EventStatus": JSON}), st.sampled_from(["vm", ""]))
def test_any_event_has_a_time_or_is_refused(event: dict[str, object], vm: str) -> None:
    whole = event | {"EventType": "Preempt", "Resources": [vm]}
    try:
        found = events_of(json.dumps({"Events": [whole]}), vm)
    except InvalidArgument:
        return
    assert [kind for kind, _ in found] == [NoticeKind.SPOT]


def test_too_many_events_are_refused() -> None:
    with pytest.raises(InvalidArgument, match=str(MAX_EVENTS)):
        events_of(json.dumps({"Events": [{}] * (MAX_EVENTS + 1)}), "vm_7")
