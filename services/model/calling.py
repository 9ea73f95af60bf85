"""How a model is told of tools and how it writes its calls: a function of its chat template.

The forms are those that its template spells. Whether the template can show tools, calls and their
answers is found out by rendering some. A model whose template cannot, or whose calls have a form
that is not read here, is told in messages of our own, in the form of Hermes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from services.common.errors import InvalidArgument
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
from services.model.chat import Beside, ChatTemplate, Message
from services.model.tools import Tool, ToolCall
from services.model.written import Written, origin_of, written

_SPELT: tuple[tuple[CallForm, tuple[str, ...], tuple[str, ...]], ...] = (
    (CallForm.MISTRAL_ARGS, (TOOL_CALLS, ARGS), ()),
    (CallForm.MISTRAL, (TOOL_CALLS,), ()),
    (CallForm.HERMES, (TOOL_CALL, "name", "arguments"), ("<function=", "<arg_key>")),
    (CallForm.LLAMA, (PYTHON_TAG,), ()),
    (CallForm.LLAMA, ("ipython", "parameters"), ()),
    (CallForm.LLAMA, ("func_name1(",), ()),
)
"""A form, what a template of it spells, and what one of another form does."""
_TRIED = Tool("shunt_tried", "", {"type": "object", "properties": {}})
_CALL = ToolCall("shunttried", _TRIED.name, '{"shunt_key": "shunt_value"}')
_ANSWER = "shunt_answer"
_TURNS = (
    Message("user", "a"),
    Message("assistant", "", (_CALL,)),
    Message("tool", _ANSWER, call_id=_CALL.id),
)


@dataclass(frozen=True, slots=True)
class Calling:
    """What was found out of one template."""

    form: CallForm
    own: bool
    """Told in messages of our own."""
    arguments_as_text: bool = False
    takes_system: bool = True
    """A conversation may begin with a system's turn."""

    def told(
        self, messages: Sequence[Message], tools: tuple[Tool, ...], options: Mapping[str, Any]
    ) -> tuple[Sequence[Message], Beside]:
        """The conversation as the template is given it, and what it is told beside."""
        if self.own:
            return _in_messages(messages, tools, self.takes_system), Beside(options=options)
        short = self.form in (CallForm.MISTRAL, CallForm.MISTRAL_ARGS)
        return messages, Beside(tools, self.arguments_as_text, short, options)


def calling_of(template: ChatTemplate) -> Calling:
    """How this template's model is told of tools, and calls them."""
    for form, spelt, foreign in _SPELT:
        if all(text in template.source for text in spelt):
            if any(text in template.source for text in foreign):
                break
            for as_text in (False, True):
                calling = Calling(form, own=False, arguments_as_text=as_text)
                if _shows(template, calling):
                    return calling
            break
    system = (Message("system", _ANSWER), Message("user", "a"))
    takes_system = _ANSWER in _rendered(template, system, Beside())
    return Calling(CallForm.HERMES, own=True, takes_system=takes_system)


def thinking_of(template: ChatTemplate, rendered: Written) -> Thinking:
    """Whether an answer to this prompt begins with thoughts."""
    if THINK not in template.source:
        return Thinking.NONE
    prompt = rendered.rstrip()
    if not all(origin_of(prompt)[-len(THINK) :]):
        return Thinking.MAY  # whatever a message ends with opens nothing
    if prompt.endswith(THINK):
        return Thinking.BEGUN
    return Thinking.NONE if prompt.endswith(THINK_END) else Thinking.MAY


def _shows(template: ChatTemplate, calling: Calling) -> bool:
    """Tools, calls with their arguments and what came of them are all in the prompt."""
    turns, beside = calling.told(_TURNS, (_TRIED,), {})
    prompt = _rendered(template, turns, beside)
    plain = _rendered(template, turns, replace(beside, tools=()))
    in_full = all(text in prompt for text in ("shunt_key", "shunt_value", _ANSWER))
    return in_full and prompt.count(_TRIED.name) > plain.count(_TRIED.name)


def _rendered(template: ChatTemplate, turns: Sequence[Message], beside: Beside) -> str:
    try:
        return template.render(turns, 0, beside)
    except InvalidArgument:
        return ""


_TOOLS = written(
    "# Tools\n\n"
    "You may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
)
_HOW = written(
    "\n</tools>\n\n"
    "For each function call, return a json object with function name and arguments within "
    f"{TOOL_CALL}{TOOL_CALL_END} XML tags:\n{TOOL_CALL}\n"
    '{"name": <function-name>, "arguments": <args-json-object>}'
    f"\n{TOOL_CALL_END}"
)


def _in_messages(
    messages: Sequence[Message], tools: tuple[Tool, ...], takes_system: bool
) -> list[Message]:
    """Tools in the system's turn or, where there can be none, in the user's first; calls in the
    assistant's text; what came of them in turns of the user."""
    turns: list[Message] = []
    answers = False
    for message in messages:
        if message.role == "tool":
            text = written("<tool_response>\n") + message.content + written("\n</tool_response>")
            if answers:
                turns[-1] = replace(turns[-1], content=turns[-1].content + written("\n") + text)
            else:
                turns.append(Message("user", text))
        else:
            turns.append(_with_calls(message))
        answers = message.role == "tool"
    if not tools:
        return turns
    listed = "\n".join(json.dumps(tool.described, ensure_ascii=False) for tool in tools)
    told = _TOOLS + listed + _HOW
    first = "system" if takes_system else "user"
    if turns and turns[0].role == first:
        both = (turns[0].content, told) if takes_system else (told, turns[0].content)
        return [replace(turns[0], content=written("\n\n").join(both)), *turns[1:]]
    return [Message(first, told), *turns]


def _with_calls(message: Message) -> Message:
    if not message.calls:
        return message
    pieces = [message.content] if message.content else []
    for call in message.calls:
        call_said = {"name": call.name, "arguments": json.loads(call.arguments)}
        said = json.dumps(call_said, ensure_ascii=False)
        pieces.append(written(f"{TOOL_CALL}\n") + said + written(f"\n{TOOL_CALL_END}"))
    return replace(message, content=written("\n").join(pieces), calls=())
