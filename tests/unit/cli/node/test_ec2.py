"""EC2's metadata, version 2, against a service that keeps to the letter."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import PlainTextResponse

from services.cli.node.metadata.cloud import STALE_S, Clocks, utc_s
from services.cli.node.metadata.ec2 import Ec2, action_at_s, check_rebalance
from services.cli.node.metadata.service import MAX_BYTES, MetadataService
from services.common.errors import InvalidArgument, ShuntError, Unavailable
from services.common.machine import MachineFacts
from services.common.notices import Notice, NoticeKind
from tests.fake_metadata import FakeEc2, serving, utc

ADVICE = Notice(NoticeKind.REBALANCE, None)
ACTION = "/latest/meta-data/spot/instance-action"


class Clock:
    """Both clocks; the one here goes on as it is told."""

    def __init__(self) -> None:
        self.now_s = 100.0

    @property
    def clocks(self) -> Clocks:
        return Clocks(time.time, lambda: self.now_s)


@pytest.fixture
async def fake() -> FakeEc2:
    return FakeEc2()


@pytest.fixture
async def url(fake: FakeEc2) -> AsyncIterator[str]:
    async with serving(fake) as url:
        yield url


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ec2(url: str, clock: Clock) -> Ec2:
    return Ec2(MetadataService(url, 0.5), clock.clocks, pause_s=0.01)


async def test_an_instance_says_what_it_is(ec2: Ec2, fake: FakeEc2) -> None:
    assert await ec2.facts() == MachineFacts(
        instance_id="i-0123456789abcdef0", instance_type="g6.xlarge", zone="use1-az4", spot=True
    )
    fake.told["instance-life-cycle"] = "on-demand"
    del fake.told["placement/availability-zone-id"]
    facts = await ec2.facts()
    assert (facts.zone, facts.spot) == ("us-east-1a", False)
    del fake.told["instance-life-cycle"]
    assert (await ec2.facts()).spot is None
    assert fake.asked.count("PUT /latest/api/token") == 1, "one token does for all"


async def test_nothing_is_said_until_it_is_marked(ec2: Ec2, fake: FakeEc2, clock: Clock) -> None:
    assert list(await ec2.look()) == []
    fake.recommend()
    assert list(await ec2.look()) == [ADVICE]
    fake.mark(120.0)
    action, older, advice = await ec2.look()
    assert advice == ADVICE
    assert {action.kind, older.kind} == {NoticeKind.SPOT}
    assert action.deadline_s == pytest.approx(clock.now_s + 120.0, abs=2.0)
    assert older.deadline_s == pytest.approx(clock.now_s + 120.0, abs=2.0)


async def test_a_token_is_renewed_before_it_ends_and_when_it_is_refused(
    ec2: Ec2, fake: FakeEc2, clock: Clock
) -> None:
    await ec2.look()
    clock.now_s += 0.79 * 21_600
    await ec2.look()
    assert fake.asked.count("PUT /latest/api/token") == 1
    clock.now_s += 0.02 * 21_600
    await ec2.look()
    assert fake.asked.count("PUT /latest/api/token") == 2
    fake.tokens.clear()  # as behind a restart of the service
    fake.mark(60.0)
    assert list(await ec2.look())
    assert fake.asked.count("PUT /latest/api/token") == 3


async def test_what_is_refused_with_a_new_token_too_is_an_error(ec2: Ec2, fake: FakeEc2) -> None:
    fake.wrong = lambda path: PlainTextResponse("", 401) if path == ACTION else None
    with pytest.raises(Unavailable, match="401"):
        await ec2.look()
    assert fake.asked.count("PUT /latest/api/token") == 2


@pytest.mark.parametrize(
    "answer",
    [
        PlainTextResponse("", 500),
        PlainTextResponse("", 403),
        PlainTextResponse("x" * (MAX_BYTES + 1)),
        PlainTextResponse("a\nb"),
        PlainTextResponse(""),
        PlainTextResponse(b"\xff\xfe"),
    ],
)
async def test_a_service_that_gives_no_token_says_nothing(
    ec2: Ec2, fake: FakeEc2, answer: PlainTextResponse
) -> None:
    fake.wrong = lambda path: answer if path == "/latest/api/token" else None
    with pytest.raises(ShuntError):
        await ec2.look()
    with pytest.raises(ShuntError):
        await ec2.facts()


async def test_garbage_in_one_place_hides_no_notice_in_another(ec2: Ec2, fake: FakeEc2) -> None:
    fake.told["spot/instance-action"] = "<html>"
    with pytest.raises(InvalidArgument):
        await ec2.look()
    fake.recommend()
    assert list(await ec2.look()) == [ADVICE]


async def test_the_older_form_may_hold_what_is_no_time_or_is_long_past(
    ec2: Ec2, fake: FakeEc2
) -> None:
    for text in ("none", utc(time.time() - STALE_S - 60), ""):
        fake.told["spot/termination-time"] = text
        assert list(await ec2.look()) == []
    fake.told["spot/termination-time"] = utc(time.time() - 5)
    (late,) = await ec2.look()
    assert late.deadline_s == 100.0, "it is about to happen"


async def test_a_service_that_hangs_is_asked_for_a_bounded_time(
    url: str, fake: FakeEc2, clock: Clock
) -> None:
    fake.hangs = True
    ec2 = Ec2(MetadataService(url, 0.05), clock.clocks, pause_s=0.01)
    with pytest.raises(Unavailable, match="no answer"):
        await ec2.look()
    assert fake.asked == ["PUT /latest/api/token"]


@given(st.text(max_size=100) | st.binary(max_size=100).map(lambda b: b.decode("latin-1")))
def test_what_is_no_action_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        action_at_s(text)
    with pytest.raises(InvalidArgument):
        check_rebalance(text)
    with pytest.raises(InvalidArgument):
        utc_s(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)


@given(JSON, JSON)
def test_any_json_is_an_action_or_refused(action: object, at: object) -> None:
    text = json.dumps({"action": action, "time": at})
    with pytest.raises(InvalidArgument):
        action_at_s(text)
    with pytest.raises(InvalidArgument):
        action_at_s(json.dumps(at))


@given(st.integers(0, 4_000_000_000), st.sampled_from(["terminate", "stop", "hibernate"]))
def test_every_action_has_its_time(at_s: int, action: str) -> None:
    assert action_at_s(json.dumps({"action": action, "time": utc(at_s)})) == at_s
