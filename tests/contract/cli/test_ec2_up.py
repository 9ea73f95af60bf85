"""What `shunt ec2 up` asks for before it makes anything, on a played cloud."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from services.cli.ec2 import up
from services.cli.ec2.options import Options
from services.cli.ec2.stored import Stored
from services.cli.ec2.up import Order, bring_up
from services.cli.mesh_directory import MeshError
from services.placement.estimate.model import load_model
from tests.ec2.cloud import Cloud

MODEL = "qwen3-32b"
NEEDED = {
    "GatewayCidr": "198.51.100.7/32",
    "ServicesImage": "registry/services:1",
    "NodeImage": "registry/node:1",
}


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is in the operator's store."""
    found = Stored(MODEL, load_model(MODEL), "ab" * 32, 1)
    monkeypatch.setattr(up, "stored_model", lambda *_, **__: found)


def tried(order: Order, *, agrees: bool = False) -> str:
    """What it says before it ends."""
    console = Console(file=StringIO(), record=True, width=200)
    with pytest.raises(MeshError) as caught:
        bring_up(order, console, print, lambda: agrees)
    return f"{console.export_text()}\n{caught.value}"


def order(types: Path, parameters: dict[str, str], **options: object) -> Order:
    given = {"model": MODEL, "types": types, "nodes": "g6e.xlarge:4", **options}
    return Order(Options(**given), parameters)  # type: ignore[arg-type]


def nothing_is_made(cloud: Cloud) -> bool:
    made = ("CreateStack", "CreateFleet", "RunInstances", "CreateServiceLinkedRole")
    return not any(map(cloud.count, made))


@pytest.mark.usefixtures("stored")
def test_the_price_is_told_and_nothing_is_made_without_agreement(
    cloud: Cloud, types_file: Path
) -> None:
    said = tried(order(types_file, NEEDED))
    assert "nodes now: g6e.xlarge:4" in said
    assert "controller (m7i.large)" in said
    assert "nothing was bought" in said
    assert nothing_is_made(cloud)


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"GatewayCidr": ""}, "--gateway-cidr is needed"),
        ({"ServicesImage": ""}, "--services-image is needed"),
        ({"NodeImage": ""}, "--node-image is needed"),
        ({"Rooters": "2"}, "--parameter: the stack has no Rooters"),
        ({"MaxInstances": "many"}, "--parameter MaxInstances: 'many' is no number"),
        ({"Routers": "99"}, "--routers: 99 is not from 1 to 64"),
        ({"FirstNodes": "p9.xlarge:1"}, "--nodes: p9.xlarge is no type"),
    ],
)
def test_what_is_lacking_or_wrong_is_named(
    cloud: Cloud, types_file: Path, change: dict[str, str], says: str
) -> None:
    parameters = {name: value for name, value in (NEEDED | change).items() if value}
    assert says in tried(order(types_file, parameters), agrees=True)
    assert nothing_is_made(cloud)


@pytest.mark.usefixtures("stored")
def test_parameters_of_the_stack_are_options_too(cloud: Cloud, types_file: Path) -> None:
    parameters = NEEDED | {"FirstNodes": "g6e.xlarge:2,g5.xlarge:2", "ControllerType": "x9.large"}
    said = tried(order(types_file, parameters))
    assert "nodes now: g5.xlarge:2,g6e.xlarge:2" in said
    assert "not known" in said


def test_a_model_that_is_nowhere_is_told_before_anything_costs(
    cloud: Cloud, types_file: Path, tmp_path: Path
) -> None:
    said = tried(order(types_file, NEEDED, store=str(tmp_path)), agrees=True)
    assert "shunt model import" in said
    assert nothing_is_made(cloud)
