"""Choosing a token from one row of logits.

Order: repetition, presence and frequency penalties, logit bias, allowed ids, min_tokens, and what
a grammar lets follow; then greedy, or temperature, min-p, top-k, top-p and one draw. Candidates are
ordered logit down, id up, wherever an order matters. The draw is a function of (seed, choice,
position) alone, so a generation that moves carries no generator state. Ids that are given come
whatever is drawn. Log probabilities are the model's own, before any of this.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from services.common.generation import Sampling, TokenLogprob

Logits = NDArray[np.float32]
Ids = NDArray[np.int64]
FIRST_CUT = 1e-3
"""Probability relative to the best, above which a nucleus is looked for first."""

NEAR = np.float32(12)
"""Logits this far below the best are looked at only when too few lie closer."""
RUN = 256
"""Weights summed at once before a draw looks at single ones."""


def uniform(seed: int, choice: int, position: int) -> float:
    """The number in [0, 1) that decides one token: 53 bits of keyed BLAKE2b over the counter."""
    counter = choice.to_bytes(4, "little") + position.to_bytes(8, "little")
    digest = hashlib.blake2b(counter, digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


class Follows(Protocol):
    """What a text must follow, and where in it one sequence is."""

    def take(self, ids: Sequence[int]) -> None:
        """Goes on behind ids."""
        ...

    def allowed(self, logits: Logits) -> Logits:
        """A copy in which what may not follow is -inf. Raises Stuck where nothing may."""
        ...


@dataclass(slots=True)
class SlotState:
    """What one sequence's sampling depends on besides its logits."""

    sampling: Sampling
    choice: int
    prompt_length: int
    prompt_ids: frozenset[int]
    """And those given; kept for the repetition penalty only, else empty."""
    length: int = 0
    """Output ids so far."""
    counts: Counter[int] = field(default_factory=Counter)
    follows: Follows | None = None

    def extend(self, ids: Sequence[int]) -> None:
        """Take output ids into account."""
        given = max(0, len(self.sampling.given_ids) - self.length)
        self.length += len(ids)
        ids = ids[given:]
        if self.follows is not None:
            self.follows.take(ids)
        if self.penalized:
            self.counts.update(ids)

    @property
    def penalized(self) -> bool:
        """Some penalty is on, so the ids so far matter."""
        sampling = self.sampling
        return (
            sampling.repetition_penalty != 1
            or sampling.presence_penalty != 0
            or sampling.frequency_penalty != 0
        )


def open_slot(
    sampling: Sampling,
    choice: int,
    prompt_ids: Sequence[int],
    output_ids: Sequence[int],
    follows: Follows | None = None,
) -> SlotState:
    """The state of a sequence that goes on behind `output_ids`; `follows` is at its beginning."""
    repetition = sampling.repetition_penalty != 1
    seen = frozenset((*prompt_ids, *sampling.given_ids)) if repetition else frozenset()
    state = SlotState(sampling, choice, len(prompt_ids), seen, follows=follows)
    state.extend(output_ids)
    return state


def _penalize(logits: Logits, state: SlotState) -> None:
    sampling = state.sampling
    if sampling.repetition_penalty != 1:
        seen = np.fromiter(state.prompt_ids | state.counts.keys(), np.int64)
        values, penalty = logits[seen], np.float32(sampling.repetition_penalty)
        logits[seen] = np.where(values > 0, values / penalty, values * penalty)
    if state.counts and (sampling.presence_penalty or sampling.frequency_penalty):
        ids = np.fromiter(state.counts.keys(), np.int64)
        times = np.fromiter(state.counts.values(), np.float32)
        logits[ids] -= np.float32(sampling.presence_penalty)
        logits[ids] -= np.float32(sampling.frequency_penalty) * times


def adjust(logits: Logits, state: SlotState) -> Logits:
    """Penalties, bias, allowed ids and min_tokens; a copy where any of them applies, else `logits`
    itself."""
    sampling = state.sampling
    masked: tuple[int, ...] = ()
    if state.length < sampling.min_tokens:
        masked = sampling.stop_token_ids
        masked += () if sampling.ignore_eos else sampling.eos_token_ids
    allowed = list(sampling.allowed_token_ids)
    if not (state.penalized or sampling.logit_bias or masked or allowed):
        return logits
    adjusted = logits.copy()
    if state.penalized:
        _penalize(adjusted, state)
    for token_id, bias in sampling.logit_bias.items():
        adjusted[token_id] += np.float32(bias)
    if allowed:
        kept = adjusted[allowed]
        adjusted[:] = -np.inf
        adjusted[allowed] = kept
    adjusted[list(masked)] = -np.inf
    return adjusted


def best(logits: Logits, count: int) -> Ids:
    """The `count` best ids, logit down, id up."""
    ids = np.flatnonzero(logits >= logits.max() - NEAR)
    if len(ids) < count:
        ids = np.arange(len(logits))
    values = logits[ids]
    if count < len(ids):
        kept = values >= np.partition(values, len(ids) - count)[len(ids) - count]
        ids, values = ids[kept], values[kept]
    return ids[np.argsort(-values, kind="stable")][:count]


def _nucleus(weights: NDArray[np.float32], top_p: float) -> Ids:
    """The least number of best ids whose share of all weight reaches `top_p`."""
    needed = weights.sum(dtype=np.float64) * np.float32(top_p)
    cut = np.float32(FIRST_CUT)
    while True:
        ids = np.flatnonzero(weights >= cut)
        ids = ids[np.argsort(-weights[ids], kind="stable")]
        reached = np.cumsum(weights[ids], dtype=np.float64) >= needed
        if reached[-1] or len(ids) == len(weights):
            return ids[: int(reached.argmax()) + 1] if reached[-1] else ids
        cut = cut * np.float32(FIRST_CUT) if cut > 1e-30 else np.float32(0)


def draw(logits: Logits, sampling: Sampling, u: float) -> int:
    """The id that `u` in [0, 1) points at; skips every filter that was not asked for."""
    if not np.isfinite(logits.max()):  # every id masked, or parameters that overflow
        return int(logits.argmax())
    ids: Ids | None = None
    if 0 < sampling.top_k < len(logits):
        ids = best(logits, sampling.top_k)
        logits = logits[ids]
    with np.errstate(over="ignore"):  # a temperature near zero leaves the best id alone
        weights = np.exp((logits - logits.max()) / np.float32(sampling.temperature))
    if sampling.min_p > 0:
        weights[weights < np.float32(sampling.min_p)] = 0
    if sampling.top_p < 1:
        kept = _nucleus(weights, sampling.top_p)
        weights = weights[kept]
        ids = kept if ids is None else ids[kept]
    index = _pick(weights, u)
    return index if ids is None else int(ids[index])


def _pick(weights: NDArray[np.float32], u: float) -> int:
    """The first index at which the running sum exceeds u of the whole; blocks first, for speed."""
    starts = np.arange(0, len(weights), RUN)
    sums = np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))
    aim = u * sums[-1]
    block = min(int(np.searchsorted(sums, aim, side="right")), len(sums) - 1)
    before = sums[block - 1] if block else 0.0
    part = weights[block * RUN : (block + 1) * RUN]
    inside = np.cumsum(part, dtype=np.float64)
    index = block * RUN + int(np.searchsorted(inside, aim - before, side="right"))
    if index < len(weights) and weights[index] > 0:
        return index
    return int(np.flatnonzero(weights)[-1])  # rounding led past the last candidate


def logprob_of(logits: Logits, token_id: int, alternatives: int) -> TokenLogprob:
    """Log probabilities of a token and of the likeliest alternatives."""
    peak = logits.max()
    total = np.exp(logits - peak).sum(dtype=np.float64)
    normalizer = float(peak) + float(np.log(total))
    top = best(logits, alternatives) if alternatives else ()
    return TokenLogprob(
        float(np.float32(logits[token_id] - normalizer)),
        tuple((int(i), float(np.float32(logits[i] - normalizer))) for i in top),
    )


def sample(logits: Logits, state: SlotState) -> tuple[int, TokenLogprob | None]:
    """The next token of a sequence, which is taken into account at once. Raises Stuck."""
    sampling = state.sampling
    token_id = _chosen(logits, state)
    state.extend((token_id,))
    if sampling.top_logprobs is None:
        return token_id, None
    return token_id, logprob_of(logits, token_id, sampling.top_logprobs)


def _chosen(logits: Logits, state: SlotState) -> int:
    sampling, given = state.sampling, state.sampling.given_ids
    if state.length < len(given):
        return given[state.length]
    adjusted = adjust(logits, state)
    if state.follows is not None:
        adjusted = state.follows.allowed(adjusted)
    if sampling.temperature == 0:
        return int(adjusted.argmax())  # the first of equals: id up
    u = uniform(sampling.seed, state.choice, state.length - len(given))
    return draw(adjusted, sampling, u)
