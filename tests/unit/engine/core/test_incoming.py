"""Sequences that wait for blocks from elsewhere: when those may be written, and by whom."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import replace

from services.common.exchange import GenerateCall, KvMember, KvSource
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
from services.engine.core.batching import Batching, Due, Lead
from services.engine.core.generations import Generations
from services.engine.core.head_settings import HeadSettings
from services.engine.core.incoming import KvFetch
from services.engine.core.pace import Pace
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
