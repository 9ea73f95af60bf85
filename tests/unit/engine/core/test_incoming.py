"""Sequences that wait for blocks from elsewhere: when those may be written, and by whom."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.common.exchange import GenerateCall, KvMember, KvSource, PrefixHolder
from services.common.generation import (
    CancelReason,
    GenerationRequest,
    LayerRange,
    ModelRef,
    Sampling,
    TokenSpan,
)
from services.common.prefix import chain_of
from services.engine.backend import Sampled
from services.engine.core.actions import SequenceKey, StartSequence
from services.engine.core.batching import Batching, Due
from services.engine.core.generations import Generations
from services.engine.core.head_settings import HeadSettings
from services.engine.core.incoming import Incoming, KvFetch
from services.engine.core.lead import Lead
from services.engine.core.pace import Pace
from services.engine.core.prefix_fetching import PrefixFetching, PrefixSettings
from services.engine.core.scheduler import Scheduler, SchedulerSettings, Step
from services.engine.core.validation import Bounds

MODEL = ModelRef("m", "d")
SOURCE = KvSource("old", (KvMember("a:1", "i", LayerRange(0, 4)),))
PROMPT = tuple(range(60))
OUTPUTS = tuple(range(100, 120))


def moved(name: str = "g", source: KvSource | None = SOURCE) -> GenerateCall:
    """80 ids: 4 full blocks, and a fifth whose last id is computed anyway."""
    request = GenerationRequest(name, MODEL, PROMPT, Sampling(40))
    return GenerateCall(request, 2, "f", (TokenSpan(0, 0, OUTPUTS),), (), source)


def leading(blocks: int = 64, **settings: object) -> Batching:
    batching = Batching(Generations("i", HeadSettings()))
    scheduler = Scheduler(SchedulerSettings(**settings), blocks, 2)  # type: ignore[arg-type]
    batching.form(Lead("f", scheduler, Bounds(MODEL, 1000, 4096), Pace(1.0, 0.0)), "exact", 0.0)
    return batching


def scheduler_of(batching: Batching) -> Scheduler:
    assert batching.lead is not None
    return batching.lead.scheduler


def only_fetch(due: Due) -> KvFetch:
    (fetch,) = due.fetches
    assert not due.steps
    return fetch


def test_a_sequence_starts_behind_the_blocks_that_every_stage_filled() -> None:
    for count in range(5):
        batching = leading()
        fetch = only_fetch(batching.generate(1, moved(), 0.0))
        assert len(fetch.blocks) == 4
        assert scheduler_of(batching).used_blocks == 4
        due = batching.fetched(fetch, count, 0.1)
        (step,) = due.steps
        assert step.batch.steps[0].start == count * 16
        assert step.batch.steps[0].block_table[:count] == tuple(b for _, b in fetch.blocks[:count])
        assert step.replayed == min(20, 80 - count * 16)
        (checkpoint,) = batching.generations.take_checkpoints(1, 0.2)
        assert checkpoint.moved_by == ("kv" if count else "replay")


def test_without_a_source_or_sharing_nothing_is_waited_for() -> None:
    assert not leading().generate(1, moved(source=None), 0.0).fetches
    assert not leading(share_prefixes=False).generate(1, moved(), 0.0).fetches


def test_what_the_cache_has_already_is_not_fetched() -> None:
    batching = leading()
    fetch = only_fetch(batching.generate(1, moved(), 0.0))
    batching.fetched(fetch, 4, 0.1)
    batching.came_back(1, [Sampled(0, 20, 7)], 0.2)
    due = batching.generate(2, moved("h"), 0.3)
    assert not due.fetches


def test_blocks_are_written_only_when_all_steps_that_had_departed_are_back() -> None:
    """One of them may still write to a block that its owner gave back."""
    batching = leading()
    prompt = GenerationRequest("p", MODEL, (1, 2, 3), Sampling(20))
    assert len(batching.generate(1, GenerateCall(prompt, 1, "f"), 0.0).steps) == 1
    assert not batching.generate(2, moved(), 0.1).fetches
    due = batching.came_back(1, [Sampled(0, 0, 7)], 0.2)
    assert len(due.fetches) == 1
    assert len(due.steps) == 1  # the other one goes on
    assert not batching.came_back(2, [Sampled(0, 1, 8)], 0.3).fetches


def test_blocks_that_a_stage_may_still_write_are_given_to_nobody() -> None:
    batching = leading()
    fetch = only_fetch(batching.generate(1, moved(), 0.0))
    (step,) = batching.fetched(fetch, None, 0.1).steps
    assert step.batch.steps[0].start == 0
    cancel = batching.generations.cancel("g", None, CancelReason.CLIENT, 0.2)
    batching.act(cancel, 0.2)
    batching.came_back(1, [], 0.3)
    assert scheduler_of(batching).used_blocks == 4
    assert batching.ended(fetch, 0.4) == Due()
    scheduler = scheduler_of(batching)
    assert scheduler.used_blocks == 0
    computed = scheduler.blocks.find(name for name, _ in fetch.blocks)
    assert len(computed) == 4
    assert not {block for _, block in fetch.blocks} & set(computed)


def test_who_waits_for_room_starts_when_a_silent_stage_writes_no_more() -> None:
    batching = leading(blocks=6)
    fetch = only_fetch(batching.generate(1, moved(), 0.0))
    batching.act(batching.generations.cancel("g", None, CancelReason.CLIENT, 0.1), 0.1)
    long = GenerationRequest("p", MODEL, (1,) * 80, Sampling(10))
    batching.generate(2, GenerateCall(long, 1, "f"), 0.2)
    assert not batching.fetched(fetch, None, 0.3).steps
    assert len(batching.ended(fetch, 0.4).steps) == 1


def test_what_stages_are_asked_to_do_to_blocks_has_a_number_each() -> None:
    batching = leading()
    fetch = only_fetch(batching.generate(1, moved(), 0.0))
    batching.act(batching.generations.drain("f", 0.1), 0.1)
    with batching.kept(batching.sealed(())) as leaving:
        assert leaving.number > fetch.number


def test_a_cancelled_one_gives_its_blocks_back_when_the_stages_have_answered() -> None:
    batching = leading()
    fetch = only_fetch(batching.generate(1, moved(), 0.0))
    due = batching.act(batching.generations.cancel("g", None, CancelReason.CLIENT, 0.1), 0.1)
    assert due.readers == (1,)
    assert scheduler_of(batching).used_blocks == 4
    assert batching.fetched(fetch, 2, 0.2) == Due()
    scheduler = scheduler_of(batching)
    assert (scheduler.used_blocks, scheduler.blocks.cached_count) == (0, 2)
    assert not batching.has_work


def test_one_that_nobody_reads_when_its_blocks_come_yields_from_the_start() -> None:
    batching = leading()
    fetch = only_fetch(batching.generate(1, moved(), 0.0))
    batching.act(batching.generations.detach(1, 0.1), 0.1)
    batching.act(batching.generations.tick(0.5), 0.5)
    batching.fetched(fetch, 4, 0.6)
    (sequence,), _ = scheduler_of(batching).present
    assert sequence.unread


def test_a_drain_while_blocks_are_awaited_seals_at_once() -> None:
    batching = leading()
    fetch = only_fetch(batching.generate(1, moved(), 0.0))
    batching.act(batching.generations.drain("f", 0.1), 0.1)
    assert not batching.generations.sealing("f")
    (checkpoint,) = batching.generations.take_checkpoints(1, 0.2)
    assert checkpoint.sealed
    assert batching.fetched(fetch, 4, 0.3) == Due()


CHAIN = list(chain_of(moved().request, 16))
"""Of the prompt alone: 3 full blocks."""


def test_what_came_ahead_is_found_by_the_sequence_that_it_is_for() -> None:
    batching = leading()
    number, due = batching.take_ahead([CHAIN], SOURCE)
    fetch = only_fetch(due)
    assert [name for name, _ in fetch.blocks] == CHAIN
    assert batching.awaits(number)
    assert batching.fetched(fetch, 3, 0.1) == Due()
    assert not batching.awaits(number)
    blocks = scheduler_of(batching).blocks
    assert (blocks.used_count, blocks.cached_count) == (0, 3)
    (step,) = batching.generate(1, moved(), 0.2).steps  # one block more is not worth asking for
    assert step.batch.steps[0].start == 48
    assert step.batch.steps[0].block_table[:3] == tuple(block for _, block in fetch.blocks)
    (checkpoint,) = batching.generations.take_checkpoints(1, 0.3)
    assert checkpoint.moved_by == "kv"


def test_one_block_is_asked_for_where_it_is_far_behind_the_first() -> None:
    """There its rows take longer to compute than it takes to come."""
    prompt = tuple(i % 999 for i in range(16 * 129 + 1))
    request = GenerationRequest("g", MODEL, prompt, Sampling(40))
    chain = list(chain_of(request, 16))
    for blocks, fetched in ((129, 1), (128, 0)):
        batching = leading(blocks=200)
        _, due = batching.take_ahead([chain[: blocks - 1]], SOURCE)
        batching.fetched(only_fetch(due), blocks - 1, 0.1)
        asked = replace(request, prompt_ids=prompt[: 16 * blocks + 1])
        due = batching.generate(1, GenerateCall(asked, 2, "f", (), (), SOURCE), 0.2)
        assert [len(fetch.blocks) for fetch in due.fetches] == [1] * fetched


def test_what_came_ahead_of_another_is_computed_and_no_move_of_this_one() -> None:
    batching = leading()
    begun_alike = (*PROMPT[:32], *PROMPT[:28])
    other = list(chain_of(GenerationRequest("h", MODEL, begun_alike, Sampling(9)), 16))
    _, due = batching.take_ahead([other], SOURCE)
    batching.fetched(only_fetch(due), 3, 0.1)
    (step,) = batching.generate(1, moved(source=None), 0.2).steps
    assert step.batch.steps[0].start == 32
    (checkpoint,) = batching.generations.take_checkpoints(1, 0.3)
    assert checkpoint.moved_by == "replay"


def test_what_comes_ahead_waits_for_steps_and_is_fetched_once_for_all_that_have_it() -> None:
    batching = leading()
    prompt = GenerationRequest("p", MODEL, (1, 2, 3), Sampling(20))
    batching.generate(1, GenerateCall(prompt, 1, "f"), 0.0)
    longer = [*CHAIN, b"x"]
    assert not batching.take_ahead([CHAIN, longer], SOURCE)[1].fetches
    (fetch,) = batching.came_back(1, [Sampled(0, 0, 7)], 0.2).fetches
    assert [name for name, _ in fetch.blocks] == longer
    batching.fetched(fetch, 4, 0.3)
    assert batching.take_ahead([CHAIN, longer], SOURCE) == (None, Due())


def test_what_comes_ahead_leaves_a_block_to_each_that_runs_and_goes_for_whoever_runs() -> None:
    batching = leading(blocks=6, max_drafts=0)
    first = GenerationRequest("p", MODEL, (1,) * 20, Sampling(70))
    batching.generate(1, GenerateCall(first, 1, "f"), 0.0)  # has 2 blocks
    batching.take_ahead([CHAIN], SOURCE)
    (fetch,) = batching.came_back(1, [Sampled(0, 0, 7)], 0.2).fetches
    assert [name for name, _ in fetch.blocks] == CHAIN[:2]
    batching.fetched(fetch, 2, 0.3)
    for position in range(1, 40):
        batching.came_back(position + 1, [Sampled(0, position, 7)], 0.3)
    blocks = scheduler_of(batching).blocks
    assert (blocks.used_count, blocks.find(CHAIN)) == (4, [fetch.blocks[0][1], fetch.blocks[1][1]])
    for position in range(40, 62):
        batching.came_back(position + 1, [Sampled(0, position, 7)], 0.3)
    assert (blocks.used_count, len(blocks.find(CHAIN))) == (6, 0)


def test_what_came_ahead_last_goes_first_of_its_chain() -> None:
    """Whoever comes finds as much of its beginning as there is room for."""
    batching = leading(blocks=4)
    for end in (1, 3):
        _, due = batching.take_ahead([CHAIN[:end]], SOURCE)
        batching.fetched(only_fetch(due), 3, 0.1)
    blocks = scheduler_of(batching).blocks
    taken = blocks.allocate(2)
    assert len(blocks.find(CHAIN)) == 2
    taken += blocks.allocate(1)
    assert len(blocks.find(CHAIN)) == 1
    blocks.release(taken)


def test_room_that_blocks_from_elsewhere_give_back_is_used_at_once() -> None:
    batching = leading(blocks=6)
    _, due = batching.take_ahead([CHAIN], SOURCE)
    long = GenerationRequest("p", MODEL, (1,) * 80, Sampling(10))
    assert not batching.generate(1, GenerateCall(long, 1, "f"), 0.1).steps
    assert len(batching.fetched(only_fetch(due), 0, 0.2).steps) == 1


def test_too_little_room_is_filled_as_far_as_it_goes() -> None:
    batching = leading(blocks=11)
    first = GenerationRequest("p", MODEL, (1,) * 100, Sampling(20))
    batching.generate(1, GenerateCall(first, 1, "f"), 0.0)  # has 7 blocks
    batching.generate(2, moved(), 0.1)
    due = batching.came_back(1, [Sampled(0, 0, 7)], 0.2)
    assert [len(fetch.blocks) for fetch in due.fetches] == [2]


def test_what_is_fetched_for_a_formation_that_ended_counts_for_nothing() -> None:
    batching = leading()
    fetch = only_fetch(batching.generate(1, moved(), 0.0))
    batching.dissolve("f", 0.1)
    assert batching.fetched(fetch, 4, 0.2) == Due()


def test_the_drain_keeps_what_is_sealed_nearest_to_its_end_first() -> None:
    batching, flown, said = leading(min_overlap_rows=1), deque[Step](), Counter[int]()
    for reader, (name, limit) in enumerate((("long", 400), ("short", 30), ("left out", 9)), 1):
        prompt = tuple(range(reader * 100, reader * 100 + 40))
        request = GenerationRequest(name, MODEL, prompt, Sampling(limit))
        flown += batching.generate(reader, GenerateCall(request, 1, "f"), 0.0).steps
    while flown:
        step, sampled = flown.popleft(), []
        for one in step.batch.steps:
            sampled.append(Sampled(one.slot, said[one.slot], 7))
            said[one.slot] += 1
        flown += batching.came_back(step.number, sampled, 0.1).steps
        if len(said) == 3:
            batching.act(batching.generations.drain("f", 0.5), 0.5)
    assert not batching.generations.sealing("f")
    scheduler = scheduler_of(batching)
    with batching.kept(batching.sealed({"left out"})) as leaving:
        names = chain_of(GenerationRequest("s", MODEL, tuple(range(200, 240)), Sampling(1)), 16)
        assert [name for name, _ in leaving.blocks[:2]] == list(names)
        assert len(leaving.blocks) == 4
        assert scheduler.used_blocks == 4
    assert scheduler.used_blocks == 0
    with batching.kept(batching.sealed(())) as leaving:
        assert len(leaving.blocks) == 6
        leaving.busy = True
    assert scheduler.used_blocks == 6  # no stage answered
    leaving.busy = False
    assert batching.left(leaving, 0.6) == Due()
    assert scheduler.used_blocks == 0


LONG = tuple(i % 999 for i in range(16 * 40 + 1))
HOLDER = PrefixHolder("a:1", "other", len(LONG))
NAMES = list(chain_of(GenerationRequest("g", MODEL, LONG, Sampling(4)), 16))


def asked(
    name: str, *, choices: int = 1, holder: PrefixHolder | None = HOLDER, prompt: Any = LONG
) -> GenerateCall:
    request = GenerationRequest(name, MODEL, prompt, Sampling(4), choices)
    return GenerateCall(request, 1, "f", prefix_holder=holder)


def beside_others(blocks: int = 200, at_once: int = 2) -> Batching:
    """A row takes as long as a block does to come."""
    batching = Batching(Generations("i", HeadSettings()))
    scheduler = Scheduler(SchedulerSettings(max_drafts=0), blocks, 2)
    scheduler.step_cost.observe(10, 0.1)
    prefixes = PrefixFetching(PrefixSettings(60.0, at_once, 1e6), 10_000)
    lead = Lead("f", scheduler, Bounds(MODEL, 1000, 4096), Pace(1.0, 0.0), prefixes=prefixes)
    batching.form(lead, "exact", 0.0)
    return batching


def test_the_beginning_of_a_prompt_comes_from_who_has_it() -> None:
    batching = beside_others()
    fetch = only_fetch(batching.generate(1, asked("g"), 0.0))
    assert (fetch.names, fetch.holder) == (NAMES, HOLDER)
    assert 0 < fetch.source.fetch_s <= 60.0
    step, *_ = batching.fetched(fetch, 30, 0.1).steps
    assert step.batch.steps[0].start == 30 * 16


def test_what_the_caches_have_of_it_is_not_fetched() -> None:
    batching = beside_others()
    _, due = batching.take_ahead([NAMES[:10]], SOURCE)
    batching.fetched(only_fetch(due), 10, 0.1)
    assert only_fetch(batching.generate(1, asked("g"), 0.2)).names == NAMES[10:]


def test_no_more_of_it_comes_than_its_holder_has() -> None:
    batching = beside_others()
    short = PrefixHolder("a:1", "other", 16 * 20 + 7)
    assert only_fetch(batching.generate(1, asked("g", holder=short), 0.0)).names == NAMES[:20]


def test_choices_and_requests_that_begin_alike_wait_for_one_fetch() -> None:
    batching = beside_others()
    fetch = only_fetch(batching.generate(1, asked("g", choices=2), 0.0))
    alike = asked("h", prompt=(*LONG[:-100], *range(100)))
    due = batching.generate(2, alike, 0.0)
    assert (due.fetches, due.steps) == ((), ())
    assert scheduler_of(batching).used_blocks == 40
    steps = batching.fetched(fetch, 40, 0.1).steps
    running, waiting = scheduler_of(batching).present
    keys = {(one.key.generation_id, one.key.choice) for one in (*running, *waiting)}
    assert keys == {("g", 0), ("g", 1), ("h", 0)}
    assert all(step.batch.steps[0].start for step in steps)


def test_who_stops_takes_nothing_from_those_that_wait_with_it() -> None:
    batching = beside_others()
    prompt = GenerationRequest("p", MODEL, (1, 2, 3), Sampling(20))
    batching.generate(1, GenerateCall(prompt, 1, "f"), 0.0)
    batching.generate(2, asked("g"), 0.0)
    batching.generate(3, asked("h"), 0.0)
    batching.act(batching.generations.cancel("g", None, CancelReason.CLIENT, 0.1), 0.1)
    assert scheduler_of(batching).used_blocks > 40
    (fetch,) = batching.came_back(1, [Sampled(0, 0, 7)], 0.2).fetches
    batching.fetched(fetch, 40, 0.3)
    assert scheduler_of(batching).find(SequenceKey("g", 1, 0)) is None
    assert scheduler_of(batching).find(SequenceKey("h", 1, 0)) is not None


def test_when_all_have_stopped_nothing_is_fetched() -> None:
    batching = beside_others()
    prompt = GenerationRequest("p", MODEL, (1, 2, 3), Sampling(20))
    batching.generate(1, GenerateCall(prompt, 1, "f"), 0.0)
    for number, name in enumerate("gh", 2):
        batching.generate(number, asked(name), 0.0)
    for name in "gh":
        batching.act(batching.generations.cancel(name, None, CancelReason.CLIENT, 0.1), 0.1)
    assert not batching.came_back(1, [Sampled(0, 0, 7)], 0.2).fetches
    assert scheduler_of(batching).used_blocks == 1


def test_what_comes_beyond_so_many_fetches_is_computed() -> None:
    batching = beside_others(at_once=1)
    fetch = only_fetch(batching.generate(1, asked("g"), 0.0))
    other = asked("h", prompt=LONG[::-1])
    step, *_ = batching.generate(2, other, 0.0).steps
    assert step.batch.steps[0].start == 0
    batching.fetched(fetch, 40, 0.1)
    batching.generate(3, asked("i", prompt=LONG[1:]), 0.2)
    fetches = [one for number in (1, 2, 3) for one in batching.came_back(number, [], 0.3).fetches]
    assert len(fetches) == 1, "the first one is over"


def test_a_miss_is_computed_and_shuns_who_was_waited_for() -> None:
    batching = beside_others()
    fetch = only_fetch(batching.generate(1, asked("g"), 0.0))
    step, *_ = batching.fetched(fetch, 0, 5.0, 0, 5.0).steps
    assert step.batch.steps[0].start == 0
    batching.generate(2, asked("h", prompt=LONG[::-1]), 5.1)
    assert scheduler_of(batching).find(SequenceKey("h", 1, 0)) is not None


def read(batching: Batching) -> int:
    """A prompt, and it is over; blocks that the prefix cache has since."""
    due = batching.generate(1, asked("g", holder=None), 0.0)
    steps = list(due.steps)
    while steps:
        last = steps.pop(0)
        sampled = [Sampled(0, 0, 7)] if last.batch.steps[0].sample else []
        if sampled:
            cancel = batching.generations.cancel("g", None, CancelReason.CLIENT, 0.1)
            steps += batching.act(cancel, 0.1).steps
        steps += batching.came_back(last.number, sampled, 0.1).steps
    return scheduler_of(batching).blocks.cached_count


def test_an_offer_is_nobody_elses_until_it_is_given_back() -> None:
    batching = beside_others()
    assert read(batching) == 40
    with batching.offered([*NAMES[:30], b"?", *NAMES[31:]]) as leaving:
        assert [name for name, _ in leaving.blocks] == NAMES[:30]
        assert leaving.computed
        assert scheduler_of(batching).used_blocks == 30
    assert scheduler_of(batching).used_blocks == 0


def test_what_a_step_on_its_way_brings_is_offered_behind_it() -> None:
    batching = beside_others()
    step, *_ = batching.generate(1, asked("g", holder=None), 0.0).steps
    with batching.offered(NAMES[:3]) as leaving:
        assert len(leaving.blocks) == 3
        assert not leaving.computed
        batching.came_back(step.number, [], 0.1)
        assert leaving.computed


def test_an_offer_leaves_a_block_to_each_that_runs() -> None:
    batching = beside_others(blocks=64)
    read(batching)
    other = replace(asked("r").request, prompt_ids=(5,) * 160)
    batching.generate(2, GenerateCall(other, 1, "f"), 0.2)
    free = scheduler_of(batching).blocks.free_count
    assert free > 40
    taken = scheduler_of(batching).take_free([bytes([n]) for n in range(free - 32)])
    with batching.offered(NAMES) as leaving:
        assert len(leaving.blocks) == 30
    scheduler_of(batching).give_beginning((), taken, ())


LENGTHS = [160, 320, 641]


class Beginnings(RuleBasedStateMachine):
    """Sequences that begin alike or do not come, are stopped, and what they wait for comes, in part
    or not at all: each starts once, unless it was stopped, and no block is left taken."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(SchedulerSettings(max_drafts=0), 90, 2)
        self.scheduler.step_cost.observe(10, 0.1)
        prefixes = PrefixFetching(PrefixSettings(60.0, 2, 1e6), 10_000)
        self.incoming = Incoming(self.scheduler, itertools.count(1), prefixes)
        self.now_s, self.names = 0.0, itertools.count()
        self.waiting = set[SequenceKey]()
        self.fetches = dict[int, KvFetch]()
        self.silent = list[int]()

    @rule(
        first=st.integers(0, 2), length=st.sampled_from([160, 320, 641]), choices=st.integers(1, 2)
    )
    def comes(self, first: int, length: int, choices: int) -> None:
        prompt = tuple((first + i) % 999 for i in range(length))
        name = str(next(self.names))
        request = GenerationRequest(name, MODEL, prompt, Sampling(4), choices)
        for choice in range(choices):
            key = SequenceKey(name, 1, choice)
            start = StartSequence(key, request, (), holder=HOLDER)
            if self.incoming.holds_back(start, self.now_s):
                self.waiting.add(key)
        self._due()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def stops(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.waiting, key=str)))
        self.incoming.stop(key)
        self.waiting.remove(key)

    @precondition(lambda self: self.fetches)
    @rule(data=st.data(), took_s=st.sampled_from([0.01, 1.0]))
    def comes_back(self, data: st.DataObject, took_s: float) -> None:
        number = data.draw(st.sampled_from(sorted(self.fetches)))
        fetch = self.fetches.pop(number)
        count = data.draw(st.none() | st.integers(0, len(fetch.blocks)))
        started = [start.key for start, _ in self.incoming.fetched(number, count)]
        assert len(set(started)) == len(started)
        assert self.waiting.issuperset(started)
        self.waiting.difference_update(started)
        if count is None:
            self.silent.append(number)

    @precondition(lambda self: self.silent)
    @rule()
    def stage_answers(self) -> None:
        self.incoming.ended(self.silent.pop())

    def _due(self) -> None:
        for fetch in self.incoming.due():
            assert fetch.number not in self.fetches
            self.fetches[fetch.number] = fetch

    @invariant()
    def whoever_waits_waits_for_something(self) -> None:
        assert len(self.fetches) <= 2
        assert self.fetches or not self.waiting
        blocks = [block for fetch in self.fetches.values() for _, block in fetch.blocks]
        assert len(set(blocks)) == len(blocks)
        if not (self.fetches or self.silent):
            assert self.scheduler.used_blocks == 0


TestBeginnings = Beginnings.TestCase


def rounding(name: str = "g") -> GenerateCall:
    """What moves, and whose blocks may be rounded."""
    call = moved(name)
    sampling = replace(call.request.sampling, kv_int8=True)
    return replace(call, request=replace(call.request, sampling=sampling))


def says_inexact(batching: Batching, message: int) -> dict[str, bool]:
    taken = batching.generations.take_checkpoints(message, 60.0 * message)
    return {one.generation_id: one.inexact for one in taken}


def test_a_head_says_that_it_goes_on_from_what_was_rounded() -> None:
    for count, rounded in ((4, True), (4, False), (0, True), (None, True)):
        batching = leading()
        fetch = only_fetch(batching.generate(1, rounding(), 0.0))
        assert says_inexact(batching, 1) == {"g": False}
        batching.fetched(fetch, count, 0.1, rounded=rounded)
        assert says_inexact(batching, 2) == {"g": bool(count) and rounded}


def test_what_came_ahead_rounded_is_told_of_those_alone_whose_it_is() -> None:
    batching, calls = leading(), [rounding(name) for name in "gh"]
    names = [list(chain_of(call.request, 16)) for call in calls]
    number, due = batching.take_ahead([names[0]], SOURCE)
    assert number is not None
    batching.fetched(only_fetch(due), 3, 0.1, rounded=True)
    for reader, call in enumerate(calls):
        batching.generate(reader, replace(call, kv_source=None), 0.2)
    batching.generate(2, moved("x", None), 0.2)
    assert says_inexact(batching, 1) == {"g": True, "h": False, "x": False}


def test_what_comes_ahead_rounded_when_its_generation_is_there_is_told_of_it() -> None:
    batching, call = leading(), rounding()
    number, due = batching.take_ahead([list(chain_of(call.request, 16))], SOURCE)
    assert number is not None
    batching.generate(1, replace(call, kv_source=None), 0.1)
    assert says_inexact(batching, 1) == {"g": False}
    batching.fetched(only_fetch(due), 3, 0.2, rounded=True)
    assert says_inexact(batching, 2) == {"g": True}
