"""A prompt's beginning that one pipeline has read, at another one: fetched from there, or computed.

A real mesh of two pipelines of SmolLM2-135M on this machine. Of each length two prompts are read at
the first pipeline, and then asked of the second one: with word of who has them, and without. Pairs
alternate in who comes first. Heads are called as a router calls them, so that both go where they
should; the ids must be equal to those of the first pipeline.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc

from bench import mesh as meshes
from bench.kv_mesh import controller_of, engine_stats
from services.common import channels
from services.common.exchange import GenerateCall, PrefixHolder, Route, Tokens
from services.common.generation import GenerationRequest, Sampling
from services.common.roles import Role
from services.common.settings import TlsSettings
from services.router.heads import Heads
from services.router.wire import route_from

TIMEOUT_S = 120.0
TOKENS = 8
FIRST_ID, LAST_ID = 1000, 40000
"""Of made prompts: no special token is among them."""


@dataclass(frozen=True)
class Answer:
    """What came of a prompt."""

    first_s: float
    """Until its first token."""
    ids: tuple[int, ...]
    cached: int
    """Of its positions."""


class Pipelines:
    """Two pipelines of a mesh, and prompts that none has seen."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.holder, self.other = routes
        self._heads = Heads(TIMEOUT_S, TIMEOUT_S, TlsSettings())
        self._random, self._names = random.Random(1), count()

    def prompt(self, length: int) -> tuple[int, ...]:
        return tuple(self._random.randrange(FIRST_ID, LAST_ID) for _ in range(length))

    async def ask(
        self, route: Route, prompt: tuple[int, ...], holder: PrefixHolder | None = None
    ) -> Answer:
        name = f"prefix-{os.getpid()}-{next(self._names)}"
        sampling = Sampling(TOKENS, temperature=0.0, ignore_eos=True)
        request = GenerationRequest(name, route.model, prompt, sampling)
        call = GenerateCall(
            request, 1, route.formation_id, (), (0,), reader=name, prefix_holder=holder
        )
        began_s, first_s, ids, cached = time.perf_counter(), 0.0, list[int](), 0
        async with aclosing(self._heads.frames(route, call)) as frames:
            async for frame in frames:
                if isinstance(frame, Tokens):
                    first_s = first_s or time.perf_counter() - began_s
                    ids += [token for span in frame.spans for token in span.ids]
                    cached = max(cached, *(span.cached_tokens for span in frame.spans))
        return Answer(first_s, tuple(ids), cached)

    async def pair(self, length: int, *, fetched_first: bool) -> dict[bool, Answer]:
        """By whether it was told who has it."""
        answers = {}
        for told in (True, False) if fetched_first else (False, True):
            prompt = self.prompt(length)
            holder = PrefixHolder(self.holder.address, self.holder.formation_id, length)
            wanted = await self.ask(self.holder, prompt)
            answers[told] = await self.ask(self.other, prompt, holder if told else None)
            if answers[told].ids != wanted.ids:
                raise AssertionError("a fetched beginning changed an id")
        return answers

    async def close(self) -> None:
        await self._heads.close()


async def figures(lengths: Sequence[int], rounds: int, bytes_per_s: float) -> dict[str, Any]:
    """By length: how long first tokens took, and their ratio. A stage sends no more than so many
    bytes a second to others; 0: as many as there are."""
    env = {**os.environ, "SHUNT_ENGINE_KV_BYTES_PER_S": str(bytes_per_s)}
    with tempfile.TemporaryDirectory() as directory:
        async with meshes.running(Path(directory) / "mesh", env=env) as mesh:
            pipelines = Pipelines(await _routes(mesh))
            try:
                for route in (pipelines.holder, pipelines.other):
                    await pipelines.ask(route, pipelines.prompt(max(lengths)))
                before = _filled(await engine_stats(mesh))
                found = {str(n): await _of_length(pipelines, n, rounds) for n in lengths}
                filled = _filled(await engine_stats(mesh)) - before
            finally:
                await pipelines.close()
    return {"bytes_per_s": bytes_per_s, "filled_blocks": filled, "lengths": found}


async def _of_length(pipelines: Pipelines, length: int, rounds: int) -> dict[str, Any]:
    pairs = [await pipelines.pair(length, fetched_first=bool(n % 2)) for n in range(rounds)]
    came = [pair for pair in pairs if pair[True].cached]
    ratios = [pair[True].first_s / pair[False].first_s for pair in pairs]
    return {
        "pairs": len(pairs),
        "fetched": len(came),
        "cached": max((pair[True].cached for pair in pairs), default=0),
        "first_token_s_fetched": _median([pair[True].first_s for pair in pairs]),
        "first_token_s_computed": _median([pair[False].first_s for pair in pairs]),
        "ratio": _median(ratios),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
    }


def table(report: Mapping[str, Any]) -> str:
    """The figures, a line a length."""
    lines = []
    for length, one in report["lengths"].items():
        lines.append(
            f"prompt of {length} that another pipeline has: first token {one['ratio']} x as long "
            f"({one['ratio_min']} to {one['ratio_max']}), {one['first_token_s_fetched']} s over "
            f"{one['first_token_s_computed']} s, fetched {one['fetched']} of {one['pairs']} times"
        )
    return "\n".join(lines)


def _median(numbers: Sequence[float]) -> float:
    return round(statistics.median(numbers), 4)


def _filled(stats: Mapping[str, Any]) -> int:
    return sum(one.filled_kv_blocks for one in stats.values())


async def _routes(mesh: meshes.Mesh) -> list[Route]:
    async with channels.open_channel(await controller_of(mesh), Role.CONTROLLER) as channel:
        stub = controller_pb2_grpc.ControllerServiceStub(channel)
        watch: Any = stub.WatchRoutes(controller_pb2.WatchRoutesRequest(router_id="bench"))
        try:
            told = await watch.read()
        finally:
            watch.cancel()
    return [route_from(route) for route in told.routes]
