"""The grammar of a whole answer: thoughts, then calls of tools, a form, or free text.

Only what is behind the thoughts is constrained. A call's opening tag decides: behind it comes a
call of a tool that may be called, with arguments that its schema describes. Rules are in Lark's
notation as llguidance reads it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from services.common.generation import CallForm, Thinking
from services.model.answer_tags import (
    ARGS,
    PYTHON_TAG,
    THINK,
    THINK_END,
    TOOL_CALL,
    TOOL_CALL_END,
    TOOL_CALLS,
)
from services.model.grammar import json_rule
from services.model.tools import Tool, ToolChoice, ToolUse

TokenOf = Callable[[str], int | None]
"""The id of a tag that is a token which no text spells; None for a tag that is text."""
_ANY = r"/(.|\n)*/"
_OPENING = {
    CallForm.HERMES: TOOL_CALL,
    CallForm.LLAMA: "",
    CallForm.MISTRAL: TOOL_CALLS,
    CallForm.MISTRAL_ARGS: TOOL_CALLS,
}
_TAGGED_EACH = (CallForm.HERMES, CallForm.MISTRAL_ARGS)


@dataclass(frozen=True, slots=True)
class Answer:
    """What an answer consists of."""

    thinking: Thinking = Thinking.NONE
    calls: CallForm | None = None
    use: ToolUse | None = None
    """There where `calls` is."""
    form: str = ""
    """A grammar of what is not called; empty: any text."""


def of_answer(answer: Answer, token_of: TokenOf) -> str:
    """The grammar; empty where anything may follow."""
    if answer.thinking is Thinking.NONE and answer.use is None:
        return answer.form
    if answer.use is None and not answer.form:
        return ""
    rules = _Rules(token_of)
    bodies = ["@form"] if answer.form else []
    if answer.calls is not None and answer.use is not None:
        behind = answer.thinking is not Thinking.NONE
        calls = rules.calls(answer.calls, answer.use, alone=not answer.form, behind=behind)
        required = answer.use.choice is ToolChoice.REQUIRED
        bodies = [calls] if required else [calls, *bodies]
    body = " | ".join(bodies)
    if answer.thinking is not Thinking.NONE:
        body = f"{rules.thought(answer.thinking)} ({body})"
    grammars: list[dict[str, Any]] = [{"lark_grammar": "\n".join([f"start: {body}", *rules.lines])}]
    if "@form" in bodies:
        (form,) = json.loads(answer.form)["grammars"]
        grammars.append({**form, "name": "form"})
    return json.dumps({"grammars": grammars})


class _Rules:
    """Rules, as they are asked for."""

    def __init__(self, token_of: TokenOf) -> None:
        self.lines: list[str] = []
        self._token_of = token_of

    def thought(self, thinking: Thinking) -> str:
        """Thoughts up to the tag that ends them, and line breaks behind it."""
        if self._token_of(THINK_END) is None:
            self.lines.append(rf'thought[suffix="{THINK_END}"]: {_ANY}')
        else:
            self.lines += [f"thought: THOUGHT {self._tag(THINK_END)}", f"THOUGHT: {_ANY}"]
        whole = r"thought /\n*/"
        return whole if thinking is Thinking.BEGUN else f"({self._tag(THINK)} {whole})?"

    def calls(self, form: CallForm, use: ToolUse, *, alone: bool, behind: bool) -> str:
        """Calls or, where none has to be made and they stand `alone`, text with calls in it; they
        may come `behind` thoughts."""
        tag = _OPENING[form]
        auto = alone and use.choice is ToolChoice.AUTO
        within_text = auto and bool(tag) and self._token_of(tag) is None
        self._call(form, use, "head" if within_text else self._tag(tag), behind=behind)
        repeats = form in _TAGGED_EACH and not use.most_is_one
        if not auto:
            between = r'"\n" ' if form is CallForm.HERMES else ""
            return f"call ({between}call)*" if repeats else "call"
        if not tag:  # what begins as a call is one
            begun = rf'\s*({_escaped(PYTHON_TAG)})?\s*\{{\s*"name"'
            self.lines.append(rf"TEXT: {_ANY} & ~/{begun}(.|\n)*/")
            return "call | TEXT"
        self.lines.append(rf"TEXT: {_ANY} & ~/(.|\n)*{_escaped(tag)}(.|\n)*/")
        if within_text:  # the tag is the end of a lexeme: what comes before it is a part of that
            self.lines.append(f"head[suffix={json.dumps(tag)}]: {_ANY}")
            return "call* TEXT" if repeats else "call | TEXT"
        return "TEXT (call TEXT)*" if repeats else "TEXT call?"

    def _call(self, form: CallForm, use: ToolUse, opening: str, *, behind: bool) -> None:
        """One call, or as many as its form has behind one tag."""
        if form is CallForm.MISTRAL_ARGS:
            args = self._tag(ARGS)
            each = (f"{json.dumps(t.name)} {args} {self._arguments(t)}" for t in use.callable)
            self.lines.append(f"call: {opening} ({' | '.join(each)})")
            return
        arguments = [(tool, self._arguments(tool)) for tool in use.callable]
        objects = (f'{json.dumps(_lead(form, tool))} {name} "}}"' for tool, name in arguments)
        self.lines.append(f"object: {' | '.join(objects)}")
        if form is CallForm.HERMES:
            end = self._tag(TOOL_CALL_END)
            self.lines.append(rf'call: {opening} "\n" object "\n" {end}')
            return
        first = "object"
        if form is CallForm.LLAMA and behind:  # else line breaks in front of it begin a text
            leads = (rf"/\n*{_escaped(_lead(form, tool))}/ {name}" for tool, name in arguments)
            self.lines.append(f'first: ({" | ".join(leads)}) "}}"')
            first = "first"
        sign = "; " if form is CallForm.LLAMA else ", "
        several = first if use.most_is_one else f'{first} ("{sign}" object)*'
        listed = several if form is CallForm.LLAMA else f'{opening} "[" {several} "]"'
        self.lines.append(f"call: {listed}")

    def _arguments(self, tool: Tool) -> str:
        name = f"arguments{sum(line.startswith('arguments') for line in self.lines)}"
        self.lines.append(f"{name}: {json_rule(tool.schema, lenient=not tool.strict)}")
        return name

    def _tag(self, text: str) -> str:
        token_id = self._token_of(text)
        return json.dumps(text) if token_id is None else f"<[{token_id}]>"


def _lead(form: CallForm, tool: Tool) -> str:
    """What a call begins with, up to its arguments."""
    arguments = "parameters" if form is CallForm.LLAMA else "arguments"
    return f'{{"name": {json.dumps(tool.name)}, "{arguments}": '


def _escaped(text: str) -> str:
    return "".join(f"\\{c}" if c in "[]{}().*+?^$|/\\" else c for c in text)
