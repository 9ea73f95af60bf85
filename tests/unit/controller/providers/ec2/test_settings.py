from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from services.controller.core.model_facts import ModelFacts
from services.controller.providers.ec2.settings import Ec2Settings
from services.controller.settings import ControllerSettings

FACTS = ModelFacts("tiny", "ab" * 32, 6, 1000, 4096, "{}")
NEEDED = {"mesh": "m", "launch_template": "node", "first_nodes": "g6e.xlarge:2,g5.xlarge:1"}


@pytest.fixture
def given(types_file: Path) -> dict[str, Any]:
    return {**NEEDED, "types_file": types_file}


def test_a_mesh_on_ec2_begins_with_the_nodes_that_are_named(given: dict[str, Any]) -> None:
    chosen = ControllerSettings(provider="ec2", store="s3://b/m", ec2=given)
    assert [shape.device_type for shape in chosen.supply.initial_nodes] == ["l40s", "l40s", "a10g"]
    assert (
        len(
            ControllerSettings(
                provider="ec2", store="s3://b/m", ec2=given, nodes_max=2
            ).supply.initial_nodes
        )
        == 2
    )


def test_an_instance_has_its_own_time_to_start_beside_the_nodes(
    given: dict[str, Any],
) -> None:
    chosen = ControllerSettings(provider="ec2", store="s3://b/m", ec2=given, launch_timeout_s=100.0)
    assert chosen.cluster(FACTS).launch_timeout_s == 101.0
    assert chosen.cluster(FACTS).can_launch


@pytest.mark.parametrize("name", ["mesh", "launch_template", "types_file", "first_nodes"])
def test_what_is_lacking_is_named(given: dict[str, Any], name: str) -> None:
    with pytest.raises(ValidationError, match=f"the provider ec2 needs {name}"):
        ControllerSettings(
            provider="ec2", store="s3://b/m", ec2={k: v for k, v in given.items() if k != name}
        )
    ControllerSettings(ec2={k: v for k, v in given.items() if k != name})


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("first_nodes", "g6e.xlarge", "TYPE:COUNT"),
        ("first_nodes", "g6e.xlarge:0", "TYPE:COUNT"),
        ("first_nodes", "g6e.xlarge:1,g6e.xlarge:1", "twice"),
        ("first_nodes", "p5.48xlarge:1", "no type of types.yaml"),
        ("types_file", Path("/nowhere/types.yaml"), "cannot read"),
        ("cloud_config", Path("/nowhere/node.yaml"), "cannot read"),
        ("mesh", "two words", "pattern"),
        ("launch_template_version", "newest", "pattern"),
        ("max_instances", 0, "greater than or equal to 1"),
        ("max_dollars_per_hour", 0, "greater than 0"),
        ("queue_wait_s", 21, "less than or equal to 20"),
        ("colour", "red", "Extra inputs"),
    ],
)
def test_a_bad_setting_is_named(given: dict[str, Any], name: str, value: Any, why: str) -> None:
    with pytest.raises(ValidationError, match=why) as caught:
        Ec2Settings(**{**given, name: value})
    assert caught.value.errors()[0]["loc"] == (name,)


def test_the_environment_has_each_by_its_name(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**given, "max_instances": 7, "subnets": "subnet-1, subnet-2"}.items():
        monkeypatch.setenv(f"SHUNT_CONTROLLER_EC2__{name.upper()}", str(value))
    monkeypatch.setenv("SHUNT_CONTROLLER_PROVIDER", "ec2")
    with pytest.raises(ValidationError, match="needs a store"):
        ControllerSettings()
    monkeypatch.setenv("SHUNT_CONTROLLER_STORE", "s3://bucket/models")
    chosen = ControllerSettings().ec2
    assert (chosen.bounds.instances, chosen.subnet_ids) == (7, ("subnet-1", "subnet-2"))


def test_a_market_file_is_a_local_providers(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="the provider ec2 has no market"):
        ControllerSettings(
            provider="ec2", store="s3://b/m", ec2=given, market_file=tmp_path / "market.yaml"
        )
