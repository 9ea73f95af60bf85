"""What generations were seen to take: how fast they go on where they are, how long answers get,
and what it takes a head to go on with one that it is given. Records in, rates out.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median

from services.common.exchange import MovedBy
from services.common.generation import (
    CancelReason,
    FinishReason,
    GenerationRequest,
    ModelRef,
    TokenSpan,
)
from services.controller.core.departure.lengths import AnswerLengths
from services.controller.core.departure.move import Rates
from services.controller.core.ledger.records import (
    Ended,
    Forgotten,
    Granted,
    HeadBound,
    IdsAppended,
    Kept,
    Record,
)

STARTS_KEPT = 64
"""Of each model, what the last ones took from their grant to their first token."""
STEADY_TOKENS = 8
"""From fewer no rate follows: they come in bunches."""


@dataclass(slots=True)
class _Run:
    """A generation at the head that has it."""

    request: GenerationRequest
    formation_id: str
    granted_s: float
    ends: dict[int, int] = field(default_factory=dict)
    """Ids held, by choice."""
    positions: int = 0
    """That its head had to compute first; 0 once it has."""
    over: set[int] = field(default_factory=set)
    """Choices that have ended."""
    moved_by: MovedBy = ""
    """How its head comes to what it goes on from."""
    first: tuple[int, float] | None = None
    """Ids of its longest choice, and when, as they were first told."""
    last: tuple[int, float] | None = None

    @property
    def tokens_per_s(self) -> float:
        if self.first is None or self.last is None:
            return 0.0
        tokens, took_s = self.last[0] - self.first[0], self.last[1] - self.first[1]
        return tokens / took_s if tokens >= STEADY_TOKENS and took_s > 0 else 0.0


class Observed:
    """Since this process began."""

    def __init__(self) -> None:
        self._runs: dict[str, _Run] = {}
        self._lengths: defaultdict[ModelRef, AnswerLengths] = defaultdict(AnswerLengths)
        self._starts: defaultdict[ModelRef, deque[tuple[float, float]]] = defaultdict(
            lambda: deque(maxlen=STARTS_KEPT)
        )
        """Positions, and what they took."""
        self._pushes: defaultdict[ModelRef, deque[tuple[float, float]]] = defaultdict(
            lambda: deque(maxlen=STARTS_KEPT)
        )
        """The same of those whose blocks came, with the positions that were computed all the
        same."""

    def moved(self, generation_id: str, by: MovedBy) -> None:
        """What it goes on from came to its head, or is computed there."""
        run = self._runs.get(generation_id)
        if run is not None:
            run.moved_by = by

    def record(self, record: Record, now_s: float) -> None:
        """Something is to be journaled."""
        name = record.generation_id
        if isinstance(record, HeadBound):
            self._given(name, record, (), now_s)
        elif isinstance(record, Granted):
            self._given(name, record, record.spans, now_s)
        elif isinstance(record, IdsAppended):
            self._told(name, record.span, now_s)
        elif isinstance(record, Forgotten | Kept):
            self._runs.pop(name, None)
        elif isinstance(record, Ended):
            self._ended(name, record)

    def _given(
        self, name: str, record: HeadBound | Granted, spans: Iterable[TokenSpan], now_s: float
    ) -> None:
        before = self._runs.get(name)
        run = _Run(record.request, record.formation_id, now_s)
        if before is not None:
            run.ends, run.over = before.ends, before.over
        for span in spans:
            run.ends[span.choice] = max(run.ends.get(span.choice, 0), span.end)
        known = before is not None or isinstance(record, HeadBound)
        if known and record.formation_id:
            run.positions = len(record.request.prompt_ids) + sum(run.ends.values())
        self._runs[name] = run

    def _told(self, name: str, span: TokenSpan, now_s: float) -> None:
        run = self._runs.get(name)
        if run is None:
            return
        model = run.request.model
        run.ends[span.choice] = max(run.ends.get(span.choice, 0), span.end)
        if run.positions:
            computed = max(1, run.positions - span.cached_tokens)
            seen = self._pushes if run.moved_by == "kv" else self._starts
            seen[model].append((computed, now_s - run.granted_s))
            run.positions = 0
        longest = max(run.ends.values())
        run.first = run.first or (longest, now_s)
        run.last = (longest, now_s)
        if span.finish_reason is not None:
            if span.finish_reason is not FinishReason.CANCELLED:
                self._lengths[model].ended(span.end, cut=span.finish_reason is FinishReason.LENGTH)
            self._over(name, run, span.choice)

    def _ended(self, name: str, record: Ended) -> None:
        run = self._runs.get(name)
        if record.choice is None:
            self._runs.pop(name, None)
        elif run is not None and record.choice not in run.over:
            if record.reason is CancelReason.STOP and record.length is not None:
                self._lengths[run.request.model].ended(record.length, cut=False)
            self._over(name, run, record.choice)

    def _over(self, name: str, run: _Run, choice: int) -> None:
        run.over.add(choice)
        if len(run.over) == run.request.choices:
            del self._runs[name]

    # What follows from it

    def lengths(self, model: ModelRef) -> AnswerLengths:
        """Of its answers."""
        return self._lengths[model]

    def tokens_per_s(self, generation_ids: Iterable[str]) -> dict[str, float]:
        """Of each choice of generations that are at one head: the mean for those that are too young
        to tell, 0 where all are."""
        runs = {name: self._runs.get(name) for name in generation_ids}
        told = {name: run.tokens_per_s if run else 0.0 for name, run in runs.items()}
        known = [rate for rate in told.values() if rate]
        mean = sum(known) / len(known) if known else 0.0
        return {name: rate or mean for name, rate in told.items()}

    def rates(self, model: ModelRef, room_positions: float) -> Rates:
        """What it takes to go on with one: a line through what was seen, by least squares. Where
        nothing was it takes nothing, and moves begin as late as can be."""
        starts, pushes = self._starts[model], self._pushes[model]
        if not starts:
            push_s = median(took_s for _, took_s in pushes) if pushes else 0.0
            return Rates(push_s=push_s, room_positions=room_positions)
        mean = sum(positions for positions, _ in starts) / len(starts)
        took_s = sum(seconds for _, seconds in starts) / len(starts)
        variance = sum((positions - mean) ** 2 for positions, _ in starts)
        covariance = sum((positions - mean) * (seconds - took_s) for positions, seconds in starts)
        slope = covariance / variance if variance else took_s / mean
        slope = min(max(slope, 1e-9), took_s / mean if took_s else 1e-9)
        return Rates(
            replay_s=max(0.0, took_s - slope * mean),
            replay_positions_per_s=1 / slope,
            push_s=median(max(0.0, took_s - n * slope) for n, took_s in pushes) if pushes else 0.0,
            room_positions=room_positions,
        )
