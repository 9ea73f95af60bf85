"""What is asked of a mesh whose engines are killed: requests of every kind that there is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jsonschema

from bench.kinds_answers import Answer
from tests.made_schemas import made

SEEDED: Mapping[str, Any] = {"temperature": 0.9, "seed": 11}
PARTS = 5
"""Of what a schema describes, one behind another: answers that outlast the start of an engine."""
Holds = Callable[[Answer], bool]
"""Whether an answer is what was asked for, whatever it says."""


@dataclass(frozen=True)
class Kind:
    """One kind of request."""

    route: str
    body: Mapping[str, Any]
    holds: Holds
    runs_alone: bool = False
    """A response that nobody reads while it runs."""
    lines: int = 0
    """Of a batch, each with this body and a seed of its own."""


def _anything(answer: Answer) -> bool:
    return all(choice.text for choice in answer.choices.values())


def _text_or_calls(answer: Answer) -> bool:
    return all(choice.text or choice.calls for choice in answer.choices.values())


def _chat(text: str, **more: Any) -> dict[str, Any]:
    asked = {"messages": [{"role": "user", "content": text}], "max_tokens": 200, "temperature": 0}
    return asked | more


# Forms


def _follows(schema: Mapping[str, Any]) -> Holds:
    """The text of each choice is JSON that the schema describes."""
    judge = jsonschema.Draft202012Validator(schema)
    return lambda answer: all(
        bool(judge.is_valid(_json(choice.text))) for choice in answer.choices.values()
    )


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return _NOT_JSON


_NOT_JSON = object()


def _structured(text: str, schema: Mapping[str, Any], **more: Any) -> Kind:
    form = {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": schema, "strict": True},
    }
    body = _chat(text, response_format=form, **more)
    return Kind("chat/completions", body, _follows(schema))


def _names(count: int) -> dict[str, Any]:
    each = {"type": "string", "maxLength": 10}
    return {
        "type": "object",
        "properties": {
            "names": {"type": "array", "items": each, "minItems": count, "maxItems": count}
        },
        "required": ["names"],
        "additionalProperties": False,
    }


def _several(number: int) -> dict[str, Any]:
    """A list of what a schema describes, as its number makes it."""
    schema = made(number)
    definitions = schema.pop("$defs", {})
    several = {"type": "array", "items": schema, "minItems": PARTS, "maxItems": PARTS}
    return several | ({"$defs": definitions} if definitions else {})


# Tools

Offered = Mapping[str, Mapping[str, Any]]
"""Tools by name."""
DAYS = 9
"""Of a call's arguments, at least; twice as many at most."""


def tools(size: int) -> Offered:
    """Two, whose arguments are so much longer."""
    return {name: _tool(name, DAYS * size) for name in ("weather", "tides")}


def _tool(name: str, days: int) -> dict[str, Any]:
    properties = {
        "place": {"type": "string", "maxLength": 24},
        "days": {
            "type": "array",
            "items": {"enum": ["mon", "tue"]},
            "minItems": days,
            "maxItems": 2 * days,
        },
    }
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TIDES = {"type": "function", "function": {"name": "tides"}}


def _calls(offered: Offered, least: int) -> Holds:
    """A choice has so many calls at least, and each call is of a tool that is offered, with
    arguments of its schema; but for the last one of a choice that came to its limit."""
    judges = {
        name: jsonschema.Draft202012Validator(tool["function"]["parameters"])
        for name, tool in offered.items()
    }

    def well(call: Mapping[str, str]) -> bool:
        judge = judges.get(call["name"])
        return judge is not None and bool(judge.is_valid(_json(call["arguments"])))

    def judged(answer: Answer) -> bool:
        each = [
            list(choice.calls.values())[: -1 if choice.finish_reason == "length" else None]
            for choice in answer.choices.values()
        ]
        return max(map(len, each)) >= least and all(well(call) for one in each for call in one)

    return judged


def _called(text: str, choice: Any, offered: Offered, least: int = 1, **more: Any) -> Kind:
    body = _chat(text, tools=list(offered.values()), tool_choice=choice, **more)
    return Kind("chat/completions", body, _calls(offered, least))


# Choices, log probabilities, thoughts


def _logprobs(*entries: str) -> Holds:
    """Each of these has one for every token."""

    def well(answer: Answer) -> bool:
        told = [len(c.logprobs[name]) for c in answer.choices.values() for name in entries]
        return bool(sum(told) >= len(entries) * answer.usage["completion_tokens"] > 0)

    return well


def _thought(answer: Answer) -> bool:
    choices = answer.choices.values()
    return all(choice.thoughts and (choice.text or choice.calls) for choice in choices)


def plain(size: int) -> dict[str, Kind]:
    """Of any model; `size` makes answers so much longer."""
    names, offered = _names(12 * size), tools(size)
    most = {"max_tokens": 200 * size}
    return {
        "structured": _structured("Name some birds.", names, **most),
        "structured, sampled": _structured("Name some fish.", names, **SEEDED, **most),
        "tool, required": _called(
            "What is the weather in Oslo?", "required", offered, **SEEDED, **most
        ),
        "tool, named": _called("When is high water in Brest?", TIDES, offered, **most),
        "tool, auto": Kind(
            "chat/completions",
            _chat("Tell me of the sea.", tools=list(offered.values()), **SEEDED, **most),
            _text_or_calls,
        ),
        "four choices": Kind(
            "chat/completions",
            _chat("Tell of a fox.", n=4, logprobs=True, top_logprobs=2, **SEEDED, **most),
            lambda answer: len(answer.choices) == 4 and _logprobs("content")(answer),
        ),
        "log probabilities": Kind(
            "chat/completions",
            _chat(
                "Tell of a goose.", logprobs=True, top_logprobs=5, repetition_penalty=1.05, **most
            ),
            _logprobs("content"),
        ),
        "echo": Kind(
            "completions",
            {"prompt": "Once upon a time", "echo": True, "logprobs": 3, **SEEDED, **most},
            _logprobs("tokens", "token_logprobs", "top_logprobs", "text_offset"),
        ),
    }


def schemas(numbers: Sequence[int]) -> dict[str, Kind]:
    """A form each, of lists of what the schemas of these numbers describe."""
    return {
        f"schema {number}": _structured(
            "Make some up.", _several(number), temperature=0.9, seed=number, max_tokens=1400
        )
        for number in numbers
    }


def kept(size: int) -> dict[str, Kind]:
    """What is not read in one stream of a chat: responses, also of the background, and batches."""
    names, offered = _names(12 * size), tools(size)
    form = {"format": {"type": "json_schema", "name": "n", "schema": names, "strict": True}}
    most = {"max_output_tokens": 200 * size}
    flat = [{"type": "function", "strict": True, **tool["function"]} for tool in offered.values()]
    told = {"input": "Tell of a hare.", **SEEDED, **most}
    asked = {"input": "Which birds?", "text": form, **SEEDED, **most}
    called = {**told, "tools": flat, "tool_choice": "required"}
    body = _structured("Name some birds.", names, temperature=0.9, max_tokens=200 * size).body
    return {
        "response": Kind("responses", told, _anything),
        "response, structured": Kind("responses", asked, _follows(names)),
        "response, tool": Kind("responses", called, _calls(offered, 1)),
        "response, background": Kind("responses", asked, _follows(names), runs_alone=True),
        "batch": Kind("chat/completions", body, _follows(names), lines=4),
    }


Bias = Mapping[str, float]
"""By token id: makes some likely that a random model would hardly write, or the reverse."""


def calls(size: int, end: Bias, tag: Bias | None = None) -> dict[str, Kind]:
    """Tools as a model calls them that knows some form of calls: several at once, and calls among
    text where a `tag` opens them, for both of which the `end` is made unlikely; and one that is
    named."""
    offered, most = tools(size), {"max_tokens": 400 * size, **SEEDED}
    asked = {
        "tools, beside one another": _called(
            "What are weather and tides?", "required", offered, 2, n=4, logit_bias=end, **most
        ),
        "tool, named": _called("When is high water in Brest?", TIDES, offered, **most),
    }
    if tag is not None:
        asked["tools, among text"] = _called(
            "Tell of the sea.", "auto", offered, n=2, logit_bias={**end, **tag}, **most
        )
    return asked


_CALL = r'(weather|tides)\(place="[a-z ]{10,24}", days=\["(mon|tue)"(, "(mon|tue)"){8,15}\]\)'
PYTHONIC = rf"\[{_CALL}(, {_CALL}){{4,5}}\]"
"""Calls as Python writes them. No grammar of tools makes a model write so: this form does."""


def pythonic(bias: Bias) -> dict[str, Kind]:
    """Calls in Python's own notation; `bias` keeps from JSON."""
    return {
        "tools, as Python": _called(
            "What are weather and tides?",
            "auto",
            tools(1),
            5,
            structured_outputs={"regex": PYTHONIC},
            logit_bias=bias,
            max_tokens=1200,
            **SEEDED,
        )
    }


def _behind_thoughts(holds: Holds) -> Holds:
    return lambda answer: _thought(answer) and holds(answer)


def thoughts(size: int, bias: Bias) -> dict[str, Kind]:
    """Answers behind thoughts, which a token ends that `bias` makes likely."""
    names, tides = _names(8 * size), {"tides": tools(size)["tides"]}
    thinks: dict[str, Any] = {
        "chat_template_kwargs": {"enable_thinking": True},
        "logit_bias": bias,
        "max_tokens": 300 * size,
        **SEEDED,
    }
    both: dict[str, tuple[Kind, Holds]] = {
        "thoughts": (Kind("chat/completions", _chat("Why?", **thinks), _anything), _anything),
        "thoughts, structured": (_structured("Which?", names, **thinks), _follows(names)),
        "thoughts, tool": (_called("Where?", TIDES, tides, **thinks), _calls(tides, 1)),
    }
    return {
        name: Kind(kind.route, kind.body, _behind_thoughts(holds))
        for name, (kind, holds) in both.items()
    }
