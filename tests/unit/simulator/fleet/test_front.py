from __future__ import annotations

from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from services.common.exchange import Route
from services.common.generation import ModelRef
from services.controller.core.ledger.outcomes import ServingHead
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


def test_of_a_formation_that_is_gone_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = Environment(Random(1), SimulationSettings())
    there = [ServingHead(ROUTE, takes_new=True)]
    front = FleetFront(
        environment,
        MODEL,
        [Request(0.0, 10, 4)],
        migration=True,
        places=9,
        concurrency=1,
        tolerant=False,
        heads=lambda: there,
    )
    small = _Small()
    head: Any = SimpleNamespace(
        batch=small, generate=small.generate, kv_positions_per_s=10.0, times=None
    )
    monkeypatch.setattr(front, "_head", lambda route: head)
    monkeypatch.setattr(front, "_report", lambda: None)
    front.begin()
    front.update((ROUTE,), ())
    (sequence,) = front.pending.at
    assert front._coming == {"f": [sequence]}
    environment.clock.run(1.0)
    assert (small.came, front._coming) == ([0], {})
    sequence.came, sequence.sent_at = 5, 10.0
    first_s, next_s = (front._travels_s(sequence, head, "f") for _ in range(2))
    assert next_s == pytest.approx(first_s + 0.5), "the link is busy with the first"
    front.update((ROUTE,), ())
    assert set(front._link_free_s) == {"f"}
    there.clear()
    front.update((), ())
    assert front._link_free_s == {}
