"""What a client asked for, whichever door it came through, and how it becomes a request.

An edge checks types and fills an `Ask`; ranges are checked here, once for both doors. `resolve`
leaves nothing open: from there on the request is data.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from services.common.channel_options import MAX_MESSAGE_BYTES
from services.common.errors import InvalidArgument
from services.common.generation import GenerationKind, GenerationRequest, ModelRef, Sampling
from services.model.chat import Message

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 1024
MAX_STOP_IDS = 128
MAX_BIASES = 1024
MAX_TOP_LOGPROBS = 20
MAX_MESSAGES = 4096
MAX_PROMPT_IDS = 1 << 20
MAX_MODEL_CHARS = 256
ROLES = ("system", "user", "assistant")


class ContextOverflow(InvalidArgument):
    """A prompt, or what was asked for behind it, is more than the model can hold."""

    def __init__(self, max_positions: int, asked: str, field: str) -> None:
        super().__init__(
            f"This model's maximum context length is {max_positions} tokens, prompt and answer "
            f"together; {asked}",
            field=field,
        )


@dataclass(frozen=True, slots=True)
class Ask:
    """One request as it was made; None is left to the model's default."""

    model: str
    kind: GenerationKind
    prompt: tuple[Message, ...] | str | tuple[int, ...]
    """A conversation, a text, or ids."""
    choices: int = 1
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    top_logprobs: int | None = None
    max_tokens: int | None = None
    most_tokens: int | None = None
    """Bound of max_tokens where the client set none; None: what the context holds."""
    min_tokens: int = 0
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int | None = None
    include_usage: bool = True
    generation_id: str = ""
    """Drawn when empty."""
    template_names: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """What was sent beside the conversation for chat templates that read it: by its name in a
    template, the parameter it came in. No template is given it."""
    digest: str = ""
    """Equal for a client's retries of it; empty when they cannot be known."""
    is_retry: bool = False
    """The client says that it asks again."""

    def check(self, max_choices: int) -> None:
        """Raises InvalidArgument for what no model could do."""
        if not self.model or len(self.model) > MAX_MODEL_CHARS:
            raise InvalidArgument(
                f"model must be a string of 1 to {MAX_MODEL_CHARS} characters, and has "
                f"{len(self.model)}",
                field="model",
            )
        _between("choices", self.choices, 1, max_choices)
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is not None:
                _between(name, value, low, high)
        if self.repetition_penalty == 0:
            raise InvalidArgument(
                "repetition_penalty must be over 0, not 0", field="repetition_penalty"
            )
        if self.min_p == 1:
            raise InvalidArgument("min_p must be under 1, not 1", field="min_p")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidArgument(
                f"min_tokens is {self.min_tokens}, over max_tokens, which is {self.max_tokens}",
                field="min_tokens",
            )
        _at_most("stop_strings", self.stop_strings, MAX_STOP_STRINGS)
        for length in map(len, self.stop_strings):
            if not 1 <= length <= MAX_STOP_CHARS:
                raise InvalidArgument(
                    f"stop_strings: one has {length} characters, not 1 to {MAX_STOP_CHARS}",
                    field="stop_strings",
                )
        _at_most("stop_token_ids", self.stop_token_ids, MAX_STOP_IDS)
        _at_most("logit_bias", self.logit_bias, MAX_BIASES)
        for bias in self.logit_bias.values():
            _between("logit_bias", bias, -100.0, 100.0)
        if not self.prompt:
            raise InvalidArgument("the prompt is empty", field=self._prompt_field)
        if self._prompt_field == "messages":
            _at_most("messages", self.prompt, MAX_MESSAGES)

    @property
    def prompt_bytes(self) -> int:
        """Length of the prompt's text in UTF-8, without what a template adds; 0 for ids."""
        texts = (self.prompt,) if isinstance(self.prompt, str) else self.prompt
        contents = (entry.content if isinstance(entry, Message) else entry for entry in texts)
        return sum(len(text.encode()) for text in contents if isinstance(text, str))

    @property
    def turns(self) -> int:
        """Messages of a conversation."""
        return len(self.prompt) if self.kind is GenerationKind.CHAT else 0

    def check_size(self, max_positions: int, longest_piece_bytes: int) -> None:
        """Raises InvalidArgument, before any work is done on it, for a prompt that cannot fit
        whatever its tokens are."""
        ids = 0 if isinstance(self.prompt, str) or self.turns else len(self.prompt)
        least = max(ids, -(-self.prompt_bytes // longest_piece_bytes))
        if least >= max_positions:
            raise ContextOverflow(
                max_positions, f"the prompt alone has at least {least}", self._prompt_field
            )

    @property
    def _prompt_field(self) -> str:
        return "messages" if self.kind is GenerationKind.CHAT else "prompt"

    def resolve(self, model: ModelLimits, prompt_ids: list[int], drawn: Drawn) -> GenerationRequest:
        """The request with nothing left open. Raises InvalidArgument when it does not fit the
        model."""
        room = model.max_positions - len(prompt_ids)
        if not prompt_ids:
            raise InvalidArgument("the prompt has no tokens", field=self._prompt_field)
        if room < 1:
            raise ContextOverflow(
                model.max_positions,
                f"the prompt alone has {len(prompt_ids)}",
                self._prompt_field,
            )
        if self.max_tokens is not None and self.max_tokens > room:
            raise ContextOverflow(
                model.max_positions,
                f"you asked for {len(prompt_ids) + self.max_tokens}: {len(prompt_ids)} of the "
                f"prompt and {self.max_tokens} of max_tokens",
                "max_tokens",
            )
        max_tokens = self.max_tokens or min(room, self.most_tokens or room)
        if self.min_tokens > max_tokens:
            raise InvalidArgument(
                f"min_tokens is {self.min_tokens}, over the {max_tokens} tokens that may come",
                field="min_tokens",
            )
        _in_vocabulary("stop_token_ids", self.stop_token_ids, model.vocabulary_size)
        _in_vocabulary("logit_bias", self.logit_bias, model.vocabulary_size)
        if not isinstance(self.prompt, str) and self.kind is not GenerationKind.CHAT:
            _in_vocabulary("prompt", prompt_ids, model.vocabulary_size)
        return GenerationRequest(
            generation_id=self.generation_id or drawn.generation_id,
            model=model.ref,
            prompt_ids=tuple(prompt_ids),
            sampling=self._sampling(model, max_tokens, drawn.seed),
            choices=self.choices,
            stop_strings=self.stop_strings,
            kind=self.kind,
            created_unix_s=drawn.created_unix_s,
            include_usage=self.include_usage,
            ask_digest=self.digest,
        )

    def _stop_token_ids(self, model: ModelLimits) -> tuple[int, ...]:
        """Those asked for, and those of special tokens that stop strings spell."""
        known = model.special_token_ids
        spelt = (known[text] for text in self.stop_strings if text in known)
        return tuple(dict.fromkeys((*self.stop_token_ids, *spelt)))

    def _sampling(self, model: ModelLimits, max_tokens: int, seed: int) -> Sampling:
        def chosen(name: str, neutral: float) -> float:
            value = getattr(self, name)
            return _single(model.defaults.get(name, neutral) if value is None else value)

        top_k = int(model.defaults.get("top_k", 0)) if self.top_k is None else self.top_k
        top_p = chosen("top_p", 1.0)
        if top_p == 0:  # the smallest nucleus there is: the likeliest token alone
            top_k, top_p = 1, 1.0
        return Sampling(
            max_tokens=max_tokens,
            temperature=chosen("temperature", 1.0),
            top_k=max(top_k, 0),
            top_p=top_p,
            min_p=chosen("min_p", 0.0),
            presence_penalty=chosen("presence_penalty", 0.0),
            frequency_penalty=chosen("frequency_penalty", 0.0),
            repetition_penalty=chosen("repetition_penalty", 1.0),
            logit_bias=MappingProxyType({i: _single(b) for i, b in self.logit_bias.items()}),
            top_logprobs=self.top_logprobs,
            min_tokens=self.min_tokens,
            stop_token_ids=self._stop_token_ids(model),
            ignore_eos=self.ignore_eos,
            eos_token_ids=model.eos_token_ids,
            seed=(seed if self.seed is None else self.seed) % (1 << 64),
        )


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What of a model decides a request."""

    ref: ModelRef
    max_positions: int
    vocabulary_size: int
    eos_token_ids: tuple[int, ...]
    special_token_ids: Mapping[str, int]
    """By a special token's text: what never shows can stop by its id alone."""
    defaults: Mapping[str, float]
    """Sampling values the model comes with, by name."""
    max_message_bytes: int = MAX_MESSAGE_BYTES
    """What a whole generation must fit, as a message."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """What chance and the clock add to a request."""

    generation_id: str
    seed: int
    created_unix_s: int


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("temperature", 0.0, 2.0),
    ("top_k", -1, (1 << 31) - 1),
    ("top_p", 0.0, 1.0),
    ("min_p", 0.0, 1.0),
    ("presence_penalty", -2.0, 2.0),
    ("frequency_penalty", -2.0, 2.0),
    ("repetition_penalty", 0.0, 2.0),
    ("top_logprobs", 0, MAX_TOP_LOGPROBS),
    ("max_tokens", 1, (1 << 31) - 1),
    ("min_tokens", 0, (1 << 31) - 1),
    ("seed", -(1 << 63), (1 << 64) - 1),
)


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        bounds = ", ".join(
            f"{int(bound) if bound == int(bound) else bound}" for bound in (low, high)
        )
        raise InvalidArgument(f"{name} must lie in [{bounds}], not {value}", field=name)


def _at_most(name: str, values: Any, most: int) -> None:
    if len(values) > most:
        raise InvalidArgument(f"{name} has {len(values)} entries, at most {most}", field=name)


def _in_vocabulary(name: str, ids: Iterable[int], size: int) -> None:
    for token_id in ids:
        if not 0 <= token_id < size:
            raise InvalidArgument(
                f"{name}: {token_id} is no token of this model, whose ids go from 0 to {size - 1}",
                field=name,
            )


def _single(value: float) -> float:
    """As the wire will carry it, so that every holder has the same number."""
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded
