"""What a router costs: the same pipelines driven through it and at their head engines.

`python -m bench.router` starts a mesh of its own (or measures one that runs, with --data-dir) and
prints JSON: tokens/s of eight streams through router and controller over tokens/s at the heads, as
the median ratio of interleaved pairs, and the time to first token that the router adds, as the
median difference of interleaved single requests. Both are differences of a few percent between
rounds that a busy machine shifts by ten: hence pairs, many of them, and streams of some length.
With --keys the router asks for keys and holds each request against limits that are never reached.
Connections stand before the clock runs, to the router as to the heads, as in any client's pool.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc
from shuntserve.engine.v1 import engine_pb2, engine_pb2_grpc

from bench import mesh as meshes
from bench import written
from services.cli.key_files import add_key
from services.common import api_keys, channels
from services.common.exchange import GenerateCall, Route
from services.common.generation import GenerationKind
from services.common.roles import Role
from services.model.chat import Message
from services.router.ask import Ask, Drawn
from services.router.grammar_checks import GrammarChecks
from services.router.model import ServedModel
from services.router.model_files import TensorStore
from services.router.wire import generate_call_to, route_from

STREAMS = 8
TIMEOUT_S = 120.0
END = b"data: [DONE]\n\n\r\n0\r\n\r\n"
"""Of the last chunk, and of the answer."""
PROMPT = "Write a short letter about the sea."


@dataclass(frozen=True)
class Bench:
    """Both ways to the same pipelines."""

    http: tuple[str, int]
    routes: list[Route]
    heads: dict[str, Any]
    """Stubs by address."""
    model: ServedModel
    key: str = ""
    """Shown to the router, where it asks for one."""
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)
    """Connections to the router."""

    async def through_router(self, max_tokens: int) -> float:
        """Seconds to the first token; reads the whole stream."""
        body = json.dumps(
            {
                "model": self.routes[0].model.model_id,
                "messages": [{"role": "user", "content": PROMPT}],
                "max_tokens": max_tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
            }
        ).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            + (f"Authorization: Bearer {self.key}\r\n\r\n" if self.key else "\r\n")
        )
        connection = self.idle.pop() if self.idle else await asyncio.open_connection(*self.http)
        reader, writer = connection
        began_s = time.perf_counter()
        writer.write(head.encode() + body)
        first_s, tail = 0.0, b""
        while not tail.endswith(END) and (data := await reader.read(65536)):
            tail = (tail + data)[-65536:]
            if not first_s and b'"delta":{"content"' in tail:
                first_s = time.perf_counter() - began_s
        if not tail.endswith(END) or not first_s:
            raise RuntimeError(f"a stream did not end: {tail[-300:]!r}")
        self.idle.append(connection)
        return first_s

    def asked(self, max_tokens: int, index: int) -> tuple[Any, engine_pb2.GenerateRequest]:
        """A head's stub, and the same request for it."""
        route = self.routes[index % len(self.routes)]
        ask = Ask(
            model=route.model.model_id,
            kind=GenerationKind.CHAT,
            prompt=(Message("user", PROMPT),),
            options={"temperature": 0.0, "max_tokens": max_tokens, "ignore_eos": True},
        )
        drawn = Drawn(f"bench-{secrets.token_hex(8)}", 1, int(time.time()))
        request = ask.resolve(self.model.facts, self.model.prompt(ask, 0).ids, drawn)
        message = generate_call_to(GenerateCall(request, 1, route.formation_id))
        return self.heads[route.address], message

    async def at_head(self, max_tokens: int, index: int) -> float:
        """Seconds to the first token at a head itself; reads the whole stream."""
        stub, message = self.asked(max_tokens, index)
        began_s = time.perf_counter()
        call = stub.Generate(message, timeout=TIMEOUT_S)
        first_s, tokens = 0.0, 0
        try:
            while (frame := await call.read()) is not grpc.aio.EOF:
                for run in frame.tokens.runs:
                    tokens += len(run.ids)
                if tokens and not first_s:
                    first_s = time.perf_counter() - began_s
        finally:
            call.cancel()
        if tokens != max_tokens:
            raise RuntimeError(f"{tokens} tokens came, not {max_tokens}")
        return first_s

    async def rate(self, *, router: bool, max_tokens: int) -> float:
        """Tokens per second of eight streams together."""
        began_s = time.perf_counter()
        await asyncio.gather(
            *(
                self.through_router(max_tokens) if router else self.at_head(max_tokens, index)
                for index in range(STREAMS)
            )
        )
        return STREAMS * max_tokens / (time.perf_counter() - began_s)


@asynccontextmanager
async def opened(mesh: meshes.Mesh, key: str) -> AsyncIterator[Bench]:
    """Finds the mesh's pipelines and opens channels to their heads."""
    services = {s["name"]: s for s in (await mesh.status())["services"]}
    async with (
        channels.open_channel(services["controller"]["grpc"], Role.CONTROLLER) as controller,
        channels.open_channel(services["tensorstore"]["grpc"], Role.TENSORSTORE) as store,
    ):
        watch = controller_pb2_grpc.ControllerServiceStub(controller).WatchRoutes(
            controller_pb2.WatchRoutesRequest(router_id="bench"), timeout=TIMEOUT_S
        )
        first: Any = await watch.read()
        routes = [route_from(route) for route in first.routes]
        watch.cancel()
        files = await TensorStore(store, TIMEOUT_S, 1 << 30).files(routes[0].model)
        opened = {
            route.address: channels.open_channel(route.address, Role.ENGINE) for route in routes
        }
        try:
            bench = Bench(
                ("127.0.0.1", mesh.http_port),
                routes,
                {a: engine_pb2_grpc.EngineServiceStub(c) for a, c in opened.items()},
                ServedModel(files, GrammarChecks()),
                key,
            )
            yield bench
            for _, writer in bench.idle:
                writer.close()
        finally:
            for channel in opened.values():
                await channel.close()


async def run(
    mesh: meshes.Mesh, *, pairs: int, requests: int, max_tokens: int, key: str
) -> dict[str, Any]:
    """The report."""
    async with opened(mesh, key) as bench:
        await bench.rate(router=True, max_tokens=16)
        await bench.rate(router=False, max_tokens=16)
        through: list[float] = []
        direct: list[float] = []
        for pair in range(pairs):
            for router in (True, False) if pair % 2 else (False, True):
                rate = await bench.rate(router=router, max_tokens=max_tokens)
                (through if router else direct).append(rate)
        ratios = [a / b for a, b in zip(through, direct, strict=True)]
        first: dict[bool, list[float]] = {True: [], False: []}
        for request in range(requests):
            for router in (True, False) if request % 2 else (False, True):
                seconds = bench.through_router(2) if router else bench.at_head(2, request)
                first[router].append(await seconds)
        added = [(a - b) * 1000 for a, b in zip(first[True], first[False], strict=True)]
        quartiles = statistics.quantiles(added, n=4)
        return {
            "streams": STREAMS,
            "keys": bool(key),
            "pairs": pairs,
            "ratio": _spread(ratios),
            "tokens_per_s": {"router": _spread(through), "heads": _spread(direct)},
            "requests": requests,
            "max_tokens": max_tokens,
            "first_token_added_ms": {
                "p25": round(quartiles[0], 2),
                "median": round(quartiles[1], 2),
                "p75": round(quartiles[2], 2),
            },
            "first_token_ms": {
                "router": _spread([s * 1000 for s in first[True]]),
                "heads": _spread([s * 1000 for s in first[False]]),
            },
        }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
    }


LIMITS = dict.fromkeys(("requests_per_minute", "tokens_per_minute", "streams"), 1 << 50)
"""Of who asks with a key: each is counted, and none is reached."""


async def _main(arguments: argparse.Namespace) -> None:
    options = {
        "pairs": arguments.pairs,
        "requests": arguments.requests,
        "max_tokens": arguments.max_tokens,
    }
    if arguments.data_dir:
        mesh = meshes.Mesh(arguments.data_dir, arguments.http_port, 0, 1)
        report = await run(mesh, key=api_keys.own(), **options)
    else:
        with tempfile.TemporaryDirectory(prefix="shunt-router-") as directory:
            started, key = tuple[str, ...](), ""
            if arguments.keys:
                file = Path(directory) / "keys.json"
                _, key = add_key(file, "bench", LIMITS)
                started = ("--keys", str(file))
            async with meshes.running(Path(directory) / "mesh", options=started) as mesh:
                report = await run(mesh, key=key, **options)
    written.show(report, arguments.out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--max-tokens", type=int, default=192)
    parser.add_argument("--data-dir", type=Path, help="a mesh that runs; else one is started")
    parser.add_argument(
        "--keys", action="store_true", help="ask for keys and count against limits of all kinds"
    )
    parser.add_argument("--http-port", type=int, default=8080)
    parser.add_argument("--out", type=Path)
    sys.exit(asyncio.run(_main(parser.parse_args())))
