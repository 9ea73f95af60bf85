"""Each form of calls, told whole and in pieces."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.core.calls.hermes import HermesCalls
from services.router.core.calls.llama import LlamaCalls
from services.router.core.calls.mistral import MistralCalls
from services.router.core.parts import Called, Numbering, Part, Said, joined

TOOLS = ("look", "add-2")
Reader = HermesCalls | LlamaCalls | MistralCalls
READERS: dict[str, Callable[[Numbering], Reader]] = {
    "hermes": HermesCalls,
    "llama": LlamaCalls,
    "mistral": MistralCalls,
}


def told(form: str, pieces: list[str]) -> tuple[Part, ...]:
    reader = READERS[form](Numbering("g", 0, TOOLS))
    parts = [part for piece in pieces for part in reader.feed(piece)]
    return joined([*parts, *reader.end()])


def plainly(parts: tuple[Part, ...]) -> list[str | tuple[str, str]]:
    """Texts, and calls as names and arguments."""
    shown: list[str | tuple[str, str]] = []
    for part in parts:
        if isinstance(part, Called):
            shown.append((part.name, part.arguments))
        else:
            shown.append(part.text)
    return shown


A = '{"name": "look", "arguments": {"at": "a \\"}\\u00e9é", "n": [1, {"x": 2}]}}'
ARGUMENTS = '{"at": "a \\"}\\u00e9é", "n": [1, {"x": 2}]}'
LOOK = ("look", ARGUMENTS)
CASES: list[tuple[str, str, list[str | tuple[str, str]]]] = [
    ("hermes", "plain <text> with <tool_cal", ["plain <text> with <tool_cal"]),
    ("hermes", f"<tool_call>\n{A}\n</tool_call>", [LOOK]),
    ("hermes", f" So:\n\n<tool_call>\n{A}\n</tool_call>\n", [" So:", LOOK]),
    (
        "hermes",
        f"<tool_call>{A}</tool_call>\n<tool_call>\n{A}\n</tool_call>\n done",
        [LOOK, LOOK, "done"],
    ),
    ("hermes", f"<tool_call>{A}\n<tool_call>{A}", [LOOK, LOOK]),
    ("hermes", f"<tool_call>{A}and more", [LOOK, "and more"]),
    ("hermes", f"<tool_call>{A[:36]}", [("look", A[30:36])]),
    ("hermes", f"x\n<tool_call>\n{A[:12]}", [f"x\n<tool_call>\n{A[:12]}"]),
    ("hermes", "<tool_call>\nno object", ["<tool_call>\nno object"]),
    ("hermes", '<tool_call>{"name": "other"', ['<tool_call>{"name": "other"']),
    ("hermes", '<tool_call>{"name": 7}', ['<tool_call>{"name": 7}']),
    ("hermes", f"<tool_call><tool_call>{A}", ["<tool_call>", LOOK]),
    (
        "hermes",
        '<tool_call>{"arguments": {"a": 1}, "name": "look"}</tool_call>',
        [("look", '{"a": 1}')],
    ),
    (
        "hermes",
        '<tool_call>{"name": "look", "arguments": "{\\"a\\": 1}"}</tool_call>',
        [("look", '{"a": 1}')],
    ),
    ("hermes", '<tool_call>{"name": "look"}</tool_call>', [("look", "{}")]),
    ("hermes", '<tool_call>{"name": "look", "arguments": null}</tool_call>', [("look", "{}")]),
    ("hermes", '<tool_call>{"name": "look", nothing', [("look", "{}"), "nothing"]),
    ("llama", "plain [text](with) {braces}", ["plain [text](with) {braces}"]),
    ("llama", A.replace("arguments", "parameters"), [LOOK]),
    ("llama", f"\n<|python_tag|>{A}", [LOOK]),
    ("llama", f"{A}; {A}", [LOOK, LOOK]),
    ("llama", f"[{A}, {A}]\n", [LOOK, LOOK]),
    ("llama", f"I look. <|python_tag|>{A} done", ["I look.", LOOK, "done"]),
    ("llama", '{"answer": 42}', ['{"answer": 42}']),
    ("llama", ' {"name": "Ann", "age": 3}', [' {"name": "Ann", "age": 3}']),
    ("llama", "[1, 2]", ["[1, 2]"]),
    ("llama", "[]", ["[]"]),
    ("llama", "[look](http://a)", ["[look](http://a)"]),
    (
        "llama",
        "[look(at='a)\\'', n=[1, {\"x\": None}], ok=true), add-2()]",
        [("look", '{"at": "a)\'", "n": [1, {"x": null}], "ok": true}'), ("add-2", "{}")],
    ),
    ("llama", "[look(1)]", ["[look(1)]"]),
    ("llama", "[look(a=b)] x", ["[look(a=b)] x"]),
    ("llama", "[look(a=1)] x", [("look", '{"a": 1}'), "x"]),
    ("llama", "[look(a=1), look(", [("look", '{"a": 1}'), ", look("]),
    ("llama", "<|python_tag|>print(1)", ["<|python_tag|>print(1)"]),
    ("mistral", "plain [TOOL", ["plain [TOOL"]),
    ("mistral", f"[TOOL_CALLS][{A}]", [LOOK]),
    ("mistral", f"Hm. [TOOL_CALLS] [{A}, {A}]", ["Hm.", LOOK, LOOK]),
    ("mistral", f"[TOOL_CALLS]look[ARGS]{ARGUMENTS}", [LOOK]),
    (
        "mistral",
        f"[TOOL_CALLS]look[CALL_ID]abc123def[ARGS]{ARGUMENTS}[TOOL_CALLS]add-2[ARGS]{{}}",
        [LOOK, ("add-2", "{}")],
    ),
    ("mistral", f"[TOOL_CALLS]look{ARGUMENTS} so", [LOOK, "so"]),
    ("mistral", "[TOOL_CALLS]other[ARGS]{}", ["[TOOL_CALLS]other[ARGS]{}"]),
    ("mistral", "a [TOOL_CALLS]!", ["a [TOOL_CALLS]!"]),
    ("mistral", "[TOOL_CALLS][1]", ["[TOOL_CALLS][1]"]),
    ("mistral", "[TOOL_CALLS]lo", ["[TOOL_CALLS]lo"]),
]


@pytest.mark.parametrize(("form", "text", "wanted"), CASES)
def test_a_text_is_divided_into_what_is_said_and_what_is_called(
    form: str, text: str, wanted: list[str | tuple[str, str]]
) -> None:
    assert plainly(told(form, [text])) == wanted


@pytest.mark.parametrize(("form", "text", "_wanted"), CASES)
def test_however_a_text_comes_it_is_told_the_same(
    form: str, text: str, _wanted: list[str | tuple[str, str]]
) -> None:
    whole = told(form, [text])
    assert told(form, list(text)) == whole
    for cut in range(len(text)):
        assert told(form, [text[:cut], text[cut:]]) == whole


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=9,
)
_OBJECTS = st.dictionaries(st.text(max_size=5), _VALUES, max_size=4)


def _written(form: str, calls: list[tuple[str, str]], before: str) -> str:
    key = "parameters" if form == "llama" else "arguments"
    objects = [f'{{"name": "{name}", "{key}": {arguments}}}' for name, arguments in calls]
    if form == "hermes":
        return before + "".join(f"<tool_call>\n{each}\n</tool_call>\n" for each in objects)
    if form == "llama":
        return "; ".join(objects)
    return f"{before}[TOOL_CALLS][{', '.join(objects)}]"


@given(
    form=st.sampled_from(sorted(READERS)),
    calls=st.lists(st.tuples(st.sampled_from(TOOLS), _OBJECTS), min_size=1, max_size=3),
    compact=st.booleans(),
    before=st.sampled_from(["", "I shall look: <", "é\n "]),
    data=st.data(),
)
def test_fragments_joined_are_the_arguments_as_they_were_written(
    form: str,
    calls: list[tuple[str, dict[str, object]]],
    compact: bool,
    before: str,
    data: st.DataObject,
) -> None:
    separators = (",", ":") if compact else (", ", ": ")
    made = [
        (name, json.dumps(arguments, separators=separators, ensure_ascii=compact))
        for name, arguments in calls
    ]
    text = _written(form, made, before)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=9)))
    edges = [0, *cuts, len(text)]
    parts = told(form, [text[a:b] for a, b in itertools.pairwise(edges)])
    found = [(part.name, part.arguments) for part in parts if isinstance(part, Called)]
    assert found == made
    assert [part.index for part in parts if isinstance(part, Called)] == list(range(len(made)))
    shown = "".join(part.text for part in parts if isinstance(part, Said))
    assert shown == ("" if form == "llama" else before.rstrip())


@given(st.sampled_from(sorted(READERS)), st.text('{}[]<>"\\ \n:,;()=tol_caTOLCARGSnamelook1|/'))
def test_any_text_is_told_and_told_the_same_in_pieces(form: str, text: str) -> None:
    whole = told(form, [text])
    assert told(form, list(text)) == whole
    if not any(isinstance(part, Called) for part in whole):
        assert "".join(plainly(whole)) == text  # type: ignore[arg-type]


def test_a_call_has_the_id_of_its_place_in_its_generation() -> None:
    def ids(generation_id: str, choice: int) -> list[str]:
        numbering = Numbering(generation_id, choice, TOOLS)
        return [numbering.begin("look").call_id for _ in range(2)]

    assert ids("g", 0) == ids("g", 0)
    found = [*ids("g", 0), *ids("g", 1), *ids("h", 0)]
    assert len(set(found)) == len(found)
    assert all(each.startswith("call_") and len(each) == 29 for each in found)


def test_a_call_is_named_before_its_arguments_are_whole() -> None:
    reader = HermesCalls(Numbering("g", 0, TOOLS))
    reader.feed('<tool_call>\n{"name": "look')
    (named,) = reader.feed('"')
    assert isinstance(named, Called)
    assert (named.name, named.arguments) == ("look", "")
    fragments = reader.feed(', "arguments": {"a": ')
    assert joined(fragments) == (Called(0, named.call_id, "", '{"a": '),)
