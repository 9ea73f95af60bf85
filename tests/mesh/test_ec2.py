"""`shunt ec2` from a template to an answer and back to nothing, on a played cloud whose instances
are processes: the stack's own hosts by their user data, and nodes that its controller buys."""

from __future__ import annotations

import asyncio
import json
from dataclasses import fields
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from services.cli.ec2.down import take_down
from services.cli.ec2.home import Home
from services.cli.ec2.options import Options
from services.cli.ec2.status import ec2_status
from services.cli.ec2.up import Order, bring_up
from tests.ec2.cloud import Cloud, read_prices
from tests.ec2.hosts import Hosts, free_port
from tests.mesh import tiny_mesh

MESH = "played"
TYPES = """
types:
  - {instance_type: c7i.xlarge, memory_bytes: 268435456, count: 4, price_per_hour: 0.1785,
     launch_s: 1}
"""
EVERY = {one.name for one in fields(Options)} - {"mesh"}
PRICES = """
0,c7i.xlarge,use1-az1,0.07
"""


def order(directory: Path) -> Order:
    types = directory / "types.yaml"
    types.write_text(TYPES)
    return Order(
        Options(
            mesh=MESH,
            model=tiny_mesh.NAME,
            store=str(directory / "store"),
            types=types,
            nodes="c7i.xlarge:1",
            routers=1,
        ),
        {
            "GatewayCidr": "198.51.100.7/32",
            "OperatorCidr": "198.51.100.7/32",
            "ServicesImage": "registry/services:1",
            "NodeImage": "registry/node:1",
        },
        directory / "keys",
        wait_s=200.0,
    )


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:Tried to parse:UserWarning")  # what moto knows nothing of
@pytest.mark.filterwarnings("ignore:Exception.DependencyViolation:UserWarning")
async def test_up_leads_to_the_first_answer_and_down_to_nothing(
    cloud: Cloud, tmp_path: Path, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.prices = read_prices(PRICES)
    monkeypatch.setenv("SHUNT_ENGINE_THREADS", "1")
    await tiny_mesh.import_model(tiny_mesh.reference(), tmp_path / "source", tmp_path / "store")
    ports = {7001: free_port(), 8080: free_port(), 50051: free_port()}
    cloud.balanced = {80: ports[8080], 7001: ports[7001], 50051: ports[50051]}
    said = list[str]()
    console = Console(file=StringIO(), width=200)
    async with Hosts(cloud, MESH, tmp_path / "hosts", ports).running() as hosts:
        wanted = order(tmp_path)
        await asyncio.to_thread(bring_up, wanted, console, said.append, lambda: True)
        url = f"http://127.0.0.1:{ports[8080]}"
        refused = await client.post(f"{url}/v1/chat/completions", json=chat())
        assert refused.status_code == 401
        shown = {"Authorization": f"Bearer {(tmp_path / 'keys' / 'first-key').read_text().strip()}"}
        answer = await client.post(f"{url}/v1/chat/completions", json=chat(), headers=shown)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["finish_reason"] == "length"

        assert len(await batched(client, url, shown)) == 2

        home = await asyncio.to_thread(Home.open, MESH, "", wanted.certificates, said.append)
        found = await asyncio.to_thread(ec2_status, home)
        json.dumps(found)
        assert found["gateway"] == {"url": url, "ready": True, "reason": None}
        [node] = found["nodes"]
        assert (node["offer"], node["is_spot"]) == ("c7i.xlarge/use1-az1/spot", True)
        assert found["cost_per_hour"]["nodes"] == pytest.approx(0.07)
        assert [p["state"] for p in found["controller"]["pipelines"]] == ["ready"]

        # Once more, and nothing said: all stays, and nothing is made twice.
        before = {one.id for one in cloud.instances()}
        bare = Order(
            Options(mesh=MESH), {}, wanted.certificates, wait_s=200.0, unsaid=frozenset(EVERY)
        )
        stood = await asyncio.to_thread(home.stack.view)
        await asyncio.to_thread(bring_up, bare, console, said.append, lambda: True)
        assert {one.id for one in cloud.instances()} == before
        assert (await asyncio.to_thread(home.stack.view)).parameters == stood.parameters

        ended = await asyncio.to_thread(take_down, home, said.append, delete_models=False)
        # The hosts first: a controller buys anew what is taken from it.
        assert [machine.role for machine in ended.machines] == ["controller", "router", "node"]
        actions = [action for action, _ in cloud.calls]
        emptied = max(n for n, name in enumerate(actions) if name == "UpdateAutoScalingGroup")
        assert emptied < actions.index("TerminateInstances") < actions.index("DeleteStack")
        assert_nothing(cloud)
        [bucket] = buckets(cloud)
        assert ended.files > 0
        [left] = ended.left
        assert left.startswith(f"bucket {bucket} with 0.0")
        await asyncio.sleep(0)
        for process in (p for own in hosts.processes.values() for p in own):
            assert await asyncio.to_thread(process.wait, 60) != 0
        last = await asyncio.to_thread(take_down, home, said.append, delete_models=True)
        assert last.objects
        assert buckets(cloud) == []
    assert "stack played stands" in said
    assert any("pipeline_ready" in line for line in said), said


def chat() -> dict[str, Any]:
    return {
        "model": tiny_mesh.NAME,
        "messages": [{"role": "user", "content": "the capital"}],
        "max_tokens": 8,
        "temperature": 0,
        "ignore_eos": True,
    }


async def batched(client: httpx.AsyncClient, url: str, shown: dict[str, str]) -> list[str]:
    """Lines that a batch of two is answered, in the file that the mesh keeps in its bucket."""
    asked = {"method": "POST", "url": "/v1/chat/completions", "body": chat()}
    lines = "".join(json.dumps({"custom_id": name, **asked}) + "\n" for name in "ab")
    sent = await client.post(
        f"{url}/v1/files",
        files={"file": ("in.jsonl", lines.encode())},
        data={"purpose": "batch"},
        headers=shown,
    )
    assert sent.status_code == 200, sent.text
    order = {
        "input_file_id": sent.json()["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    batch = (await client.post(f"{url}/v1/batches", json=order, headers=shown)).json()
    async with asyncio.timeout(120):
        while batch["status"] in ("validating", "in_progress", "finalizing"):
            await asyncio.sleep(0.2)
            answer = await client.get(f"{url}/v1/batches/{batch['id']}", headers=shown)
            batch = answer.json()
    assert batch["status"] == "completed", batch
    answers = await client.get(f"{url}/v1/files/{batch['output_file_id']}/content", headers=shown)
    return answers.text.splitlines()


def buckets(cloud: Cloud) -> list[str]:
    """The mesh's own."""
    names = (row["Name"] for row in cloud.client("s3").list_buckets()["Buckets"])
    return [name for name in names if name.startswith(MESH)]


def assert_nothing(cloud: Cloud) -> None:
    assert cloud.instances() == []
    mine = [{"Name": "tag:shuntserve:stack", "Values": [MESH]}]
    assert cloud.client("ec2").describe_volumes(Filters=mine)["Volumes"] == []
    parameters = cloud.client("ssm").get_parameters_by_path(Path="/shuntserve", Recursive=True)
    assert parameters["Parameters"] == []
    assert cloud.count("DeleteStack") == 1
