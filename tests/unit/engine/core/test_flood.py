"""A tenant that asks now and then beside one that floods: what the batch alone makes it wait.

A pipeline whose stages have a core each, played by a clock: a step keeps every stage for as long as
its rows take. What waits for a core that another pipeline's engines have is not seen here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from random import Random

from services.common.generation import GenerationRequest, ModelRef, Sampling
from services.engine.backend import Sampled
from services.engine.core.actions import SequenceKey
from services.engine.core.scheduler import Scheduler, SchedulerSettings, Step

STAGES = 2
STEP_S, ROW_S = 0.008, 0.0005
"""Of a stage: a step without rows, and each of its rows."""
PROMPT, ANSWER = 150, 64
LASTS_S = 24.0
FILLED_S = 8.0
"""By then answers begin one after another."""
FLOOD = 96
"""At once, half as many again as there are places."""


@dataclass
class Pipeline:
    """Two tenants at one head."""

    random: Random
    scheduler: Scheduler = field(
        default_factory=lambda: Scheduler(SchedulerSettings(max_drafts=0), 8192, STAGES)
    )
    now_s: float = 0.0
    asked_s: dict[SequenceKey, float] = field(default_factory=dict)
    """Of those that have no token yet."""
    outputs: dict[SequenceKey, int] = field(default_factory=dict)
    waits_s: list[float] = field(default_factory=list)
    """For first tokens, of the tenant that asks now and then."""
    _events: list[tuple[float, int, Step | None]] = field(default_factory=list)
    """Steps that are back, and moments at which the quiet tenant asks."""
    _numbers: count[int] = field(default_factory=count)
    _free_s: list[float] = field(default_factory=lambda: [0.0] * STAGES)

    def ask(self, tenant: str) -> None:
        name = f"{tenant}{next(self._numbers)}"
        prompt = tuple(self.random.randrange(1000) for _ in range(PROMPT))
        sampling = Sampling(max_tokens=ANSWER, ignore_eos=True)
        request = GenerationRequest(name, ModelRef("m", "d"), prompt, sampling, tenant=tenant)
        key = SequenceKey(name, 1, 0)
        self.asked_s[key], self.outputs[key] = self.now_s, 0
        self.scheduler.start(key, request, ())

    def run(self, *, flooded: bool) -> list[float]:
        """Seconds that the quiet tenant waited for each first token."""
        at_s = FILLED_S
        while (at_s := at_s + self.random.expovariate(1.0)) < LASTS_S:
            heappush(self._events, (at_s, next(self._numbers), None))
        for _ in range(FLOOD if flooded else 0):
            self.ask("flood")
        self._depart()
        while self._events and self.now_s < LASTS_S:
            self.now_s, _, step = heappop(self._events)
            if step is None:
                self.ask("quiet")
            else:
                self._back(step)
            self._depart()
        return self.waits_s

    def _depart(self) -> None:
        while (step := self.scheduler.next_step()) is not None:
            back_s = self.now_s
            for stage in range(STAGES):
                back_s = max(back_s, self._free_s[stage]) + STEP_S + ROW_S * step.batch.rows
                self._free_s[stage] = back_s
            heappush(self._events, (back_s, next(self._numbers), step))

    def _back(self, step: Step) -> None:
        sampled = [
            Sampled(one.slot, self.outputs[key], 5)
            for one, key in zip(step.batch.steps, step.keys, strict=True)
            if one.sample and key in self.outputs
        ]
        took_s = STEP_S + ROW_S * step.batch.rows
        for token in self.scheduler.complete(step.number, sampled, took_s).tokens:
            key, tenant = token.key, token.key.generation_id.rstrip("0123456789")
            if key in self.asked_s:
                waited_s = self.now_s - self.asked_s.pop(key)
                self.waits_s += [waited_s] if tenant == "quiet" else []
            self.outputs[key] += 1
            if self.outputs[key] == ANSWER:
                del self.outputs[key]
                self.scheduler.stop(key)
                if tenant == "flood":
                    self.ask(tenant)


def test_who_asks_now_and_then_waits_beside_a_flood_about_as_long_as_alone() -> None:
    alone, beside = (Pipeline(Random(1)).run(flooded=flooded) for flooded in (False, True))
    assert len(alone) == len(beside) > 10
    assert max(beside) <= 1.5 * max(alone)
