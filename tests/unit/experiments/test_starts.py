from __future__ import annotations

import pytest

from bench.otlp import ReceivedSpan
from experiments.starts import medians
from experiments.starts.measured import Start, inside
from experiments.starts.measured import medians as medians_inside
from experiments.starts.parts import Event, Parts, parts_of
from experiments.starts.rows import (
    ARITHMETIC,
    FORM,
    IMPORTS,
    LOAD,
    MADE,
    OPENS,
    PACKS,
    PROCESS,
    REGISTERS,
    TESTS,
    TOLD,
    WEIGHTS,
    WHOLE,
)


def test_parts_of_a_start_are_between_its_events() -> None:
    told = [
        Event(10.0, "node_launched", "n", "p"),
        Event(13.0, "node_registered", "n", ""),
        Event(14.0, "pipeline_ready", "", "p"),
        Event(20.0, "stage_loaded", "n", ""),
        Event(20.5, "pipeline_ready", "", "p"),
        Event(30.0, "pipeline_ready", "", "p"),
    ]
    (one,) = parts_of(reversed(told))
    assert one == Parts("n", 10.0, 3.0, 7.0, 0.5)
    assert medians([one]) == {PROCESS: 3.0, LOAD: 7.0, FORM: 0.5, WHOLE: 10.5}


def test_a_node_of_the_first_plan_and_one_that_never_serves_are_left_out() -> None:
    told = [
        Event(0.0, "node_launched", "first", ""),
        Event(1.0, "node_registered", "first", ""),
        Event(2.0, "stage_loaded", "first", ""),
        Event(3.0, "pipeline_ready", "", "p"),
        Event(4.0, "node_launched", "lost", "p"),
        Event(5.0, "node_registered", "lost", ""),
    ]
    assert parts_of(told) == []
    assert medians([])[WHOLE] is None


def span(name: str, began_s: float, took_s: float, node: str = "n") -> ReceivedSpan:
    return ReceivedSpan(name, "t", "s", "", "shuntserve-engine", node, {}, began_s, took_s)


def test_what_a_nodes_own_spans_tell_adds_up_to_its_parts() -> None:
    parts = Parts("n", 10.0, 3.0, 7.0, 0.5)
    spans = [
        span("engine.start", 10.2, 2.7),
        span("engine.imports", 10.2, 1.1),
        span("engine.load", 13.5, 6.0),
        span("engine.load.open", 13.5, 2.0),
        span("engine.load.arithmetic", 15.5, 1.0),
        span("engine.load.weights", 16.5, 0.5),
        span("engine.load.weights", 17.0, 0.25),
        span("engine.load.pack", 17.25, 1.25),
        span("engine.load.self_test", 18.5, 1.0),
        span("engine.load.pack", 0.0, 99.0, node="other"),
    ]
    found = inside(parts, spans)
    assert found == pytest.approx(
        {
            MADE: 0.2,
            IMPORTS: 1.1,
            REGISTERS: 1.7,
            OPENS: 2.0,
            ARITHMETIC: 1.0,
            WEIGHTS: 0.75,
            PACKS: 1.25,
            TESTS: 1.0,
            TOLD: 1.0,
        }
    )
    assert sum(found.values()) == pytest.approx(parts.process_s + parts.load_s)
    assert medians_inside([Start(parts, found)]) == found
    assert medians_inside([]) == {}
