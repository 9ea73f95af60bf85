from __future__ import annotations

import pytest

from services.common.errors import InvalidArgument
from services.common.generation import LayerRange
from services.common.nodes import StageSpec
from services.common.stage_layout import MOST_CHARS, parse_stages


def test_ranges_have_both_their_ends_and_a_degree_or_one_rank() -> None:
    assert parse_stages("0-1:tp1,2-5:tp2,6-6") == (
        StageSpec(LayerRange(0, 2), 1),
        StageSpec(LayerRange(2, 6), 2),
        StageSpec(LayerRange(6, 7), 1),
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "stages read 0-1:tp1,2-5:tp2"),
        ("0-1:tp", "stages read"),
        ("0-1:tp1;2-5", "stages read"),
        ("0-1,", "stages read"),
        ("٠-1", "stages read"),
        ("0-1," * MOST_CHARS, "stages read"),
        ("1-2", "begins at layer 0"),
        ("0-3,2-5", "begins at layer 4"),
        ("0-3,5-6", "begins at layer 4"),
        ("0-3,5-4", "ends behind its first layer"),
        ("0-3:tp0", "a rank at least"),
    ],
)
def test_what_is_no_layout_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why) as refused:
        parse_stages(text)
    assert refused.value.field == "stages"
