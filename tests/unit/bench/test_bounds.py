from __future__ import annotations

import pytest
from scipy.stats import binom

from bench.bounds import rate_bound_95


def test_without_a_failure_it_is_nearly_three_over_the_trials() -> None:
    assert rate_bound_95(0, 100) == pytest.approx(0.03, rel=0.02)


@pytest.mark.parametrize(("failures", "trials"), [(0, 1), (1, 100), (7, 40)])
def test_at_the_bound_so_few_failures_have_a_chance_of_one_in_twenty(
    failures: int, trials: int
) -> None:
    assert binom.cdf(failures, trials, rate_bound_95(failures, trials)) == pytest.approx(0.05)


@pytest.mark.parametrize("trials", [0, 3])
def test_where_everything_failed_nothing_is_excluded(trials: int) -> None:
    assert rate_bound_95(trials, trials) == 1.0
