from __future__ import annotations

from dataclasses import replace

import pytest

from services.common import prefix
from services.common.errors import ResourceExhausted
from services.common.exchange import HeadLoad, PrefixHolder, PrefixNews, Route, TenantLoad
from services.common.generation import GenerationRequest, ModelRef, PriorityClass, Sampling
from services.router.core.balancer import Balancer
from services.router.core.dispatching import Dispatcher, Sending, Waiter
from services.router.core.least_rows import LOOKED_AT, OF_LATE
from services.router.core.prediction import Comer

MODEL = ModelRef("m", "d")
IDLE = HeadLoad(4, 0, 4096, 64, 0.010, 0.0005, 0.0, 20.0)
FULL = replace(IDLE, running=4, tenants=(TenantLoad("", 0, 1, 4, 10, 300),))
LEAST = Comer("", 1, 0, 1, 1, 1)


def route(name: str) -> Route:
    return Route(name, f"f-{name}", f"i-{name}", "h:1", 100.0, MODEL, 4096)


def asked(
    name: str = "g", tenant: str = "", priority: PriorityClass = PriorityClass.STANDARD
) -> GenerationRequest:
    return GenerationRequest(
        name, MODEL, tuple(range(30)), Sampling(20), tenant=tenant, priority=priority
    )


def tolerant(name: str, tenant: str = "") -> Waiter:
    return Waiter(asked(name, tenant, PriorityClass.TOLERANT))


def told(dispatcher: Dispatcher, name: str, load: HeadLoad, now_s: float = 0.0) -> None:
    dispatcher.told(f"f-{name}", PrefixNews(16, False, load=load), now_s)


@pytest.fixture
def balancer() -> Balancer:
    balancer = Balancer()
    balancer.update([route("a"), route("b")])
    return balancer


@pytest.fixture
def dispatcher(balancer: Balancer) -> Dispatcher:
    return Dispatcher(balancer)


def names(released: list[tuple[Waiter, Sending | ResourceExhausted]]) -> list[str]:
    return [waiter.request.generation_id for waiter, _ in released]


def refused(dispatcher: Dispatcher, by_s: float, prompt_bytes: int) -> bool:
    """Before its prompt is tokenised."""
    try:
        dispatcher.check("m", LEAST, by_s, 0.0, prompt_bytes)
    except ResourceExhausted:
        return True
    return False


def test_who_would_be_late_for_its_prompt_is_refused_before_that_is_tokenised(
    dispatcher: Dispatcher,
) -> None:
    for name in "ab":
        told(dispatcher, name, replace(IDLE, row_s=0.1))
    assert not refused(dispatcher, 2.0, 120), "nothing is known of prompts"
    for _ in range(OF_LATE):
        with pytest.raises(ResourceExhausted):
            dispatcher.send(Waiter(asked(), 2.0, 120), 0.0)
    told_late = [refused(dispatcher, 2.0, 120) for _ in range(10 * LOOKED_AT)]
    assert told_late.count(False) == 10, "prompts may have become others"
    assert sum(refused(dispatcher, 2.0, 30) for _ in range(LOOKED_AT)) == 0
    assert sum(refused(dispatcher, 8.0, 120) for _ in range(LOOKED_AT)) == 0
    dispatcher.update([])
    for name in "ab":
        told(dispatcher, name, replace(IDLE, row_s=0.1))
    assert not refused(dispatcher, 2.0, 120), "another pipeline's prompts may be others"


def test_a_prompt_that_a_head_has_computed_is_refused_for_no_more_than_is_left_of_it(
    dispatcher: Dispatcher,
) -> None:
    for name in "ab":
        told(dispatcher, name, replace(IDLE, row_s=0.1))
    held = tuple(map(prefix.told, prefix.chain_of(asked(), 16)))
    dispatcher.told("f-a", PrefixNews(16, False, added=held), 0.0)
    for _ in range(OF_LATE):
        assert dispatcher.send(Waiter(asked(), None, 120), 0.0) is not None
        for name in "ab":
            told(dispatcher, name, replace(IDLE, row_s=0.1), now_s=1.0)
    late = replace(LEAST, rows=30)
    with pytest.raises(ResourceExhausted):
        dispatcher.check("m", late, 2.0, 0.0)
    assert not any(refused(dispatcher, 2.0, 120) for _ in range(LOOKED_AT))


def test_a_prompt_that_waits_is_one_of_those_of_late_however_often_it_is_looked_at(
    dispatcher: Dispatcher,
) -> None:
    for name in "ab":
        told(dispatcher, name, FULL)
    waiter = Waiter(asked(priority=PriorityClass.TOLERANT), None, 30)
    assert dispatcher.send(waiter, 0.0) is None
    dispatcher.wait(waiter)
    for _ in range(OF_LATE):
        assert dispatcher.released(0.0) == []
    for name in "ab":
        told(dispatcher, name, replace(IDLE, row_s=0.1))
    assert not any(refused(dispatcher, 2.0, 120) for _ in range(LOOKED_AT))


def test_without_a_deadline_nobody_is_refused_however_busy_heads_are(
    dispatcher: Dispatcher,
) -> None:
    for name in "ab":
        told(dispatcher, name, FULL)
    for _ in range(50):
        sending = dispatcher.send(Waiter(asked()), 0.0)
        assert sending is not None
        assert sending.first_token_s is not None
    dispatcher.check("m", LEAST, None, 0.0)


def test_a_request_goes_to_a_pipeline_that_answers_in_time_or_is_refused_with_a_time_to_return(
    dispatcher: Dispatcher,
) -> None:
    told(dispatcher, "a", FULL)
    told(dispatcher, "b", IDLE)
    for _ in range(3):
        sending = dispatcher.send(Waiter(asked(), by_s=0.2), 0.0)
        assert sending is not None
        assert sending.route.pipeline_id == "b"
        assert sending.first_token_s is not None
        assert sending.first_token_s <= 0.2
    told(dispatcher, "b", FULL)
    with pytest.raises(ResourceExhausted) as late:
        dispatcher.send(Waiter(asked(), by_s=100.05), 100.0)
    assert late.value.field == "deadline"
    assert 0 < late.value.retry_after_s < 10
    with pytest.raises(ResourceExhausted):
        dispatcher.check("m", LEAST, 100.05, 100.0)
    dispatcher.check("m", LEAST, 200.0, 100.0)


def test_heads_of_which_nothing_is_known_are_given_the_chance(dispatcher: Dispatcher) -> None:
    told(dispatcher, "a", FULL)
    sending = dispatcher.send(Waiter(asked(), by_s=0.01), 0.0)
    assert sending is not None
    assert (sending.route.pipeline_id, sending.first_token_s) == ("b", None)


def test_tolerant_work_waits_here_for_a_free_place_and_live_work_does_not(
    dispatcher: Dispatcher,
) -> None:
    for name in "ab":
        told(dispatcher, name, FULL)
    waiter = tolerant("t")
    assert dispatcher.send(waiter, 0.0) is None
    assert dispatcher.send(waiter, 0.0, anyway=True) is not None
    assert dispatcher.send(Waiter(asked()), 0.0) is not None
    dispatcher.wait(waiter)
    assert dispatcher.released(0.0) == []
    assert dispatcher.waiting == 1
    told(dispatcher, "a", IDLE, 1.0)
    ((gone, sending),) = dispatcher.released(1.0)
    assert gone is waiter
    assert isinstance(sending, Sending)
    assert sending.route.pipeline_id == "a"
    assert dispatcher.waiting == 0


def test_free_places_are_given_once_and_by_turns_between_tenants(dispatcher: Dispatcher) -> None:
    for name in "ab":
        told(dispatcher, name, FULL)
    for number in range(100):
        dispatcher.wait(tolerant(f"flood-{number}", "flood"))
    for number in range(3):
        dispatcher.wait(tolerant(f"quiet-{number}", "quiet"))
    told(dispatcher, "a", IDLE, 1.0)
    told(dispatcher, "b", IDLE, 1.0)
    first = names(dispatcher.released(1.0))
    assert len(first) == 8, "as many as there are places"
    now_s = 1.0
    while dispatcher.waiting:
        now_s += 1.0
        told(dispatcher, "a", IDLE, now_s)
        first += names(dispatcher.released(now_s))
    last = max(index for index, name in enumerate(first) if name.startswith("quiet"))
    assert last < 60, "a hundred of another tenant's came first"
    assert len(set(first)) == 103


def test_who_waits_for_a_model_without_a_pipeline_keeps_nobody_else(balancer: Balancer) -> None:
    dispatcher = Dispatcher(balancer)
    other = ModelRef("other", "o")
    stuck = Waiter(replace(asked("stuck"), model=other))
    assert dispatcher.send(stuck, 0.0) is None
    dispatcher.wait(stuck)
    dispatcher.wait(Waiter(asked("goes")))
    assert names(dispatcher.released(0.0)) == ["goes"]
    dispatcher.leave(stuck)
    dispatcher.leave(stuck)
    assert dispatcher.waiting == 0


def test_who_waited_until_it_is_too_late_is_told_so(balancer: Balancer) -> None:
    balancer.update([])
    dispatcher = Dispatcher(balancer)
    waiter = Waiter(asked(), by_s=1.0)
    assert dispatcher.send(waiter, 0.0) is None
    dispatcher.wait(waiter)
    balancer.update([route("a")])
    dispatcher.update([route("a")])
    told(dispatcher, "a", FULL)
    ((gone, outcome),) = dispatcher.released(0.99)
    assert gone is waiter
    assert isinstance(outcome, ResourceExhausted)


def test_what_heads_told_is_forgotten_with_them(dispatcher: Dispatcher, balancer: Balancer) -> None:
    for name in "ab":
        told(dispatcher, name, FULL)
    balancer.update([route("c")])
    dispatcher.update([route("c")])
    sending = dispatcher.send(Waiter(asked(), by_s=0.01), 0.0)
    assert sending is not None
    assert sending.first_token_s is None


def test_who_goes_to_another_than_has_its_prompt_is_told_who_does(
    balancer: Balancer, dispatcher: Dispatcher
) -> None:
    request = replace(asked(), prompt_ids=tuple(range(400)))
    names = tuple(map(prefix.told, prefix.chain_of(request, 16)))
    dispatcher.told("f-a", PrefixNews(16, True, names), 0.0)
    first = dispatcher.send(Waiter(request), 0.0)
    assert first is not None
    assert (first.route.formation_id, first.holder) == ("f-a", None)
    balancer.began("f-a")
    second = dispatcher.send(Waiter(request), 0.0)
    assert second is not None
    assert (second.route.formation_id, second.found) == ("f-b", 0)
    assert second.holder == PrefixHolder("h:1", "f-a", 400)


def test_of_a_prompt_that_may_come_from_its_holder_no_first_token_is_foretold(
    balancer: Balancer, dispatcher: Dispatcher
) -> None:
    """Or each that came so would have predictions for others be too early."""
    request = replace(asked(), prompt_ids=tuple(range(400)))
    names = tuple(map(prefix.told, prefix.chain_of(request, 16)))
    for name in "ab":
        told(dispatcher, name, IDLE)
    dispatcher.told("f-a", PrefixNews(16, True, names), 0.0)
    first = dispatcher.send(Waiter(request), 0.0)
    balancer.began("f-a")
    second = dispatcher.send(Waiter(request), 0.0)
    assert first is not None
    assert second is not None
    assert (first.holder is None, first.first_token_s is None) == (True, False)
    assert (second.holder is None, second.first_token_s is None) == (False, True)
