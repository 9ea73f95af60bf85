"""Heads before which requests of several tenants wait: the real batch and the real figures of its
load, in steps of virtual time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from services.common.exchange import HeadLoad, Route
from services.common.generation import GenerationRequest, ModelRef
from services.engine.backend import Sampled
from services.engine.core.actions import SequenceKey
from services.engine.core.load import LoadGauge
from services.engine.core.scheduler import Scheduler, SchedulerSettings, Step
from simulator.environment.clock import Clock

MODELS = (ModelRef("a", "d"), ModelRef("b", "d"))
STEP_S = 0.02
ROW_S = 0.0005
BLOCKS = 120
MAX_POSITIONS = 1024
SETTINGS = SchedulerSettings(
    token_budget=64, max_sequences=8, max_drafts=0, share_prefixes=False, hurried_rows=16
)


@dataclass
class Share:
    """One choice of a generation here."""

    choice: int
    produced: int


class Head:
    """The head of a pipeline of one stage."""

    def __init__(self, clock: Clock, random: Random, number: int, model: ModelRef) -> None:
        self.name, self.model, self.alive = f"formation-{number}", model, True
        self.scheduler, self._gauge = Scheduler(SETTINGS, BLOCKS, 1), LoadGauge()
        self._clock = clock
        self._pace = random.choice((0.5, 1.0, 2.0))
        self._stepping = False
        self._wanted: dict[SequenceKey, tuple[Share, int, Callable[[Share], None]]] = {}

    @property
    def route(self) -> Route:
        """As the controller tells routers of it."""
        name, speed = self.name, 100.0 / self._pace
        return Route(name, name, f"i-{name}", name, speed, self.model, MAX_POSITIONS)

    @property
    def sequences(self) -> int:
        """That run or wait here."""
        return len(self._wanted)

    def load(self) -> HeadLoad:
        """As it is told."""
        return self._gauge.read(self.scheduler)

    def start(
        self,
        request: GenerationRequest,
        held: Sequence[int],
        length: int,
        told: Callable[[Share], None],
    ) -> None:
        """Its choices begin, or go on behind so many tokens of each, to their end."""
        for choice, produced in enumerate(held):
            if produced < length:
                key = SequenceKey(request.generation_id, 1, choice)
                share = Share(choice, produced)
                self._wanted[key] = (share, length, told)
                self.scheduler.start(key, request, list(range(produced)))
        self._step()

    def drop(self, request: GenerationRequest) -> None:
        """Nobody wants it any more."""
        for choice in range(request.choices):
            key = SequenceKey(request.generation_id, 1, choice)
            if self._wanted.pop(key, None) is not None:
                self.scheduler.drop(key)

    def _step(self) -> None:
        if self._stepping or not self.alive:
            return
        step = self.scheduler.next_step()
        if step is None:
            return
        self._stepping = True
        self._gauge.departed(step, self._clock.now_s)
        took_s = self._pace * (STEP_S + ROW_S * step.batch.rows)
        self._clock.after(took_s, self._back, step, took_s)

    def _back(self, step: Step, took_s: float) -> None:
        self._stepping = False
        if not self.alive:
            return
        sampled = []
        for key, piece in zip(step.keys, step.batch.steps, strict=True):
            sequence = self.scheduler.find(key)
            if piece.sample and sequence is not None:
                position = len(sequence.tokens) - len(sequence.request.prompt_ids)
                sampled.append(Sampled(piece.slot, position, position))
        result = self.scheduler.complete(step.number, sampled, took_s)
        self._gauge.came_back(step.number, took_s, self._clock.now_s)
        for token in result.tokens:
            wanted = self._wanted.get(token.key)
            if wanted is not None:
                self._told(token.key, *wanted)
        self._step()

    def _told(
        self, key: SequenceKey, share: Share, most: int, told: Callable[[Share], None]
    ) -> None:
        share.produced += 1
        if share.produced == most:
            del self._wanted[key]
            sequence = self.scheduler.find(key)
            at_limit = sequence is not None and sequence.request.sampling.max_tokens == most
            self.scheduler.stop(key)
            self._gauge.answered(most, at_limit=at_limit)
        told(share)
