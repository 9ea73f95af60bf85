"""The least time that holds every layer, against every step of every stage in order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.placement.estimate.roofline import Array
from services.placement.search import bounds
from services.placement.search.bounds import thresholds
from services.placement.search.rates import Ints


@st.composite
def columns(draw: st.DrawFn) -> tuple[Any, ...]:
    """Slope, fixed part and room of each stage [stages, columns], and the layers [columns]."""
    random = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    shape = stages, count = draw(st.integers(1, 8)), draw(st.integers(1, 30))
    slope, fixed = random.uniform(1e-3, 1, shape), random.uniform(0, 1, shape)
    if draw(st.booleans()):  # steps that coincide
        slope, fixed = np.ceil(slope * 4) / 4, np.floor(fixed * 4) / 4
    alike = random.random(stages) < draw(st.sampled_from([0.0, 0.7]))
    slope[alike], fixed[alike] = slope[0], fixed[0]
    most = random.integers(draw(st.integers(0, 1)), draw(st.integers(2, 80)), shape)
    return slope, fixed, most, random.integers(1, draw(st.integers(2, 81)), count)


def least_by_trial(slope: Array, fixed: Array, most: Ints, needed: int) -> float:
    """Every step of every stage in order; the one that brings the last layer."""
    steps = sorted(
        f + k * s for s, f, m in zip(slope, fixed, most, strict=True) for k in range(1, m + 1)
    )
    if len(steps) < needed or min(most) < 1:
        return np.inf
    return float(max(steps[needed - 1], max(fixed + slope)))


@settings(max_examples=400, deadline=None)
@given(columns())
def test_the_threshold_is_the_least_that_holds_every_layer(drawn: tuple[Any, ...]) -> None:
    slope, fixed, most, needed = drawn
    below, above = thresholds(slope, fixed, most, needed)
    expected = [
        least_by_trial(slope[:, i], fixed[:, i], most[:, i], int(needed[i]))
        for i in range(len(needed))
    ]
    np.testing.assert_allclose(below, expected, rtol=1e-12)
    np.testing.assert_array_equal(below, above)


@settings(max_examples=100, deadline=None)
@given(columns())
def test_a_search_that_is_cut_short_still_bounds_the_threshold(drawn: tuple[Any, ...]) -> None:
    slope, fixed, most, needed = drawn
    exact, _ = thresholds(slope, fixed, most, needed)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(bounds, "ROUNDS", 1)
        below, above = thresholds(slope, fixed, most, needed)
    assert np.all(below <= exact * (1 + 1e-12))
    assert np.all(above >= exact * (1 - 1e-12))
