"""A real Prometheus watches a mesh by the files of deploy/: whom it finds, what it can answer."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from bench import mesh as meshes
from tests.monitoring import ROOT, RULES, of_dashboards
from tests.tools import need

SCRAPE = ROOT / "deploy" / "prometheus" / "compose-scrape.yaml"
WAIT_S = 60.0
MOVED = "sum(shunt_router_migration_gap_seconds_count)"
MAY_BE_SILENT = {
    "market.json: Dollars an hour": "its nodes cost nothing",
    "market.json: Until certificates end": "it has none",
    "serving.json: Streams that failed": "none has",
    "serving.json: Requests by tenant": "nobody is asked for a key",
    "serving.json: Tokens a second by tenant": "nobody is asked for a key",
    "serving.json: First token by tenant, p95": "nobody is asked for a key",
}
"""Panels, and why this mesh has nothing to show there."""


class Prometheus:
    """What it knows, by its API."""

    def __init__(self, client: httpx.AsyncClient, address: str) -> None:
        self._client, self._url = client, f"http://{address}/api/v1"

    async def ask(self, expression: str) -> list[Any]:
        """The series of an instant query; raises AssertionError with what it says of a bad one."""
        answer = await self._client.get(f"{self._url}/query", params={"query": expression})
        assert answer.status_code == 200, f"{expression}: {answer.text}"
        found: list[Any] = answer.json()["data"]["result"]
        return found

    async def until(self, expression: str, count: int = 1) -> list[Any]:
        """Asks again until so many series answer."""
        async with asyncio.timeout(WAIT_S):
            while len(found := await self.ask(expression)) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        return found

    async def rules(self) -> list[Any]:
        """Each as it stands."""
        answer = await self._client.get(f"{self._url}/rules")
        return [rule for group in answer.json()["data"]["groups"] for rule in group["rules"]]


def _configuration(mesh: meshes.Mesh, directory: Path) -> Path:
    """That of deploy/compose, with the addresses of this mesh in the place of its names."""
    log = (mesh.data_dir / "logs" / "controller.log").read_text()
    controller = re.findall(r'"metrics".*?"address": ?"([^"]+)"', log)[-1]
    config = yaml.safe_load(SCRAPE.read_text())
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "1s"}
    config["rule_files"] = [str(RULES)]
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    del jobs["router"]["dns_sd_configs"]
    routers = [f"127.0.0.1:{mesh.http_port + router}" for router in range(mesh.routers)]
    jobs["router"]["static_configs"] = [{"targets": routers}]
    jobs["services"]["static_configs"] = [{"targets": [controller]}]
    found = jobs["engines"]["http_sd_configs"][0]
    found.update(url=f"http://{controller}/targets", refresh_interval="1s")
    file = directory / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    return file


@asynccontextmanager
async def _watching(
    mesh: meshes.Mesh, client: httpx.AsyncClient, directory: Path
) -> AsyncIterator[Prometheus]:
    config, log = _configuration(mesh, directory), directory / "prometheus.log"
    program = shutil.which("prometheus")
    assert program
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(program, f"--config.file={config}", f"--storage.tsdb.path={directory}/data"),
            *("--web.listen-address=127.0.0.1:0", "--log.level=info"),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        async with asyncio.timeout(WAIT_S):
            while not (listens := re.findall(r"(?i)listening on\W+address=(\S+)", log.read_text())):
                assert process.returncode is None, log.read_text()
                await asyncio.sleep(0.1)
            while (await client.get(f"http://{listens[-1]}/-/ready")).is_error:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        yield Prometheus(client, listens[-1])
    finally:
        process.terminate()
        await process.wait()


async def test_prometheus_finds_all_that_runs_and_answers_each_panel_and_rule(
    ready: meshes.Mesh, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    need(prometheus="prometheus")
    status = await ready.status()
    async with _watching(ready, client, tmp_path) as prometheus:
        await prometheus.until('up{job="router"} == 1', ready.routers)
        await prometheus.until('up{job="services"} == 1')
        sits = {s["node"]: p["id"] for p in status["pipelines"] for s in p["stages"]}
        for node, pipeline in sits.items():
            await prometheus.until(
                f'up{{job="engines", node="{node}", pipeline="{pipeline}"}} == 1'
            )
        moved = await prometheus.ask(MOVED)
        record = meshes.StreamRecord()
        body = meshes.request_bodies(200)[1] | {"ignore_eos": True}
        stream = asyncio.create_task(meshes.stream_chat(client, ready.url(), body, record))
        await meshes.until(lambda: len(record.arrivals_s) > 10)
        head = next(
            pipeline["stages"][0]["node"]
            for generation in (await ready.status())["generations"]
            for pipeline in status["pipelines"]
            if (generation["id"], generation["pipeline"]) == (record.generation_id, pipeline["id"])
        )
        os.kill(next(n["pid"] for n in status["nodes"] if n["id"] == head), signal.SIGKILL)
        await stream
        assert record.complete, record.error
        before = moved[0]["value"][1] if moved else "0"
        await prometheus.until(f"{MOVED} > {before}")
        await ready.until_ready(2)
        await prometheus.until(f'up{{job="engines", node!="{head}"}} == 1', len(sits))
        await prometheus.until(f'absent(up{{node="{head}"}})')  # who is gone is asked no more
        silent = {one.place for one in of_dashboards() if not await prometheus.ask(one.expression)}
        assert silent <= MAY_BE_SILENT.keys()
        async with asyncio.timeout(WAIT_S):
            while any(  # noqa: ASYNC110
                rule["health"] == "unknown" for rule in await prometheus.rules()
            ):
                await asyncio.sleep(0.2)
        broken = [rule["lastError"] for rule in await prometheus.rules() if rule["health"] != "ok"]
        assert broken == []
