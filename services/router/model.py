"""A model as a router needs it: its tokenizer, its chat template, its limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from services.common.errors import FailedPrecondition, InvalidArgument
from services.common.generation import PLAIN, AnswerParts, GenerationKind, GenerationRequest
from services.common.wire import MAX_GRAMMAR_CHARS
from services.model import answer_tags
from services.model.answer_grammar import Answer, of_answer
from services.model.calling import calling_of, thinking_of
from services.model.chat import Message
from services.model.grammar import of_json_schema
from services.model.outline import outline_of
from services.model.text import ModelText
from services.model.vocabulary import Pieces, Vocabulary
from services.router.ask import Ask, ModelLimits, unasked
from services.router.grammar_checks import GrammarChecks
from services.router.model_files import ModelFiles


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model goes on from, and what its answer is made of."""

    ids: list[int]
    parts: AnswerParts = PLAIN


class ServedModel:
    """Loaded from a model's files; raises FailedPrecondition for those it cannot use."""

    def __init__(self, files: ModelFiles, checks: GrammarChecks) -> None:
        try:
            config = outline_of(files.config)
            self._text = ModelText(files.config, config.vocab_size, files.files)
        except InvalidArgument as error:
            raise FailedPrecondition(error.message) from error
        self._grammars = checks.of(
            self._text.tokenizer.as_json, self._text.vocabulary_size, self._text.eos_token_ids
        )
        self.vocabulary: Vocabulary = self._text.tokenizer.vocabulary
        self.longest_piece_bytes = max(map(len, self.vocabulary.labels), default=1)
        self._with_tags = self.vocabulary.showing(answer_tags.ALL)
        template = self._text.template
        self._calling = None if template is None else calling_of(template)
        self.facts = ModelLimits(
            ref=files.ref,
            max_positions=config.context_length,
            vocabulary_size=self._text.vocabulary_size,
            eos_token_ids=self._text.eos_token_ids,
            special_token_ids=self._text.special_token_ids,
            unasked=unasked(self._text.defaults),
        )

    def vocabulary_of(self, request: GenerationRequest) -> Vocabulary:
        """What its ids say; the tags that divide an answer are a part of that."""
        return self.vocabulary if request.parts == PLAIN else self._with_tags

    def grammar(self, ask: Ask, parts: AnswerParts) -> str:
        """What the answer has to follow; empty: nothing. Raises InvalidArgument for what the
        model's engines could not follow, Unavailable where that cannot be found out. Blocks."""
        answer = Answer(parts.thinking, parts.calls, ask.tools, ask.grammar)
        if ask.tools is None and not ask.grammar:
            return ""
        grammar = of_answer(answer, self._token_of)
        if len(grammar) > MAX_GRAMMAR_CHARS:
            raise InvalidArgument(
                f"tools: their grammar has {len(grammar)} characters, at most {MAX_GRAMMAR_CHARS}",
                field="tools",
            )
        try:
            self._grammars.check(grammar)
        except InvalidArgument as error:
            self._check_tools(ask)
            name = ask.grammar_parameter or "tools"
            raise InvalidArgument(f"{name}: {error.message}", field=name) from None
        return grammar

    def _check_tools(self, ask: Ask) -> None:
        """Raises InvalidArgument for the first tool whose arguments cannot be followed."""
        for index, tool in enumerate(ask.tools.tools if ask.tools is not None else ()):
            field = f"tools[{index}].function.parameters"
            try:
                self._grammars.check(of_json_schema(tool.schema, field, lenient=not tool.strict))
            except InvalidArgument as error:
                raise InvalidArgument(f"{field}: {error.message}", field=field) from None

    def _token_of(self, tag: str) -> int | None:
        token_id = self._text.tokenizer.id_of(tag)
        return token_id if token_id is not None and self._grammars.is_apart(token_id) else None

    def prompt(self, ask: Ask, created_unix_s: int) -> Prompt:
        """Raises InvalidArgument for a prompt this model cannot take."""
        prompt = ask.prompt
        if isinstance(prompt, str):
            ids = self._text.tokenizer.encode(prompt, bare=ask.bare)
            return Prompt(self._within(ids, "prompt"))
        if ask.kind is GenerationKind.COMPLETION:
            return Prompt([entry for entry in prompt if isinstance(entry, int)])
        template = self._text.template
        if template is None or self._calling is None:
            raise InvalidArgument("the model has no chat template", field="messages")
        for name, parameter in ask.template_names.items():
            if name in template.words:
                raise InvalidArgument(
                    f"{parameter} is not supported, and this model's chat template reads it",
                    field=parameter,
                )
        turns = [entry for entry in prompt if isinstance(entry, Message)]
        tools = () if ask.tools is None else ask.tools.tools
        told, beside = self._calling.told(turns, tools, ask.template_options)
        rendered = template.render(told, created_unix_s, beside)
        parts = AnswerParts(thinking=thinking_of(template, rendered))
        if ask.tools is not None:
            names = tuple(tool.name for tool in ask.tools.callable)
            named = bool(ask.tools.named)
            parts = replace(parts, calls=self._calling.form, tools=names, named=named)
        return Prompt(
            self._within(self._text.tokenizer.encode_rendered(rendered), "messages"), parts
        )

    def text_of(self, ids: Sequence[int]) -> str:
        """What ids stand for, special tokens as they are spelt."""
        vocabulary, pieces = self.vocabulary, Pieces(self.vocabulary)
        spelt = (
            vocabulary.label(token_id)
            if vocabulary.label(token_id) and not vocabulary.piece(token_id)
            else pieces.take(token_id)
            for token_id in ids
        )
        return b"".join(spelt).decode("utf-8", vocabulary.errors)

    @property
    def chats(self) -> bool:
        """It has a chat template."""
        return self._text.template is not None

    def _within(self, ids: list[int], field: str) -> list[int]:
        """A tokenizer may know more tokens than the model has rows for."""
        if max(ids, default=0) >= self.facts.vocabulary_size:
            raise InvalidArgument("the prompt has a token that the model lacks", field=field)
        return ids
