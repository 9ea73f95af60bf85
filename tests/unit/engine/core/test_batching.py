from __future__ import annotations

import pytest

from services.common.errors import FailedPrecondition, InvalidArgument
from services.common.exchange import GenerateCall, Phase
from services.common.generation import CancelReason, GenerationRequest, ModelRef, Sampling
from services.engine.backend import Sampled, StageFacts
from services.engine.core.actions import SequenceKey, StartSequence
from services.engine.core.batching import Batching, Due
from services.engine.core.generations import Generations
from services.engine.core.head_settings import HeadSettings
from services.engine.core.incoming import names_of
from services.engine.core.lead import Lead, lead_of
from services.engine.core.pace import Pace
from services.engine.core.scheduler import Scheduler, SchedulerSettings
from services.engine.core.validation import Bounds

MODEL = ModelRef("m", "d")


def call(name: str = "g", max_tokens: int = 20) -> GenerateCall:
    return GenerateCall(GenerationRequest(name, MODEL, (1, 2, 3), Sampling(max_tokens)), 1, "f")


def leading() -> Batching:
    batching = Batching(Generations("i", HeadSettings()))
    scheduler = Scheduler(SchedulerSettings(), 64, 2)
    batching.form(Lead("f", scheduler, Bounds(MODEL, 1000, 512), Pace(1.0, 0.0)), "exact", 0.0)
    return batching


def test_a_call_becomes_a_step_and_the_step_a_frame() -> None:
    batching = leading()
    due = batching.generate(1, call(), 0.0)
    assert due.begins
    assert [step.token_ids for step in due.steps] == [(1, 2, 3)]
    assert batching.generations._held["g"].phase is Phase.PREFILL
    back = batching.came_back(1, [Sampled(0, 0, 7)], 0.1)
    assert (back.readers, back.sampled) == ((1,), 1)
    assert [step.token_ids for step in back.steps] == [(7,)]


def test_a_reader_that_attaches_begins_nothing() -> None:
    batching = leading()
    batching.generate(1, call(), 0.0)
    due = batching.generate(2, call(), 0.1)
    assert not due.begins
    assert not due.steps
    assert set(due.readers) == {1, 2}


def test_what_the_formation_cannot_serve_is_refused_before_it_runs() -> None:
    batching = leading()
    with pytest.raises(InvalidArgument, match="512"):
        batching.generate(1, call(max_tokens=600), 0.0)
    assert not batching.has_work


def test_a_cancelled_generation_leaves_no_block_behind() -> None:
    batching = leading()
    lead = batching.lead
    assert lead is not None
    batching.generate(1, call(), 0.0)
    assert lead.scheduler.used_blocks == 1
    cancel = batching.generations.cancel("g", None, CancelReason.CLIENT, 0.1)
    assert batching.act(cancel, 0.1).readers == (1,)
    assert lead.scheduler.used_blocks == 0
    batching.came_back(1, [Sampled(0, 0, 7)], 0.2)
    assert not batching.has_work


def test_what_a_dissolved_formation_had_in_flight_counts_for_nothing() -> None:
    batching = leading()
    batching.generate(1, call(), 0.0)
    assert batching.dissolve("another", 0.1) == Due()
    assert batching.dissolve("f", 0.1).readers == (1,)
    assert batching.came_back(1, [Sampled(0, 0, 7)], 0.2) == Due()
    assert not batching.overdue(9.0)


def test_a_step_that_stays_out_is_overdue() -> None:
    batching = leading()
    batching.generate(1, call(), 0.0)
    assert not batching.overdue(0.0)
    assert any(batching.overdue(0.2 * glance) for glance in range(1, 20))


def goes_round(*, exact: bool) -> tuple[Batching, Due]:
    """Behind the first step of a prompt that says the same again and again."""
    facts = StageFacts(range(1), 1, 8, 1000, 100, "fp32", "exact", exact=exact)
    lead = lead_of(
        "f",
        MODEL,
        facts,
        stages=1,
        kv_blocks=8,
        settings=SchedulerSettings(),
        progress_s=1.0,
        limit_bytes=16 << 20,
    )
    batching = Batching(Generations("i", HeadSettings()))
    batching.form(lead, "c", 0.0)
    asked = GenerationRequest("g", MODEL, (1, 2, 3) * 6, Sampling(20))
    batching.generate(1, GenerateCall(asked, 1, "f"), 0.0)
    return batching, batching.came_back(1, [Sampled(0, 0, 1)], 0.1)


def test_what_is_guessed_right_is_told_in_one_frame_and_counted() -> None:
    batching, due = goes_round(exact=True)
    (step,) = due.steps
    assert step.token_ids[:4] == (1, 2, 3, 1)
    assert (step.decodes, step.drafted) == (1, len(step.token_ids) - 1)
    back = batching.came_back(2, [Sampled(0, i, t) for i, t in enumerate((2, 3, 7), 1)], 0.2)
    assert (back.readers, back.sampled, back.accepted) == ((1,), 3, 2)
    assert back.steps[0].token_ids[0] == 7
    assert back.steps[0].batch.steps[0].start == 18 + 3


def test_what_is_not_exact_guesses_nothing() -> None:
    _, due = goes_round(exact=False)
    assert [(step.token_ids, step.drafted) for step in due.steps] == [((1,), 0)]


def test_a_head_leads_with_what_its_stage_and_one_message_hold() -> None:
    facts = StageFacts(range(1), 1, 8, 1000, 100, "fp32", "exact", exact=True)
    settings = SchedulerSettings(token_budget=1 << 30)
    lead = lead_of(
        "f",
        MODEL,
        facts,
        stages=2,
        kv_blocks=4,
        settings=settings,
        progress_s=1.0,
        limit_bytes=16 << 20,
    )
    assert lead.bounds.max_positions == 64
    assert lead.scheduler._settings.token_budget < 1 << 20
    with pytest.raises(FailedPrecondition, match="max_message_bytes"):
        lead_of(
            "f",
            MODEL,
            facts,
            stages=2,
            kv_blocks=4,
            settings=settings,
            progress_s=1.0,
            limit_bytes=1,
        )


def test_a_sequence_waits_once_from_its_call_to_its_place() -> None:
    batching = Batching(Generations("i", HeadSettings()))
    settings = SchedulerSettings(max_sequences=1)
    lead = Lead("f", Scheduler(settings, 64, 2), Bounds(MODEL, 1000, 512), Pace(1.0, 0.0))
    batching.form(lead, "exact", 0.0)
    assert batching.generate(1, call("first", max_tokens=1), 1.0).waited_s == (0.0,)
    assert batching.generate(2, call("second"), 2.0).waited_s == ()
    assert batching.generate(3, call("third"), 3.0).waited_s == ()
    cancel = batching.generations.cancel("third", None, CancelReason.CLIENT, 4.0)
    batching.act(cancel, 4.0)
    assert batching.came_back(1, [Sampled(0, 0, 7)], 5.5).waited_s == (3.5,)
    assert batching.came_back(2, [Sampled(0, 0, 7)], 6.0).waited_s == ()


def test_blocks_of_what_is_handed_on_are_nobodys_until_all_stages_have_kept_them() -> None:
    batching = leading()
    request = GenerationRequest("g", MODEL, tuple(range(40)), Sampling(20))
    batching.generate(1, GenerateCall(request, 1, "f", hand_on=True), 0.0)
    due = batching.came_back(1, [Sampled(0, 0, 7)], 0.1)
    assert due.steps == ()
    (leaving,) = due.keeps
    lead = batching.lead
    assert lead is not None
    names = names_of(StartSequence(SequenceKey("g", 1, 0), request, (7,)))
    assert [name for name, _ in leaving.blocks] == names
    blocks = lead.scheduler.blocks
    assert (len(names), blocks.used_count) == (2, 2)
    batching.left(leaving, 0.2)
    assert blocks.used_count == 2, "a stage that did not answer may be at it yet"
    leaving.busy = False
    batching.left(leaving, 0.3)
    assert (blocks.used_count, blocks.cached_count) == (0, 2)


def test_a_sequence_is_within_a_block_until_the_step_that_fills_it_has_departed() -> None:
    batching = leading()
    request = GenerationRequest("g", MODEL, tuple(range(14)), Sampling(20))
    batching.generate(1, GenerateCall(request, 1, "f"), 0.0)
    assert batching.within_blocks() == frozenset(), "it is read yet"
    for position, within in enumerate(({"g"}, set(), {"g"})):  # 15, 16 and 17 rows
        batching.came_back(position + 1, [Sampled(0, position, 50 + position)], 0.1)
        assert batching.within_blocks() == within


def test_who_has_two_sequences_waits_for_the_end_of_neither_block() -> None:
    batching = leading()
    request = GenerationRequest("g", MODEL, (1, 2, 3), Sampling(20), choices=2)
    batching.generate(1, GenerateCall(request, 1, "f"), 0.0)
    for step in (1, 2):
        lead = batching.lead
        assert lead is not None
        steps = lead.scheduler._flights[step].step.batch.steps
        batching.came_back(step, [Sampled(one.slot, 0, 50) for one in steps], 0.1)
    assert batching.generations.running(("g",))
    assert batching.within_blocks() == frozenset()


def test_what_a_formation_was_to_keep_is_nothing_to_the_next_one() -> None:
    batching = leading()
    request = GenerationRequest("g", MODEL, tuple(range(40)), Sampling(20))
    batching.generate(1, GenerateCall(request, 1, "f", hand_on=True), 0.0)
    (leaving,) = batching.came_back(1, [Sampled(0, 0, 7)], 0.1).keeps
    scheduler = Scheduler(SchedulerSettings(), 64, 2)
    batching.form(Lead("f2", scheduler, Bounds(MODEL, 1000, 512), Pace(1.0, 0.0)), "exact", 0.2)
    leaving.busy = False
    assert batching.left(leaving, 0.3) == Due()
    assert scheduler.used_blocks == 0
