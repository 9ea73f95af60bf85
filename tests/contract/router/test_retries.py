"""Clients that ask again because their first connection broke; the official one is the oracle."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import openai
import pytest

from services.router.__main__ import RunningDoors
from tests.fake_mesh import REPLY, FakeMesh
from tests.waiting import until

ASKED = {"model": "tiny", "prompt": "hi", "temperature": 0, "max_tokens": 300}
AGAIN = {"x-stainless-retry-count": "1"}


async def _leave(mesh: FakeMesh, http: httpx.AsyncClient, **more: Any) -> str:
    """Asks, and leaves behind the tenth token; the generation's name."""
    known, mesh.limit = set(mesh.journal), 10
    task = asyncio.create_task(http.post("/v1/completions", json=ASKED, **more))
    await until(lambda: any(len(mesh.journal[n].ids[0]) == 10 for n in mesh.journal.keys() - known))
    task.cancel()
    await until(lambda: mesh.readers == 0)
    (name,) = mesh.journal.keys() - known
    mesh.limit = 1 << 30
    return name


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_the_official_clients_own_retries_join_what_it_asked_first(
    mesh: FakeMesh, router: RunningDoors, stream: bool
) -> None:
    mesh.limit = 0 if stream else 5
    firsts: set[str] = set()

    async def ask(client: openai.AsyncOpenAI, number: int) -> str:
        answer: Any = await client.completions.create(
            model="tiny",
            prompt=f"question {number % 3}",
            temperature=0,
            stream=stream,
            max_tokens=300,
        )
        if not stream:
            return str(answer.choices[0].text)
        return "".join([chunk.choices[0].text async for chunk in answer if chunk.choices])

    url = f"http://127.0.0.1:{router.http_port}/v1"
    async with (
        # it gives up soon and asks again as often as a busy machine needs
        openai.AsyncOpenAI(base_url=url, api_key="any", timeout=1.0, max_retries=20) as client,
        asyncio.TaskGroup() as group,
    ):
        answers = [group.create_task(ask(client, number)) for number in range(10)]
        await until(lambda: len(mesh.calls) >= 10)
        firsts = set(mesh.journal)
        await until(lambda: len(mesh.detaches) >= 10)  # each has given up once
        mesh.limit = 1 << 30
    assert [task.result() for task in answers] == [REPLY] * 10
    assert len(firsts) == 10
    assert set(mesh.journal) == firsts


async def test_a_retry_joins_through_another_router_and_is_answered_from_the_start(
    mesh: FakeMesh, http: httpx.AsyncClient
) -> None:
    name = await _leave(mesh, http)
    async with mesh.router() as other:
        url = f"http://127.0.0.1:{other.http_port}"
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            answer = await client.post("/v1/completions", json=ASKED, headers=AGAIN)
    assert answer.headers["x-generation-id"] == name
    assert answer.json()["choices"][0]["text"] == REPLY
    assert len(mesh.journal) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"headers": {}},
        {"headers": AGAIN | {"authorization": "Bearer another"}},
        {"json": ASKED | {"prompt": "ho"}},
        {"json": ASKED | {"stream": True}},
    ],
    ids=["no retry", "another tenant", "another prompt", "another form"],
)
async def test_another_ask_does_not_join(
    mesh: FakeMesh, http: httpx.AsyncClient, changes: dict[str, Any]
) -> None:
    name = await _leave(mesh, http)
    answer = await http.post("/v1/completions", **{"json": ASKED, "headers": AGAIN} | changes)
    assert answer.status_code == 200
    assert answer.headers["x-generation-id"] != name


async def test_a_retry_does_not_take_what_another_client_reads(
    mesh: FakeMesh, http: httpx.AsyncClient
) -> None:
    mesh.limit = 10
    reading = asyncio.create_task(http.post("/v1/completions", json=ASKED))
    await until(lambda: mesh.sampled >= 10)
    again = asyncio.create_task(http.post("/v1/completions", json=ASKED, headers=AGAIN))
    await until(lambda: mesh.sampled >= 20)
    mesh.limit = 1 << 30
    first, second = await reading, await again
    assert first.status_code == second.status_code == 200
    assert first.headers["x-generation-id"] != second.headers["x-generation-id"]


async def test_equal_asks_that_were_left_are_joined_one_each(
    mesh: FakeMesh, http: httpx.AsyncClient
) -> None:
    names = {await _leave(mesh, http) for _ in range(4)}
    answers = await asyncio.gather(
        *(http.post("/v1/completions", json=ASKED, headers=AGAIN) for _ in range(4))
    )
    assert {answer.headers["x-generation-id"] for answer in answers} == names
    assert len(mesh.journal) == 4


async def test_a_retry_begins_anew_while_the_controller_is_away(
    mesh: FakeMesh, http: httpx.AsyncClient
) -> None:
    mesh.controller_away = True
    answer = await http.post("/v1/completions", json=ASKED, headers=AGAIN)
    assert answer.status_code == 200


async def test_a_key_joins_its_generation_whoever_counts_and_even_when_it_has_ended(
    mesh: FakeMesh, http: httpx.AsyncClient
) -> None:
    headers = {"idempotency-key": "one"}
    name = await _leave(mesh, http, headers=headers)
    answers = [await http.post("/v1/completions", json=ASKED, headers=headers) for _ in range(2)]
    assert {answer.headers["x-generation-id"] for answer in answers} == {name}
    assert answers[0].json() == answers[1].json()
    other = await http.post(
        "/v1/completions", json=ASKED, headers=headers | {"authorization": "Bearer another"}
    )
    assert other.headers["x-generation-id"] != name


@pytest.mark.group(28)
async def test_a_key_that_names_another_request_is_refused(
    mesh: FakeMesh, http: httpx.AsyncClient
) -> None:
    headers = {"idempotency-key": "one"}
    assert (await http.post("/v1/completions", json=ASKED, headers=headers)).status_code == 200
    other = await http.post("/v1/completions", json=ASKED | {"prompt": "ho"}, headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "already_exists")
