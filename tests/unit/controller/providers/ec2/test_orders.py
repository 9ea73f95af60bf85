from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.validate import validate_parameters

from services.common.errors import InvalidArgument
from services.common.nodes import NodeShape
from services.controller.core.cluster.market import Offer
from services.controller.providers.ec2.cloud_config import CloudConfig, File
from services.controller.providers.ec2.orders import (
    MAX_USER_DATA_BYTES,
    Template,
    client_token,
    fleet,
    tags_of,
    user_data,
)

SUBNETS = {"z-1": "subnet-1", "z-2": "subnet-2"}


def offer(zone: str, market: str) -> Offer:
    name = f"g6e.xlarge/{zone}/{market}"
    return Offer(name, "g6e.xlarge", NodeShape(1, 1.0), count=1, spot=market == "spot")


def order(*offers: Offer, template: str = "node") -> dict[str, Any]:
    return fleet(
        offers,
        SUBNETS,
        Template(template, "$Default"),
        token=client_token("run", "node-1"),
        tags=tags_of("mesh", "node-1", offers[0].offer_id, 3),
        user_data="#cloud-config\n",
    )


@pytest.mark.parametrize("market", ["spot", "on-demand", "cr-0123456789abcdef0"])
def test_an_order_is_what_ec2_takes(market: str) -> None:
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("CreateFleet")
    arguments = order(offer("z-1", market))
    validate_parameters(arguments, shape.input_shape)
    assert arguments["Type"] == "instant"
    assert arguments["TargetCapacitySpecification"]["TotalTargetCapacity"] == 1
    (config,) = arguments["LaunchTemplateConfigs"]
    assert config["Overrides"] == [{"InstanceType": "g6e.xlarge", "SubnetId": "subnet-1"}]
    data = config["LaunchTemplateSpecification"]["LaunchTemplateSpecificationUserData"]
    assert base64.b64decode(data) == b"#cloud-config\n"
    strategy = arguments.get("SpotOptions", {}).get("AllocationStrategy")
    assert strategy == ("price-capacity-optimized" if market == "spot" else None)


def test_a_reservation_is_ordered_by_its_id_and_nothing_else_will_do() -> None:
    arguments = order(offer("z-1", "cr-0123456789abcdef0"))
    target = arguments["ReservedCapacityOptions"]["CapacityReservationTarget"]
    assert target == {"CapacityReservationIds": ["cr-0123456789abcdef0"]}
    assert "ReservedCapacityFallbackOptions" not in arguments["ReservedCapacityOptions"]


def test_a_template_goes_by_name_or_by_id() -> None:
    spot = offer("z-1", "spot")
    by_id = order(spot, template="lt-0123")["LaunchTemplateConfigs"][0]
    assert by_id["LaunchTemplateSpecification"]["LaunchTemplateId"] == "lt-0123"
    by_name = order(spot)["LaunchTemplateConfigs"][0]["LaunchTemplateSpecification"]
    assert by_name["LaunchTemplateName"] == "node"


def test_a_zone_without_a_subnet_is_left_out_and_none_is_an_error() -> None:
    arguments = order(offer("z-9", "spot"), offer("z-2", "spot"))
    (override,) = arguments["LaunchTemplateConfigs"][0]["Overrides"]
    assert override["SubnetId"] == "subnet-2"
    with pytest.raises(InvalidArgument, match="no subnet"):
        order(offer("z-9", "spot"))


def test_a_token_is_the_same_for_the_same_node_of_the_same_run_alone() -> None:
    tokens = {client_token(run, node) for run in ("a", "b", "a/n") for node in ("n", "n-1", "n/n")}
    assert len(tokens) == 9
    assert client_token("a", "n") == client_token("a", "n")
    assert all(len(token) == 64 and token.isalnum() for token in tokens)


def test_user_data_holds_the_environment_and_starts_the_unit(tmp_path: Path) -> None:
    text = user_data({"SHUNT_NODE_ID": "node-1", "A": 'with "quotes" and $signs'}, CloudConfig())
    assert text.startswith("#cloud-config\n")
    document = yaml.safe_load(text)
    assert document.keys() == {"write_files", "runcmd"}
    (file,) = document["write_files"]
    assert file["permissions"] == "0600"
    lines = dict(line.split("=", 1) for line in file["content"].splitlines())
    assert {name: json.loads(value) for name, value in lines.items()} == {
        "SHUNT_NODE_ID": "node-1",
        "A": 'with "quotes" and $signs',
    }
    if cloud_init := shutil.which("cloud-init"):
        path = tmp_path / "user-data"
        path.write_text(text)
        subprocess.run([cloud_init, "schema", "--config-file", str(path)], check=True)


def test_user_data_begin_with_what_every_node_begins_with() -> None:
    base = CloudConfig(
        packages=("awscli-2",),
        write_files=(File(path="/usr/local/sbin/boot", content="eA==", encoding="b64"),),
        runcmd=("mkdir -p /x", ("boot", "image")),
    )
    document = yaml.safe_load(user_data({"SHUNT_NODE_ID": "node-1"}, base))
    assert document["packages"] == ["awscli-2"]
    assert [file["path"] for file in document["write_files"]] == [
        "/usr/local/sbin/boot",
        "/etc/shuntserve/node.env",
    ]
    assert document["write_files"][0]["encoding"] == "b64"
    assert document["runcmd"] == [
        "mkdir -p /x",
        ["boot", "image"],
        ["systemctl", "enable", "--now", "shunt-node.service"],
    ]


@pytest.mark.parametrize("variables", [{"A": "two\nlines"}, {"A": "é"}, {"A B": "x"}, {"A=": "x"}])
def test_what_is_no_line_of_an_environment_is_refused(variables: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument):
        user_data(variables, CloudConfig())


def test_user_data_that_ec2_would_not_take_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=str(MAX_USER_DATA_BYTES)):
        user_data({"A": "x" * MAX_USER_DATA_BYTES}, CloudConfig())
