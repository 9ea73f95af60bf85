"""The values of a generation: its request, its tokens, and when a choice ends.

Validated where they enter (router, wire); here they are data. Ends that follow from ids alone are
decided in this file only, so that head, journal and router agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from services.common.sampling_fields import (
    SamplingField,
    biases,
    boolean,
    ids,
    integer,
    number,
    table_of,
)


class FinishReason(StrEnum):
    """Why a choice ended."""

    STOP = "stop"
    """An end-of-sequence id, a stop id or a stop string."""
    LENGTH = "length"
    CANCELLED = "cancelled"
    GRAMMAR = "grammar"
    """What its text must follow has become too much to go on with."""


class CancelReason(StrEnum):
    """Why a generation, or one choice of it, is ended from outside."""

    CLIENT = "client"
    """Given up: answered as cancelled from now on."""
    STOP = "stop"
    """A router found a stop string: no more is needed, what is held stays readable."""


class GenerationKind(StrEnum):
    """The surface of the API it was asked through."""

    CHAT = "chat"
    COMPLETION = "completion"


class CallForm(StrEnum):
    """How calls of tools are written in a text."""

    HERMES = "hermes"
    """`<tool_call>{"name": …, "arguments": …}</tool_call>`"""
    LLAMA = "llama"
    """`{"name": …, "parameters": …}` at the text's start, or `[name(key=value)]`"""
    MISTRAL = "mistral"
    """`[TOOL_CALLS][{"name": …, "arguments": …}]`"""
    MISTRAL_ARGS = "mistral_args"
    """`[TOOL_CALLS]name[ARGS]{…}`"""


class Thinking(StrEnum):
    """Whether an answer begins with thoughts."""

    NONE = "none"
    MAY = "may"
    """Where it begins with the tag that opens them."""
    BEGUN = "begun"
    """The prompt ends with that tag."""


@dataclass(frozen=True, slots=True)
class AnswerParts:
    """What the text of an answer is made of, and so how it is told."""

    calls: CallForm | None = None
    """None: what looks like a call of a tool is text."""
    tools: tuple[str, ...] = ()
    """What may be called, by name."""
    named: bool = False
    """One of them had to be: its call ends an answer as any text does."""
    thinking: Thinking = Thinking.NONE


PLAIN = AnswerParts()
"""Text, and nothing else."""


class PriorityClass(StrEnum):
    """What a generation may be made to wait for."""

    PROTECTED = "protected"
    STANDARD = "standard"
    TOLERANT = "tolerant"
    """It gives way to all others, and goes on when there is room again."""


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A stored model; the digest decides, the id is for people."""

    model_id: str
    digest: str


@dataclass(frozen=True, slots=True, order=True)
class LayerRange:
    """Layers start to end, half-open."""

    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the text of every choice must follow."""

    text: str
    """As `services.model.grammar` writes it."""
    library: str
    """Name and version of what compiles it: another may let other tokens follow."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen; every default is resolved. Each attribute is a row of the table
    of sampling fields, but for the grammar."""

    max_tokens: int = integer(low=0, settled=(0,))
    """Of a choice, with those that are given."""
    temperature: float = number(1.0, 0, 2, of_model=True)
    """0 is greedy."""
    top_k: int = integer(0, low=-1, of_model=True)
    """0 keeps every token."""
    top_p: float = number(1.0, 0, 1, of_model=True, settled=(0.0,))
    min_p: float = number(0.0, 0, 1, below_high=True, of_model=True)
    presence_penalty: float = number(0.0, -2, 2)
    frequency_penalty: float = number(0.0, -2, 2)
    repetition_penalty: float = number(1.0, 0, 2, above_low=True, of_model=True)
    logit_bias: Mapping[int, float] = biases(1024, -100, 100)
    top_logprobs: int | None = integer(None, high=20)
    """None: no logprobs; else how many alternatives to report."""
    min_tokens: int = integer(0)
    """End-of-sequence and stop ids are masked at output positions below this."""
    stop_token_ids: tuple[int, ...] = ids(128)
    ignore_eos: bool = boolean()
    eos_token_ids: tuple[int, ...] = ids(asked=False)
    seed: int = integer(0, low=-(1 << 63), high=(1 << 64) - 1)
    """Key of the counter-based random numbers; the counter is (choice, position)."""
    grammar: Grammar | None = None
    allowed_token_ids: tuple[int, ...] = ids(1024)
    """Empty: any may come."""
    given_ids: tuple[int, ...] = ids(asked=False)
    """A choice's first tokens, whatever the model thinks of them: it only says how likely they are.
    They are the prompt's, behind what is read at once; `min_tokens` and `max_tokens` count them."""
    echo: bool = boolean(asked=False)
    """The prompt comes first in the text of each choice."""
    kv_int8: bool = boolean()
    """Its KV blocks may travel rounded: what comes behind such a move is what nobody else computes
    from its ids. For what is tolerant."""


SAMPLING: Mapping[str, SamplingField] = table_of(Sampling)
"""The rows, by name."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural logarithm of a produced token's probability, and the likeliest alternatives."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """Consecutive ids of one choice, as messages carry them."""

    choice: int
    start: int
    """Output position of the first id."""
    ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    """Empty, or one entry an id."""
    finish_reason: FinishReason | None = None
    """Set when the choice ends behind the last id."""
    cached_tokens: int = 0
    """Of a span from position 0: prompt tokens that were cached when the prompt was first read."""

    @property
    def end(self) -> int:
        """Position behind the last id."""
        return self.start + len(self.ids)


@dataclass(frozen=True, slots=True)
class ResponseTerms:
    """What a request is besides, that was asked for as a response of its own."""

    store: bool
    """It is kept for long behind its end."""
    background: bool
    """It runs on when nobody reads it, as what is read does."""
    details: str
    """What its door tells of it, in a form of that door's; decides nothing."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """Everything that decides one request's output."""

    generation_id: str
    model: ModelRef
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    choices: int = 1
    stop_strings: tuple[str, ...] = ()
    kind: GenerationKind = GenerationKind.CHAT
    created_unix_s: int = 0
    include_usage: bool = False
    numerics_class: str = ""
    """The class of arithmetic it began under; empty before the first head accepts."""
    ask_digest: str = ""
    """Equal for an ask and its client's retries of it; empty when it came through no such door."""
    cache_salt: str = ""
    """Its blocks are shared with requests of the same salt alone."""
    parts: AnswerParts = PLAIN
    tenant: str = ""
    """Whose it is: to others it is not there. Empty where nobody was asked for a key."""
    priority: PriorityClass = PriorityClass.STANDARD
    tenant_weight: int = 1
    """Its tenant's share against others'."""
    response: ResponseTerms | None = None
    """Set for what can be asked for again by its id, long after its end."""

    @property
    def runs_unread(self) -> bool:
        """It does not give way, nor is it parked, because nobody reads it."""
        return self.response is not None and self.response.background

    @property
    def prompt_tokens(self) -> int:
        """Those that were asked with, whether read at once or given one by one."""
        return len(self.prompt_ids) + len(self.sampling.given_ids)

    def answered(self, produced: int) -> int:
        """How many of a choice's tokens are its answer."""
        return max(0, produced - len(self.sampling.given_ids))


def finish_at(request: GenerationRequest, position: int, token_id: int) -> FinishReason | None:
    """Why a choice ends behind the id at an output position; None when it goes on."""
    sampling = request.sampling
    if position >= sampling.min_tokens and (
        token_id in sampling.stop_token_ids
        or (token_id in sampling.eos_token_ids and not sampling.ignore_eos)
    ):
        return FinishReason.STOP
    if position + 1 >= sampling.max_tokens:
        return FinishReason.LENGTH
    return None


def finish_of(
    request: GenerationRequest, ids: Sequence[int], start: int = 0
) -> tuple[int, FinishReason] | None:
    """Length and reason at the first end among `ids`, which begin at output position `start`."""
    for offset, token_id in enumerate(ids):
        reason = finish_at(request, start + offset, token_id)
        if reason is not None:
            return start + offset + 1, reason
    return None
