"""`shunt ec2 plan` against a played cloud: what it says is what there is, and nothing is bought."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from services.cli.ec2.options import Options
from services.cli.ec2.planning import planned
from services.cli.ec2.quote import quote_text
from services.cli.mesh_directory import MeshError
from tests.ec2.cloud import Cloud

MODEL = "qwen3-32b"
H100 = """
types: [{instance_type: p5.48xlarge, device_type: h100, memory_bytes: 600000000000, count: 1,
  price_per_hour: 55}]
"""


async def shunt(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Exit status, and what it said on both."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli", "ec2", *arguments),
        env={**os.environ, "COLUMNS": "200", **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, complaints = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode(), complaints.decode()


async def test_a_plan_names_offers_pipelines_and_prices_and_buys_nothing(
    cloud: Cloud, types_file: Path
) -> None:
    options = ("--model", MODEL, "--types", str(types_file), "--nodes", "g6e.xlarge:4")
    status, said, _ = await shunt("plan", *options, "--json")
    assert status == 0
    found = json.loads(said)
    assert (found["region"], found["account"]) == ("us-east-1", "123456789012")
    offers = {offer["id"]: offer for offer in found["offers"]}
    assert offers["g6e.xlarge/use1-az1/spot"]["price_per_hour"] == 0.7
    assert offers["g6e.xlarge/use1-az1/on-demand"]["price_per_hour"] == 1.861
    assert found["first_nodes"] == "g6e.xlarge:4"
    assert found["nodes"] == [
        {"offer": "g6e.xlarge/use1-az1/spot", "count": 4, "price_per_hour": 0.7}
    ]
    assert found["cost_per_hour"] == pytest.approx(2.8)
    assert found["on_demand_cost_per_hour"] == pytest.approx(4 * 1.861)
    standing = sum(row["per_hour"] for row in found["standing"])
    assert found["total_cost_per_hour"] == pytest.approx(2.8 + standing)
    layers = [s["layers"] for pipeline in found["pipelines"] for s in pipeline["stages"]]
    assert sum(layers) == 64
    assert found["estimate"]["throughput_rps"] > 0
    assert [(q["code"], q["vcpus"]) for q in found["quotas"]] == [("L-3819A6DF", 16)]
    assert cloud.instances() == []
    assert cloud.count("CreateFleet") == cloud.count("RunInstances") == 0


async def test_people_read_the_same_in_tables(cloud: Cloud, types_file: Path) -> None:
    found = planned(Options(model=MODEL, types=types_file, nodes="g6e.xlarge:4"))
    console = Console(width=200, record=True, file=StringIO())
    console.print(quote_text(found))
    said = console.export_text()
    assert "g6e.xlarge/use1-az1/spot" in said
    assert "nodes now: g6e.xlarge:4" in said
    assert "all nodes on demand would cost 7.444 an hour" in said
    assert "All G and VT Spot Instance Requests" in said


@pytest.mark.parametrize(
    ("environment", "region", "says"),
    [
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "", "there are no AWS credential"),
        ({"AWS_REGION": "", "AWS_DEFAULT_REGION": ""}, "", "no region is set: --region"),
        ({"AWS_PROFILE": "nobody"}, "", "AWS_PROFILE names one of"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "", "is AWS_ENDPOINT_URL right"),
        ({}, "eu-west-3", "eu-west-3 .euw3-az1, euw3-az2, euw3-az3. offers none of"),
    ],
)
async def test_what_an_account_lacks_is_told_with_what_to_do(
    cloud: Cloud,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    region: str,
    says: str,
) -> None:
    types = tmp_path / "types.yaml"
    types.write_text(H100)
    nowhere = {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)}
    for name, value in (nowhere | environment).items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    options = Options(model=MODEL, types=types, max_dollars_per_hour=99.0, region=region)
    with pytest.raises(MeshError, match=says):
        planned(options)


async def test_a_right_that_is_lacking_is_named(cloud: Cloud, types_file: Path) -> None:
    cloud.errors["DescribeSpotPriceHistory"] = [("UnauthorizedOperation", 403)]
    with pytest.raises(MeshError, match="allow ec2:DescribeSpotPriceHistory"):
        planned(Options(model=MODEL, types=types_file))
