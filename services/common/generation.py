"""The values of a generation: its request, its tokens, and when a choice ends.

Validated where they enter (router, wire); here they are data. Ends that follow from ids alone are
decided in this file only, so that head, journal and router agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType


class FinishReason(StrEnum):
    """Why a choice ended."""

    STOP = "stop"
    """An end-of-sequence id, a stop id or a stop string."""
    LENGTH = "length"
    CANCELLED = "cancelled"


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
class Sampling:
    """How the next token is chosen; every default is resolved."""

    max_tokens: int
    temperature: float = 1.0
    """0 is greedy."""
    top_k: int = 0
    """0 keeps every token."""
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    top_logprobs: int | None = None
    """None: no logprobs; else how many alternatives to report."""
    min_tokens: int = 0
    """End-of-sequence and stop ids are masked at output positions below this."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    eos_token_ids: tuple[int, ...] = ()
    seed: int = 0
    """Key of the counter-based random numbers; the counter is (choice, position)."""


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

    @property
    def end(self) -> int:
        """Position behind the last id."""
        return self.start + len(self.ids)


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
