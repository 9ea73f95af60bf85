"""Chat templates: a conversation becomes a prompt as transformers renders it.

A template comes with the model and sees what was said as it was said. Which characters of the
prompt are its own, the rendered text knows (`Written`); a special token's text that a message
spells is text.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import jinja2
from jinja2.exceptions import SecurityError

from services.common.errors import InvalidArgument
from services.model.bounds import MAX_CHARS, RenderBudget
from services.model.sandbox import BUDGET, Refused, Sandbox
from services.model.written import Written, written

MAX_TEMPLATE_CHARS = 256 << 10
MAX_RENDER_S = 2.0


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


class ChatTemplate:
    """One model's template."""

    def __init__(
        self,
        source: str,
        variables: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
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
        self.words = frozenset(re.findall(r"\w+", source))
        """Every name that the template may read, and what else it spells."""
        self.variables = {name: written(text) for name, text in variables.items()}
        """Texts of the special tokens that have a name, by it."""
        self._clock = clock

    def render(self, messages: Sequence[Message], created_unix_s: int) -> Written:
        """The prompt up to the point where the assistant speaks.

        Raises InvalidArgument for a conversation that the template refuses.
        """
        budget = RenderBudget(self._clock, MAX_RENDER_S)
        created = datetime.fromtimestamp(created_unix_s, UTC).replace(tzinfo=None)
        values = {
            **self.variables,
            "messages": [{"role": written(m.role), "content": m.content} for m in messages],
            "tools": None,
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


def _refused(reason: str) -> InvalidArgument:
    return InvalidArgument(f"the chat template {reason}", field="chat_template")
