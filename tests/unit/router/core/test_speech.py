"""What is told of ids, cut at every position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from services.common.generation import (
    AnswerParts,
    CallForm,
    FinishReason,
    GenerationRequest,
    Thinking,
)
from services.common.token_run import TokenRun
from services.model.tokenizer import Tokenizer
from services.router.core.parts import Called, Part, Said, Thought, joined
from services.router.core.speech import ChoiceSpeech
from services.router.core.transcript import Delta, Position, Transcript
from services.router.openai.answers import Answers
from tests.tiny_model import tiny_tokenizer

ENCODER = tiny_tokenizer()
ENCODER.add_special_tokens(["[TOOL_CALLS]"])
EOS = ENCODER.token_to_id("<|im_end|>")
VOCABULARY = Tokenizer(ENCODER.to_str().encode()).vocabulary
TAGS = VOCABULARY.showing(["[TOOL_CALLS]"])
Make = Callable[..., GenerationRequest]

A = '{"name": "look", "arguments": {"at": "Über \\"Paris\\" 🚀", "n": [1, 2]}}'
HERMES = f"I look.\n<tool_call>\n{A}\n</tool_call>\n<tool_call>\n{A}\n</tool_call>"
ANSWERS = {
    CallForm.HERMES: HERMES,
    CallForm.LLAMA: f"{A}; {A}".replace("arguments", "parameters"),
    CallForm.MISTRAL: f"Hm. [TOOL_CALLS] [{A}, {A}]",
    CallForm.MISTRAL_ARGS: '[TOOL_CALLS]look[ARGS]{"a": "é"}[TOOL_CALLS]look[ARGS]{}',
}
PYTHONIC = "[look(at='é', n=[1, 2]), look()]"


def ids_of(text: str) -> list[int]:
    ids: list[int] = ENCODER.encode(text, add_special_tokens=False).ids
    return [*ids, EOS]


def parts_of(form: CallForm, **more: object) -> AnswerParts:
    return AnswerParts(form, ("look",), **more)  # type: ignore[arg-type]


def told(
    request: GenerationRequest, ids: list[list[int]], steps: list[int], after: str | None = None
) -> list[Delta]:
    """Deltas of a transcript whose runs grow by so many ids at a time."""
    runs = [TokenRun() for _ in ids]
    position = Position.parse(after) if after else None
    transcript = Transcript(request, runs, TAGS, position)
    deltas: list[Delta] = []
    for step in steps:
        for run, all_ids in zip(runs, ids, strict=True):
            run.append(len(run), all_ids[len(run) : len(run) + step])
        transcript.advance()
        deltas += transcript.take()
    return deltas


def whole(deltas: list[Delta], choice: int) -> tuple[Part, ...]:
    return joined(part for delta in deltas if delta.choice == choice for part in delta.parts)


def answers(request: GenerationRequest) -> Answers:
    return Answers(request, VOCABULARY)


@pytest.mark.parametrize("thinking", [Thinking.NONE, Thinking.MAY])
@pytest.mark.parametrize(
    ("form", "text"), [*ANSWERS.items(), (CallForm.LLAMA, PYTHONIC)], ids=lambda x: str(x)[:9]
)
def test_a_reader_that_comes_back_at_any_event_is_told_the_same_bytes(
    make_request: Make, form: CallForm, text: str, thinking: Thinking
) -> None:
    """One stream an id at a time; another that breaks behind any of its events, and whose rest
    comes all at once or as before."""
    before = "<think>\nlet me see\n</think>\n\n" if thinking is Thinking.MAY else ""
    request = replace(make_request(choices=2), parts=parts_of(form, thinking=thinking))
    ids = [ids_of(before + text), ids_of("no call")]
    deltas = told(request, ids, [1] * 400)
    rendered = [answers(request).chunks([delta]) for delta in deltas]
    for cut, delta in enumerate(deltas):
        again = told(request, ids, [1] * 400, delta.event_id)
        assert [answers(request).chunks([each]) for each in again] == rendered[cut + 1 :]
        at_once = told(request, ids, [400], delta.event_id)
        for choice in range(2):
            both = [*deltas[: cut + 1], *at_once]
            assert whole(both, choice) == whole(deltas, choice)
    calls = [part for part in whole(deltas, 0) if isinstance(part, Called)]
    assert [call.index for call in calls] == [0, 1]
    assert [delta.made_calls for delta in deltas if delta.finish] == [False, True]
    thoughts = [part.text for part in whole(deltas, 0) if isinstance(part, Thought)]
    assert thoughts == (["let me see"] if before else [])


@pytest.mark.parametrize(
    ("text", "named", "stop", "made"),
    [
        (HERMES, False, (), True),
        (HERMES, True, (), False),
        ("no call", False, (), False),
        (HERMES, False, ("Paris",), False),
        (HERMES, False, ('\n<tool_call>\n{"name": "no',), True),
    ],
)
def test_an_answer_ends_for_its_calls_when_the_last_is_whole(
    make_request: Make, text: str, named: bool, stop: tuple[str, ...], made: bool
) -> None:
    request = make_request(stop_strings=stop)
    request = replace(request, parts=parts_of(CallForm.HERMES, named=named))
    *_, last = told(request, [ids_of(text)], [400])
    assert last.finish is FinishReason.STOP
    assert last.made_calls is made


def test_a_stop_string_within_arguments_ends_them_there(make_request: Make) -> None:
    request = replace(make_request(stop_strings=("Paris",)), parts=parts_of(CallForm.HERMES))
    ids = [ids_of(HERMES)]
    deltas = told(request, ids, [1] * 400)
    said, call = whole(deltas, 0)
    assert said == Said("I look.")
    assert isinstance(call, Called)
    assert call.arguments == '{"at": "Über \\"'
    for cut, delta in enumerate(deltas):
        again = told(request, ids, [3] * 200, delta.event_id)
        assert whole([*deltas[: cut + 1], *again], 0) == (said, call)


def test_a_call_that_the_limit_cuts_is_no_made_call(make_request: Make) -> None:
    ids = ids_of(HERMES)
    request = make_request(max_tokens=len(ids_of(HERMES[:80])))
    *_, last = told(replace(request, parts=parts_of(CallForm.HERMES)), [ids], [400])
    assert last.finish is FinishReason.LENGTH
    assert not last.made_calls
    assert A.split('"arguments": ')[1].startswith(last.calls[0].arguments)
    assert len(last.calls[0].arguments) > 9


def test_what_nobody_asked_to_divide_is_text(make_request: Make) -> None:
    request = make_request()
    speech = ChoiceSpeech(request, VOCABULARY, 0)
    (said,) = speech.feed(ids_of(f"<think>a</think> {HERMES}"))
    assert said == Said(f"<think>a</think> {HERMES}")
    assert not speech.made_calls


def test_a_tag_that_is_a_special_token_divides_and_is_not_shown(make_request: Make) -> None:
    request = replace(make_request(), parts=parts_of(CallForm.MISTRAL))
    (delta,) = told(request, [ids_of("Hm. [TOOL_CALLS] no list")], [400])
    assert delta.text == "Hm. [TOOL_CALLS] no list"
    assert told(make_request(), [ids_of("a[TOOL_CALLS]b")], [400])[0].text == "a[TOOL_CALLS]b"
    plain = ChoiceSpeech(make_request(), VOCABULARY, 0)
    assert plain.feed(ids_of("a[TOOL_CALLS]b")) == (Said("ab"),)
