"""What the start of a stage takes on this machine: a real local mesh, and parts on their own."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from bench import mesh as meshes
from bench.engine import read_weights
from bench.mesh import Mesh
from experiments.starts.parts import Event, Parts, parts_of
from services.common.errors import DeadlineExceeded
from services.engine.native.model import load_stage
from services.model.config import parse_config

KILLS = 4
REPEATS = 5
WITHIN_S = 240.0
LOOK_S = 0.5
KV_BLOCKS = 64


def on_a_mesh() -> list[Parts]:
    """Of nodes that take the places of killed ones, one at a time, each once all serve again."""
    with tempfile.TemporaryDirectory(prefix="shunt-starts-") as data_dir:
        return asyncio.run(_followed(Path(data_dir)))


async def _followed(data_dir: Path) -> list[Parts]:
    async with meshes.running(data_dir) as mesh:
        events = await _events(mesh, pipelines=2)
        for number in range(KILLS):
            stages = [s for p in (await mesh.status())["pipelines"] for s in p["stages"]]
            await mesh.shunt("interrupt", stages[number % len(stages)]["node"], "--kill")
            events = await _events(mesh, pipelines=3 + number)
    return parts_of(events)


async def _events(mesh: Mesh, pipelines: int) -> list[Event]:
    """All there are, once so many pipelines have been ready. Raises DeadlineExceeded."""
    until_s = time.monotonic() + WITHIN_S
    while time.monotonic() < until_s:
        rows = [json.loads(line) for line in (await mesh.shunt("events", "--json")).splitlines()]
        if sum(row["kind"] == "pipeline_ready" for row in rows) >= pipelines:
            return [
                Event(row["at"], row["kind"], row["node"] or "", row["pipeline"] or "")
                for row in rows
            ]
        await asyncio.sleep(LOOK_S)
    raise DeadlineExceeded(f"not {pipelines} pipelines in {WITHIN_S:g} s")


def process_s(imports: str) -> float:
    """Of a Python process that imports this and ends."""
    return _took_s(lambda: subprocess.run([sys.executable, "-c", imports], check=True))


def stage_s() -> tuple[float, float]:
    """Of half the demo model's layers, whose weights are in memory: packed, and packed and
    tested."""
    config, tensors = read_weights()
    parsed = parse_config(config)
    layers = range(parsed.layer_count // 2)

    def load(*, self_test: bool) -> None:
        load_stage(parsed, tensors, layers, kv_blocks=KV_BLOCKS, self_test=self_test).close()

    return _took_s(lambda: load(self_test=False)), _took_s(lambda: load(self_test=True))


def _took_s(work: Callable[[], object]) -> float:
    """In the median of some."""
    took = []
    for _ in range(REPEATS):
        began_s = time.perf_counter()
        work()
        took.append(time.perf_counter() - began_s)
    return median(took)
