"""Streams that are reset, by thousands, at every door of a mesh: nothing of them is left behind.

`python -m bench.resets` starts a mesh of its own and prints JSON. At the router's gRPC door, at its
HTTP door and at the heads `--count` streams each are begun, some dozens at a time, and reset (as
HTTP/2 does, RST_STREAM; the HTTP door's connections by TCP) before anything came, behind the first
message, or some moments later. Then it tells what is there that was not before: streams, sequences,
blocks, files. Whoever asks next is answered as ever.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc
from shuntserve.engine.v1 import engine_pb2, engine_pb2_grpc
from shuntserve.router.v1 import router_pb2, router_pb2_grpc

from bench import mesh as meshes
from bench import written
from bench.router import Bench, opened
from services.common import channels
from services.common.roles import Role

AT_ONCE = 64
MAX_TOKENS = 200
TIMEOUT_S = 120.0
REST_S = 60.0
"""Within which nothing may be left: heads park what nobody reads after 10 s."""
SOME_FILES = 16
"""Connections between services come and go."""
Reset = Callable[[random.Random], Awaitable[None]]


async def at_router(stub: Any, chance: random.Random) -> None:
    """One stream of the gRPC door."""
    sampling = router_pb2.SamplingOptions(max_tokens=MAX_TOKENS, ignore_eos=True)
    request = router_pb2.GenerateRequest(model=meshes.MODEL, text="Count.", sampling=sampling)
    await _reset(stub.Generate(request, timeout=TIMEOUT_S), chance)


async def at_head(bench: Bench, chance: random.Random) -> None:
    """One stream of a head."""
    stub, message = bench.asked(MAX_TOKENS, chance.randrange(len(bench.routes)))
    await _reset(stub.Generate(message, timeout=TIMEOUT_S), chance)


async def _reset(call: Any, chance: random.Random) -> None:
    moment = chance.randrange(3)
    try:
        if moment == 1:
            await call.read()
        elif moment == 2:
            await asyncio.sleep(chance.random() / 20)
    except grpc.aio.AioRpcError:
        return  # refused, for so many are there
    finally:
        call.cancel()
    await asyncio.sleep(0)


async def over_http(port: int, chance: random.Random) -> None:
    """One connection of the HTTP door, which ends without a farewell."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = {
        "model": meshes.MODEL,
        "prompt": "Count.",
        "max_tokens": MAX_TOKENS,
        "ignore_eos": True,
        "stream": True,
    }
    payload = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: resets\r\nContent-Length: {len(payload)}\r\n"
    try:
        writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + payload)
        moment = chance.randrange(3)
        if moment == 1:
            await reader.read(1)
        elif moment == 2:
            await asyncio.sleep(chance.random() / 20)
        end = writer.get_extra_info("socket")
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    finally:
        writer.transport.abort()


async def reset_many(reset: Reset, count: int, seed: int) -> float:
    """So many, AT_ONCE at a time; returns the seconds it took."""
    chance, begun, began_s = random.Random(seed), iter(range(count)), time.monotonic()

    async def again() -> None:
        for _ in begun:
            await reset(chance)

    await asyncio.gather(*(again() for _ in range(AT_ONCE)))
    return time.monotonic() - began_s


class Residue:
    """What a mesh holds."""

    def __init__(self, mesh: meshes.Mesh, controller: Any, admin_port: int) -> None:
        self._mesh = mesh
        self._controller = controller
        self._metrics = f"http://127.0.0.1:{admin_port}/metrics"

    async def read(self) -> dict[str, int]:
        """Streams of the router, sequences and blocks in use of the heads, generations that
        somebody is taken to read, and open files of them all."""
        services = {s["name"]: s for s in (await self._mesh.status())["services"]}
        status = await self._controller.GetStatus(controller_pb2.GetStatusRequest(), timeout=60)
        held = {"streams": await self._streams(), "sequences": 0, "blocks": 0}
        pids = [services["router-0"]["pid"], services["controller"]["pid"]]
        for node in status.nodes:
            pids.append(node.pid)
            async with channels.open_channel(node.address, Role.ENGINE) as channel:
                stub = engine_pb2_grpc.EngineServiceStub(channel)
                stats = (await stub.Describe(engine_pb2.DescribeRequest(), timeout=60)).stats
                held["sequences"] += stats.running + stats.queued
                held["blocks"] += stats.used_kv_blocks
        held["files"] = sum(map(_open_files, pids))
        return held

    async def _streams(self) -> int:
        async with httpx.AsyncClient(timeout=60) as client:
            text = (await client.get(self._metrics)).text
        return int(sum(map(float, re.findall(r"^shunt_router_streams\{.*\} (\S+)$", text, re.M))))

    async def left(self, before: dict[str, int]) -> dict[str, int]:
        """What is more than before, once it is nothing or REST_S have passed."""
        until_s = time.monotonic() + REST_S
        while True:
            now = await self.read()
            more = {name: max(0, count - before[name]) for name, count in now.items()}
            more["files"] = max(0, more["files"] - SOME_FILES)
            if not any(more.values()) or time.monotonic() > until_s:
                return more
            await asyncio.sleep(0.5)


def _open_files(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


async def run(mesh: meshes.Mesh, admin_port: int, count: int) -> dict[str, Any]:
    """The report of all doors."""
    services = {s["name"]: s for s in (await mesh.status())["services"]}
    report: dict[str, Any] = {"count": count}
    async with (
        channels.open_channel(services["controller"]["grpc"], Role.CONTROLLER) as controller,
        channels.open_channel(services["router-0"]["grpc"], Role.ROUTER) as router,
        opened(mesh, "") as bench,
    ):
        stub = router_pb2_grpc.RouterServiceStub(router)
        resets: dict[str, Reset] = {
            "router": lambda chance: at_router(stub, chance),
            "http": lambda chance: over_http(mesh.http_port, chance),
            "heads": lambda chance: at_head(bench, chance),
        }
        for reset in resets.values():  # connections stand, and caches are filled
            await reset_many(reset, AT_ONCE, 0)
        residue = Residue(mesh, controller_pb2_grpc.ControllerServiceStub(controller), admin_port)
        nothing = dict.fromkeys(("streams", "sequences", "blocks", "files"), 0)
        await residue.left({**nothing, "files": sys.maxsize})
        before = await residue.read()
        for seed, (door, reset) in enumerate(resets.items(), 1):
            took_s = await reset_many(reset, count, seed)
            report[door] = {"took_s": round(took_s, 1), "left": await residue.left(before)}
        await bench.through_router(8)
    return report


async def _main(options: argparse.Namespace) -> int:
    admin_port = meshes.free_ports(1)
    env = {**os.environ, "SHUNT_ROUTER_ADMIN_PORT": str(admin_port)}
    with tempfile.TemporaryDirectory(prefix="shunt-resets-") as directory:
        async with meshes.running(Path(directory), env=env) as mesh:
            report = await run(mesh, admin_port, options.count)
    written.show(report, options.out)
    doors = (part for part in report.values() if isinstance(part, dict))
    return int(any(count for door in doors for count in door["left"].values()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="at each door")
    parser.add_argument("--out", type=Path)
    sys.exit(asyncio.run(_main(parser.parse_args())))
