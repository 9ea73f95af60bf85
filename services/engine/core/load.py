"""How busy a batch is, in figures from which a router tells when a request would be answered."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil

from services.common.exchange import ENDS, HeadLoad, Phase, TenantLoad
from services.engine.backend import BLOCK_SIZE
from services.engine.core.scheduler import Scheduler, Step
from services.engine.core.sequence import BatchedSequence

FORGETTING = 0.9
"""What is left of one figure's weight when the next one comes."""
MOST_TENANTS = 256
"""Tenants that are told of; what the others have, the least of all, is told as one's."""
OTHERS = "+others"
"""A name that no tenant can have."""


class LoadGauge:
    """Of one formation."""

    def __init__(self) -> None:
        self._departed_s: dict[int, float] = {}
        """Of each step in flight."""
        self._lag_s = self._answer_tokens = self._found = 0.0
        self._answers = False
        self._early = 0.0
        """Of answers, the share that ended before they had to."""

    def departed(self, step: Step, now_s: float) -> None:
        """A step began its way through the stages."""
        self._departed_s[step.number] = now_s
        if step.cache.queried:
            self._found += (1 - FORGETTING) * (step.cache.hits / step.cache.queried - self._found)

    def came_back(self, step: int, took_s: float, now_s: float) -> None:
        """It is through; `took_s` is what it kept the stages from the next one."""
        lag_s = max(0.0, now_s - self._departed_s.pop(step) - took_s)
        self._lag_s += (1 - FORGETTING) * (lag_s - self._lag_s)

    def answered(self, tokens: int, *, at_limit: bool) -> None:
        """A sequence came to its end by itself, with so many output tokens; `at_limit`: it might
        have had no more."""
        if not self._answers:
            self._answers, self._answer_tokens = True, float(tokens)
            self._early = float(not at_limit)
        self._answer_tokens += (1 - FORGETTING) * (tokens - self._answer_tokens)
        self._early += (1 - FORGETTING) * (float(not at_limit) - self._early)

    def read(self, scheduler: Scheduler) -> HeadLoad:
        """The figures now."""
        running, waiting = scheduler.present
        settings, cost = scheduler.settings, scheduler.step_cost
        expected = self._answer_tokens
        if not self._answers:
            wanted = [s.request.sampling.max_tokens for s in running]
            expected = sum(wanted) / len(wanted) if wanted else 0.0
        return HeadLoad(
            places=settings.max_sequences,
            running=len(running),
            free_positions=scheduler.blocks.free_count * BLOCK_SIZE,
            step_rows=settings.token_budget,
            step_s=cost.of(0) if cost.known else 0.0,
            row_s=cost.row if cost.known else 0.0,
            lag_s=self._lag_s,
            answer_tokens=expected,
            tenants=_by_tenant(running, waiting, 1 - self._found),
            ends=ends([s.most_left for s in running], self._early / max(1.0, expected)),
            round_steps=scheduler.round_steps,
        )


def ends(most_left: Sequence[int], hazard: float) -> tuple[int, ...]:
    """Tokens of each until the first and each further part of answers have ended, of which so many
    may come yet; each of them is the last one with a probability of `hazard`."""
    if not most_left:
        return ()
    limits, count, goes_on = sorted(most_left), len(most_left), 1 - min(1.0, hazard)

    def ended(steps: int) -> float:
        """How many, on the mean."""
        at_limit = bisect_right(limits, steps)
        return at_limit + (count - at_limit) * (1 - goes_on**steps)

    steps = range(limits[-1] + 1)
    counts = (1, *(ceil(count * part / ENDS) for part in range(1, ENDS + 1)))
    return tuple(bisect_left(steps, number - 0.5, key=ended) for number in counts)


@dataclass(slots=True)
class _Sum:
    """Of one tenant in one lane."""

    weight: int
    running: int = 0
    queued: int = 0
    rows: int = 0


def _by_tenant(
    running: Iterable[BatchedSequence], waiting: Iterable[BatchedSequence], to_read: float
) -> tuple[TenantLoad, ...]:
    """`to_read`: of what waits, the share that is not found computed."""
    sums: dict[tuple[int, str], _Sum] = {}

    def sum_of(lane: int, tenant: str, weight: int) -> _Sum:
        return sums.setdefault((lane, tenant), _Sum(weight))

    for s in running:
        mine = sum_of(s.lane, s.request.tenant, s.request.tenant_weight)
        mine.running += 1
        mine.rows += s.remaining if s.phase is Phase.PREFILL else 0
    for s in waiting:
        mine = sum_of(s.lane, s.request.tenant, s.request.tenant_weight)
        mine.queued += 1
        mine.rows += ceil(s.remaining * to_read)
    for lane, tenant in sorted(sums, key=lambda k: -sums[k].running - sums[k].queued)[
        MOST_TENANTS:
    ]:
        few, others = sums.pop((lane, tenant)), sum_of(lane, OTHERS, 1)
        others.running += few.running
        others.queued += few.queued
        others.rows += few.rows
    return tuple(
        TenantLoad(tenant, lane, total.weight, total.running, total.queued, total.rows)
        for (lane, tenant), total in sums.items()
    )
