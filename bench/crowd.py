"""A crowd at a busy mesh: some hundred streams at once, with busy loops beside it.

`python -m bench.crowd` starts a mesh of its own and prints JSON. Nothing is lost in it, so no
generation may move: every request is answered, or refused with Retry-After, in the first epoch.
`--routers 2` sends as many to each of two routers, which know nothing of each other.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc

from bench import arrival, written
from bench import mesh as meshes
from services.common import channels
from services.common.roles import Role

TIMEOUT_S = 900.0
BUSY_LOOPS = 3
ENDS = "data: [DONE]"
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


@dataclass
class Answer:
    """What one of the crowd was told."""

    status: int = 0
    retry_after: bool = False
    text: str = ""
    done: bool = False
    error: str = ""
    took_s: float = 0.0
    first_s: float = 0.0
    replied_s: float = 0.0
    """By the kernel's notes, from the request to the first of the reply (`bench.arrival`)."""

    @property
    def outcome(self) -> str:
        """answered, refused, or what went wrong."""
        if self.status in (429, 503) and self.retry_after:
            return "refused"
        if self.status == 200 and self.done and not self.error:
            return "answered"
        return self.error or f"status {self.status}, done {self.done}"


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """So many processes that each want a core for themselves."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
        for loop in loops:
            loop.wait()


@asynccontextmanager
async def counted_events(mesh: meshes.Mesh) -> AsyncIterator[Counter[str]]:
    """Kinds of the controller's events while the block runs, and some moments longer."""
    services = {s["name"]: s for s in (await mesh.status())["services"]}
    counts: Counter[str] = Counter()
    async with channels.open_channel(services["controller"]["grpc"], Role.CONTROLLER) as channel:
        stub = controller_pb2_grpc.ControllerServiceStub(channel)
        old = stub.WatchEvents(controller_pb2.WatchEventsRequest(no_wait=True), timeout=60)
        last = 0
        async for event in old:
            last = event.number

        async def watch() -> None:
            asked = controller_pb2.WatchEventsRequest(from_number=last + 1)
            async for event in stub.WatchEvents(asked, timeout=TIMEOUT_S):
                counts[event.kind] += 1

        watching = asyncio.create_task(watch())
        try:
            yield counts
            await asyncio.sleep(1.0)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


async def ask(
    host: str, port: int, body: dict[str, Any], headers: Mapping[str, str] = NO_HEADERS
) -> Answer:
    """One streamed completion over a connection of its own."""
    answer, began_s = Answer(), time.monotonic()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            with await arrival.connected(host, port) as connection:
                request = _request(body, headers)
                answer.replied_s = await arrival.replied_in_s(connection, request)
                reader, writer = await asyncio.open_connection(sock=connection)
                try:
                    await _read(reader, answer, began_s)
                finally:
                    writer.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        answer.error = repr(error)
    answer.took_s = time.monotonic() - began_s
    return answer


def _request(body: dict[str, Any], headers: Mapping[str, str]) -> bytes:
    payload = json.dumps(body).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: crowd\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n"
    )
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{head}\r\n".encode() + payload


async def _read(reader: asyncio.StreamReader, answer: Answer, began_s: float) -> None:
    answer.status = int((await reader.readline()).split()[1])
    while (line := (await reader.readline()).strip()) or not answer.status:
        answer.retry_after |= line.lower().startswith(b"retry-after:")
    while line := await reader.readline():
        text = line.decode().strip()
        if text == ENDS:
            answer.done = True
        elif text.startswith("data: ") and '"error"' in text:
            answer.error = text
        elif text.startswith("data: "):
            answer.first_s = answer.first_s or time.monotonic() - began_s
            choices = json.loads(text[6:])["choices"]
            answer.text += "".join(choice["text"] for choice in choices)


async def run(
    mesh: meshes.Mesh, *, requests: int, max_tokens: int, busy: int = BUSY_LOOPS, routers: int = 1
) -> dict[str, Any]:
    """The report of so many requests at each router. Every text is compared with the one that its
    prompt has with nothing beside it."""
    bodies = [
        {
            "model": meshes.MODEL,
            "prompt": meshes.PROMPTS[index % len(meshes.PROMPTS)],
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        for index in range(requests)
    ]
    ports = [mesh.http_port + router for router in range(routers)]
    alone = {
        body["prompt"]: await ask("127.0.0.1", ports[0], body)
        for body in bodies[: len(meshes.PROMPTS)]
    }
    async with counted_events(mesh) as events:
        with busy_loops(busy):
            began_s = time.monotonic()
            asked = (ask("127.0.0.1", port, body) for body in bodies for port in ports)
            answers = await asyncio.gather(*asked)
            wall_s = time.monotonic() - began_s
    outcomes = Counter(answer.outcome for answer in answers)
    answered = [answer for answer in answers if answer.outcome == "answered"]
    prompts = [body["prompt"] for body in bodies for _ in ports]
    different = [
        answer
        for answer, prompt in zip(answers, prompts, strict=True)
        if answer.outcome == "answered" and answer.text != alone[prompt].text
    ]
    first = sorted(answer.first_s for answer in answered)
    return {
        "requests": len(answers),
        "answered_by_router": [
            sum(answer.outcome == "answered" for answer in answers[router::routers])
            for router in range(routers)
        ],
        "max_tokens": max_tokens,
        "busy_loops": busy,
        "answered": outcomes.pop("answered", 0),
        "refused": outcomes.pop("refused", 0),
        "failed": sum(outcomes.values()),
        "failures": dict(outcomes.most_common(5)),
        "texts_that_differ": len(different),
        "epochs_granted": events["generation_granted"],
        "nodes_lost": events["node_lost"],
        "pipelines_lost": events["pipeline_lost"],
        "heads_stalled": events["head_stalled"],
        "checkpoints_refused": events["checkpoint_refused"],
        "wall_s": round(wall_s, 1),
        "first_token_s": {
            "median": round(statistics.median(first), 2) if first else None,
            "max": round(first[-1], 2) if first else None,
        },
    }


async def _main(arguments: argparse.Namespace) -> int:
    options = {
        "requests": arguments.requests,
        "max_tokens": arguments.max_tokens,
        "busy": arguments.busy,
        "routers": arguments.routers,
    }
    if arguments.data_dir:
        mesh = meshes.Mesh(arguments.data_dir, arguments.http_port, 0, arguments.routers)
        report = await run(mesh, **options)
    else:
        with tempfile.TemporaryDirectory(prefix="shunt-crowd-") as data_dir:
            async with meshes.running(Path(data_dir), routers=arguments.routers) as mesh:
                report = await run(mesh, **options)
    written.show(report, arguments.out)
    moved = report["epochs_granted"] and not report["nodes_lost"]
    return 1 if report["failed"] or report["texts_that_differ"] or moved else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=900, help="at each router")
    parser.add_argument("--routers", type=int, default=1)
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--busy", type=int, default=BUSY_LOOPS)
    parser.add_argument("--data-dir", type=Path, help="a mesh that runs; else one is started")
    parser.add_argument("--http-port", type=int, default=8080)
    parser.add_argument("--out", type=Path)
    sys.exit(asyncio.run(_main(parser.parse_args())))
