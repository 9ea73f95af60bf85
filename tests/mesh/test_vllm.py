"""A mesh whose engines compute with vLLM: the same promises, the same engine around it."""

from __future__ import annotations

from pathlib import Path

from bench import chaos
from bench import mesh as meshes


async def test_no_reader_notices_a_kill_or_a_notice_on_vllm(tmp_path: Path) -> None:
    async with meshes.running(tmp_path, options=("--backend", "vllm")) as mesh:
        status = await mesh.status()
        stages = [stage for pipeline in status["pipelines"] for stage in pipeline["stages"]]
        assert [stage["backend"] for stage in stages] == ["vllm"] * 4
        assert {node["backend"] for node in status["nodes"] if node["pipeline"]} == {"vllm"}
        report = await chaos.run(
            mesh, kills=1, solo=0, pairs=0, drains=1, streams=2, seed=5, max_tokens=60
        )
    assert report["failures"] == []
    assert report["differences"] == []
    assert (report["kills"], report["drains"]) == (1, 1)
    assert report["moves"] >= 1
