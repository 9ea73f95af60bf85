"""Chat templates, rendered in a sandbox that bounds loops, sizes and time.

A template comes with the model; a user's content must not end up as its markup. Where content
spells a special token, a mark is set inside the spelling, and the tokenizer takes it out again
behind the point where special tokens are found.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from services.common.errors import FailedPrecondition, InvalidArgument

MAX_TEMPLATE_CHARS = 256 << 10
MAX_RENDERED_CHARS = 16 << 20
MAX_LOOP_STEPS = 200_000
MAX_RENDER_S = 2.0
_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
_BUDGET = "shunt budget"  # no template can name a variable with a space in it


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt, and the mark that stands inside what must not become a special token."""

    text: str
    mark: str


class _Refused(Exception):
    """The template itself refused the conversation."""


class _Sandbox(ImmutableSandboxedEnvironment):
    """Counts loop steps and bounds what operators can build."""

    intercepted_binops = frozenset(["*", "**", "+", "%"])

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or (operator == "%" and isinstance(left, str)):
            raise SecurityError(f"operator {operator} is not for templates")
        if operator in "*+":
            sizes = [len(v) for v in (left, right) if isinstance(v, (str, list, tuple))]
            times = [abs(v) for v in (left, right) if isinstance(v, int)] if sizes else []
            if operator == "*" and times and sizes[0] * times[0] > MAX_RENDERED_CHARS:
                raise SecurityError("a repetition is too long")
            if sum(sizes) > MAX_RENDERED_CHARS:
                raise SecurityError("a sum is too long")
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        for loop in template.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "shunt_counted", [], [], None, None)
        return template


@jinja2.pass_context
def _counted(context: Context, values: Any) -> Any:
    budget = context.parent[_BUDGET]
    if hasattr(values, "__len__"):
        budget(len(values))
        return values
    return _count_each(values, budget)


def _count_each(values: Iterable[Any], budget: Callable[[int], None]) -> Iterator[Any]:
    for value in values:
        budget(1)
        yield value


def _raise_exception(message: str) -> None:
    raise _Refused(str(message))


def _to_json(value: Any, indent: int | None = None, **_options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


class ChatTemplate:
    """One model's template."""

    def __init__(
        self,
        source: str,
        special_texts: Sequence[str],
        variables: dict[str, str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`variables` are bos_token and its like. Raises FailedPrecondition for a template that
        does not compile."""
        if len(source) > MAX_TEMPLATE_CHARS:
            raise FailedPrecondition(f"the chat template is over {MAX_TEMPLATE_CHARS} characters")
        environment = _Sandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.filters["shunt_counted"] = _counted
        environment.globals["raise_exception"] = _raise_exception
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise FailedPrecondition("the chat template does not compile") from error
        self._special_texts = tuple(special_texts)
        self._variables = dict(variables)
        self._clock = clock

    def render(self, messages: Sequence[Message], created_unix_s: int) -> Rendered:
        """The prompt up to the point where the assistant speaks.

        Raises InvalidArgument for a conversation that the template refuses.
        """
        mark = self._free_mark(messages)
        turns = [{"role": m.role, "content": self._marked(m.content, mark)} for m in messages]
        deadline_s = self._clock() + MAX_RENDER_S
        values = {
            **self._variables,
            "messages": turns,
            "add_generation_prompt": True,
            "strftime_now": lambda form: time.strftime(form, time.gmtime(created_unix_s)),
            _BUDGET: _budget(),
        }
        pieces, size = [], 0
        try:
            for piece in self._template.generate(values):
                pieces.append(piece)
                size += len(piece)
                if size > MAX_RENDERED_CHARS or self._clock() > deadline_s:
                    raise SecurityError("the template's output is too long, or took too long")
        except _Refused as error:
            raise InvalidArgument(f"the chat template: {error}", field="messages") from None
        except (SecurityError, RecursionError, MemoryError, OverflowError) as error:
            raise InvalidArgument("the chat template ran into a limit", field="messages") from error
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise InvalidArgument("the chat template cannot render this", field="messages") from (
                error
            )
        return Rendered("".join(pieces), mark)

    def _free_mark(self, messages: Sequence[Message]) -> str:
        for mark in _MARKS:
            if not any(mark in message.content for message in messages):
                return mark
        raise InvalidArgument("content holds every noncharacter there is", field="messages")

    def _marked(self, content: str, mark: str) -> str:
        for special in self._special_texts:
            content = content.replace(special, special[:1] + mark + special[1:])
        end = content.rstrip()
        for length in range(min(len(end), max(map(len, self._special_texts), default=0)), 0, -1):
            begun = end[-length:]
            if any(special.startswith(begun) for special in self._special_texts):
                cut = len(end) - length + 1
                return content[:cut] + mark + content[cut:]
        return content


def _budget() -> Callable[[int], None]:
    left = MAX_LOOP_STEPS

    def spend(steps: int) -> None:
        nonlocal left
        left -= steps
        if left < 0:
            raise SecurityError("the template loops for too long")

    return spend
