"""A real mesh of local processes, driven as a user would: through `shunt` and HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bench.mesh_end import ends_with_us
from services.cli.interrupt import interrupt
from services.cli.mesh_directory import MeshDirectory
from services.cli.mesh_status import mesh_status

MODEL = "smollm2-135m-instruct"
UP_TIMEOUT_S = 300.0


def free_ports(count: int) -> int:
    """The first of `count` consecutive free ports on loopback."""
    for _ in range(200):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first = int(probe.getsockname()[1])
        if first + count > 65_000:
            continue
        if all(_is_free(port) for port in range(first, first + count)):
            return first
    raise RuntimeError(f"no {count} consecutive free ports were found")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@dataclass(frozen=True)
class Mesh:
    """A running mesh."""

    data_dir: Path
    http_port: int
    grpc_port: int
    routers: int

    def url(self, router: int = 0) -> str:
        return f"http://127.0.0.1:{self.http_port + router}"

    async def shunt(self, *arguments: str, timeout_s: float = 60.0) -> str:
        """Runs `shunt ARGUMENTS` on this mesh and returns its output; raises on a failure."""
        return await run_shunt(*arguments, "--data-dir", str(self.data_dir), timeout_s=timeout_s)

    async def status(self) -> dict[str, Any]:
        """As `shunt status --json` prints it, but found here: who looks again and again would keep
        a core busy with starts of Python, which engines lack meanwhile."""
        found = await mesh_status(MeshDirectory(self.data_dir).running())
        status: dict[str, Any] = json.loads(json.dumps(found))
        return status

    async def give_notice(self, node: str, notice_s: float) -> None:
        """As `shunt interrupt NODE --notice` does, but without a start of Python, which engines
        would have to share a core with just when they hand over."""
        await interrupt(MeshDirectory(self.data_dir), node, notice_s, kill=False)

    async def kill_node(self, node: str) -> None:
        """As `shunt interrupt NODE --kill` does, without a start of Python either."""
        await interrupt(MeshDirectory(self.data_dir), node, 0.0, kill=True)

    async def until_ready(self, pipelines: int = 2, timeout_s: float = 60.0) -> dict[str, Any]:
        """Waits until that many pipelines are ready and returns the status."""
        deadline = time.monotonic() + timeout_s
        while True:
            status = await self.status()
            if sum(p["state"] == "ready" for p in status["pipelines"]) >= pipelines:
                return status
            if time.monotonic() > deadline:
                raise TimeoutError(f"not {pipelines} pipelines ready in {timeout_s} s: {status}")
            await asyncio.sleep(0.2)


async def run_shunt(
    *arguments: str,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> str:
    """Runs the command line in a process of its own; raises RuntimeError with what it said."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.cli",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=dict(env) if env is not None else None,
        pass_fds=tuple(pass_fds),
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), timeout_s)
    except asyncio.CancelledError:
        with suppress(ProcessLookupError):  # it may have ended just now
            process.terminate()  # what it has started ends with it
        await process.communicate()
        raise
    except TimeoutError:
        process.kill()
        out, err = await process.communicate()
        raise RuntimeError(
            f"shunt {arguments[0]} took over {timeout_s} s: {err.decode()}"
        ) from None
    if process.returncode != 0:
        raise RuntimeError(f"shunt {' '.join(arguments)}: {err.decode()} {out.decode()}")
    return out.decode()


async def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Waits for a condition on what streams have brought; raises TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while True:
        if condition():
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing of the kind within {timeout_s} s")
        await asyncio.sleep(0.02)


@asynccontextmanager
async def running(
    data_dir: Path,
    *,
    routers: int = 1,
    env: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
    pipelines: int = 2,
    store: Path | None = None,
) -> AsyncIterator[Mesh]:
    """A mesh that is up inside the block and down behind it, or when this process is killed;
    `options` are more ones of `shunt up`, of which `pipelines` come. What `store` holds need not be
    imported: its files are linked."""
    if store is not None:
        shutil.copytree(store, data_dir / "store", copy_function=os.link)
    first = free_ports(2 * routers)
    mesh = Mesh(data_dir, http_port=first, grpc_port=first + routers, routers=routers)
    with ends_with_us(data_dir) as held:
        try:
            await run_shunt(
                "up",
                "--detach",
                "--routers",
                str(routers),
                "--http-port",
                str(mesh.http_port),
                "--grpc-port",
                str(mesh.grpc_port),
                "--data-dir",
                str(data_dir),
                *options,
                timeout_s=UP_TIMEOUT_S,
                env=env,
                pass_fds=[held],
            )
            await mesh.until_ready(pipelines, UP_TIMEOUT_S)
            yield mesh
        finally:
            await mesh.shunt("down")


@dataclass
class StreamRecord:
    """What a reader of one stream saw."""

    generation_id: str = ""
    thoughts: str = ""
    """Told apart, before the text."""
    text: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    """But for what was cached."""
    cached_tokens: int = 0
    """Of the prompt; the same question asked again finds more."""
    error: str | None = None
    done: bool = False
    last_event_id: str = ""
    roles: int = 0
    arrivals_s: list[float] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)
    """Lines for whoever looks at the stream itself."""

    @property
    def complete(self) -> bool:
        return self.done and self.error is None and self.finish_reason is not None

    def longest_gap_s(self, start_s: float = 0.0, end_s: float = float("inf")) -> float:
        """The longest wait between two events of which one lies within the window."""
        pairs = zip(self.arrivals_s, self.arrivals_s[1:], strict=False)
        return max((b - a for a, b in pairs if b >= start_s and a <= end_s), default=0.0)


async def read_events(response: httpx.Response, record: StreamRecord) -> None:
    """Reads an SSE answer into the record, up to [DONE], an error, or the end."""
    event_id = record.last_event_id
    async for line in response.aiter_lines():
        if line.startswith("id:"):
            event_id = line[3:].strip()
        if line.startswith(":"):
            record.comments.append(line)
        if not line.startswith("data:"):
            continue
        record.last_event_id = event_id  # an id whose data was cut off counts for nothing
        data = line[5:].strip()
        if data == "[DONE]":
            record.done = True
            continue
        event = json.loads(data)
        if "error" in event:
            record.error = json.dumps(event["error"])
            return
        if usage := event.get("usage"):
            record.cached_tokens = usage.pop("prompt_tokens_details")["cached_tokens"]
            record.usage = usage
        for choice in event["choices"]:
            delta = choice.get("delta") or {}
            record.roles += "role" in delta and delta["role"] is not None
            thought = delta.get("reasoning_content") or ""
            content = delta.get("content") or choice.get("text") or ""
            record.thoughts += thought
            record.text += content
            if thought or content:
                record.arrivals_s.append(time.monotonic())
            record.finish_reason = choice.get("finish_reason") or record.finish_reason


async def stream_chat(
    client: httpx.AsyncClient, url: str, body: Mapping[str, Any], record: StreamRecord
) -> StreamRecord:
    """Streams one chat completion; failures land in `record.error`."""
    payload = {
        "model": MODEL,
        "stream": True,
        "stream_options": {"include_usage": True},
        **body,
    }
    try:
        async with client.stream("POST", f"{url}/v1/chat/completions", json=payload) as response:
            record.generation_id = response.headers.get("x-generation-id", "")
            if response.status_code != 200:
                record.error = f"{response.status_code} {(await response.aread())[:500]!r}"
                return record
            await read_events(response, record)
    except httpx.HTTPError as error:
        record.error = repr(error)
    return record


async def resume_stream(client: httpx.AsyncClient, url: str, record: StreamRecord) -> StreamRecord:
    """Goes on with a stream behind the last event of the record, perhaps at another router."""
    headers = {"Last-Event-ID": record.last_event_id} if record.last_event_id else {}
    path = f"{url}/v1/generations/{record.generation_id}/stream"
    record.error = None
    try:
        async with client.stream("GET", path, headers=headers) as response:
            if response.status_code != 200:
                record.error = f"{response.status_code} {(await response.aread())[:500]!r}"
                return record
            await read_events(response, record)
    except httpx.HTTPError as error:
        record.error = repr(error)
    return record


PROMPTS = (
    "Tell me a long story about a lighthouse keeper and a storm.",
    "Explain how a bicycle stays upright, step by step.",
    "List twenty animals and say one thing about each.",
    "Write a letter from a sailor to his sister.",
    "What is the history of bread? Answer at length.",
    "Describe a walk through an old city in the morning.",
    "Explain photosynthesis to a child, with many examples.",
    "Write a dialogue between the sun and the moon.",
)


def request_bodies(max_tokens: int = 160) -> list[dict[str, Any]]:
    """Eight requests, every other one sampled with a seed of its own; the others do not go round in
    circles, which engines guess (docs/adr/0037) and streams would be through with too soon."""
    bodies: list[dict[str, Any]] = []
    for index, prompt in enumerate(PROMPTS):
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
        }
        if index % 2:
            body |= {"temperature": 0.9, "top_p": 0.95, "seed": 1000 + index}
        else:
            body |= {"temperature": 0, "repetition_penalty": 1.05}
        bodies.append(body)
    return bodies


async def undisturbed(
    client: httpx.AsyncClient, url: str, bodies: list[dict[str, Any]], at_once: int = 8
) -> list[StreamRecord]:
    """The records of the same requests with nothing in their way. A batch has the same answers as
    each request alone, for a third of the work when there are eight."""
    records = [StreamRecord() for _ in bodies]
    places = asyncio.Semaphore(at_once)

    async def one(body: dict[str, Any], record: StreamRecord) -> None:
        async with places:
            await stream_chat(client, url, body, record)

    await asyncio.gather(*(one(b, r) for b, r in zip(bodies, records, strict=True)))
    for record in records:
        if not record.complete:
            raise RuntimeError(f"an undisturbed stream failed: {record.error}")
    return records
