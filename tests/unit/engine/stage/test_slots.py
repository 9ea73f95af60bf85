"""What a batch may ask, and what is refused before any arithmetic."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from services.common.errors import InvalidArgument
from services.common.generation import Grammar, Sampling
from services.engine.backend import Batch, Hidden, SequenceOpen, SequenceStep, StageFacts
from services.engine.stage.slots import Slots
from services.model import grammar
from services.model.grammar import LIBRARY, Grammars, LateGrammars
from tests import made_schemas
from tests.tiny_model import tiny_tokenizer

PROMPT = tuple(range(5, 21))
FACTS = StageFacts(range(0, 4), 4, 24, 515, 256, "bf16", "exact", exact=True)
FIRST = replace(FACTS, layers=range(0, 2))
SECOND = replace(FACTS, layers=range(2, 4))
STEP = SequenceStep(0, 0, 16, (1,), True)
HIDDEN = Hidden("bf16", 16, bytes(16 * 24 * 2))


def _open(slot: int = 0, **sampling) -> SequenceOpen:
    options = {"max_tokens": 8, "temperature": 0.0, **sampling}
    return SequenceOpen(slot, Sampling(**options), 0, PROMPT)


def _refusal(facts: StageFacts, batch: Batch, rows, slots: Slots | None = None) -> str:
    with pytest.raises(InvalidArgument) as refused:
        (slots or Slots(facts)).check(batch, rows, 64)
    return refused.value.field


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("steps.slot", {"slot": 1}),
        ("steps.start", {"start": -1}),
        ("steps.start", {"count": 0}),
        ("steps.start", {"start": 250, "count": 16}),
        ("steps.block_table", {"block_table": ()}),
        ("steps.block_table", {"block_table": (64,)}),
        ("steps.block_table", {"block_table": (-1,)}),
        ("steps.sample", {"count": 15}),
        ("rows", {"count": 15, "sample": False}),
        ("steps.drafts", {"sample": False, "drafts": (20,)}),
        ("steps.drafts", {"drafts": PROMPT}),
        ("steps.drafts", {"drafts": (515,)}),
        ("steps.sample", {"drafts": (20,)}),
    ],
)
def test_a_malformed_step_is_refused_by_field(field, changes):
    batch = Batch([replace(STEP, **changes)], [_open()])
    assert _refusal(FACTS, batch, PROMPT) == field


def test_a_slot_has_one_step_and_is_opened_once():
    assert _refusal(FACTS, Batch([STEP, STEP], [_open()]), PROMPT * 2) == "steps.slot"
    assert _refusal(FACTS, Batch([STEP], [_open(), _open()]), PROMPT) == "opens.slot"
    slots = Slots(FACTS)
    slots.apply(Batch([STEP], [_open()]))
    assert _refusal(FACTS, Batch([STEP], [_open()]), PROMPT, slots) == "opens.slot"
    slots.check(Batch([STEP], [_open()], closes=[0]), PROMPT, 64)


@pytest.mark.parametrize(
    ("field", "sampling"),
    [
        ("logit_bias", {"logit_bias": {515: 1.0}}),
        ("stop_token_ids", {"stop_token_ids": (-1,)}),
        ("eos_token_ids", {"eos_token_ids": (600,)}),
    ],
)
def test_ids_outside_the_vocabulary_are_refused_by_field(field, sampling):
    assert _refusal(FACTS, Batch([STEP], [_open(**sampling)]), PROMPT) == field


@pytest.mark.parametrize(
    ("facts", "rows", "field"),
    [
        (FIRST, HIDDEN, "hidden"),
        (FIRST, (*PROMPT[:15], 515), "token_ids"),
        (SECOND, PROMPT, "rows"),
        (SECOND, replace(HIDDEN, dtype="fp32"), "hidden.dtype"),
        (SECOND, replace(HIDDEN, data=HIDDEN.data[:-1]), "hidden.data"),
        (replace(SECOND, row_width=48), HIDDEN, "hidden.data"),
    ],
)
def test_rows_of_the_wrong_kind_or_width_are_refused_by_field(facts, rows, field):
    assert _refusal(facts, Batch([replace(STEP, sample=facts.last)], [_open()]), rows) == field


def test_a_draw_is_taken_into_account_by_the_next_batch():
    slots, logits = Slots(FACTS), np.zeros((1, 515), np.float32)
    logits[0, 7] = 1
    slots.apply(Batch([STEP], [_open()]))
    (first,) = slots.sample(Batch([STEP]), logits)
    assert (first.slot, first.position, first.token_id) == (0, 0, 7)
    following = replace(STEP, start=16, count=1, block_table=(1, 2))
    slots.check(Batch([following]), [7], 64)
    assert slots.sample(Batch([following]), logits)[0].position == 1
    assert _refusal(FACTS, Batch([following]), [7], slots) == "steps.sample"
    slots.clear()
    assert _refusal(FACTS, Batch([following]), [7], slots) == "steps.slot"


def _drafted(*drafts: int) -> SequenceStep:
    return replace(STEP, count=16 + len(drafts), block_table=(1, 2), drafts=drafts)


def test_ids_that_are_not_the_drafts_they_stand_for_are_refused():
    batch = Batch([_drafted(7, 8)], [_open()])
    assert _refusal(FACTS, batch, (*PROMPT, 7, 9)) == "steps.drafts"
    Slots(FACTS).check(batch, (*PROMPT, 7, 8), 64)


def test_the_rows_that_are_asked_for_are_those_of_drafts_and_the_one_before():
    steps = [_drafted(7, 8), replace(STEP, slot=1, sample=False), replace(STEP, slot=2)]
    assert Batch(steps).asked_rows == [15, 16, 17, 49]


@pytest.mark.parametrize(
    ("drafts", "yielded"),
    [((), [3]), ((3,), [3, 4]), ((3, 4), [3, 4, 5]), ((4, 4), [3]), ((3, 3, 5), [3, 4])],
)
def test_tokens_follow_as_long_as_drafts_are_right(drafts, yielded):
    """Row i says i + 3, whatever was drafted; the slot behind has its own rows."""
    slots, other = Slots(FACTS), replace(STEP, slot=1)
    batch = Batch([_drafted(*drafts), other], [_open(), _open(1)])
    logits = np.zeros((len(batch.asked_rows), 515), np.float32)
    for row in range(len(drafts) + 1):
        logits[row, row + 3] = 1
    logits[-1, 99] = 1
    slots.apply(batch)
    sampled = slots.sample(batch, logits)
    assert [t.token_id for t in sampled if t.slot == 0] == yielded
    assert [t.position for t in sampled if t.slot == 0] == list(range(len(yielded)))
    assert [t.token_id for t in sampled if t.slot == 1] == [99]
    slots.check(
        Batch([replace(STEP, start=15 + len(yielded), count=1, block_table=(1, 2))]), [3], 64
    )


def test_what_a_wrong_draft_would_have_changed_is_not_taken_into_account():
    """Penalties, min_tokens and the draw go by tokens, one behind the other, as without drafts."""
    generator = np.random.default_rng(1)
    logits = generator.normal(size=(4, 515)).astype(np.float32)
    sampling = {"temperature": 0.8, "seed": 3, "frequency_penalty": 1.5, "min_tokens": 2}
    alone, tokens = Slots(FACTS), []
    alone.apply(Batch([], [_open(top_logprobs=2, **sampling)]))
    for row in logits:
        tokens += alone.sample(Batch([STEP]), row[None])
    ids = [token.token_id for token in tokens]
    for right in range(4):
        slots = Slots(FACTS)
        slots.apply(Batch([], [_open(top_logprobs=2, **sampling)]))
        drafts = [*ids[:right], *(514 for _ in range(3 - right))]
        assert list(slots.sample(Batch([_drafted(*drafts)]), logits)) == tokens[: right + 1]
        rest = [slots.sample(Batch([STEP]), row[None])[0] for row in logits[right + 1 :]]
        assert [*tokens[: right + 1], *rest] == tokens


TOKENIZER = tiny_tokenizer()
END = TOKENIZER.token_to_id("<|im_end|>")
GRAMMARS = LateGrammars(lambda: Grammars(TOKENIZER.to_str(), FACTS.vocab_size, (END,)))


def _following(slot: int, text: str, outputs: str = "", **sampling) -> SequenceOpen:
    asked = Grammar(text, LIBRARY)
    ids = tuple(TOKENIZER.encode(outputs).ids)
    return replace(_open(slot, grammar=asked, **sampling), output_ids=ids)


def _run(slots: Slots, opened: SequenceOpen, count: int, seed: int = 3) -> list[int]:
    """Ids of one sequence alone, from random logits by position."""
    slots.apply(Batch([], [opened]))
    ids = [*opened.output_ids]
    while len(ids) < count:
        logits = np.random.default_rng([seed, len(ids)]).normal(size=(1, 515)).astype(np.float32)
        (sampled,) = slots.sample(Batch([replace(STEP, slot=opened.slot)]), logits)
        ids.append(sampled.token_id)
        if sampled.token_id == END:
            break
    slots.apply(Batch([], closes=[opened.slot]))
    return ids


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_follows_a_grammar_goes_on_the_same_behind_any_cut(temperature):
    text = grammar.of_json_schema({"type": "array", "items": {"type": "integer"}, "maxItems": 9})
    slots = Slots(FACTS, GRAMMARS)
    whole = _run(slots, _following(0, text, temperature=temperature), 24)
    for cut in range(len(whole)):
        opened = replace(_following(1, text, temperature=temperature), output_ids=whole[:cut])
        assert _run(slots, opened, 24) == whole
    said = TOKENIZER.decode(whole)
    assert said[0] == "["
    assert set(said) <= set("[]-0123456789,")


@pytest.mark.parametrize("number", range(20))
def test_any_schema_is_followed_to_the_same_document_behind_any_cut(number):
    """The draw as a last stage does it, whoever was the last stage before."""
    text = grammar.of_json_schema(made_schemas.made(3 * number + 2))
    slots, closing = Slots(FACTS, GRAMMARS), {TOKENIZER.token_to_id(c): 3.0 for c in '"}]'}
    ways = {"temperature": 0.7, "seed": number, "logit_bias": {**closing, END: 9.0}}
    whole = _run(slots, _following(0, text, **ways), 60, seed=number)
    assert len(whole) > 1
    if whole[-1] == END:
        json.loads(TOKENIZER.decode(whole[:-1]))
    for cut in range(len(whole)):
        opened = replace(_following(1, text, **ways), output_ids=whole[:cut])
        assert _run(slots, opened, cut + 1, seed=number) == whole[: cut + 1]


def test_drafts_that_a_grammar_lets_follow_are_the_tokens_that_would_come_one_by_one():
    text = grammar.of_regex("(ab)*")
    a, b = (TOKENIZER.token_to_id(letter) for letter in "ab")
    logits = np.zeros((3, 515), np.float32)
    slots = Slots(FACTS, GRAMMARS)
    slots.apply(Batch([], [_following(0, text, logit_bias={a: 2.0, b: 1.0})]))
    tokens = [s.token_id for s in slots.sample(Batch([_drafted(a, b)]), logits)]
    assert tokens == [a, b, a]


def test_who_is_stuck_is_said_so_alone_and_the_others_go_on():
    slots = Slots(FACTS, GRAMMARS)
    text = grammar.of_regex("[ab]+")
    slots.apply(Batch([], [_following(0, text, "axa"), _following(1, text, "ab")]))
    steps = [replace(STEP, slot=slot) for slot in (0, 1)]
    stuck, other = slots.sample(Batch(steps), np.zeros((2, 515), np.float32))
    assert (stuck.slot, stuck.stuck) == (0, True)
    assert (other.slot, other.stuck) == (1, False)


def test_a_grammar_of_another_library_or_for_nobody_is_refused_at_the_last_stage():
    other = _open(grammar=Grammar("{}", "llguidance-0"))
    assert (
        _refusal(FACTS, Batch([STEP], [other]), PROMPT, Slots(FACTS, GRAMMARS)) == "opens.grammar"
    )
    mine = _open(grammar=Grammar("{}", LIBRARY))
    assert _refusal(FACTS, Batch([STEP], [mine]), PROMPT) == "opens.grammar"
    Slots(FIRST).check(Batch([replace(STEP, sample=False)], [other]), PROMPT, 64)


def test_without_what_compiles_grammars_a_sequence_is_stuck_and_the_step_goes_on():
    def fail() -> Grammars:
        raise InvalidArgument("no tokenizer")

    slots = Slots(FACTS, LateGrammars(fail))
    slots.apply(Batch([], [_following(0, grammar.of_regex("a")), _open(1)]))
    steps = [replace(STEP, slot=slot) for slot in (0, 1)]
    stuck, other = slots.sample(Batch(steps), np.zeros((2, 515), np.float32))
    assert (stuck.stuck, other.stuck) == (True, False)
