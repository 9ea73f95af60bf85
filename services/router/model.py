"""A model as a router needs it: its tokenizer, its chat template, its limits."""

from __future__ import annotations

from services.common.errors import FailedPrecondition, InvalidArgument
from services.common.generation import GenerationKind
from services.model.chat import Message
from services.model.config import parse_config
from services.model.text import ModelText
from services.model.vocabulary import Vocabulary
from services.router.ask import Ask, ModelLimits
from services.router.model_files import ModelFiles


class ServedModel:
    """Loaded from a model's files; raises FailedPrecondition for those it cannot use."""

    def __init__(self, files: ModelFiles) -> None:
        try:
            config = parse_config(files.config)
            self._text = ModelText(files.config, config.vocab_size, files.files)
        except InvalidArgument as error:
            raise FailedPrecondition(error.message) from error
        self.vocabulary: Vocabulary = self._text.tokenizer.vocabulary
        self.longest_piece_bytes = max(map(len, self.vocabulary.labels), default=1)
        self.facts = ModelLimits(
            ref=files.ref,
            max_positions=config.context_length,
            vocabulary_size=self._text.vocabulary_size,
            eos_token_ids=self._text.eos_token_ids,
            special_token_ids=self._text.special_token_ids,
            defaults=self._text.defaults,
        )

    def prompt_ids(self, ask: Ask, created_unix_s: int) -> list[int]:
        """Raises InvalidArgument for a prompt this model cannot take."""
        prompt = ask.prompt
        if isinstance(prompt, str):
            return self._within(self._text.tokenizer.encode(prompt), "prompt")
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
        rendered = template.render(turns, created_unix_s)
        return self._within(self._text.tokenizer.encode_rendered(rendered), "messages")

    def _within(self, ids: list[int], field: str) -> list[int]:
        """A tokenizer may know more tokens than the model has rows for."""
        if max(ids, default=0) >= self.facts.vocabulary_size:
            raise InvalidArgument("the prompt has a token that the model lacks", field=field)
        return ids
