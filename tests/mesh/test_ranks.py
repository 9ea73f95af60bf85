"""A mesh whose last stages run on two ranks each, beside first stages of one."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import transformers

from bench import mesh as meshes
from services.cli.mesh_directory import MeshDirectory
from services.cli.processes import own_processes
from services.engine.native import kernels
from tests.mesh import tiny_mesh
from tests.tiny_model import tiny_tokenizer

pytestmark = pytest.mark.skipif(kernels.load() is None, reason="needs a compiler and a known CPU")
PROMPT = [(37 * n * n + 11 * n) % 290 for n in range(50)]
STAGES = "0-1:tp1,2-3:tp2"


@pytest.fixture(scope="module")
def model() -> transformers.MistralForCausalLM:
    return tiny_mesh.reference()


@pytest.fixture(scope="module")
def mesh(
    tmp_path_factory: pytest.TempPathFactory, model: transformers.MistralForCausalLM
) -> Iterator[meshes.Mesh]:
    """Two pipelines; behind its end nothing of it is left."""
    base = tmp_path_factory.mktemp("ranks")
    with asyncio.Runner() as runner:
        imported = tiny_mesh.import_model(model, base / "source", base / "mesh" / "store")
        runner.run(imported)
        context = meshes.running(
            base / "mesh",
            env={**os.environ, "SHUNT_ENGINE_DTYPE": "fp32"},
            options=(
                *("--model", tiny_mesh.NAME, "--node-speeds", "1:1,1:1"),
                *("--stages", STAGES),
            ),
        )
        mesh = runner.run(context.__aenter__())
        mesh_id = MeshDirectory(mesh.data_dir).running().mesh_id
        try:
            yield mesh
        finally:
            runner.run(context.__aexit__(None, None, None))
        assert not own_processes(mesh_id)


def ranks_of(pid: int) -> list[int]:
    """Processes of an engine's ranks, in their order."""
    found: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            words = stat.with_name("cmdline").read_text().split("\0")
        except (OSError, IndexError):
            continue
        if parent == pid and "services.engine.ranks.process" in words:
            found[int(words[5])] = int(stat.parent.name)
    return [found[number] for number in sorted(found)]


def nodes_of(status: dict[str, Any], stage: int) -> list[dict[str, Any]]:
    """The nodes of a stage of every pipeline."""
    nodes = {node["id"]: node for node in status["nodes"]}
    return [nodes[pipeline["stages"][stage]["node"]] for pipeline in status["pipelines"]]


async def test_the_status_tells_ranks_and_an_answer_is_that_of_transformers(
    mesh: meshes.Mesh, client: httpx.AsyncClient, model: transformers.MistralForCausalLM
) -> None:
    status = await mesh.until_ready(2)
    for pipeline in status["pipelines"]:
        assert [(s["layers"], s["tp"]) for s in pipeline["stages"]] == [([0, 2], 1), ([2, 4], 2)]
    assert [len(ranks_of(node["pid"])) for node in nodes_of(status, 0)] == [0, 0]
    assert [len(ranks_of(node["pid"])) for node in nodes_of(status, 1)] == [2, 2]
    body = {"model": tiny_mesh.NAME, "prompt": PROMPT, "temperature": 0, "ignore_eos": True}
    ids = tiny_mesh.greedy(model, PROMPT, 60)
    for _ in range(2):
        answer = await client.post(f"{mesh.url()}/v1/completions", json=body | {"max_tokens": 60})
        assert answer.json()["choices"][0]["text"] == tiny_tokenizer().decode(ids)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_streams_of_a_stage_that_loses_a_rank_go_on_elsewhere_and_it_comes_back(
    mesh: meshes.Mesh, client: httpx.AsyncClient, sent: signal.Signals
) -> None:
    await mesh.until_ready(2)
    bodies = [
        {
            "model": tiny_mesh.NAME,
            "messages": [{"role": "user", "content": f"Count from {number}."}],
            "temperature": 0.7,
            "seed": number,
            "max_tokens": 400,
            "ignore_eos": True,
        }
        for number in range(4)
    ]
    expected = await meshes.undisturbed(client, mesh.url(), bodies)
    records = [meshes.StreamRecord() for _ in bodies]
    tasks = [
        asyncio.create_task(meshes.stream_chat(client, mesh.url(), body, record))
        for body, record in zip(bodies, records, strict=True)
    ]
    await meshes.until(lambda: all(len(r.arrivals_s) > 5 for r in records))
    status = await mesh.status()
    serving = {generation["pipeline"] for generation in status["generations"]}
    hit = next(i for i, p in enumerate(status["pipelines"]) if p["id"] in serving)
    ranks = ranks_of(nodes_of(status, 1)[hit]["pid"])
    assert not any(record.done for record in records)
    os.kill(ranks[1], sent)
    await asyncio.gather(*tasks)
    for record, wanted in zip(records, expected, strict=True):
        assert record.complete, record.error
        assert (record.text, record.usage) == (wanted.text, wanted.usage)
    await meshes.until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ranks))
    after = await mesh.until_ready(2)
    assert [len(ranks_of(node["pid"])) for node in nodes_of(after, 1)] == [2, 2]
    assert all(s["tp"] == 2 for p in after["pipelines"] for s in p["stages"][1:])
    again = await meshes.undisturbed(client, mesh.url(), bodies[:2])
    assert [r.text for r in again] == [r.text for r in expected[:2]]
