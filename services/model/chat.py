"""Chat templates: a conversation becomes a prompt as transformers renders it.

A template comes with the model and sees what was said as it was said. Which characters of the
prompt are its own, the rendered text knows (`Written`); a special token's text that a message
spells is text.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError

from services.common.errors import InvalidArgument
from services.model.bounds import MAX_CHARS, RenderBudget
from services.model.sandbox import BUDGET, Refused, Sandbox
from services.model.tools import Tool, ToolCall
from services.model.written import Written, written

MAX_TEMPLATE_CHARS = 256 << 10
MAX_RENDER_S = 2.0
"""Of a core: a machine that does something else meanwhile makes no template too long."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str
    calls: tuple[ToolCall, ...] = ()
    """Of tools, in an assistant's turn."""
    call_id: str = ""
    """Of the call that a tool's turn answers."""
    reasoning: str = ""
    """What an assistant thought before it answered."""


@dataclass(frozen=True, slots=True)
class Beside:
    """What a template is told beside the conversation."""

    tools: tuple[Tool, ...] = ()
    arguments_as_text: bool = False
    """Arguments of calls are their JSON, not the objects."""
    short_ids: bool = False
    """Ids of calls are what Mistral's templates take: nine letters and digits."""
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """More variables, by name."""


_NOTHING_BESIDE = Beside()


class ChatTemplate:
    """One model's template."""

    def __init__(
        self,
        source: str,
        variables: Mapping[str, str],
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """`variables` are bos_token and its like. Raises InvalidArgument for a template that does
        not compile."""
        if len(source) > MAX_TEMPLATE_CHARS:
            raise _refused(f"has over {MAX_TEMPLATE_CHARS} characters")
        try:
            self._template = Sandbox().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise _refused(f"line {error.lineno}: {error.message}") from error
        except (jinja2.TemplateError, RecursionError, SyntaxError) as error:
            raise _refused("does not compile") from error
        self.source = source
        self.words = frozenset(re.findall(r"\w+", source))
        """Every name that the template may read, and what else it spells."""
        self.variables = {name: written(text) for name, text in variables.items()}
        """Texts of the special tokens that have a name, by it."""
        self._clock = clock

    def render(
        self, messages: Sequence[Message], created_unix_s: int, beside: Beside = _NOTHING_BESIDE
    ) -> Written:
        """The prompt up to the point where the assistant speaks.

        Raises InvalidArgument for a conversation that the template refuses.
        """
        budget = RenderBudget(self._clock, MAX_RENDER_S)
        created = datetime.fromtimestamp(created_unix_s, UTC).replace(tzinfo=None)
        values = {
            **beside.options,
            **self.variables,
            "messages": _turns(messages, beside),
            "tools": [tool.described for tool in beside.tools] or None,
            "documents": None,
            "add_generation_prompt": True,
            "strftime_now": lambda form: written(created.strftime(form)),
            BUDGET: budget,
        }
        pieces, size = [], 0
        try:
            for piece in self._template.generate(values):
                pieces.append(piece)
                size += len(piece)
                budget.spend(0)
                if size > MAX_CHARS:
                    raise SecurityError("the template's output is too long")
        except Refused as error:
            raise InvalidArgument(f"the chat template: {error}", field="messages") from None
        except (SecurityError, RecursionError, MemoryError, OverflowError) as error:
            raise InvalidArgument("the chat template ran into a limit", field="messages") from error
        except Exception as error:  # whatever foreign code may raise
            raise InvalidArgument("the chat template cannot render this", field="messages") from (
                error
            )
        return written("").join(pieces)


def _turns(messages: Sequence[Message], beside: Beside) -> list[dict[str, Any]]:
    """As transformers' templates expect them."""
    names = {call.id: call.name for message in messages for call in message.calls}
    return [_turn(message, names, beside) for message in messages]


def _turn(message: Message, names: Mapping[str, str], beside: Beside) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": written(message.role), "content": message.content}
    if message.calls:
        turn["tool_calls"] = [_call(call, beside) for call in message.calls]
    if message.call_id:
        turn["tool_call_id"] = _call_id(message.call_id, beside)
        turn["name"] = names.get(message.call_id, "")
    if message.reasoning:
        turn["reasoning_content"] = message.reasoning
    return turn


def _call(call: ToolCall, beside: Beside) -> dict[str, Any]:
    arguments = call.arguments if beside.arguments_as_text else json.loads(call.arguments)
    function = {"name": call.name, "arguments": arguments}
    return {"id": _call_id(call.id, beside), "type": "function", "function": function}


def _call_id(call_id: str, beside: Beside) -> str:
    return hashlib.sha256(call_id.encode()).hexdigest()[:9] if beside.short_ids else call_id


def _refused(reason: str) -> InvalidArgument:
    return InvalidArgument(f"the chat template {reason}", field="chat_template")
