"""A model as a router needs it: its tokenizer, its chat template, its limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.common.errors import FailedPrecondition, InvalidArgument
from services.common.generation import GenerationKind
from services.model.chat import Message
from services.model.config import parse_config
from services.model.text import ModelText
from services.model.vocabulary import Vocabulary
from services.router.ask import Ask, ModelFacts
from services.router.model_files import ModelFiles

_DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class Model:
    """Loaded from a model's files; raises FailedPrecondition for those it cannot use."""

    def __init__(self, files: ModelFiles) -> None:
        try:
            config = parse_config(files.config)
            self._text = ModelText(files.config, files.files)
        except InvalidArgument as error:
            raise FailedPrecondition(error.message) from error
        self.vocabulary: Vocabulary = self._text.tokenizer.vocabulary
        self.longest_piece_bytes = max(map(len, self.vocabulary.labels), default=1)
        self.facts = ModelFacts(
            ref=files.ref,
            max_positions=config.context_length,
            vocabulary_size=self._text.vocabulary_size,
            eos_token_ids=self._text.eos_token_ids,
            special_token_ids=self._text.special_token_ids,
            defaults=_defaults(self._text.generation),
        )

    def prompt_ids(self, ask: Ask, created_unix_s: int) -> list[int]:
        """Raises InvalidArgument for a prompt this model cannot take."""
        prompt = ask.prompt
        if isinstance(prompt, str):
            return self._text.tokenizer.encode(prompt)
        if ask.kind is GenerationKind.COMPLETION:
            return [entry for entry in prompt if isinstance(entry, int)]
        template = self._text.template
        if template is None:
            raise InvalidArgument("the model has no chat template", field="messages")
        for name, parameter in ask.template_names.items():
            if name in template.words:
                raise InvalidArgument(
                    f"{parameter} is not supported, and this model's chat template reads it",
                    field=parameter,
                )
        turns = [entry for entry in prompt if isinstance(entry, Message)]
        return self._text.tokenizer.encode_rendered(template.render(turns, created_unix_s))


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
