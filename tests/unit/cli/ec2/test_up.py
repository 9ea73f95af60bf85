"""What nobody says of a mesh that stands stays as it is."""

from __future__ import annotations

from dataclasses import fields

import pytest
from typer.testing import CliRunner

from services.cli.ec2 import up
from services.cli.ec2.app import app
from services.cli.ec2.options import Options
from services.cli.ec2.stack import StackView
from services.cli.ec2.up import Order, as_it_stands

STANDS = {
    "Model": "qwen3-32b",
    "FirstNodes": "g6e.xlarge:4",
    "MaxInstances": "7",
    "BudgetPerHour": "12.5",
    "Routers": "3",
    "NodeImage": "registry/node:1",
}
TYPES = """
types:
  - {instance_type: g5.xlarge, device_type: a10g, memory_bytes: 20000000000, count: 4,
     price_per_hour: 1.006}
"""
EVERY = frozenset(one.name for one in fields(Options))


def stack(parameters: dict[str, str]) -> StackView:
    return StackView("CREATE_COMPLETE", "", {}, parameters, "arn")


def test_what_is_not_said_is_what_the_mesh_has() -> None:
    order = Order(Options(), {}, unsaid=EVERY)
    found = as_it_stands(order.options, order, stack(STANDS), TYPES).checked()
    assert (found.model, found.max_instances, found.budget_per_hour) == ("qwen3-32b", 7, 12.5)
    assert found.routers == 3
    assert found.nodes == "", "those that a mesh began with are those of its model"
    assert found.table.types.keys() == {"g5.xlarge"}
    assert found.types_text == TYPES


def test_what_is_said_counts_as_option_and_as_parameter() -> None:
    said = Options(model="other", routers=5, budget_per_hour=0.0)
    unsaid = EVERY - {"model", "types", "budget_per_hour"}
    order = Order(said, {"Routers": "5"}, unsaid=unsaid)
    found = as_it_stands(said, order, stack(STANDS), TYPES)
    assert (found.model, found.routers, found.budget_per_hour) == ("other", 5, 0.0)
    assert found.max_instances == 7
    assert "g6e.xlarge" in found.table.types, "of the file that was said"


def test_where_no_mesh_is_defaults_count() -> None:
    order = Order(Options(), {}, unsaid=EVERY)
    assert as_it_stands(order.options, order, stack({}), TYPES) == Options()


def test_the_command_knows_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = list[Order]()
    monkeypatch.setattr(up, "bring_up", lambda order, *_: orders.append(order))
    for words in ([], ["--routers", "2", "--types", "deploy/ec2/types.yaml"]):
        ran = CliRunner().invoke(app, ["up", *words])
        assert ran.exit_code == 0, ran.output
    bare, some = (order.unsaid & EVERY for order in orders)
    assert bare == EVERY - {"standing_types"}
    assert bare - some == {"routers", "types"}
