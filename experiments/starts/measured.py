"""Starts of a real mesh on this machine: nodes are killed; what their followers' events and spans
tell."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import mesh as meshes
from bench.otlp import ReceivedSpan, Receiver
from experiments.starts.parts import Event, Parts, parts_of
from experiments.starts.rows import IMPORTS, MADE, OF_LOAD, REGISTERS, TOLD

MODEL = meshes.MODEL
SPANS_S = 60.0
"""Spans leave a process half a second behind their end."""


@dataclass(frozen=True, slots=True)
class Start:
    """Of one node that followed another."""

    parts: Parts
    inside_s: dict[str, float]
    """By row."""


async def starts(data_dir: Path, kills: int) -> list[Start]:
    """Of those that follow nodes which are killed, one at a time, in a mesh of two pipelines."""
    receiver = Receiver()
    env = os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint}
    try:
        async with meshes.running(data_dir, env=env) as mesh:
            for number in range(kills):
                status = await mesh.until_ready(2)
                await _kill(status, number)
                await _until_lost(mesh, number + 1)
            await mesh.until_ready(2)
            found = parts_of(map(_event, await _events(mesh)))[-kills:]
            await meshes.until(
                lambda: all(_is_told(one.node, receiver.spans()) for one in found), SPANS_S
            )
        return [Start(one, inside(one, receiver.spans())) for one in found]
    finally:
        receiver.stop()


async def _kill(status: dict[str, object], number: int) -> None:
    """The last stage of one pipeline or the other."""
    pipelines: list[dict[str, list[dict[str, str]]]] = status["pipelines"]  # type: ignore[assignment]
    nodes: list[dict[str, int | str]] = status["nodes"]  # type: ignore[assignment]
    last = pipelines[number % len(pipelines)]["stages"][-1]["node"]
    os.kill(int(next(node["pid"] for node in nodes if node["id"] == last)), signal.SIGKILL)


async def _until_lost(mesh: meshes.Mesh, count: int) -> None:
    """So many nodes have been lost: before that the pipeline is told to be ready still."""
    lost = 0
    async with asyncio.timeout(meshes.UP_TIMEOUT_S):
        while lost < count:
            await asyncio.sleep(0.2)
            lost = sum(one["kind"] == "node_lost" for one in await _events(mesh))


async def _events(mesh: meshes.Mesh) -> list[dict[str, object]]:
    return [json.loads(line) for line in (await mesh.shunt("events", "--json")).splitlines()]


def _event(told: dict[str, object]) -> Event:
    return Event(
        float(str(told["at"])),
        str(told["kind"]),
        str(told["node"] or ""),
        str(told["pipeline"] or ""),
    )


def _is_told(node: str, spans: Iterable[ReceivedSpan]) -> bool:
    return {"engine.start", "engine.load"} <= {one.name for one in spans if one.instance == node}


def inside(parts: Parts, spans: Sequence[ReceivedSpan]) -> dict[str, float]:
    """What the node's own spans say of its parts; seconds by row."""
    own = [one for one in spans if one.instance == parts.node]
    start = next(one for one in own if one.name == "engine.start")
    imports = next(one for one in own if one.name == "engine.imports")
    found = {MADE: max(0.0, start.began_unix_s - parts.ordered_s), IMPORTS: imports.took_s}
    found[REGISTERS] = parts.process_s - sum(found.values())
    for name, row in OF_LOAD.items():
        found[row] = sum(one.took_s for one in own if one.name == name)
    found[TOLD] = parts.load_s - sum(found[row] for row in OF_LOAD.values())
    return found


def medians(found: Sequence[Start]) -> dict[str, float]:
    """By row, over starts."""
    rows = found[0].inside_s if found else {}
    return {row: median(one.inside_s[row] for one in found) for row in rows}
