"""What is asked of each model: told by routers as counts since their start, added up, smoothed.

Every count fades with the time constant of the smoothing, and so do the seconds it was taken over:
their quotient is a mean of the recent past from the first second on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from services.common.demand import Demand

MAX_ROUTERS = 4096
MAX_MODELS = 64
"""Of one router; more are not looked at."""
LEAST_RPS = 1e-3
"""Where next to nothing arrives: a rate of zero would ask for all that can be had."""
_SIGMAS = 2.0
"""What arrives by chance differs by so many roots of its number."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What requests of a model look like: means, and how many arrive a second. Tokens of zero are
    not known."""

    arrival_rate_rps: float = 0.0
    input_tokens: float = 0.0
    output_tokens: float = 0.0
    window_s: float = math.inf
    """What the means were taken over: few requests say little."""

    def within(self, planned: Workload, share: float, *, arrivals: bool = True) -> bool:
        """Each of the means is within this share of the planned one, or as near as chance is;
        without `arrivals` their rate does not count."""
        rate, then = self.arrival_rate_rps, planned.arrival_rate_rps
        if arrivals and not _near(rate, then, share, max(rate, then) * self.window_s):
            return False
        pairs = (
            (self.input_tokens, planned.input_tokens),
            (self.output_tokens, planned.output_tokens),
        )
        return all(_near(now, then, share, rate * self.window_s) for now, then in pairs if now)


def together(workloads: Sequence[Workload | None]) -> Workload | None:
    """What several models are asked for, as one; None where one of them is not known. Means count
    by arrivals."""
    known = [one for one in workloads if one is not None]
    if len(known) < len(workloads) or not known:
        return None
    if len(known) == 1:
        return known[0]
    rate = sum(one.arrival_rate_rps for one in known)
    shares = [one.arrival_rate_rps / rate if rate else 1 / len(known) for one in known]
    return Workload(
        rate,
        sum(s * one.input_tokens for s, one in zip(shares, known, strict=True)),
        sum(s * one.output_tokens for s, one in zip(shares, known, strict=True)),
        min(one.window_s for one in known),
    )


def _near(now: float, then: float, share: float, requests: float) -> bool:
    """`requests` is how many the mean is of."""
    by_chance = _SIGMAS / math.sqrt(requests) if requests > 0 else math.inf
    return abs(now - then) <= max(share, by_chance) * max(now, then)


@dataclass(frozen=True, slots=True)
class WorkloadSettings:
    """Timings in seconds."""

    smooth_s: float = 60.0
    """Time constant of the means."""
    router_gone_s: float = 15.0
    """A router that has said nothing for so long is asked nothing any more."""


@dataclass(slots=True)
class _Means:
    """Counts of one model at one router, faded."""

    last: Demand
    requests: float = 0.0
    input_tokens: float = 0.0
    answers: float = 0.0
    output_tokens: float = 0.0

    def add(self, told: Demand, fade: float) -> None:
        """What was told behind the last time."""
        before, self.last = self.last, told
        self.requests = self.requests * fade + max(0, told.requests - before.requests)
        self.input_tokens = self.input_tokens * fade + max(
            0, told.input_tokens - before.input_tokens
        )
        self.answers = self.answers * fade + max(0, told.answers - before.answers)
        self.output_tokens = self.output_tokens * fade + max(
            0, told.output_tokens - before.output_tokens
        )


@dataclass(slots=True)
class _Router:
    incarnation: str
    measured_s: float
    heard_s: float
    seconds: float = 0.0
    """Faded, as the counts are."""
    models: dict[str, _Means] = field(default_factory=dict)


class Workloads:
    """Reports in, means out. A report may come twice, late, or not at all."""

    def __init__(self, settings: WorkloadSettings, now_s: float) -> None:
        self._settings = settings
        self._routers: dict[str, _Router] = {}
        self._started_s = now_s
        self._asked_s: dict[str, float] = {}

    def reported(
        self,
        router_id: str,
        incarnation: str,
        measured_s: float,
        demands: Mapping[str, Demand],
        now_s: float,
    ) -> None:
        """What a router has counted in `measured_s` since it started."""
        self._forget(now_s)
        router = self._routers.get(router_id)
        if router is None or router.incarnation != incarnation:
            if router is None and len(self._routers) >= MAX_ROUTERS:
                return
            # Its first report is what the next one is compared with: when it came to what it has
            # counted, nobody knows here.
            router = self._routers[router_id] = _Router(incarnation, measured_s, now_s)
        elapsed_s = measured_s - router.measured_s
        if elapsed_s < 0:
            return  # it overtook another one on its way
        router.heard_s, router.measured_s = now_s, measured_s
        fade = math.exp(-elapsed_s / self._settings.smooth_s)
        router.seconds = router.seconds * fade + elapsed_s
        for model_id, told in demands.items():
            means = router.models.get(model_id)
            if means is None:
                if len(router.models) >= MAX_MODELS:
                    continue
                means = router.models[model_id] = _Means(told)
            if told.open or told.requests > means.last.requests:
                self._asked_s[model_id] = now_s
            means.add(told, fade)
        for model_id, means in router.models.items():
            if model_id not in demands:
                means.add(means.last, fade)

    def of(self, model_id: str, now_s: float) -> Workload | None:
        """All routers together; None where none has said anything for long enough to tell."""
        self._forget(now_s)
        found = [(r.seconds, r.models.get(model_id)) for r in self._routers.values() if r.seconds]
        if not found:
            return None
        told = [(seconds, means) for seconds, means in found if means is not None]
        requests, answers = sum(m.requests for _, m in told), sum(m.answers for _, m in told)
        rate = sum(means.requests / seconds for seconds, means in told)
        return Workload(
            rate,
            sum(m.input_tokens for _, m in told) / requests if requests > 0 else 0.0,
            sum(m.output_tokens for _, m in told) / answers if answers > 0 else 0.0,
            min(seconds for seconds, _ in found),
        )

    def open(self, model_id: str, now_s: float) -> int:
        """Requests that wait or are being answered, by what routers said last."""
        self._forget(now_s)
        routers = (router.models.get(model_id) for router in self._routers.values())
        return sum(means.last.open for means in routers if means is not None)

    def asked_s(self, model_id: str) -> float:
        """When somebody last asked for it, or waited; the beginning where nobody did yet."""
        return self._asked_s.get(model_id, self._started_s)

    def models(self) -> Iterable[str]:
        """Those that somebody has asked for, at routers that are there."""
        return sorted({name for router in self._routers.values() for name in router.models})

    def _forget(self, now_s: float) -> None:
        gone_s = self._settings.router_gone_s
        self._routers = {k: r for k, r in self._routers.items() if now_s - r.heard_s < gone_s}
        known = {name for router in self._routers.values() for name in router.models}
        if len(self._asked_s) > MAX_ROUTERS:
            self._asked_s = {k: v for k, v in self._asked_s.items() if k in known}
