"""What a run of a scenario under one strategy comes to, on real meshes and in the simulation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Protocol

from services.controller.core.strategy import FULL

NOISE = 0.05
"""Two runs of the same differ by so much."""


class Event(Protocol):
    """An entry of the event log, of a mesh or of a ledger."""

    @property
    def kind(self) -> str: ...
    @property
    def generation_id(self) -> str: ...
    @property
    def attributes(self) -> Mapping[str, str]: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one request."""

    latency_s: float | None = None
    """From asking to the last token; None where it did not come."""
    tokens: int = 0
    content: object = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Again:
    """What heads computed a second time."""

    sampled: int = 0
    """Ids that were held already, sampled again one after another."""
    replayed: int = 0
    """Ids of prompts and bases, read again in a few large steps."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One strategy's run."""

    strategy: str
    asked: int
    completed: int
    p50_s: float
    p99_s: float
    goodput_tokens_per_s: float
    """Of answers that were whole in time, over the whole run."""
    dollars: float
    again: Again
    failed: tuple[str, ...] = ()
    differ: int = 0
    """Answers that are others than those of the first strategy that was run."""


def figures_of(
    strategy: str,
    answers: Sequence[Answer],
    *,
    within_s: float,
    ran_s: float,
    dollars: float,
    again: Again,
    first: Sequence[Answer] = (),
) -> Figures:
    """`ran_s` is from ready to the last answer; `first` are those of the first strategy."""
    whole = [(a.latency_s, a.tokens) for a in answers if a.latency_s is not None]
    late = sorted(latency_s for latency_s, _ in whole)
    return Figures(
        strategy,
        len(answers),
        len(late),
        median(late) if late else 0.0,
        late[min(len(late) - 1, round(0.99 * len(late)))] if late else 0.0,
        sum(tokens for latency_s, tokens in whole if latency_s <= within_s) / ran_s,
        dollars,
        again,
        tuple(answer.error for answer in answers if answer.latency_s is None),
        sum(
            None not in (a.latency_s, b.latency_s) and a.content != b.content
            for a, b in zip(first, answers, strict=False)
        ),
    )


def computed_again(events: Iterable[Event], prompt_tokens: Mapping[str, int]) -> Again:
    """From the log: what grants gave to read, and what ended generations had sampled again."""
    sampled = replayed = 0
    for event in events:
        if event.kind == "generation_granted":
            base = sum(int(length) for length in event.attributes["base"].split(","))
            replayed += prompt_tokens.get(event.generation_id, 0) + base
        elif event.kind == "generation_finished":
            sampled += int(event.attributes.get("computed_again", "0"))
    return Again(sampled, replayed)


def better_than_full(found: Sequence[Figures]) -> list[str]:
    """Who was, and in what, beyond what two runs of the same differ by."""
    full = next((one for one in found if one.strategy == FULL.name), None)
    if full is None:
        return []
    goodput, p99_s = full.goodput_tokens_per_s * (1 + NOISE), full.p99_s * (1 - NOISE)
    return [
        *(f"{one.strategy}: goodput" for one in found if one.goodput_tokens_per_s > goodput),
        *(f"{one.strategy}: P99" for one in found if one.p99_s < p99_s),
    ]
