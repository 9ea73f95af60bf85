"""/v1/batches: the official client, on heads that are none; routers come and go."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import openai
import pytest
from openai.types import Batch
from prometheus_client import REGISTRY

from services.common.errors import ResourceExhausted
from services.router.__main__ import RunningDoors
from tests.fake_mesh import REPLY, FakeMesh, documents
from tests.waiting import until

CHAT: Final = "/v1/chat/completions"
FAST = {"batch_poll_s": 0.05, "batch_settle_s": 0.05}


@pytest.fixture
def files(tmp_path: Path) -> str:
    return str(tmp_path / "files")


@pytest.fixture
async def router(mesh: FakeMesh, files: str) -> AsyncIterator[RunningDoors]:
    async with mesh.router(files=files, route_wait_s=0.5, **FAST) as router:
        await until(lambda: router.router.ready)
        yield router


@asynccontextmanager
async def client_of(router: RunningDoors) -> AsyncIterator[openai.AsyncOpenAI]:
    url = f"http://127.0.0.1:{router.http_port}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def client(router: RunningDoors) -> AsyncIterator[openai.AsyncOpenAI]:
    async with client_of(router) as client:
        yield client


def chat(custom_id: str, **body: Any) -> dict[str, Any]:
    asked = {"model": "tiny", "temperature": 0, "messages": [{"role": "user", "content": "hi"}]}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": {**asked, **body}}


def lines_of(*lines: Any) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


async def submitted(client: openai.AsyncOpenAI, *lines: Any, **options: Any) -> Batch:
    file = await client.files.create(file=("in.jsonl", lines_of(*lines)), purpose="batch")
    return await client.batches.create(
        **{
            "input_file_id": file.id,
            "endpoint": CHAT,
            "completion_window": "24h",
            **options,
        }
    )


async def ended(client: openai.AsyncOpenAI, batch: Batch) -> Batch:
    async with asyncio.timeout(60):
        while batch.status not in ("completed", "failed", "expired", "cancelled"):
            await asyncio.sleep(0.05)
            batch = await client.batches.retrieve(batch.id)
    return batch


async def results(client: openai.AsyncOpenAI, file_id: str | None) -> dict[str, Any]:
    """By custom_id, each once."""
    assert file_id is not None
    content = (await client.files.content(file_id)).content
    found = [json.loads(line) for line in content.splitlines()]
    by_id = {line["custom_id"]: line for line in found}
    assert len(by_id) == len(found)
    return by_id


def counted(outcome: str) -> float:
    return REGISTRY.get_sample_value("shunt_router_batch_lines_total", {"outcome": outcome}) or 0.0


async def test_a_batch_is_answered_line_by_line(client: openai.AsyncOpenAI) -> None:
    before = [counted(outcome) for outcome in ("answered", "failed")]
    lines = [chat(f"q{n}", max_tokens=5 + n, kv_int8=n % 2 == 0) for n in range(20)]
    lines += [chat("hot", temperature=9), chat("long", max_tokens=10**6)]
    batch = await submitted(client, *lines, metadata={"job": "nightly"})
    assert (batch.status, batch.object, batch.metadata) == (
        "validating",
        "batch",
        {"job": "nightly"},
    )
    assert batch.expires_at == batch.created_at + 24 * 3600
    batch = await ended(client, batch)
    assert batch.status == "completed"
    assert batch.model == "tiny"
    counts = batch.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (22, 20, 2)
    answered = await results(client, batch.output_file_id)
    assert set(answered) == {f"q{n}" for n in range(20)}
    for n in range(20):
        response = answered[f"q{n}"]["response"]
        assert response["status_code"] == 200
        completion = openai.types.chat.ChatCompletion.model_validate(response["body"])
        assert REPLY.startswith((completion.choices[0].message.content or "").rstrip("�"))
        assert completion.usage is not None
        assert completion.usage.completion_tokens == 5 + n
        assert response["request_id"] == answered[f"q{n}"]["id"]
    assert batch.usage is not None
    assert batch.usage.output_tokens == sum(range(5, 25))
    failed = await results(client, batch.error_file_id)
    assert {name: line["response"]["status_code"] for name, line in failed.items()} == {
        "hot": 400,
        "long": 400,
    }
    assert failed["hot"]["response"]["body"]["error"]["param"] == "temperature"
    output = await client.files.retrieve(str(batch.output_file_id))
    assert output.purpose == "batch_output"
    after = [counted(outcome) for outcome in ("answered", "failed")]
    assert [after[0] - before[0], after[1] - before[1]] == [20, 2]
    assert REGISTRY.get_sample_value("shunt_router_batch_lines_under_way") == 0


async def test_completions_are_a_batch_too(client: openai.AsyncOpenAI) -> None:
    line = {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/completions",
        "body": {"model": "tiny", "prompt": "hi", "temperature": 0},
    }
    batch = await ended(client, await submitted(client, line, endpoint="/v1/completions"))
    answered = await results(client, batch.output_file_id)
    assert answered["a"]["response"]["body"]["object"] == "text_completion"
    assert batch.error_file_id is None


async def test_responses_are_a_batch_too(client: openai.AsyncOpenAI) -> None:
    def line(custom_id: str, **body: Any) -> dict[str, Any]:
        asked = {"model": "tiny", "input": "hi", "temperature": 0, **body}
        return {"custom_id": custom_id, "method": "POST", "url": "/v1/responses", "body": asked}

    lines = [line("a"), line("b", background=True), line("c", previous_response_id="resp_x")]
    batch = await ended(client, await submitted(client, *lines, endpoint="/v1/responses"))
    answered = await results(client, batch.output_file_id)
    response = openai.types.responses.Response.model_validate(answered["a"]["response"]["body"])
    assert (response.status, response.output_text) == ("completed", REPLY)
    failed = await results(client, batch.error_file_id)
    params = {name: f["response"]["body"]["error"]["param"] for name, f in failed.items()}
    assert params == {"b": "background", "c": "previous_response_id"}
    assert (await client.responses.retrieve(response.id)).output_text == REPLY


async def test_batches_are_listed_in_pages_the_newest_first(client: openai.AsyncOpenAI) -> None:
    ids = [(await submitted(client, chat("a"))).id for _ in range(5)]
    assert [one.id async for one in client.batches.list(limit=2)] == ids[::-1]
    page = await client.batches.list(after=ids[3], limit=2)
    assert [one.id for one in page.data] == [ids[2], ids[1]]


async def test_a_file_that_cannot_be_used_fails_its_batch(client: openai.AsyncOpenAI) -> None:
    lines = [chat("a"), chat("a"), {**chat("b"), "url": "/v1/completions"}]
    batch = await ended(client, await submitted(client, *lines))
    assert batch.status == "failed"
    assert batch.errors is not None
    assert [(error.code, error.line) for error in batch.errors.data or ()] == [
        ("duplicate_custom_id", 2),
        ("mismatched_url", 3),
    ]
    assert batch.output_file_id is batch.error_file_id is None


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"endpoint": "/v1/embeddings"}, "endpoint"),
    ({"completion_window": "1h"}, "completion_window"),
    ({"input_file_id": "file-none"}, "input_file_id"),
    ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
    ({"metadata": {"k" * 65: "x"}}, "metadata"),
    ({"metadata": {"k": "x" * 513}}, "metadata"),
    ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after"),
    ({"extra_body": {"priority": 1}}, "priority"),
]


async def test_what_is_wrong_with_a_batch_is_named(client: openai.AsyncOpenAI) -> None:
    for changed, named in WRONG:
        with pytest.raises(openai.BadRequestError) as refusal:
            await submitted(client, chat("a"), **changed)
        assert str(refusal.value.param).split(".")[0] == named


async def test_results_expire_when_they_are_told_to(client: openai.AsyncOpenAI) -> None:
    expires = {"anchor": "created_at", "seconds": 7200}
    batch = await submitted(client, chat("a"), output_expires_after=expires)
    batch = await ended(client, batch)
    output = await client.files.retrieve(str(batch.output_file_id))
    assert output.expires_at == batch.created_at + 7200


async def test_results_are_no_input(client: openai.AsyncOpenAI) -> None:
    batch = await ended(client, await submitted(client, chat("a")))
    with pytest.raises(openai.BadRequestError, match="purpose is batch_output"):
        await client.batches.create(
            input_file_id=str(batch.output_file_id), endpoint=CHAT, completion_window="24h"
        )


async def test_a_cancelled_batch_keeps_what_was_done(
    client: openai.AsyncOpenAI, mesh: FakeMesh, router: RunningDoors
) -> None:
    first = await submitted(client, *(chat(f"q{n}", max_tokens=5) for n in range(4)))
    assert (await ended(client, first)).status == "completed"
    mesh.token_s = 0.05
    begun = len(mesh.journal)
    batch = await submitted(client, *(chat(f"q{n}") for n in range(40)))
    await until(lambda: len(mesh.journal) > begun)
    cancelled = await client.batches.cancel(batch.id)
    assert cancelled.status == "cancelling"
    batch = await ended(client, batch)
    assert batch.status == "cancelled"
    assert batch.cancelled_at is not None
    left = await results(client, batch.error_file_id)
    codes = {line["error"]["code"] for line in left.values()}
    assert codes == {"batch_cancelled"}
    done = await results(client, batch.output_file_id) if batch.output_file_id else {}
    assert sorted((*left, *done)) == sorted(f"q{n}" for n in range(40))
    await until(lambda: mesh.readers == 0)
    assert any(where == "controller" for where, _ in mesh.cancels)
    again = await client.batches.cancel(batch.id)
    assert again.status == "cancelled"
    with pytest.raises(openai.ConflictError):
        await client.batches.cancel(first.id)


async def test_a_router_that_leaves_is_followed_by_another_at_once(
    mesh: FakeMesh, files: str
) -> None:
    mesh.documents = documents(lease_s=600.0)
    mesh.token_s = 0.01
    asked = [chat(f"q{n}", max_tokens=8) for n in range(40)]
    async with mesh.router(files=files, **FAST) as first:
        async with client_of(first) as client:
            batch = await submitted(client, *asked)
        await until(lambda: len(mesh.journal) >= 12)
    async with mesh.router(files=files, **FAST) as second, client_of(second) as client:
        batch = await ended(client, batch)
        assert batch.status == "completed"
        answered = await results(client, batch.output_file_id)
    assert set(answered) == {f"q{n}" for n in range(40)}
    # what the first had asked, the second went on with
    assert len(mesh.journal) == 40
    assert mesh.sampled == 40 * 8


async def test_a_batch_waits_for_what_is_full_and_for_a_controller_that_is_away(
    client: openai.AsyncOpenAI, mesh: FakeMesh
) -> None:
    mesh.refusal = ResourceExhausted("the queue is full")
    batch = await submitted(client, *(chat(f"q{n}", max_tokens=4) for n in range(10)))
    await until(lambda: len(mesh.calls) > 3)
    assert (await client.batches.retrieve(batch.id)).status == "in_progress"
    mesh.controller_away = True
    mesh.refusal = None
    with pytest.raises(openai.InternalServerError):
        await client.batches.retrieve(batch.id)
    await asyncio.sleep(1.5)
    mesh.controller_away = False
    batch = await ended(client, batch)
    assert batch.status == "completed"
    assert set(await results(client, batch.output_file_id)) == {f"q{n}" for n in range(10)}


async def test_the_same_key_makes_one_batch(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient
) -> None:
    first = await submitted(client, chat("a"))
    body = {"input_file_id": first.input_file_id, "endpoint": CHAT, "completion_window": "24h"}
    key = {"idempotency-key": "once"}
    answers = [await http.post("/v1/batches", json=body, headers=key) for _ in range(2)]
    assert answers[0].json()["id"] == answers[1].json()["id"] != first.id
    other = await http.post("/v1/batches", json={**body, "metadata": {"a": "b"}}, headers=key)
    assert other.status_code == 409


async def test_a_live_request_has_batches_make_room(mesh: FakeMesh, files: str, ask: Any) -> None:
    """While it waits for its first token no further line begins."""
    settings = {**FAST, "batch_yield_s": 0.0, "batch_settle_s": 1.0}
    mesh.token_s = 0.02
    async with mesh.router(files=files, **settings) as router, client_of(router) as client:
        batch = await submitted(client, *(chat(f"q{n}", max_tokens=4) for n in range(60)))
        await until(lambda: len(mesh.journal) >= 8)
        mesh.limit = 0  # no token comes
        url = f"http://127.0.0.1:{router.http_port}"
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            waiting = asyncio.create_task(ask(http, max_tokens=4))
            await asyncio.sleep(0.6)
            begun = len(mesh.journal)
            mesh.limit = 1 << 30
            await waiting
        assert begun < 30
        assert (await ended(client, batch)).status == "completed"
