"""Meshes with vLLM: beside native pipelines, and with stages on several ranks."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import transformers
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc

from bench import mesh as meshes
from services.common import channels
from services.common.roles import Role
from tests.mesh import tiny_mesh
from tests.mesh.test_ranks import nodes_of, ranks_of
from tests.tiny_model import model_files, tiny_tokenizer

NAME = "heads"
LAYERS, TOKENS = 6, 700
LONG = 2400
"""Native stages are through with fewer before anything can happen to them."""
MODEL = transformers.LlamaConfig(
    hidden_size=256,
    intermediate_size=384,
    num_hidden_layers=LAYERS,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=32,
    vocab_size=320,
    max_position_embeddings=4096,
    tie_word_embeddings=False,
    eos_token_id=301,
)
PATIENCE = {"SHUNT_CONTROLLER_OWN_ARITHMETIC_S": "120"}
"""vLLM's engine takes its time to come back where others want the cores."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 8 heads and 4 key-value heads, far from ties."""
    base: Path = tmp_path_factory.mktemp("heads")
    torch.manual_seed(5)
    model: Any = transformers.LlamaForCausalLM(MODEL)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0.0, 1.0 if "embed" in name else 0.08)
    model.save_pretrained(base / "source")
    for name, content in model_files(tiny_tokenizer()).items():
        (base / "source" / name).write_bytes(content)
    imported = ("model", "import", str(base / "source"), "--name", NAME)
    asyncio.run(meshes.run_shunt(*imported, "--store", str(base / "store"), timeout_s=60))
    return base / "store"


@asynccontextmanager
async def running(
    data_dir: Path, store: Path, *options: str, pipelines: int = 2, **settings: str
) -> AsyncIterator[meshes.Mesh]:
    async with meshes.running(
        data_dir,
        env={**os.environ, **PATIENCE, **settings},
        options=("--model", NAME, "--spares", "0", *options),
        pipelines=pipelines,
        store=store,
    ) as mesh:
        yield mesh


def bodies(count: int, tokens: int = TOKENS) -> list[dict[str, Any]]:
    return [
        {
            "model": NAME,
            "messages": [{"role": "user", "content": f"Count from {number}."}],
            "temperature": 0.7,
            "seed": number,
            "max_tokens": tokens,
            "ignore_eos": True,
        }
        for number in range(count)
    ]


class Pair:
    """The same question twice at once: a pipeline of each backend has one."""

    def __init__(self, client: httpx.AsyncClient, url: str, tokens: int = TOKENS) -> None:
        self._client, self._url = client, url
        (body,) = bodies(1, tokens)
        self.records = [meshes.StreamRecord() for _ in range(2)]
        self.tasks = [
            asyncio.create_task(meshes.stream_chat(client, url, body, record))
            for record in self.records
        ]

    async def begun(self) -> None:
        await meshes.until(lambda: all(len(r.arrivals_s) > 5 for r in self.records))
        assert not any(record.done for record in self.records)

    async def ended(self) -> dict[str, tuple[meshes.StreamRecord, list[str]]]:
        """By the backend it began with: what was read, and the classes that it had."""
        await asyncio.gather(*self.tasks)
        found = {}
        for record in self.records:
            assert record.complete, record.error
            where = f"{self._url}/v1/generations/{record.generation_id}"
            classes = (await self._client.get(where)).json()["numerics_classes"]
            found["vllm" if "vllm" in classes[0] else "native"] = record, classes
        assert found.keys() == {"native", "vllm"}
        return found


def told(record: meshes.StreamRecord) -> list[str]:
    return [comment for comment in record.comments if "arithmetic" in comment]


async def test_a_stream_keeps_to_its_backend_while_that_comes_back_and_else_says_so(
    tmp_path: Path, store: Path, client: httpx.AsyncClient
) -> None:
    mixed = ("--backend", "native,vllm", "--node-speeds", "1,1")
    async with running(tmp_path / "mesh", store, *mixed) as mesh:
        status = await mesh.until_ready(2)
        stages = {p["stages"][0]["backend"]: p["stages"][0] for p in status["pipelines"]}
        assert stages.keys() == {"native", "vllm"}
        assert {offer["backend"] for offer in status["offers"]} == {"native", "vllm"}
        why = json.loads(await mesh.shunt("plan", "why", "--no-what-ifs", "--json"))
        assert any(
            "a pipeline has one backend" in reason and "1 node of vllm" in reason
            for reason in why["reasons"]
        ), why["reasons"]

        pair = Pair(client, mesh.url())
        undisturbed = await pair.ended()
        assert all(len(classes) == 1 for _, classes in undisturbed.values())

        for backend, stage in stages.items():
            pair = Pair(client, mesh.url())
            await pair.begun()
            node = next(n for n in status["nodes"] if n["id"] == stage["node"])
            os.kill(node["pid"], signal.SIGKILL)
            for name, (record, classes) in (await pair.ended()).items():
                assert record.text == undisturbed[name][0].text, backend
                assert classes == undisturbed[name][1]
                assert not told(record)
            status = await mesh.until_ready(2, timeout_s=120)
            backends = [s["backend"] for p in status["pipelines"] for s in p["stages"]]
            assert sorted(backends) == ["native", "vllm"]

        (left,) = (p for p in status["pipelines"] if p["stages"][0]["backend"] == "vllm")
        without = [{"layers": [0, LAYERS], "node": left["stages"][0]["node"]}]
        pipelines = [{"id": left["id"], "stages": without}]
        plan = json.dumps({"deployments": [{"model": NAME, "pipelines": pipelines}]})
        address = next(s["grpc"] for s in status["services"] if s["name"] == "controller")
        async with channels.open_channel(address, Role.CONTROLLER) as channel:
            stub = controller_pb2_grpc.ControllerServiceStub(channel)
            pair = Pair(client, mesh.url(), LONG)
            await pair.begun()
            await stub.ApplyPlan(controller_pb2.ApplyPlanRequest(plan_json=plan), timeout=60)
        ended = await pair.ended()
        record, classes = ended["native"]
        native, vllm = (undisturbed[name][1][0] for name in ("native", "vllm"))
        assert classes == [native, vllm]
        assert told(record) == [f": the arithmetic changed from {native} to {vllm}"]
        stayed, classes = ended["vllm"]
        whole = undisturbed["vllm"][0].text.rstrip("\ufffd")  # its last character may be cut
        assert stayed.text.startswith(whole)
        assert (classes, told(stayed)) == ([vllm], [])
        granted = [e for e in await tiny_mesh.events(mesh) if e.kind == "generation_granted"]
        changed = {
            e.generation_id: e.attributes["numerics"] for e in granted if "numerics" in e.attributes
        }
        assert changed == {record.generation_id: f"{native} to {vllm}"}


async def test_ranks_of_a_stage_of_vllms_are_lost_under_load_and_no_stream_fails(
    tmp_path: Path, store: Path, client: httpx.AsyncClient
) -> None:
    stages = ("--backend", "vllm", "--stages", "0-1:tp1,2-5:tp2")
    async with running(tmp_path / "mesh", store, *stages, SHUNT_ENGINE_DTYPE="fp32") as mesh:
        status = await mesh.until_ready(2)
        for pipeline in status["pipelines"]:
            found = [(s["layers"], s["tp"], s["backend"]) for s in pipeline["stages"]]
            assert found == [([0, 2], 1, "vllm"), ([2, LAYERS], 2, "vllm")]
        asked = bodies(4)
        expected = await meshes.undisturbed(client, mesh.url(), asked)
        for sent in (signal.SIGKILL, signal.SIGSTOP):
            status = await mesh.until_ready(2, timeout_s=120)
            records = [meshes.StreamRecord() for _ in asked]
            tasks = [
                asyncio.create_task(meshes.stream_chat(client, mesh.url(), body, record))
                for body, record in zip(asked, records, strict=True)
            ]
            await meshes.until(begun(records))
            serving = {one["pipeline"] for one in (await mesh.status())["generations"]}
            hit = next(i for i, p in enumerate(status["pipelines"]) if p["id"] in serving)
            ranks = ranks_of(nodes_of(status, 1)[hit]["pid"])
            assert len(ranks) == 2
            os.kill(ranks[1], sent)
            await asyncio.gather(*tasks)
            for record, wanted in zip(records, expected, strict=True):
                assert record.complete, record.error
                assert record.text == wanted.text, sent
            await meshes.until(gone(ranks))
        after = await mesh.until_ready(2, timeout_s=120)
        assert [len(ranks_of(node["pid"])) for node in nodes_of(after, 1)] == [2, 2]
    one = ("--backend", "vllm", "--node-speeds", "1")
    whole = running(tmp_path / "whole", store, *one, pipelines=1, SHUNT_ENGINE_DTYPE="fp32")
    async with whole as mesh:
        unsplit = await meshes.undisturbed(client, mesh.url(), asked)
    assert [record.text for record in unsplit] == [record.text for record in expected]


def begun(records: Sequence[meshes.StreamRecord]) -> Any:
    return lambda: all(len(record.arrivals_s) > 5 for record in records)


def gone(pids: Sequence[int]) -> Any:
    return lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids)
