"""What a client asked for, whichever door it came through, and how it becomes a request.

An edge checks types and fills an `Ask`; ranges are checked here, once for both doors. `resolve`
leaves nothing open: from there on the request is data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from services.common.channel_options import MAX_MESSAGE_BYTES
from services.common.errors import InvalidArgument
from services.common.generation import (
    SAMPLING,
    GenerationKind,
    GenerationRequest,
    Grammar,
    ModelRef,
    PriorityClass,
    ResponseTerms,
    Sampling,
)
from services.common.sampling_fields import Kind, SamplingField
from services.common.tenants import NOBODY, Tenant
from services.common.wire import MAX_CACHE_SALT_CHARS, MAX_GRAMMAR_CHARS
from services.model.chat import Message
from services.model.grammar import LIBRARY
from services.model.tools import ToolUse

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 1024
MAX_MESSAGES = 4096
MAX_PROMPT_IDS = 1 << 20
MAX_MODEL_CHARS = 256
ROLES = ("system", "user", "assistant", "tool")
_PROMPT_IDS = SamplingField("prompt", Kind.IDS, ())


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
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """What was asked for of the sampling fields, by name; what is absent takes the model's default,
    or else what changes nothing."""
    most_tokens: int | None = None
    """Bound of max_tokens where the client set none; None: what the context holds."""
    stop_strings: tuple[str, ...] = ()
    include_usage: bool = True
    cache_salt: str = ""
    """What is computed for the prompt is used for asks of the same salt alone."""
    bare: bool = False
    """Of a text: without the tokens that a tokenizer adds by itself."""
    echo: bool = False
    """The prompt comes first in the answer, its tokens as likely as the model takes them to be."""
    grammar: str = ""
    """What the text of every choice must follow; empty: anything."""
    grammar_parameter: str = ""
    """What asks for it."""
    tools: ToolUse | None = None
    """What may be called; None: nothing, and what looks like a call is text."""
    template_options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Variables of chat templates, by name; one that reads none of them is told none."""
    generation_id: str = ""
    """Drawn when empty."""
    template_names: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """What was sent beside the conversation for chat templates that read it: by its name in a
    template, the parameter it came in. No template is given it."""
    digest: str = ""
    """Equal for a client's retries of it; empty when they cannot be known."""
    is_retry: bool = False
    """The client says that it asks again."""
    tenant: Tenant = NOBODY
    """Who asks."""
    deadline_s: float | None = None
    """Within which its first token is wanted; None: by its class's setting, if at all."""
    response: ResponseTerms | None = None
    """Set for what can be asked for again by its id, long after its end."""

    def check(self, max_choices: int) -> None:
        """Raises InvalidArgument for what no model could do."""
        if not self.model or len(self.model) > MAX_MODEL_CHARS:
            raise InvalidArgument(
                f"model must be a string of 1 to {MAX_MODEL_CHARS} characters, and has "
                f"{len(self.model)}",
                field="model",
            )
        _between("choices", self.choices, 1, max_choices)
        for name, value in self.options.items():
            SAMPLING[name].check(value)
        priority = self.tenant.priority
        if self.options.get("kv_int8") and priority is not PriorityClass.TOLERANT:
            raise InvalidArgument(
                f"kv_int8 is for requests of class tolerant, and this one is {priority.value}",
                field="kv_int8",
            )
        if self.max_tokens == 0 and not self.echo:
            raise InvalidArgument(
                "max_tokens must be 1 or more, not 0, where no prompt is echoed", field="max_tokens"
            )
        if self.echo and self.kind is GenerationKind.CHAT:
            raise InvalidArgument("echo is of completions, not of chats", field="echo")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidArgument(
                f"min_tokens is {self.min_tokens}, over max_tokens, which is {self.max_tokens}",
                field="min_tokens",
            )
        if len(self.cache_salt) > MAX_CACHE_SALT_CHARS:
            raise InvalidArgument(
                f"cache_salt has {len(self.cache_salt)} characters, at most {MAX_CACHE_SALT_CHARS}",
                field="cache_salt",
            )
        if self.grammar:
            self._check_grammar()
        if self.tools is not None:
            self._check_ends("tools")
        _at_most("stop_strings", self.stop_strings, MAX_STOP_STRINGS)
        for length in map(len, self.stop_strings):
            if not 1 <= length <= MAX_STOP_CHARS:
                raise InvalidArgument(
                    f"stop_strings: one has {length} characters, not 1 to {MAX_STOP_CHARS}",
                    field="stop_strings",
                )
        self.check_turns()
        if not self.prompt:
            raise InvalidArgument("the prompt is empty", field=self._prompt_field)

    def check_turns(self) -> None:
        """Raises InvalidArgument for a conversation of no turn, or of too many."""
        if self.kind is GenerationKind.CHAT:
            if not self.prompt:
                raise InvalidArgument("the conversation has no turn", field="messages")
            _at_most("messages", self.prompt, MAX_MESSAGES)

    def _check_grammar(self) -> None:
        name = self.grammar_parameter
        if len(self.grammar) > MAX_GRAMMAR_CHARS:
            raise InvalidArgument(
                f"{name} has {len(self.grammar)} characters, at most {MAX_GRAMMAR_CHARS}",
                field=name,
            )
        self._check_ends(name)

    def _check_ends(self, name: str) -> None:
        for option in ("min_tokens", "ignore_eos", "allowed_token_ids"):
            if self.options.get(option):
                raise InvalidArgument(
                    f"{option} cannot be kept beside {name}, which says where an answer may end",
                    field=option,
                )

    @property
    def max_tokens(self) -> int | None:
        """What was asked for."""
        return self.options.get("max_tokens")

    @property
    def min_tokens(self) -> int:
        """What was asked for."""
        return int(self.options.get("min_tokens", 0))

    @property
    def prompt_bytes(self) -> int:
        """Length of the prompt's text in UTF-8, without what a template adds; 0 for ids."""
        if isinstance(self.prompt, str):
            return len(self.prompt.encode())
        size = 0
        for entry in self.prompt:
            if isinstance(entry, Message):
                size += len(entry.content.encode())
        return size

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
        max_tokens = self.max_tokens
        if max_tokens is None:
            max_tokens = min(room, self.most_tokens or room)
        if self.min_tokens > max_tokens:
            raise InvalidArgument(
                f"min_tokens is {self.min_tokens}, over the {max_tokens} tokens that may come",
                field="min_tokens",
            )
        for name, value in self.options.items():
            SAMPLING[name].check_ids(value, model.vocabulary_size)
        if not isinstance(self.prompt, str) and self.kind is not GenerationKind.CHAT:
            _PROMPT_IDS.check_ids(prompt_ids, model.vocabulary_size)
        # A prompt that is shown is given id by id behind its first one: what comes of a prompt is
        # then journalled, resumed and replayed as all that comes of an answer.
        read = prompt_ids[:1] if self.echo else prompt_ids
        given = tuple(prompt_ids[len(read) :])
        if not given and not max_tokens:
            raise InvalidArgument(
                "max_tokens is 0, and of a prompt of one token nothing is to be said",
                field="max_tokens",
            )
        return GenerationRequest(
            generation_id=self.generation_id or drawn.generation_id,
            model=model.ref,
            prompt_ids=tuple(read),
            sampling=self._sampling(model, max_tokens, drawn.seed, given),
            choices=self.choices,
            stop_strings=self.stop_strings,
            kind=self.kind,
            created_unix_s=drawn.created_unix_s,
            include_usage=self.include_usage,
            ask_digest=self.digest,
            cache_salt=self.cache_salt,
            tenant=self.tenant.name,
            priority=self.tenant.priority,
            tenant_weight=self.tenant.weight,
            response=self.response,
        )

    def _sampling(
        self, model: ModelLimits, max_tokens: int, seed: int, given: tuple[int, ...]
    ) -> Sampling:
        wanted = dict(model.unasked)
        for name, value in self.options.items():
            wanted[name] = SAMPLING[name].rounded(value)
        wanted.pop("max_tokens", None)
        if wanted["top_p"] == 0:  # the smallest nucleus there is: the likeliest token alone
            wanted |= {"top_k": 1, "top_p": 1.0}
        known = model.special_token_ids
        spelt = (known[text] for text in self.stop_strings if text in known)
        wanted |= {
            "top_k": max(wanted["top_k"], 0),
            "stop_token_ids": tuple(dict.fromkeys((*wanted["stop_token_ids"], *spelt))),
            "seed": self.options.get("seed", seed) % (1 << 64),
            "min_tokens": len(given) + wanted["min_tokens"],
        }
        sampling = Sampling(
            max_tokens=len(given) + max_tokens,
            given_ids=given,
            echo=self.echo,
            eos_token_ids=model.eos_token_ids,
            grammar=Grammar(self.grammar, LIBRARY) if self.grammar else None,
            **wanted,
        )
        _check_goes_on(sampling)
        return sampling


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What of a model decides a request."""

    ref: ModelRef
    max_positions: int
    vocabulary_size: int
    eos_token_ids: tuple[int, ...]
    special_token_ids: Mapping[str, int]
    """By a special token's text: what never shows can stop by its id alone."""
    unasked: Mapping[str, Any]
    """What the sampling fields of a request have that says nothing of them, by name (`unasked`)."""
    max_message_bytes: int = MAX_MESSAGE_BYTES
    """What a whole generation must fit, as a message."""


def unasked(defaults: Mapping[str, float]) -> Mapping[str, Any]:
    """What sampling fields have that nobody asked for, as the wire carries it: the model's own
    values, by name, or else what changes nothing."""
    values = {
        name: row.rounded(defaults.get(name, row.neutral))
        for name, row in SAMPLING.items()
        if row.asked and name != "max_tokens"
    }
    return MappingProxyType(values)


@dataclass(frozen=True, slots=True)
class Drawn:
    """What chance and the clock add to a request."""

    generation_id: str
    seed: int
    created_unix_s: int


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        bounds = ", ".join(
            f"{int(bound) if bound == int(bound) else bound}" for bound in (low, high)
        )
        raise InvalidArgument(f"{name} must lie in [{bounds}], not {value}", field=name)


def _at_most(name: str, values: Any, most: int) -> None:
    if len(values) > most:
        raise InvalidArgument(f"{name} has {len(values)} entries, at most {most}", field=name)


def _check_goes_on(sampling: Sampling) -> None:
    """Raises InvalidArgument where nothing may come that does not end a choice, and it may not end
    yet."""
    ends = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else sampling.eos_token_ids)}
    allowed = sampling.allowed_token_ids
    goes_on = sampling.min_tokens > len(sampling.given_ids)
    if goes_on and allowed and ends.issuperset(allowed):
        raise InvalidArgument(
            "allowed_token_ids allows nothing but ends, and min_tokens forbids those",
            field="allowed_token_ids",
        )
