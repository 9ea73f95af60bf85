"""Official clients, unmodified, over 12 s in which nothing comes: in a queue, in a long prefill,
in an outage. All of them wait at the same time, in front of routers with their default timings."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import httpx_sse
import openai
import pytest
import pytest_asyncio
from shuntserve.engine.v1 import engine_pb2

from tests import tools
from tests.fake_mesh import REPLY, FakeMesh
from tests.waiting import until

SILENCE_S = 12.0
FIRST_TOKENS = 20
"""What a client has before an outage."""
OPENAI_NODE = "7.57.0"
NODE_MODULES = Path(__file__).parents[3] / ".pytest_cache" / "npm"
CLIENTS_DIR = Path(__file__).with_name("clients")
PATH = "/v1/chat/completions"
ASKED: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "hi"}],
    "temperature": 0,
}
CHROMIUM_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]


@dataclass(frozen=True)
class Told:
    """What one client was told by one router."""

    whole: str
    streamed: str


Client = Callable[[Sequence[str]], Awaitable[list[Told]]]
"""A whole chat and a streamed one at each of these base URLs, all at once."""


async def _each(one: Callable[[str], Awaitable[Told]], urls: Sequence[str]) -> list[Told]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(url)) for url in urls]
    return [task.result() for task in tasks]


async def _output(*command: str, cwd: Path | None = None) -> str:
    """What a program prints; raises with what it says when it fails."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=cwd
    )
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {err.decode()[-2000:]}")
    return out.decode()


def _text(lines: Sequence[str]) -> str:
    """The text of a stream, by its lines; each event has an id before its data."""
    data = [line[6:] for line in lines if line.startswith("data: ")]
    assert data.pop() == "[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"] for event in data]
    return "".join(delta.get("content", "") for delta in deltas)


def _whole(body: str) -> str:
    text: str = json.loads(body)["choices"][0]["message"]["content"]
    return text


async def openai_python(urls: Sequence[str]) -> list[Told]:
    async def one(url: str) -> Told:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
            whole = asyncio.create_task(client.chat.completions.create(**ASKED))
            streamed = ""
            async for chunk in await client.chat.completions.create(**ASKED, stream=True):
                streamed += chunk.choices[0].delta.content or ""
            return Told((await whole).choices[0].message.content or "", streamed)

    return await _each(one, urls)


async def httpx_events(urls: Sequence[str]) -> list[Told]:
    async def one(url: str) -> Told:
        async with httpx.AsyncClient(base_url=url, timeout=None) as client:
            whole = asyncio.create_task(client.post(PATH, json=ASKED))
            streamed, asked = [], {**ASKED, "stream": True}
            async with httpx_sse.aconnect_sse(client, "POST", PATH, json=asked) as source:
                async for event in source.aiter_sse():
                    streamed.append(f"data: {event.data}")
            return Told(_whole((await whole).text), _text(streamed))

    return await _each(one, urls)


async def openai_node(urls: Sequence[str]) -> list[Told]:
    script = str(CLIENTS_DIR / "openai_node.mjs")
    outcomes = json.loads(await _output("node", script, *urls, cwd=NODE_MODULES))
    return [Told(**outcome) for outcome in outcomes]


async def java(urls: Sequence[str]) -> list[Told]:
    out = await _output("java", "-Xint", str(CLIENTS_DIR / "JavaClient.java"), *urls)
    lines = out.splitlines()
    pairs = zip(lines[::2], lines[1::2], strict=True)
    return [Told(_whole(whole), _text(streamed.split("\t"))) for whole, streamed in pairs]


def _curl(*flags: str) -> Client:
    async def one(url: str) -> Told:
        def chat(**more: Any) -> Awaitable[str]:
            body, kind = json.dumps({**ASKED, **more}), "content-type: application/json"
            common = ("--silent", "--show-error", "--fail-with-body", "--no-buffer", "-H", kind)
            return _output("curl", *flags, *common, "--data", body, url + PATH)

        whole, streamed = await asyncio.gather(chat(), chat(stream=True))
        return Told(_whole(whole), _text(streamed.splitlines()))

    return lambda urls: _each(one, urls)


async def chromium(urls: Sequence[str]) -> list[Told]:
    result: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    page = (CLIENTS_DIR / "page.html").read_bytes()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
        except asyncio.IncompleteReadError:  # a browser opens more connections than it needs
            writer.close()
            return
        if head.startswith("POST /result"):
            length = next(
                int(line.partition(":")[2])
                for line in head.splitlines()
                if line.lower().startswith("content-length:")
            )
            result.set_result((await reader.readexactly(length)).decode())
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(page), page)
        )
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    address = f"http://localhost:{port}/?{urlencode([('url', url) for url in urls])}"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = await asyncio.create_subprocess_exec(
            "chromium",
            *CHROMIUM_FLAGS,
            f"--user-data-dir={profile}",
            address,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env={**os.environ, "HOME": profile},
        )
        ended = asyncio.create_task(browser.wait())
        try:
            await asyncio.wait([result, ended], return_when=asyncio.FIRST_COMPLETED)
            if not result.done():
                raise RuntimeError(f"chromium ended with {ended.result()}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                browser.kill()
            await ended
            server.close()
    outcomes = json.loads(result.result())
    assert [outcome.pop("opened", None) for outcome in outcomes] == [1] * len(urls), outcomes
    return [Told(**outcome) for outcome in outcomes]


CLIENTS: dict[str, Client] = {
    "openai for Python": openai_python,
    "openai for Node": openai_node,
    "httpx-sse": httpx_events,
    "EventSource in Chromium": chromium,
    "Java's HttpClient": java,
    "curl --http2": _curl("--http2"),
    "curl --http1.0": _curl("--http1.0"),
}


def _waits_in_a_queue(mesh: FakeMesh) -> None:
    mesh.phase, mesh.limit = engine_pb2.PHASE_QUEUED, 0


def _waits_for_its_prefill(mesh: FakeMesh) -> None:
    mesh.phase, mesh.limit = engine_pb2.PHASE_PREFILL, 0


def _will_lose_its_heads(mesh: FakeMesh) -> None:
    mesh.limit, mesh.alive[2] = FIRST_TOKENS, False


SILENCES = {
    "in a queue": _waits_in_a_queue,
    "in a prefill": _waits_for_its_prefill,
    "in an outage": _will_lose_its_heads,
}
Outcome = list[Told] | BaseException


async def _keep_silent(mesh: FakeMesh, clients: int) -> None:
    """Lets all clients begin, says nothing for long, and goes on."""
    await until(lambda: len(mesh.journal) >= 2 * clients, 120)
    outage = not mesh.alive[2]
    if outage:
        held = mesh.journal.values()
        await until(lambda: all(len(one.ids[0]) >= FIRST_TOKENS for one in held), 120)
        mesh.controller_away = True
        await mesh.kill(0)
        await mesh.kill(1)
    await asyncio.sleep(SILENCE_S)
    mesh.limit = 1 << 30
    if outage:
        mesh.controller_away, mesh.alive[2] = False, True
        mesh.change_routes()


async def _told(names: Collection[str]) -> dict[str, Outcome]:
    """What these clients were told, in the order of the silences."""
    async with contextlib.AsyncExitStack() as stack:
        meshes, urls = [], []
        for prepare in SILENCES.values():
            mesh = await stack.enter_async_context(FakeMesh(3).serving())
            prepare(mesh)
            router = await stack.enter_async_context(mesh.router())
            meshes.append(mesh)
            urls.append(f"http://127.0.0.1:{router.http_port}")
        async with asyncio.timeout(240), asyncio.TaskGroup() as silent:
            keepers = [silent.create_task(_keep_silent(mesh, len(names))) for mesh in meshes]
            asked = (CLIENTS[name](urls) for name in names)
            outcomes = await asyncio.gather(*asked, return_exceptions=True)
            for keeper in keepers:
                keeper.cancel()
        return dict(zip(names, outcomes, strict=True))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def told() -> dict[str, Outcome]:
    """What every client was told; whose test fails is taken out of it, and asked anew."""
    tools.need(chromium="chromium", java="default-jdk-headless", curl="curl")
    tools.npm_package("openai", OPENAI_NODE, NODE_MODULES)
    return await _told(CLIENTS)


@pytest.mark.parametrize("silence", SILENCES)
@pytest.mark.parametrize("client", CLIENTS)
async def test_a_client_outlives_a_silence(
    told: dict[str, Outcome], client: str, silence: str
) -> None:
    if client not in told:
        told |= await _told([client])
    outcome = told.pop(client)
    if isinstance(outcome, BaseException):
        raise outcome
    assert outcome[list(SILENCES).index(silence)] == Told(REPLY, REPLY)
    told[client] = outcome
