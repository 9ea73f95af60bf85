from __future__ import annotations

from experiments.starts import FORM, LOAD, PROCESS, WHOLE, medians
from experiments.starts.parts import Event, Parts, parts_of


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
    assert one == Parts("n", 3.0, 7.0, 0.5)
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
