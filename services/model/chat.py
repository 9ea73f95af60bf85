"""Chat templates, rendered in a sandbox that bounds loops, sizes and time.

A template comes with the model; a user's content must not end up as its markup. Where content
spells a special token, a mark is set inside the spelling, and the tokenizer takes it out again
behind the point where special tokens are found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jinja2
from jinja2.exceptions import SecurityError

from services.common.errors import FailedPrecondition, InvalidArgument
from services.model.sandbox import BUDGET, MAX_CHARS, Budget, Refused, Sandbox

MAX_TEMPLATE_CHARS = 256 << 10
MAX_RENDER_S = 2.0
_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]


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
        try:
            self._template = Sandbox().from_string(source)
        except (jinja2.TemplateError, RecursionError, SyntaxError) as error:
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
        budget = Budget(self._clock, MAX_RENDER_S)
        values = {
            **self._variables,
            "messages": turns,
            "add_generation_prompt": True,
            "strftime_now": lambda form: time.strftime(form, time.gmtime(created_unix_s)),
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
