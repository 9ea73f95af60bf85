"""What a count of failures says about their rate."""

from __future__ import annotations

from scipy.stats import beta


def rate_bound_95(failures: int, trials: int) -> float:
    """The rate that is not exceeded, with 95 % confidence.

    One-sided bound of Clopper and Pearson (1934); 3 / trials, nearly, when nothing failed.
    """
    if failures >= trials:
        return 1.0
    return float(beta.ppf(0.95, failures + 1, trials - failures))
