from __future__ import annotations

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.fair_queue import (
    ALLOWANCE,
    MAX_REMEMBERED,
    ROUND,
    FairQueue,
    Shares,
    lane_of,
    turn_of,
)
from services.common.generation import GenerationRequest, ModelRef, PriorityClass, Sampling

MODEL = ModelRef("m", "d")


def asked(
    name: str,
    tenant: str = "",
    priority: PriorityClass = PriorityClass.STANDARD,
    weight: int = 1,
) -> GenerationRequest:
    return GenerationRequest(
        name, MODEL, (1,), Sampling(1), tenant=tenant, priority=priority, tenant_weight=weight
    )


def served(queue: FairQueue[str]) -> list[str]:
    """Everybody, in order."""
    names = []
    while (name := queue.first()) is not None:
        names.append(name)
        queue.remove(name)
    return names


def queue_of(*requests: GenerationRequest) -> tuple[FairQueue[str], Shares]:
    shares = Shares()
    queue: FairQueue[str] = FairQueue(shares)
    for arrival, request in enumerate(requests):
        shares.enter(request.tenant)
        queue.push(request.generation_id, turn_of(request, arrival))
    return queue, shares


def test_one_tenant_of_one_class_is_served_as_it_came() -> None:
    queue, shares = queue_of(*map(asked, "abcdef"))
    shares.charge("", 1, 10 * ROUND)
    assert served(queue) == list("abcdef")


def test_a_class_goes_before_another_and_tolerant_work_behind_every_tenants() -> None:
    queue, shares = queue_of(
        asked("t", "one", PriorityClass.TOLERANT),
        asked("s", "one"),
        asked("p", "two", PriorityClass.PROTECTED),
    )
    shares.charge("two", 1, ROUND - 1)
    assert served(queue) == ["p", "s", "t"], "within a round of tokens classes decide"
    queue, shares = queue_of(
        asked("t", "one", PriorityClass.TOLERANT),
        asked("p", "two", PriorityClass.PROTECTED),
        asked("s", "three"),
    )
    shares.charge("two", 1, 2 * ROUND)
    assert served(queue) == ["s", "p", "t"], "who has had more waits, whatever the class"


def test_an_answer_that_was_begun_goes_on_before_another_of_its_tenant_begins() -> None:
    shares = Shares()
    queue: FairQueue[str] = FairQueue(shares)
    shares.enter("")
    queue.push("new", turn_of(asked("new", priority=PriorityClass.PROTECTED), 1))
    queue.push("begun", turn_of(asked("begun"), 2, begun=True))
    queue.push("unread", turn_of(asked("unread"), 0, begun=True, unread=True))
    assert served(queue) == ["begun", "new", "unread"]


def test_lanes_go_from_what_is_read_to_tolerant_work_that_nobody_reads() -> None:
    classes = (PriorityClass.STANDARD, PriorityClass.TOLERANT)
    lanes = [lane_of(one, unread=unread) for unread in (False, True) for one in classes]
    assert lanes == sorted(lanes)
    assert len(set(lanes)) == 4


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_tenants_that_always_wait_get_tokens_by_their_weights(seed: int) -> None:
    chance = random.Random(seed)
    weights = {f"t{i}": chance.randint(1, 5) for i in range(chance.randint(2, 5))}
    most = chance.choice((60, 700, 3000))
    shares = Shares()
    queue: FairQueue[tuple[str, int]] = FairQueue(shares)
    arrivals = 0

    def ask(tenant: str) -> None:
        nonlocal arrivals
        arrivals += 1
        shares.enter(tenant)
        priority = chance.choice((PriorityClass.STANDARD, PriorityClass.PROTECTED))
        queue.push((tenant, arrivals), turn_of(asked("r", tenant, priority), arrivals))

    for tenant in weights:
        for _ in range(3):
            ask(tenant)
    had: Counter[str] = Counter()
    while sum(had.values()) < 20 * ROUND * len(weights):
        first = queue.first()
        assert first is not None
        tenant, tokens = first[0], chance.randint(1, most)
        queue.remove(first)
        shares.charge(tenant, weights[tenant], tokens)
        had[tenant] += tokens
        ask(tenant)
        shares.leave(tenant)
    levels = [had[tenant] / weight for tenant, weight in weights.items()]
    # Once, all but the first are granted what those are that come anew.
    assert max(levels) - min(levels) <= ALLOWANCE + ROUND + most


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_who_comes_anew_is_ahead_by_no_more_than_the_allowance(seed: int) -> None:
    chance = random.Random(seed)
    shares = Shares()
    shares.enter("busy")
    shares.charge("busy", 1, chance.randint(0, 1000 * ROUND))
    shares.enter("new")
    before, tokens = shares.round_of("busy"), 0
    while shares.round_of("new") < before:
        shares.charge("new", 1, 16)
        tokens += 16
    assert tokens <= ALLOWANCE + ROUND
    shares.leave("new")
    shares.enter("new")
    assert shares.round_of("new") == before, "to leave and to come again buys nothing"


def test_who_was_away_for_long_has_saved_nothing_and_owes_what_it_had() -> None:
    shares = Shares()
    for tenant in ("a", "b"):
        shares.enter(tenant)
    shares.charge("a", 1, 100 * ROUND)
    shares.leave("a")
    shares.enter("a")
    assert shares.round_of("a") == 100, "it had more than its share while another waited"
    shares.leave("b")
    shares.charge("a", 1, 1000 * ROUND)
    shares.enter("b")
    assert shares.round_of("b") == shares.round_of("a") - ALLOWANCE // ROUND


def test_tenants_that_are_gone_are_forgotten_in_the_end() -> None:
    shares = Shares()
    for number in range(3 * MAX_REMEMBERED):
        shares.enter(str(number))
        shares.leave(str(number))
    assert len(shares._had) <= MAX_REMEMBERED + 1


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_whoever_waits_is_served_once_whatever_is_removed_between(seed: int) -> None:
    chance = random.Random(seed)
    shares = Shares()
    queue: FairQueue[int] = FairQueue(shares)
    expected: set[int] = set()
    for number in range(60):
        tenant = chance.choice("abc")
        shares.enter(tenant)
        request = asked("r", tenant, chance.choice(list(PriorityClass)))
        unread, begun = chance.random() < 0.3, chance.random() < 0.3
        queue.push(number, turn_of(request, number, unread=unread, begun=begun))
        expected.add(number)
        if chance.random() < 0.3:
            gone = chance.choice(sorted(expected))
            queue.remove(gone)
            queue.remove(gone)
            expected.discard(gone)
        shares.charge(tenant, 1, chance.randint(0, 900))
    assert set(queue) == expected
    assert len(queue) == len(expected)
    order = []
    while (first := queue.first()) is not None:
        order.append(first)
        queue.remove(first)
    assert sorted(order) == sorted(expected)
    assert not queue._lanes
