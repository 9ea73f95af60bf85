"""What benches of hand-overs by KV ask of a mesh."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc
from shuntserve.engine.v1 import engine_pb2, engine_pb2_grpc

from bench import mesh as meshes
from services.common import channels
from services.common.roles import Role

WORDS = ("river", "lantern", "copper", "window", "garden", "winter", "letter", "harbour", "silver")
MAX_TOKENS = 1_000
NO_END: dict[str, Any] = {"ignore_eos": False, "min_tokens": MAX_TOKENS}
"""Of an answer that has no end before its limit, and a text with every token: an end that is
ignored has none, and a reader takes a run of them for a gap."""
NOTICE_S = 60
WAIT_S = 240.0
LOOK_S = 0.1
"""A process has little behind it when it is that old."""

Stats = Mapping[str, engine_pb2.EngineStats]
"""Of each engine, by its process."""


def body_of(context: int, seed: int) -> dict[str, Any]:
    """A question of about so many tokens, a word each."""
    chance = random.Random(seed)
    words = " ".join(chance.choice(WORDS) for _ in range(context - 40))
    return {
        "messages": [{"role": "user", "content": f"Tell a story of these words: {words}"}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0.9,
        "seed": seed,
        "ignore_eos": True,
    }


async def engine_stats(mesh: meshes.Mesh) -> dict[str, engine_pb2.EngineStats]:
    """Of each engine that is there, by its process."""
    async with channels.open_channel(await controller_of(mesh), Role.CONTROLLER) as channel:
        stub = controller_pb2_grpc.ControllerServiceStub(channel)
        status = await stub.GetStatus(controller_pb2.GetStatusRequest(), timeout=60)
    found = {}
    for node in status.nodes:
        if not node.address:  # it is being launched
            continue
        async with channels.open_channel(node.address, Role.ENGINE) as channel:
            engine = engine_pb2_grpc.EngineServiceStub(channel)
            with suppress(grpc.aio.AioRpcError):  # it ends, or begins
                told = await engine.Describe(engine_pb2.DescribeRequest(), timeout=60)
                found[told.incarnation] = told.stats
    return found


async def controller_of(mesh: meshes.Mesh) -> str:
    services = (await mesh.status())["services"]
    address: str = next(s["grpc"] for s in services if s["name"] == "controller")
    return address


def computed_positions(before: Stats, after: Stats) -> int:
    """Positions of sequences that came into a batch meanwhile, and were computed nowhere before."""
    return sum(
        _missed(now) - _missed(before.get(process, _NOTHING)) for process, now in after.items()
    )


_NOTHING = engine_pb2.EngineStats()


def _missed(stats: engine_pb2.EngineStats) -> int:
    return stats.prefix_queries - stats.prefix_hits


@asynccontextmanager
async def starts_held(mesh: meshes.Mesh) -> AsyncIterator[None]:
    """Engines that the mesh starts inside the block stand still until its end: each has a machine
    of its own elsewhere, and here it would read its weights on the cores of those that serve."""
    services = (await mesh.status())["services"]
    controller = next(s["pid"] for s in services if s["name"] == "controller")
    before, held = _children(controller), set[int]()

    async def hold() -> None:
        while True:
            for pid in _children(controller) - before - held:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
                    held.add(pid)
            await asyncio.sleep(LOOK_S)

    holding = asyncio.create_task(hold())
    try:
        yield
    finally:
        holding.cancel()
        await asyncio.gather(holding, return_exceptions=True)
        for pid in held:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _children(parent: int) -> set[int]:
    """Of a process."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it may have ended just now
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == parent:
                    found.add(int(entry.name))
    return found
