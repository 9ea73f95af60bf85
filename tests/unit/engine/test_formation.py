"""What a stage has room for, and what its blocks go by."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from services.common.generation import LayerRange, ModelRef
from services.common.nodes import Member
from services.engine.backend import Batch
from services.engine.core.kv_layout import KvLayout
from services.engine.core.throttle import Throttle
from services.engine.formation import FormationPart, FormationPlace

STAGES = 24
LAYOUT = KvLayout("tiny", 1, 64, 16, "exact-tiny-tp1")


def nobody(*_: object) -> Any:
    raise AssertionError("nothing runs")


def head(numerics_class: str) -> FormationPart:
    """Of a formation of this class that computes nothing."""
    members = tuple(
        Member(f"n{index}", "i", "h:1", LayerRange(index, index + 1)) for index in range(STAGES)
    )
    return FormationPart(
        FormationPlace("f", "p", ModelRef("m", "d"), members, 0, 8),
        cast("Any", SimpleNamespace(kv_layout=LAYOUT)),
        cast("Any", None),
        cache=cast("Any", SimpleNamespace(numerics_class=numerics_class)),
        throttle=Throttle(1.0),
        on_step=nobody,
        connect=nobody,
        on_sampled=nobody,
        on_end=nobody,
    )


def test_a_head_has_room_for_a_step_more_than_there_are_stages() -> None:
    """All of them may depart before the first one is taken from the queue."""
    formation = head(LAYOUT.numerics_class)
    for step in range(STAGES + 1):
        formation.submit(step, Batch(()), (), ())


def test_blocks_are_of_the_class_of_the_whole_pipeline() -> None:
    """A stage of the same class by itself, behind others, has other ones."""
    assert head(LAYOUT.numerics_class).kv_layout == LAYOUT
    mixed = head("exact-tiny-tp2x8-tp1x16").kv_layout
    assert mixed.name != LAYOUT.name
    assert mixed.layer_bytes == LAYOUT.layer_bytes
