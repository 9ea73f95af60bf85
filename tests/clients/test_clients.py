"""Clients and frameworks, unmodified: what their first pages show, of a router whose heads follow
grammars. All of them ask at the same time."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.clients.constrained import ConstrainedMesh
from tests.clients.matrix import CLIENTS, ENVIRONMENT, HERE, LACKING, PAGE, Client, Outcomes, page

WITHIN_S = 240.0

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]


async def told_by(client: Client, url: str) -> dict[str, str | None]:
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


async def all_outcomes() -> Outcomes:
    """Of every client."""
    await asyncio.to_thread(subprocess.run, [HERE / "install.sh"], check=True)
    for script in (HERE / "node").glob("*.mjs"):  # they find packages beside themselves
        shutil.copy(script, ENVIRONMENT / "node")
    files = tempfile.TemporaryDirectory()
    mesh = ConstrainedMesh(2)
    with files as path:
        async with mesh.serving(), mesh.router(files=path) as router:
            return await _told(f"http://127.0.0.1:{router.http_port}/v1")


async def _told(url: str) -> Outcomes:
    async with asyncio.TaskGroup() as group:
        tasks = {one.name: group.create_task(told_by(one, url)) for one in CLIENTS}
    return {name: task.result() for name, task in tasks.items()}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def outcomes() -> AsyncIterator[Outcomes]:
    yield await all_outcomes()


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
async def test_a_clients_first_page_works_but_for_what_is_known_to_lack(
    outcomes: Outcomes, client: Client
) -> None:
    failed = {case: why for case, why in outcomes[client.name].items() if why is not None}
    assert failed.keys() == {case for name, case in LACKING if name == client.name}, failed


async def test_the_page_about_clients_is_what_became_of_them(outcomes: Outcomes) -> None:
    assert PAGE.read_text() == page(outcomes)


if __name__ == "__main__":
    PAGE.write_text(page(asyncio.run(all_outcomes())))
