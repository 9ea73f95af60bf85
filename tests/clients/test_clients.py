"""Clients and frameworks, unmodified: what their first pages show, of a router whose heads follow
grammars. All of them ask at the same time."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from tests.clients.constrained import ConstrainedMesh
from tests.clients.matrix import CLIENTS, ENVIRONMENT, HERE, LACKING, PAGE, Client, Outcomes, page

WITHIN_S = 240.0
Told = Mapping[str, str | None] | BaseException
"""What became of a client's cases, or why that is not known."""

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]


async def told_by(client: Client, url: str) -> Mapping[str, str | None]:
    """What became of each of its cases."""
    process = await asyncio.create_subprocess_exec(
        *client.command,
        url,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ENVIRONMENT,
    )
    try:
        async with asyncio.timeout(WITHIN_S):
            out, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    print(said.decode())
    assert process.returncode == 0, said.decode()[-2000:]
    outcomes: dict[str, str | None] = json.loads(out.decode().splitlines()[-1])
    return outcomes


async def told_by_each(clients: Sequence[Client], url: str) -> dict[str, Told]:
    """All of them ask at the same time."""
    told = await asyncio.gather(*(told_by(one, url) for one in clients), return_exceptions=True)
    return dict(zip((one.name for one in clients), told, strict=True))


@asynccontextmanager
async def router() -> AsyncIterator[str]:
    """The base URL of one, while the block runs."""
    await asyncio.to_thread(subprocess.run, [HERE / "install.sh"], check=True)
    for script in (HERE / "node").glob("*.mjs"):  # they find packages beside themselves
        shutil.copy(script, ENVIRONMENT / "node")
    mesh = ConstrainedMesh(2)
    with tempfile.TemporaryDirectory() as files:
        async with mesh.serving(), mesh.router(files=files) as router:
            yield f"http://127.0.0.1:{router.http_port}/v1"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def url() -> AsyncIterator[str]:
    async with router() as url:
        yield url


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def told(url: str) -> dict[str, Told]:
    """What became of every client's cases; what a test that fails was about is taken out, and asked
    anew."""
    return await told_by_each(CLIENTS, url)


def known(told: Mapping[str, Told]) -> Outcomes:
    """Raises what a client raised."""
    for one in told.values():
        if isinstance(one, BaseException):
            raise one
    return {name: one for name, one in told.items() if not isinstance(one, BaseException)}


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
async def test_a_clients_first_page_works_but_for_what_is_known_to_lack(
    told: dict[str, Told], url: str, client: Client
) -> None:
    if client.name not in told:
        told |= await told_by_each([client], url)
    one = {client.name: told.pop(client.name)}
    failed = {case: why for case, why in known(one)[client.name].items() if why is not None}
    assert failed.keys() == {case for name, case in LACKING if name == client.name}, failed
    told |= one


async def test_the_page_about_clients_is_what_became_of_them(
    told: dict[str, Told], url: str
) -> None:
    told |= await told_by_each([one for one in CLIENTS if one.name not in told], url)
    all_of_them = dict(told)
    told.clear()
    assert PAGE.read_text() == page(known(all_of_them))
    told |= all_of_them


async def write_page() -> None:
    """From what becomes of every client."""
    async with router() as url:
        PAGE.write_text(page(known(await told_by_each(CLIENTS, url))))


if __name__ == "__main__":
    asyncio.run(write_page())
