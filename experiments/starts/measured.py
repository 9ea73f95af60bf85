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
from typing import Any

from bench import mesh as meshes
from bench.otlp import ReceivedSpan, Receiver
from experiments.starts.parts import Event, Parts, parts_of
from experiments.starts.rows import IMPORTS, MADE, OF_LOAD, REGISTERS, TOLD

MODEL = meshes.MODEL
SERVES_S = 300.0
"""Until a lost node's successor serves; a busy machine takes ten times what an idle one does."""
SPANS_S = 120.0
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
                lost = _kill(await mesh.until_ready(2, SERVES_S), number)
                await _until_lost(mesh, lost)
            await mesh.until_ready(2, SERVES_S)
            found = parts_of(map(_event, await _events(mesh)))[-kills:]
            await meshes.until(
                lambda: all(_is_told(one.node, receiver.spans()) for one in found), SPANS_S
            )
        return [Start(one, inside(one, receiver.spans())) for one in found]
    finally:
        receiver.stop()


def _kill(status: dict[str, Any], number: int) -> str:
    """The last stage of one pipeline or the other, which is returned."""
    pipelines = status["pipelines"]
    last: str = pipelines[number % len(pipelines)]["stages"][-1]["node"]
    os.kill(next(node["pid"] for node in status["nodes"] if node["id"] == last), signal.SIGKILL)
    return last


async def _until_lost(mesh: meshes.Mesh, node: str) -> None:
    """It is known to be: before that its pipeline is told to be ready still."""
    async with asyncio.timeout(SERVES_S):
        while True:
            nodes = (await mesh.status())["nodes"]
            if all(one["id"] != node or one["state"] == "lost" for one in nodes):
                return
            await asyncio.sleep(0.05)


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
