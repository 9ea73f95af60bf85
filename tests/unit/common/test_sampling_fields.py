from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import pytest
from shuntserve.common.v1 import common_pb2
from shuntserve.journal.v3 import journal_pb2
from shuntserve.router.v1 import router_pb2

from services.common.errors import InvalidArgument
from services.common.generation import SAMPLING, Sampling
from services.common.sampling_fields import (
    Kind,
    SamplingField,
    biases,
    boolean,
    ids,
    integer,
    number,
    table_of,
)


@dataclasses.dataclass(frozen=True)
class _Options:
    count: int = integer(low=1)
    share: float = number(1.0, 0, 1, above_low=True, of_model=True)
    most: int | None = integer(None, high=20)
    off: bool = boolean()
    some: tuple[int, ...] = ids(3)
    weights: Mapping[int, float] = biases(2, -1, 1)
    else_: str = ""


def test_a_row_is_an_attribute_with_its_range_and_its_neutral_value() -> None:
    table = table_of(_Options)
    assert list(table) == ["count", "share", "most", "off", "some", "weights"]
    assert [row.kind for row in table.values()] == [
        Kind.INTEGER,
        Kind.NUMBER,
        Kind.INTEGER,
        Kind.BOOLEAN,
        Kind.IDS,
        Kind.BIASES,
    ]
    assert (table["count"].bounds, table["share"].bounds) == ("[1, 2147483647]", "(0, 1]")
    assert (table["share"].neutral, table["most"].optional) == (1.0, True)
    assert (table["share"].of_model, table["count"].of_model) == (True, False)
    made = _Options(5)
    assert (made.count, made.share, made.most, made.some, dict(made.weights)) == (
        5,
        1.0,
        None,
        (),
        {},
    )
    with pytest.raises(TypeError):
        _Options()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("count", 0),
        ("count", 1 << 31),
        ("share", 0),
        ("share", 1e-60),
        ("share", 1.5),
        ("share", math.nan),
        ("some", [1] * 4),
        ("weights", {1: 0.0, 2: 0.0, 3: 0.0}),
        ("weights", {1: 1.5}),
    ],
)
def test_what_is_out_of_range_names_its_field_and_the_limit(name: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"must lie in [\[(]|at most \d") as refused:
        table_of(_Options)[name].check(value)
    assert refused.value.field == name


def test_what_is_in_range_is_taken() -> None:
    for name, value in {"count": 1, "share": 1, "some": [1] * 3, "weights": {1: -1}}.items():
        table_of(_Options)[name].check(value)


def test_ids_are_held_to_the_vocabulary() -> None:
    for name, value in (("some", (1, 7)), ("weights", {7: 0.0}), ("some", (-1,))):
        with pytest.raises(InvalidArgument, match="is no token of this model"):
            table_of(_Options)[name].check_ids(value, 7)
    table_of(_Options)["some"].check_ids((0, 6), 7)


def test_a_value_that_is_settled_before_is_no_requests() -> None:
    row = SamplingField("x", Kind.NUMBER, 1.0, high=1, settled=(0.0,))
    row.check(0.0)
    with pytest.raises(InvalidArgument, match="and not be 0"):
        row.check_held(0.0)


_REST = {"grammar", "grammar_library", "logit_bias_ids", "logit_biases"}


def test_each_row_is_a_field_of_every_message_of_a_sampling() -> None:
    asked = {name for name, row in SAMPLING.items() if row.asked}
    stored = SAMPLING.keys() - {"logit_bias"}
    for message, names in (
        (common_pb2.Sampling, SAMPLING.keys()),
        (router_pb2.SamplingOptions, asked),
        (journal_pb2.Sampling, stored),
    ):
        fields: Any = message.DESCRIPTOR
        assert set(fields.fields_by_name) - _REST == set(names)


def test_all_of_a_sampling_but_its_grammar_is_in_the_table() -> None:
    attributes = {attribute.name for attribute in dataclasses.fields(Sampling)}
    assert attributes == {*SAMPLING, "grammar"}
