"""A model as a router needs it: its tokenizer, its chat template, its limits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from services.common.errors import FailedPrecondition, InvalidArgument
from services.common.generation import GenerationKind
from services.model.chat import ChatTemplate, Message
from services.model.tokenizer import Tokenizer
from services.model.vocabulary import Vocabulary
from services.router.ask import Ask, ModelFacts
from services.router.model_files import ModelFiles

_DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class Model:
    """Loaded from a model's files; raises FailedPrecondition for those it cannot use."""

    def __init__(self, files: ModelFiles) -> None:
        if "tokenizer.json" not in files.files:
            raise FailedPrecondition("the model has no tokenizer.json")
        self._tokenizer = Tokenizer(files.files["tokenizer.json"])
        settings = files.json("tokenizer_config.json")
        generation = files.json("generation_config.json")
        source = _template(settings.get("chat_template"))
        if "chat_template.jinja" in files.files:
            source = files.files["chat_template.jinja"].decode("utf-8", "replace")
        self._template = (
            ChatTemplate(source, self._tokenizer.special_texts, _special_variables(settings))
            if source
            else None
        )
        self._template_words = frozenset(re.findall(r"\w+", source))
        self.vocabulary: Vocabulary = self._tokenizer.vocabulary
        self.longest_piece_bytes = max(map(len, self.vocabulary.labels), default=1)
        config = files.config
        vocabulary_size = _positive(config, "vocab_size")
        self.facts = ModelFacts(
            ref=files.ref,
            max_positions=_positive(config, "max_position_embeddings"),
            vocabulary_size=vocabulary_size,
            eos_token_ids=self._eos(vocabulary_size, generation, config, settings),
            defaults=_defaults(generation),
        )

    def prompt_ids(self, ask: Ask, created_unix_s: int) -> list[int]:
        """Raises InvalidArgument for a prompt this model cannot take."""
        prompt = ask.prompt
        if isinstance(prompt, str):
            return self._tokenizer.encode(prompt)
        if ask.kind is GenerationKind.COMPLETION:
            return [entry for entry in prompt if isinstance(entry, int)]
        if self._template is None:
            raise InvalidArgument("the model has no chat template", field="messages")
        for name, parameter in ask.template_names.items():
            if name in self._template_words:
                raise InvalidArgument(
                    f"{parameter} is not supported, and this model's chat template reads it",
                    field=parameter,
                )
        turns = [entry for entry in prompt if isinstance(entry, Message)]
        rendered = self._template.render(turns, created_unix_s)
        return self._tokenizer.encode_rendered(rendered.text, rendered.mark)

    def _eos(self, vocabulary_size: int, *sources: Mapping[str, Any]) -> tuple[int, ...]:
        for source in sources:
            value = source.get("eos_token_id")
            ids = value if isinstance(value, list) else [value]
            if ids and all(type(i) is int and 0 <= i < vocabulary_size for i in ids):
                return tuple(ids)
        for source in sources:
            text = source.get("eos_token")
            token_id = self._tokenizer.id_of(text) if isinstance(text, str) else None
            if token_id is not None:
                return (token_id,)
        raise FailedPrecondition("the model names no end-of-sequence id")


def _defaults(generation: Mapping[str, Any]) -> dict[str, float]:
    """Held to the ranges of what a client may ask for: they end up in its request."""
    found = {
        name: generation[name] for name in _DEFAULTS if type(generation.get(name)) in (int, float)
    }
    try:
        Ask("any", GenerationKind.COMPLETION, "any", **found).check(max_choices=1)
    except InvalidArgument as error:
        raise FailedPrecondition(f"generation_config.json: {error.message}") from error
    return found


def _positive(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if type(value) is not int or value < 1:
        raise FailedPrecondition(f"the model's config has no {name}")
    return value


def _template(value: Any) -> str:
    """A template, or the default one of several."""
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value}
        value = named.get("default")
    return value if isinstance(value, str) else ""


def _special_variables(settings: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for name, value in settings.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return found
