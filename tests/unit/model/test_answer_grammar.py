from __future__ import annotations

import json
from typing import Any

import jsonschema
import numpy as np
import pytest

from services.common.generation import (
    AnswerParts,
    CallForm,
    GenerationRequest,
    Sampling,
    Thinking,
)
from services.model import grammar
from services.model.answer_grammar import Answer, of_answer
from services.model.grammar import Grammars
from services.model.tokenizer import Tokenizer
from services.model.tools import Tool, ToolChoice, ToolUse
from services.router.core.parts import Called
from services.router.core.speech import ChoiceSpeech
from tests.tiny_model import MODEL, tiny_tokenizer

LOOK = Tool(
    "look",
    "",
    {
        "type": "object",
        "properties": {"at": {"type": "string", "maxLength": 4}, "n": {"enum": [1, 2]}},
        "required": ["at"],
        "additionalProperties": False,
    },
)
WAIT = Tool("wait")
TAGS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<think>", "</think>")


class Model:
    """A tokenizer whose tags are tokens, or text."""

    def __init__(self, tags: tuple[str, ...]) -> None:
        self.encoder = tiny_tokenizer()
        self.encoder.add_special_tokens(list(tags))
        self.end = self.encoder.token_to_id("<|im_end|>")
        self.size = self.encoder.get_vocab_size()
        self.grammars = Grammars(self.encoder.to_str(), self.size, (self.end,))
        self.vocabulary = Tokenizer(self.encoder.to_str().encode()).vocabulary.showing(tags)

    def token_of(self, text: str) -> int | None:
        token_id: int | None = self.encoder.token_to_id(text)
        return token_id if token_id is not None and self.grammars.is_apart(token_id) else None

    def of(self, answer: Answer) -> str:
        """The grammar, compiled once."""
        text = of_answer(answer, self.token_of)
        self.grammars.check(text)
        return text

    def takes(self, text: str, said: str) -> bool:
        """The whole text may be said."""
        guide = self.grammars.begin(text)
        for token_id in [*self.encoder.encode(said, add_special_tokens=False).ids, self.end]:
            try:
                may = np.isfinite(guide.allowed(np.zeros(self.size, np.float32)))
            except grammar.Stuck:
                return False
            if not may[token_id]:
                return False
            guide.take([token_id])
        return True

    def drawn(self, text: str, seed: int, likely: str, most: int = 300) -> list[int] | None:
        """Ids that chance leads to, up to the end; None where that is far."""
        rng, guide, ids = np.random.default_rng(seed), self.grammars.begin(text), []
        closing = self.encoder.encode('"}]', add_special_tokens=False).ids
        likelier = [*closing, self.end, *self.encoder.encode(likely).ids]
        while len(ids) < most:
            logits = rng.normal(size=self.size).astype(np.float32)
            logits[likelier] += 3
            ids.append(int(guide.allowed(logits).argmax()))
            if ids[-1] == self.end:
                return ids
            guide.take(ids[-1:])
        return None


@pytest.fixture(scope="module", params=["tokens", "text"])
def model(request: pytest.FixtureRequest) -> Model:
    return Model(TAGS if request.param == "tokens" else ())


def use(choice: ToolChoice = ToolChoice.REQUIRED, **more: Any) -> ToolUse:
    return ToolUse((LOOK, WAIT), choice, **more)


A = '{"name": "look", "arguments": {"at": "x", "n": 2}}'
W = '{"name": "wait", "arguments": {}}'
ARGUMENTS = '{"at": "x", "n": 2}'
TWO = {
    CallForm.HERMES: f"<tool_call>\n{A}\n</tool_call>\n<tool_call>\n{W}\n</tool_call>",
    CallForm.LLAMA: f"{A}; {W}".replace("arguments", "parameters"),
    CallForm.MISTRAL: f"[TOOL_CALLS][{A}, {W}]",
    CallForm.MISTRAL_ARGS: f"[TOOL_CALLS]look[ARGS]{ARGUMENTS}[TOOL_CALLS]wait[ARGS]{{}}",
}
ONE = {
    CallForm.HERMES: f"<tool_call>\n{A}\n</tool_call>",
    CallForm.LLAMA: A.replace("arguments", "parameters"),
    CallForm.MISTRAL: f"[TOOL_CALLS][{A}]",
    CallForm.MISTRAL_ARGS: f"[TOOL_CALLS]look[ARGS]{ARGUMENTS}",
}

WAITS = {
    CallForm.HERMES: f"<tool_call>\n{W}\n</tool_call>",
    CallForm.LLAMA: W.replace("arguments", "parameters"),
    CallForm.MISTRAL: f"[TOOL_CALLS][{W}]",
    CallForm.MISTRAL_ARGS: "[TOOL_CALLS]wait[ARGS]{}",
}


@pytest.mark.parametrize("form", CallForm)
def test_required_is_one_call_or_several_and_nothing_else(model: Model, form: CallForm) -> None:
    text = model.of(Answer(calls=form, use=use()))
    assert model.takes(text, ONE[form])
    assert model.takes(text, TWO[form])
    assert not model.takes(text, "no call")
    assert not model.takes(text, ONE[form].replace("look", "peek"))
    assert not model.takes(text, ONE[form].replace("2}", "3}"))
    assert not model.takes(text, ONE[form] + "more")
    single = model.of(Answer(calls=form, use=use(parallel=False)))
    assert model.takes(single, ONE[form])
    assert not model.takes(single, TWO[form])
    for only in (use(named="wait"), use(allowed=("wait",))):
        narrowed = model.of(Answer(calls=form, use=only))
        assert not model.takes(narrowed, ONE[form])
        assert model.takes(narrowed, WAITS[form])
    assert model.takes(model.of(Answer(calls=form, use=use(allowed=("wait", "look")))), TWO[form])


@pytest.mark.parametrize("form", CallForm)
def test_auto_is_text_and_calls_in_it(model: Model, form: CallForm) -> None:
    text = model.of(Answer(calls=form, use=use(ToolChoice.AUTO)))
    assert model.takes(text, 'no call,\n\nbut <some> [text] {"a": 1}')
    assert model.takes(text, "")
    assert model.takes(text, ONE[form])
    assert model.takes(text, TWO[form])
    assert not model.takes(text, ONE[form].replace("look", "peek"))
    if form is not CallForm.LLAMA:
        assert model.takes(text, f"I look.\n{ONE[form]}")
    if form is CallForm.HERMES:
        assert model.takes(text, f"{ONE[form]} and {TWO[form]}\nand so on")
    narrowed = model.of(Answer(calls=form, use=use(ToolChoice.AUTO, allowed=("wait",))))
    assert model.takes(narrowed, "no call")
    assert model.takes(narrowed, WAITS[form])
    assert not model.takes(narrowed, ONE[form])
    single = model.of(Answer(calls=form, use=use(ToolChoice.AUTO, parallel=False)))
    assert model.takes(single, "no call")
    assert model.takes(single, ONE[form])
    assert not model.takes(single, TWO[form])


@pytest.mark.parametrize("form", CallForm)
def test_auto_beside_a_form_is_calls_or_the_form(model: Model, form: CallForm) -> None:
    answer = Answer(calls=form, use=use(ToolChoice.AUTO), form=grammar.of_regex("yes|no"))
    text = model.of(answer)
    assert model.takes(text, TWO[form])
    assert model.takes(text, "yes")
    assert not model.takes(text, "perhaps")


@pytest.mark.parametrize(
    "form",
    [
        grammar.of_json_schema({"type": "object", "properties": {"a": {"const": 1}}}),
        grammar.of_choice(['{"a":1}', "x"]),
        grammar.of_lark('start: "{" rest\nrest: /"a":[0-9]}/'),
    ],
)
def test_only_what_is_behind_the_thoughts_is_constrained(model: Model, form: str) -> None:
    begun = model.of(Answer(Thinking.BEGUN, form=form))
    assert model.takes(begun, 'so {"a" and\n</think>\n\n{"a":1}')
    assert model.takes(begun, '</think>{"a":1}')
    assert not model.takes(begun, '{"a":1}')
    assert not model.takes(begun, "so</think>other")
    may = model.of(Answer(Thinking.MAY, form=form))
    assert model.takes(may, '<think>\nso </think>\n{"a":1}')
    assert model.takes(may, '{"a":1}')
    assert not model.takes(may, "so </think>other")
    assert not model.takes(may, "<think>so </think>other")


@pytest.mark.parametrize("thinking", [Thinking.NONE, Thinking.MAY])
@pytest.mark.parametrize("choice", ToolChoice)
@pytest.mark.parametrize("form", CallForm)
def test_behind_every_cut_of_thoughts_and_calls_the_same_may_follow(
    model: Model, form: CallForm, choice: ToolChoice, thinking: Thinking
) -> None:
    """A head that goes on is given the ids so far, wherever in a thought, tag or call they end."""
    text = model.of(Answer(thinking, form, use(choice)))
    thought = "<think>\nso\n</think>\n\n" if thinking is Thinking.MAY else ""
    said = f"{thought}{TWO[form]}"
    ids = model.encoder.encode(said, add_special_tokens=False).ids
    live, flat = model.grammars.begin(text), np.zeros(model.size, np.float32)
    for cut, token_id in enumerate(ids):
        resumed = model.grammars.begin(text)
        resumed.take(ids[:cut])
        may = live.allowed(flat)
        assert np.isfinite(may[token_id])
        assert np.array_equal(may, resumed.allowed(flat))
        live.take([token_id])


@pytest.mark.parametrize("choice", ToolChoice)
def test_thoughts_come_before_calls(model: Model, choice: ToolChoice) -> None:
    text = model.of(Answer(Thinking.MAY, CallForm.HERMES, use(choice)))
    assert model.takes(text, f"<think>\nso\n</think>\n\n{TWO[CallForm.HERMES]}")
    assert model.takes(text, TWO[CallForm.HERMES])
    if choice is ToolChoice.REQUIRED:
        assert not model.takes(text, "<think>so")


def test_what_is_not_constrained_has_no_grammar() -> None:
    assert of_answer(Answer(Thinking.MAY), lambda _: None) == ""
    assert of_answer(Answer(form="f"), lambda _: None) == "f"


@pytest.mark.parametrize("choice", ToolChoice)
@pytest.mark.parametrize("form", CallForm)
def test_whatever_is_drawn_are_calls_of_these_tools(
    model: Model, form: CallForm, choice: ToolChoice
) -> None:
    """The grammar and who reads the text agree on what a call is."""
    text = model.of(Answer(calls=form, use=use(choice)))
    request = GenerationRequest(
        "g",
        MODEL,
        (1,),
        Sampling(max_tokens=1000, eos_token_ids=(model.end,)),
        parts=AnswerParts(form, ("look", "wait")),
    )
    called = 0
    for seed in range(12):
        ids = model.drawn(text, seed, '{"name": "look' if choice is ToolChoice.REQUIRED else "<[")
        if ids is None:
            continue
        speech = ChoiceSpeech(request, model.vocabulary, 0)
        calls = [part for part in speech.feed(ids) if isinstance(part, Called)]
        for call in calls:
            tool = LOOK if call.name == "look" else WAIT
            jsonschema.validate(json.loads(call.arguments), dict(tool.schema))
        called += len(calls)
        assert speech.made_calls is bool(calls)
        assert calls or choice is ToolChoice.AUTO
    assert called or choice is ToolChoice.AUTO
