"""The bodies of /tokenize and /detokenize, as vLLM has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from services.common.errors import InvalidArgument
from services.common.generation import GenerationKind
from services.router.ask import MAX_PROMPT_IDS, Ask
from services.router.openai.fields import DETOKENIZE, TOKENIZE, given
from services.router.openai.requests import ids_of, parse_chat


@dataclass(frozen=True, slots=True)
class ToTokenize:
    """An ask of which only the prompt counts."""

    ask: Ask
    spelt: bool
    """Each token's text is wanted, too."""


def parse_tokenize(body: dict[str, Any]) -> ToTokenize:
    """Raises InvalidArgument and names the parameter."""
    fields = given(body, TOKENIZE)
    spelt, text = fields.get("return_token_strs", False), fields.get("prompt")
    if (text is None) is ("messages" not in fields):
        raise InvalidArgument("send one of prompt and messages", field="prompt")
    if text is None:
        said = ("model", "messages", "tools", "chat_template_kwargs", "add_special_tokens")
        asked = parse_chat({name: fields[name] for name in said if name in fields})
        return ToTokenize(asked.ask, spelt)
    if "tools" in fields:
        raise InvalidArgument("tools belong to messages, and there is a prompt", field="tools")
    bare = not fields.get("add_special_tokens", True)
    ask = Ask(fields.get("model", ""), GenerationKind.COMPLETION, text, bare=bare)
    return ToTokenize(ask, spelt)


def parse_detokenize(body: dict[str, Any]) -> tuple[str, tuple[int, ...]]:
    """The model and the ids. Raises InvalidArgument and names the parameter."""
    fields = given(body, DETOKENIZE)
    tokens = fields.get("tokens")
    if tokens is None:
        raise InvalidArgument("tokens must be an array, and is missing", field="tokens")
    if len(tokens) > MAX_PROMPT_IDS:
        raise InvalidArgument(
            f"tokens has {len(tokens)} ids, over {MAX_PROMPT_IDS}", field="tokens"
        )
    return fields.get("model", ""), ids_of(tokens, "tokens")
