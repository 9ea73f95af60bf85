"""What a stage has room for."""

from __future__ import annotations

from typing import Any, cast

from services.common.generation import LayerRange, ModelRef
from services.common.nodes import Member
from services.engine.backend import Batch
from services.engine.core.throttle import Throttle
from services.engine.formation import FormationPart, FormationPlace

STAGES = 24


def nobody(*_: object) -> Any:
    raise AssertionError("nothing runs")


def test_a_head_has_room_for_a_step_more_than_there_are_stages() -> None:
    """All of them may depart before the first one is taken from the queue."""
    members = tuple(
        Member(f"n{index}", "i", "h:1", LayerRange(index, index + 1)) for index in range(STAGES)
    )
    formation = FormationPart(
        FormationPlace("f", "p", ModelRef("m", "d"), members, 0, 8),
        cast("Any", None),
        cast("Any", None),
        cache=cast("Any", None),
        throttle=Throttle(1.0),
        on_step=nobody,
        connect=nobody,
        on_sampled=nobody,
        on_end=nobody,
    )
    for step in range(STAGES + 1):
        formation.submit(step, Batch(()), (), ())
