"""Rows are multiplied in the sizes that agree, and in no others."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from services.engine.native import products
from services.engine.native.products import (
    SIZES,
    STEP,
    Product,
    agreeing_sizes,
    padded_rows,
    pieces,
)

SIZE_SETS = st.sets(st.sampled_from(SIZES), min_size=1).map(sorted)
WEIGHT = torch.randn(40, 96, generator=torch.Generator().manual_seed(5))


def _whole(x, weight):
    """Rounded once, so whatever the order of the sum."""
    return (x.double() @ weight.double().t()).float()


def _in_parts(count):
    def multiply(x, weight):
        parts = zip(x.chunk(count, 1), weight.chunk(count, 1), strict=True)
        return sum(_whole(*part) for part in parts)

    return multiply


def _by_rows(*limits):
    """Another number of parts from each of these numbers of rows on, as cuBLAS does it."""

    def multiply(x, weight):
        return _in_parts(1 + sum(len(x) >= limit for limit in limits))(x, weight)

    return multiply


@given(rows=st.integers(1, 5000), sizes=SIZE_SETS)
def test_pieces_cover_the_rows_and_none_is_more_than_is_needed(rows, sizes):
    found = pieces(rows, sizes)
    assert set(found) <= set(sizes)
    assert sum(found[:-1]) < rows <= sum(found)
    left = rows - sum(found[:-1])
    assert not [size for size in sizes if left <= size < found[-1]]


@given(rows=st.integers(1, STEP), sizes=SIZE_SETS)
def test_few_rows_are_one_product_where_there_is_a_size_for_them(rows, sizes):
    if any(rows <= size <= STEP for size in sizes):
        assert len(pieces(rows, sizes)) == 1


@given(rows=st.integers(1, 5000))
def test_rows_are_padded_to_what_sizes_make_up_without_rest(rows):
    padded = padded_rows(rows)
    assert rows <= padded < max(2 * rows, rows + STEP, SIZES[0] + 1)
    assert sum(pieces(padded, SIZES)) == padded
    assert len(pieces(padded, SIZES)) == 1 or padded > STEP


def test_sizes_of_a_library_that_adds_up_in_one_order_all_agree():
    assert agreeing_sizes(WEIGHT, _whole) == SIZES


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ((64,), SIZES[2:]),
        ((1024,), SIZES[:6]),
        ((256,), SIZES[4:]),
        ((512,), SIZES[:5]),
        ((32, 64, 2048), SIZES[2:7]),
    ],
)
def test_the_family_is_taken_that_is_good_for_few_and_for_many_rows(limits, expected):
    assert agreeing_sizes(WEIGHT, _by_rows(*limits)) == expected


def test_a_size_in_which_the_place_of_a_row_matters_is_none():
    def multiply(x, weight):
        if len(x) != 128:
            return _whole(x, weight)
        return torch.cat((_in_parts(2)(x[:64], weight), _whole(x[64:], weight)))

    assert agreeing_sizes(WEIGHT, multiply) == tuple(size for size in SIZES if size != 128)


def test_of_a_weight_that_is_no_number_rows_are_multiplied_in_the_least_size():
    assert agreeing_sizes(WEIGHT * float("nan")) == SIZES[:1]


def test_an_order_that_shows_in_one_row_of_a_thousand_is_seen():
    def multiply(x, weight):
        changed = _whole(x, weight)
        if len(x) < 64:
            changed[x[:, 0] > 3] += 1
        return changed

    assert agreeing_sizes(WEIGHT, multiply) == SIZES[2:]


def test_a_result_larger_than_the_limit_is_not_tried(monkeypatch):
    tried = []
    monkeypatch.setattr(products, "MOST_NUMBERS", 100 * len(WEIGHT))

    def multiply(x, weight):
        tried.append(len(x))
        return _whole(x, weight)

    assert agreeing_sizes(WEIGHT, multiply) == SIZES[:3]
    assert max(tried) == 64


@given(rows=st.integers(1, 600), sizes=SIZE_SETS, biased=st.booleans())
def test_a_product_is_that_of_the_rows_in_calls_of_its_sizes_only(rows, sizes, biased):
    bias = torch.arange(len(WEIGHT)).float() if biased else None
    x, called = torch.randn(padded_rows(rows), WEIGHT.shape[1]), []
    with pytest.MonkeyPatch.context() as patch:
        linear = F.linear
        patch.setattr(F, "linear", lambda x, w: called.append(len(x)) or linear(x, w))
        found = Product(WEIGHT, bias, sizes)(x)
    assert torch.allclose(found, linear(x, WEIGHT, bias), atol=1e-4)
    assert set(called) <= set(sizes)


def test_a_weight_that_lies_on_a_device_is_not_copied_there_again():
    weight = torch.empty(64, 32, device="meta")
    assert Product(weight, None, SIZES)._weight is weight
