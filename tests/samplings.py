"""Samplings of any values at all, made from the table of sampling fields."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from services.common.generation import SAMPLING, Grammar, Sampling
from services.common.sampling_fields import Kind, SamplingField

_TOP = (1 << 32) - 1
_IDS = st.sampled_from([0, 1, _TOP]) | st.integers(0, _TOP)


def samplings(width: int, *, held: bool) -> st.SearchStrategy[Sampling]:
    """`width`: bits of its real numbers. `held`: within what a request may have, else anything that
    its types can say."""
    values = {name: _values(row, width, held) for name, row in SAMPLING.items()}
    grammars = st.none() | st.builds(Grammar, st.text(min_size=1), st.text(min_size=1))
    return st.builds(Sampling, **values, grammar=grammars)


def _values(row: SamplingField, width: int, held: bool) -> st.SearchStrategy[Any]:
    if row.kind is Kind.BOOLEAN:
        return st.booleans()
    if row.kind is Kind.IDS:
        return st.lists(_IDS, max_size=9).map(tuple)
    if row.kind is Kind.BIASES:
        return st.dictionaries(_IDS, _reals(row, width), max_size=9)
    if row.kind is Kind.INTEGER:
        low, high = max(0, int(row.low)), int(row.high)
        if held:
            low += 0 in row.settled
        else:  # as wide as the field of a message
            low, high = 0, max(high, _TOP)
        counts = st.sampled_from([low, high]) | st.integers(low, high)
        return st.none() | counts if row.optional else counts
    if not held:
        return st.floats(-100, 100, width=width)  # type: ignore[arg-type]
    return _reals(row, width).filter(lambda value: row.holds(value) and value not in row.settled)


def _reals(row: SamplingField, width: int) -> st.SearchStrategy[float]:
    ends = st.sampled_from([float(row.low), float(row.high)])
    return ends | st.floats(row.low, row.high, width=width)  # type: ignore[arg-type]
