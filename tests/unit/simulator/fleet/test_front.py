from __future__ import annotations

from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from services.common.exchange import Route
from services.common.generation import ModelRef
from simulator.environment.environment import Environment
from simulator.environment.settings import SimulationSettings
from simulator.fleet.batch import Generation
from simulator.fleet.front import FleetFront
from simulator.fleet.workload import Request

MODEL = ModelRef("m", "d")
ROUTE = Route("p", "f", "n/1", "n:1", 1.0, MODEL, 100)


class _Small:
    """A pipeline's batch with room for short prompts."""

    def __init__(self) -> None:
        self.came: list[int] = []

    def fits(self, sequence: Generation) -> bool:
        return sequence.prompt < 50

    def generate(self, formation_id: str, sequence: Generation) -> None:
        self.came.append(sequence.number)


def test_what_waited_for_a_pipeline_that_cannot_hold_it_leaves_its_place_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment = Environment(Random(1), SimulationSettings())
    requests = [Request(0.0, prompt, 4) for prompt in (60, 10, 70, 10)]
    front = FleetFront(
        environment,
        MODEL,
        requests,
        migration=True,
        places=9,
        concurrency=1,
        tolerant=False,
        heads=tuple,
    )
    small = _Small()
    head: Any = SimpleNamespace(batch=small, generate=small.generate)
    monkeypatch.setattr(front, "_head", lambda route: head)
    monkeypatch.setattr(front, "_report", lambda: None)
    front.begin()
    assert (front.counts.arrived, front.counts.failed) == (1, 0), "there is no pipeline yet"
    front.update((ROUTE,), ())
    environment.clock.run(1.0)
    assert (front.counts.arrived, front.counts.failed, small.came) == (2, 1, [1])
