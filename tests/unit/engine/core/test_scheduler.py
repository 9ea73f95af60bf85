from __future__ import annotations

import random
from collections import deque
from unittest.mock import patch

from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.common import fair_queue
from services.common.exchange import Phase
from services.common.generation import PriorityClass
from services.engine.backend import Sampled
from services.engine.core import turns
from services.engine.core.actions import NewToken
from services.engine.core.scheduler import Scheduler, SchedulerSettings
from tests.driven_scheduler import Driver, expected, key, request


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
@example(9403)  # the one whose turn it is gives its place up, and nobody else is in flight
def test_any_order_of_events_gives_every_sequence_its_own_tokens(seed: int) -> None:
    """Those of small batches that keep a place for tenants which are soon well behind, too."""
    with (
        patch.object(turns, "KEPT_OF", 32 if seed % 2 else 3),
        patch.object(fair_queue, "ROUND", 512 if seed % 4 < 2 else 8),
    ):
        any_order_of_events(seed)


def any_order_of_events(seed: int) -> None:
    chance = random.Random(seed)
    max_sequences = chance.randint(1, 6)
    budget = max_sequences + chance.randint(1, 20)
    config = SchedulerSettings(budget, max_sequences, chance.randint(0, 3), chance.randint(1, 30))
    repeats = chance.random() < 0.7
    driver = Driver(config, chance.randint(6, 12), chance.randint(1, 3), repeats)
    shapes = [(chance.randint(1, 40), chance.randint(1, 50)) for _ in range(chance.randint(2, 12))]
    waiting, tenants = deque(enumerate(shapes)), "abc"[: chance.randint(1, 3)]
    while waiting:
        event = chance.randint(0, 9)
        if event == 0:
            index, (prompt, count) = waiting.popleft()
            held, tenant = chance.randint(0, count - 1), chance.choice(tenants)
            priority, weight = chance.choice(list(PriorityClass)), chance.randint(1, 3)
            driver.start(str(index), prompt, count, held, tenant, priority, weight)
        elif event == 9:
            driver.scheduler.set_unread(key(str(chance.randint(0, 11))), chance.random() < 0.6)
        elif event < 4 and driver.flights:
            driver.arrive()
        else:
            driver.depart()
    driver.finish()
    for index, (prompt, count) in enumerate(shapes):
        assert driver.outputs[str(index)] == expected(prompt, count, repeats)
    assert driver.stopped == {str(i) for i in range(len(shapes))}
    assert driver.scheduler.used_blocks == 0
    assert driver.scheduler.running == driver.scheduler.queued == driver.scheduler.in_flight == 0
    assert all(len(step.token_ids) <= config.token_budget for step in driver.steps)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_stopped_and_dropped_sequences_leave_nothing_behind(seed: int) -> None:
    chance = random.Random(seed)
    config = SchedulerSettings(16, 4, chance.randint(1, 3), chance.randint(1, 60))
    driver = Driver(config, 12, chance.randint(1, 2), repeats=True)
    for index in range(8):
        driver.start(str(index), 10 + index, 30)
    gone: dict[str, int] = {}
    for _ in range(120):
        event, name = chance.randint(0, 30), str(chance.randint(0, 7))
        if event == 0:
            driver.scheduler.drop(key(name))
            gone.setdefault(name, len(driver.outputs[name]))
        elif event == 1 and name not in gone:
            driver.scheduler.stop(key(name))
        elif event % 2 and driver.flights:
            driver.arrive()
        else:
            driver.depart()
    driver.finish()
    for index in range(8):
        output = driver.outputs[str(index)]
        assert output == expected(10 + index, 30, repeats=True)[: len(output)]
    assert all(len(driver.outputs[name]) == length for name, length in gone.items())
    assert driver.scheduler.used_blocks == 0
    assert driver.scheduler.queued == driver.scheduler.running == 0


def test_a_prompt_is_read_in_chunks_while_others_decode() -> None:
    driver = Driver(SchedulerSettings(16, 4, 8, 1000), 64, 2)
    driver.start("short", 4, 30)
    driver.depart()
    driver.arrive()
    driver.start("long", 60, 2)
    for _ in range(4):
        step = driver.depart()
        assert step is not None
        assert len(step.token_ids) == 16
        assert {k.generation_id for k in step.keys} == {"short", "long"}
        assert step.decodes == 1
        driver.arrive()
    driver.finish()
    assert driver.outputs["long"] == expected(60, 2)


def test_a_small_batch_is_not_split_and_a_large_one_is() -> None:
    config = SchedulerSettings(256, 64, 4, 1000)
    driver = Driver(config, 256, 2)
    for index in range(7):
        driver.start(str(index), 4, 30)
    driver.depart()
    driver.arrive()
    step = driver.depart()
    assert step is not None
    assert step.decodes == 7
    assert driver.depart() is None
    for index in range(7, 9):
        driver.start(str(index), 4, 30)
    driver.arrive()
    driver.depart()
    driver.arrive()
    sizes = []
    for _ in range(2):
        step = driver.depart()
        assert step is not None
        sizes.append(step.decodes)
    assert sizes == [5, 4]


def test_prompts_fill_further_stages_while_a_step_is_in_flight() -> None:
    driver = Driver(SchedulerSettings(16, 8, 8, 16), 64, 2)
    for index in range(3):
        driver.start(str(index), 16, 1)
    assert driver.depart() is not None
    assert driver.depart() is not None
    assert driver.depart() is None


def test_pieces_of_one_prompt_follow_each_other_through_the_stages() -> None:
    driver = Driver(SchedulerSettings(16, 8, 8, 20), 64, 3)
    driver.start("a", 40, 2)
    pieces = [driver.depart() for _ in range(4)]
    assert [len(p.token_ids) if p else 0 for p in pieces] == [16, 16, 8, 0]
    driver.arrive()
    assert driver.depart() is None, "the token behind the prompt is not known yet"
    driver.finish()
    assert driver.outputs["a"] == expected(40, 2)


def test_an_answer_that_was_begun_goes_on_before_new_prompts_are_read() -> None:
    driver = Driver(SchedulerSettings(16, 8, 8, 1000), 64, 1)
    driver.start("new", 30, 2)
    driver.start("moved", 10, 20, held=5)
    driver.start("newer", 30, 2)
    step = driver.depart()
    assert step is not None
    assert step.keys == (key("moved"), key("new"))
    driver.finish()
    waiting = Driver(SchedulerSettings(16, 1, 8, 1000), 64, 1)
    for name, held in (("first", 0), ("second", 0), ("moved", 5)):
        waiting.start(name, 4, 10, held)
    waiting.finish()
    order = list(dict.fromkeys(k.generation_id for step in waiting.steps for k in step.keys))
    assert order == ["moved", "first", "second"]


def test_the_youngest_gives_way_when_blocks_run_out() -> None:
    driver = Driver(SchedulerSettings(64, 4, 8, 1000), 5, 1)
    driver.start("old", 15, 40)
    driver.start("young", 30, 40)
    driver.finish()
    assert driver.scheduler.preemptions > 0
    reopened = [s for step in driver.steps for s in step.batch.opens if s.output_ids]
    assert reopened
    assert driver.outputs == {"old": expected(15, 40), "young": expected(30, 40)}
    assert all(len(s.prompt_ids) == 30 for s in reopened)
    first, *_, last = (step.keys for step in driver.steps)
    assert first == (key("old"), key("young"))
    assert last == (key("young"),)


def test_a_prompt_gives_way_to_an_older_sequence() -> None:
    driver = Driver(SchedulerSettings(2, 4, 8, 1000), 4, 1)
    driver.start("old", 15, 40)
    while driver.scheduler.take_phases().get(key("old")) is not Phase.DECODE:
        driver.depart()
        driver.arrive()
    driver.start("young", 30, 2)
    driver.depart()
    driver.arrive()
    assert driver.scheduler.running == 2
    driver.finish()
    assert driver.scheduler.preemptions == 1
    assert driver.outputs == {"old": expected(15, 40), "young": expected(30, 2)}


def test_a_sequence_in_flight_is_never_preempted() -> None:
    driver = Driver(SchedulerSettings(64, 4, 1, 1000, share_prefixes=False), 4, 2)
    driver.start("old", 15, 30)
    driver.depart()
    driver.start("young", 15, 30)
    driver.depart()
    driver.arrive()
    for _ in range(80):
        driver.depart()
        if len(driver.flights) == 2:
            driver.arrive()
    driver.finish()
    assert driver.scheduler.preemptions > 0
    assert driver.outputs == {"old": expected(15, 30), "young": expected(15, 30)}


def test_ids_from_a_hand_over_are_counted_once_as_replayed() -> None:
    driver = Driver(SchedulerSettings(16, 4, 8, 1000), 64, 1)
    driver.start("moved", 10, 40, held=25)
    driver.finish()
    assert sum(step.replayed for step in driver.steps) == 25
    assert driver.outputs["moved"] == expected(10, 40)


def test_first_come_is_first_served() -> None:
    driver = Driver(SchedulerSettings(64, 1, 8, 1000), 8, 1)
    for name in ("a", "b", "c"):
        driver.start(name, 4, 3)
    driver.finish()
    order = [k.generation_id for step in driver.steps for k in step.keys]
    assert order == sorted(order)


def test_phases_follow_a_sequence() -> None:
    driver = Driver(SchedulerSettings(), 8, 1)
    driver.start("a", 4, 3)
    driver.depart()
    assert driver.scheduler.take_phases() == {key("a"): Phase.PREFILL}
    driver.arrive()
    assert driver.scheduler.take_phases() == {key("a"): Phase.DECODE}
    assert driver.scheduler.take_phases() == {}


def test_a_token_in_flight_is_told_when_its_sequence_stops() -> None:
    driver = Driver(SchedulerSettings(), 8, 1)
    driver.start("a", 4, 30)
    driver.depart()
    assert not driver.scheduler.stop(key("a"))
    assert driver.scheduler.used_blocks == 0
    driver.arrive()
    assert driver.outputs["a"] == expected(4, 1)
    assert driver.stopped == {"a"}
    assert driver.scheduler.stop(key("a"))


def unread_flood(driver: Driver, count: int, prompt: int = 4) -> None:
    for index in range(count):
        driver.start(f"unread-{index}", prompt, 40)
    for _ in range(3):
        driver.depart()
        driver.arrive()
    for index in range(count):
        driver.scheduler.set_unread(key(f"unread-{index}"), True)


def test_what_is_read_takes_the_place_of_what_is_not_in_the_very_next_step() -> None:
    driver = Driver(SchedulerSettings(64, 4, 8, 1000), 64, 1)
    unread_flood(driver, 9)
    driver.start("read", 30, 2)
    step = driver.depart()
    assert step is not None
    assert step.keys == (key("read"),), "no unread row beside the prompt that a reader waits for"
    driver.arrive()
    both = driver.depart()
    assert both is not None
    assert both.keys[0] == key("read")
    assert len(both.keys) == 4, "with its first token there, the others go on beside it"
    driver.finish()
    assert driver.outputs["read"] == expected(30, 2)
    assert driver.outputs["unread-8"] == expected(4, 40)


def test_a_read_prompt_does_not_wait_for_blocks_that_unread_sequences_hold() -> None:
    driver = Driver(SchedulerSettings(256, 8, 8, 1000, share_prefixes=False), 8, 1)
    unread_flood(driver, 3, prompt=30)
    assert driver.scheduler.used_blocks >= 6
    driver.start("read", 60, 2)
    step = driver.depart()
    assert step is not None
    assert step.keys == (key("read"),)
    driver.finish()
    assert driver.outputs["read"] == expected(60, 2)


def test_an_answer_that_is_read_gets_its_next_block_from_an_older_one_that_is_not() -> None:
    driver = Driver(SchedulerSettings(64, 4, 8, 1000), 4, 1)
    driver.start("unread", 8, 40)
    driver.start("read", 15, 24)
    driver.depart()
    driver.arrive()
    driver.scheduler.set_unread(key("unread"), True)
    while len(driver.outputs["read"]) < 24:
        step = driver.depart()
        assert step is not None
        assert key("read") in step.keys
        driver.arrive()
    rows = [len(step.token_ids) for step in driver.steps if key("unread") not in step.keys]
    assert rows, "the blocks were too many for both"
    assert rows == [1] * len(rows), "nothing of what is read was computed again"
    driver.finish()
    assert driver.outputs == {"unread": expected(8, 40), "read": expected(15, 24)}


def test_an_unread_prompt_in_pieces_lets_a_read_one_in_when_its_pieces_are_back() -> None:
    driver = Driver(SchedulerSettings(16, 1, 8, 20), 64, 2)
    driver.start("unread", 160, 2)
    driver.depart()
    driver.depart()
    driver.scheduler.set_unread(key("unread"), True)
    driver.start("read", 4, 2)
    assert driver.depart() is None
    driver.arrive()
    assert driver.depart() is None
    driver.arrive()
    step = driver.depart()
    assert step is not None
    assert step.keys == (key("read"),)
    driver.finish()
    assert driver.outputs == {"unread": expected(160, 2), "read": expected(4, 2)}


def test_a_sequence_that_is_read_again_has_its_turn_back() -> None:
    driver = Driver(SchedulerSettings(64, 1, 8, 1000), 8, 1)
    for name in ("a", "b", "c"):
        driver.start(name, 4, 3)
    driver.scheduler.set_unread(key("b"), True)
    driver.scheduler.set_unread(key("c"), True)
    driver.scheduler.set_unread(key("b"), False)
    driver.scheduler.set_unread(key("nobody"), True)
    driver.finish()
    order = list(dict.fromkeys(k.generation_id for step in driver.steps for k in step.keys))
    assert order == ["a", "b", "c"]


def asked_rows(driver: Driver) -> list[int]:
    return [len(step.token_ids) for step in driver.steps[1:]]


def test_a_text_that_repeats_itself_takes_fewer_steps_and_is_the_same() -> None:
    alone = Driver(SchedulerSettings(max_drafts=0), 64, 1, repeats=True)
    drafting = Driver(SchedulerSettings(), 64, 1, repeats=True)
    for driver in (alone, drafting):
        driver.start("a", 4, 300)
        driver.finish()
    assert drafting.outputs == alone.outputs == {"a": expected(4, 300, repeats=True)}
    assert len(alone.steps) == 300
    assert len(drafting.steps) == 300 - drafting.accepted < 150
    assert sum(step.drafted for step in drafting.steps) > drafting.accepted > 150
    assert asked_rows(alone) == [1] * 299
    assert max(asked_rows(drafting)) == 9
    assert drafting.scheduler.used_blocks == 0


def test_nothing_is_drafted_beside_a_prompt() -> None:
    driver = Driver(SchedulerSettings(16, 4, 8, 1000), 64, 1, repeats=True)
    driver.start("a", 4, 200)
    while driver.accepted < 20:
        driver.depart()
        driver.arrive()
    driver.start("long", 60, 2)
    for _ in range(4):
        step = driver.depart()
        assert step is not None
        assert (step.decodes, step.drafted) == (1, 0)
        driver.arrive()
    driver.finish()
    assert driver.outputs["a"] == expected(4, 200, repeats=True)


def test_drafts_take_no_block_that_another_needs_soon() -> None:
    """The same preemptions as without: a draft has what is free, and spares one for each."""
    preempted = []
    for drafts in (0, 8):
        driver = Driver(SchedulerSettings(64, 4, 8, 1000, drafts, False), 5, 1, repeats=True)
        driver.start("old", 15, 40)
        driver.start("young", 15, 40)
        driver.finish()
        preempted.append(driver.scheduler.preemptions)
        assert driver.outputs["old"] == driver.outputs["young"] == expected(15, 40, repeats=True)
        assert (driver.accepted > 0) is (drafts > 0)
    assert preempted == [0, 0] or preempted[1] <= preempted[0]


def test_no_more_rows_are_asked_for_tokens_than_logits_are_held() -> None:
    settings = SchedulerSettings(256, 4, 1000, 1000, 8)
    driver = Driver(settings, 256, 1, repeats=True)
    for index in range(4):
        driver.start(str(index), 4, 200)
    driver.finish()
    assert max(asked_rows(driver)) == settings.max_asked == 9
    assert all(driver.outputs[str(i)] == expected(4, 200, repeats=True) for i in range(4))


def test_tokens_of_drafts_in_flight_are_told_when_their_sequence_stops() -> None:
    driver = Driver(SchedulerSettings(), 8, 1, repeats=True)
    driver.start("a", 4, 200)
    while driver.accepted < 20:
        driver.depart()
        driver.arrive()
    while (step := driver.depart()) is None or not step.drafted:
        driver.arrive()
    before, accepted = len(driver.outputs["a"]), driver.accepted
    assert not driver.scheduler.stop(key("a"))
    driver.arrive()
    assert len(driver.outputs["a"]) == before + 1 + driver.accepted - accepted
    assert driver.outputs["a"] == expected(4, 200, repeats=True)[: len(driver.outputs["a"])]
    assert driver.stopped == {"a"}
    assert driver.scheduler.used_blocks == 0


def test_a_sequence_that_is_stuck_takes_nothing_and_waits_to_be_stopped():
    scheduler = Scheduler(SchedulerSettings(), 64, 1)
    scheduler.start(key("a"), request("a", 3, 9), ())
    step = scheduler.next_step()
    assert step is not None
    stuck = Sampled(step.batch.steps[0].slot, 0, 0, stuck=True)
    result = scheduler.complete(step.number, [stuck])
    assert result.tokens == (NewToken(key("a"), 0, 0, stuck=True),)
    assert scheduler.stop(key("a"))
    following = scheduler.next_step()
    assert following is None or not following.batch.steps
