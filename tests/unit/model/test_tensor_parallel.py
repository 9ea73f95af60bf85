"""One rule says what divides, and no rank's part is left out or held by too few."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidArgument
from services.model.tensor_parallel import UNITS, TensorParallel
from services.placement.estimate.model import ModelShape

COUNTS = st.integers(1, 64)


@given(st.builds(TensorParallel, COUNTS, COUNTS, COUNTS, COUNTS), st.integers(-1, 70))
def test_placement_and_loading_agree_on_every_degree(split, degree):
    shape = ModelShape(
        "any", 64, split.heads, split.kv_heads, 8, split.intermediate, split.vocabulary, 1
    )
    if shape.allows_tp(degree):
        split.check_degree(degree)
        return
    with pytest.raises(InvalidArgument) as refused:
        split.check_degree(degree)
    assert refused.value.field == "tp_degree"


@given(st.builds(TensorParallel, COUNTS, COUNTS, COUNTS, COUNTS))
def test_the_ranks_of_a_degree_hold_everything(split):
    for degree in split.degrees():
        for kind in UNITS:
            held = {
                unit
                for rank in range(degree)
                for unit in range(*split.unit_range(kind, degree, rank))
            }
            assert held == set(range(split.units(kind)))


@pytest.mark.parametrize(
    ("split", "words"),
    [
        (TensorParallel(32, 8, 11008, 32001), "32001 rows of vocabulary"),
        (TensorParallel(32, 8, 11007, 32000), "11007 feed-forward rows"),
        (TensorParallel(33, 3, 11008, 32000), "33 attention heads"),
        (TensorParallel(30, 5, 11008, 32000), "5 key-value heads"),
    ],
)
def test_what_does_not_divide_is_named(split, words):
    assert not split.divides(2)
    with pytest.raises(InvalidArgument, match=words):
        split.check_degree(2)
