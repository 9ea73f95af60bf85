"""Frames, checkpoints and steps are cut so that none outgrows its message."""

from __future__ import annotations

import pytest

from services.common.errors import FailedPrecondition
from services.common.exchange import Checkpoint, CheckpointResult, GenerateCall, Tokens
from services.common.generation import (
    CancelReason,
    GenerationRequest,
    ModelRef,
    Sampling,
    TokenLogprob,
    TokenSpan,
)
from services.engine import wire
from services.engine.backend import (
    BLOCK_SIZE,
    Batch,
    Hidden,
    SequenceOpen,
    SequenceStep,
    StageFacts,
)
from services.engine.core.actions import SequenceKey
from services.engine.core.generations import Generations
from services.engine.core.head_settings import HeadSettings
from services.engine.core.scheduler import MAX_OPENED_IDS, Scheduler, SchedulerSettings
from services.engine.core.step_size import most_rows

LIMIT_BYTES = 32 << 10
OVERHEAD_BYTES = 4096
"""Of a message beside its tokens: names, lengths, runs of each choice."""
IDS = 700
LARGEST = (1 << 32) - 1


def full_head(choices: int, top: int | None, *, finished: bool) -> Generations:
    """A head that was handed a generation of which the journal has to be told everything."""
    settings = HeadSettings(frame_bytes=LIMIT_BYTES, checkpoint_bytes_at_once=LIMIT_BYTES)
    head = Generations("i", settings)
    head.form("f", "exact", 0.0)
    logprob = TokenLogprob(-0.5, tuple((LARGEST, -1.0) for _ in range(top or 0)))
    logprobs = () if top is None else (logprob,) * IDS
    spans = tuple(TokenSpan(c, 0, (LARGEST,) * IDS, logprobs) for c in range(choices))
    sampling = Sampling(max_tokens=IDS if finished else IDS + 1, top_logprobs=top)
    request = GenerationRequest("g", ModelRef("m", "d"), (1, 2), sampling, choices)
    head.generate(1, GenerateCall(request, 1, "f", spans), 0.0)
    return head


CASES = [(1, None), (1, 20), (16, 0), (16, 20), (128, None)]


@pytest.mark.parametrize(("choices", "top"), CASES)
@pytest.mark.parametrize("finished", [True, False])
def test_a_reader_gets_everything_in_frames_of_bounded_size(
    choices: int, top: int | None, finished: bool
) -> None:
    head = full_head(choices, top, finished=finished)
    lengths, ends = [0] * choices, set()
    while (frame := head.next_frame(1, 0.0)) is not None:
        assert wire.frame_to(frame).ByteSize() <= LIMIT_BYTES + OVERHEAD_BYTES
        for span in frame.spans if isinstance(frame, Tokens) else ():
            assert span.start == lengths[span.choice]
            assert span.choice not in ends
            lengths[span.choice] = span.end
            if span.finish_reason is not None:
                ends.add(span.choice)
    assert lengths == [IDS] * choices
    assert len(ends) == (choices if finished else 0)


@pytest.mark.parametrize(("choices", "top"), CASES)
@pytest.mark.parametrize("end", ["running", "finished", "sealed"])
def test_the_journal_gets_everything_in_messages_of_bounded_size(
    choices: int, top: int | None, end: str
) -> None:
    head = full_head(choices, top, finished=end == "finished")
    if end == "sealed":
        head.drain("f", 0.0)
        for choice in range(choices):
            head.sequence_stopped(SequenceKey("g", 1, choice), 0.0)
    lengths, ends, sealed = [0] * choices, set(), False
    for message in range(1, 2000):
        taken: tuple[Checkpoint, ...] = head.take_checkpoints(message, float(message))
        if not taken:
            break
        (checkpoint,) = taken
        assert wire.checkpoint_to(checkpoint).ByteSize() <= LIMIT_BYTES + OVERHEAD_BYTES
        assert not sealed, "nothing comes behind the seal"
        for span in checkpoint.spans:
            assert span.start == lengths[span.choice]
            lengths[span.choice] = span.end
            if span.finish_reason is not None:
                ends.add(span.choice)
        sealed = checkpoint.sealed
        assert not sealed or lengths == [IDS] * choices
        result = CheckpointResult("g", 1, tuple(lengths))
        head.checkpoint_results(message, [result], float(message))
    assert lengths == [IDS] * choices
    assert len(ends) == (choices if end == "finished" else 0)
    assert sealed == (end != "running")


def test_an_end_behind_the_last_id_is_told_though_a_message_was_full() -> None:
    head = full_head(2, None, finished=False)
    head.cancel("g", 0, CancelReason.STOP, 0.0)
    (checkpoint,) = head.take_checkpoints(1, 0.0)
    assert [span.finish_reason is not None for span in checkpoint.spans] == [True, False]


def test_requests_count_in_a_message_to_the_journal() -> None:
    head = Generations("i", HeadSettings(checkpoint_bytes_at_once=LIMIT_BYTES))
    head.form("f", "exact", 0.0)
    for number in range(50):
        sampling = Sampling(max_tokens=5)
        request = GenerationRequest(f"g{number}", ModelRef("m", "d"), (LARGEST,) * 2000, sampling)
        head.generate(number, GenerateCall(request, 1, "f"), 0.0)
    told, message = 0, 0
    while taken := head.take_checkpoints(message := message + 1, 0.0):
        size = sum(wire.checkpoint_to(checkpoint).ByteSize() for checkpoint in taken)
        assert size <= LIMIT_BYTES + 2000 * 5 + OVERHEAD_BYTES
        told += len(taken)
    assert told == 50


def facts(hidden_size: int, dtype: str) -> StageFacts:
    return StageFacts(
        range(0, 4),
        8,
        hidden_size,
        1000,
        8192,
        dtype,
        "exact",
        True,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(("hidden_size", "dtype"), [(576, "fp32"), (8192, "bf16"), (16384, "fp32")])
def test_the_fullest_step_fits_a_message(hidden_size: int, dtype: str) -> None:
    limit = 16 << 20
    settings = SchedulerSettings(token_budget=4096, max_sequences=64)
    stage = facts(hidden_size, dtype)
    rows = min(settings.token_budget, most_rows(stage, 512, 8192, settings, limit))
    assert rows > settings.max_sequences
    ids = (LARGEST,) * ((MAX_OPENED_IDS + 8192) // 64)
    sampling = Sampling(
        max_tokens=8192,
        logit_bias={LARGEST - i: 1.0 for i in range(1024)},
        top_logprobs=20,
        allowed_token_ids=(LARGEST,) * 1024,
    )
    opens = tuple(SequenceOpen(slot, sampling, 0, ids, ()) for slot in range(64))
    counts = [1] * 63 + [rows - 63]
    steps = tuple(
        SequenceStep(slot, 0, count, tuple(range(slot * 8, slot * 8 + 8)), True)
        for slot, count in enumerate(counts)
    )
    message = wire.batch_to("f" * 32, 1 << 40, Batch(steps, opens, ()), ("t" * 55,) * 64)
    width = {"bf16": 2, "fp32": 4}[dtype] * hidden_size
    wire.put_hidden(message, Hidden(dtype, rows, bytes(rows * width)))  # type: ignore[arg-type]
    assert message.ByteSize() <= limit
    assert rows == settings.token_budget or message.ByteSize() > 0.7 * limit


def test_a_limit_that_no_step_fits_is_refused_by_name() -> None:
    with pytest.raises(FailedPrecondition) as refused:
        most_rows(facts(8192, "bf16"), 512, 8192, SchedulerSettings(), 2 << 20)
    assert refused.value.field == "max_message_bytes"


def test_the_sequences_that_enter_in_one_step_carry_so_many_ids_and_no_more() -> None:
    length = MAX_OPENED_IDS // 4
    blocks = 10 * (length // BLOCK_SIZE + 2)
    scheduler = Scheduler(SchedulerSettings(token_budget=256, max_sequences=64), blocks, 1)
    for number in range(8):
        sampling = Sampling(max_tokens=1)
        request = GenerationRequest(f"g{number}", ModelRef("m", "d"), (1,) * length, sampling)
        scheduler.start(SequenceKey(f"g{number}", 1, 0), request, ())
    entered = []
    for _ in range(2):
        step = scheduler.next_step()
        assert step is not None
        entered.append(len(step.batch.opens))
        scheduler.complete(step.number, ())
    assert entered == [4, 4]
