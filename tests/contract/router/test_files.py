"""/v1/files: the official client, and what others send."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from services.router.__main__ import RunningDoors
from tests.fake_mesh import FakeMesh
from tests.waiting import until

MAX_BYTES = 8 << 20


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "files"


def nothing_in(kept: Path) -> bool:
    return not any(path.is_file() for path in kept.rglob("*"))


@pytest.fixture
async def router(mesh: FakeMesh, kept: Path) -> AsyncIterator[RunningDoors]:
    async with mesh.router(files=str(kept), max_file_bytes=MAX_BYTES) as router:
        yield router


@pytest.fixture
async def client(router: RunningDoors) -> AsyncIterator[openai.AsyncOpenAI]:
    url = f"http://127.0.0.1:{router.http_port}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


async def made(client: openai.AsyncOpenAI, content: bytes = b"{}\n", **options: Any) -> Any:
    return await client.files.create(file=("in.jsonl", content), purpose="batch", **options)


async def test_a_file_lives_as_openais_client_knows_it(
    client: openai.AsyncOpenAI, kept: Path
) -> None:
    content = b'{"a": 1}\n' * 300_000
    file = await made(client, content)
    assert (file.bytes, file.filename, file.purpose) == (len(content), "in.jsonl", "batch")
    assert (file.object, file.status) == ("file", "processed")
    assert file.expires_at == file.created_at + 30 * 24 * 3600
    assert await client.files.retrieve(file.id) == file
    assert (await client.files.content(file.id)).content == content
    assert [one.id async for one in client.files.list()] == [file.id]
    deleted = await client.files.delete(file.id)
    assert (deleted.deleted, deleted.id) == (True, file.id)
    assert nothing_in(kept)
    for gone in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            await gone(file.id)


async def test_files_are_listed_in_pages(client: openai.AsyncOpenAI) -> None:
    ids = [(await made(client)).id for _ in range(5)]
    assert [one.id async for one in client.files.list(limit=2)] == ids[::-1]
    assert [one.id async for one in client.files.list(limit=2, order="asc")] == ids
    page = await client.files.list(after=ids[3], limit=2)
    assert [one.id for one in page.data] == [ids[2], ids[1]]
    assert page.has_more
    assert (await client.files.list(purpose="batch_output")).data == []
    with pytest.raises(openai.NotFoundError):
        await client.files.list(after="file-none")


async def test_a_file_expires_when_it_is_told_to(client: openai.AsyncOpenAI) -> None:
    file = await made(client, expires_after={"anchor": "created_at", "seconds": 3600})
    assert file.expires_at == file.created_at + 3600
    for wrong in (
        {"anchor": "created_at", "seconds": 3599},
        {"anchor": "created_at", "seconds": 2_592_001},
        {"anchor": "now", "seconds": 3600},
    ):
        with pytest.raises(openai.BadRequestError, match="expires_after"):
            await made(client, expires_after=wrong)


WRONG: list[tuple[dict[str, str], str]] = [
    ({}, "purpose"),
    ({"purpose": "fine-tune"}, "purpose"),
    ({"purpose": "batch", "colour": "red"}, "colour"),
]


async def test_a_field_that_is_wrong_is_named_and_nothing_is_left(
    http: httpx.AsyncClient, kept: Path
) -> None:
    for fields, named in WRONG:
        answer = await http.post("/v1/files", files={"file": b"x"}, data=fields)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == named
    assert nothing_in(kept)


async def test_a_body_of_another_kind_is_refused(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/files", json={"purpose": "batch"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "content-type"


async def test_a_file_that_is_too_large_is_refused_while_it_comes(
    http: httpx.AsyncClient, kept: Path
) -> None:
    for size_bytes in (MAX_BYTES + 1, MAX_BYTES + (1 << 20)):
        answer = await http.post(
            "/v1/files", files={"file": b"x" * size_bytes}, data={"purpose": "batch"}
        )
        assert answer.status_code == 413, answer.text
    assert nothing_in(kept)
    whole = await http.post(
        "/v1/files", files={"file": b"x" * MAX_BYTES}, data={"purpose": "batch"}
    )
    assert whole.status_code == 200


async def test_a_client_that_leaves_in_the_middle_leaves_nothing(
    http: httpx.AsyncClient, kept: Path, router: RunningDoors
) -> None:
    head = (
        b"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-length: 5000000\r\n"
        b"content-type: multipart/form-data; boundary=b\r\n\r\n"
        b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
    )
    _, writer = await asyncio.open_connection("127.0.0.1", router.http_port)
    writer.write(head + b"x" * (2 << 20))
    await writer.drain()
    await until(lambda: not nothing_in(kept))
    writer.close()
    await until(lambda: nothing_in(kept))


async def test_so_many_files_come_at_a_time(mesh: FakeMesh, kept: Path) -> None:
    async with mesh.router(files=str(kept), max_uploads=1) as router:
        _, writer = await asyncio.open_connection("127.0.0.1", router.http_port)
        writer.write(
            b"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-length: 5000000\r\n"
            b"content-type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
        )
        await writer.drain()
        await until(lambda: not nothing_in(kept))
        async with httpx.AsyncClient(timeout=60) as http:
            url = f"http://127.0.0.1:{router.http_port}/v1/files"
            form: dict[str, Any] = {"files": {"file": b"x"}, "data": {"purpose": "batch"}}
            assert (await http.post(url, **form)).status_code == 429
            writer.close()
            await until(lambda: nothing_in(kept))
            assert (await http.post(url, **form)).status_code == 200


async def test_a_sender_that_dawdles_is_let_go(mesh: FakeMesh, kept: Path) -> None:
    async with mesh.router(files=str(kept), body_timeout_s=0.3) as router:
        reader, writer = await asyncio.open_connection("127.0.0.1", router.http_port)
        writer.write(
            b"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-length: 5000000\r\n"
            b"content-type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
        )
        answer = await asyncio.wait_for(reader.read(), 60)
    assert answer.startswith(b"HTTP/1.1 408 ")
    writer.close()
    assert nothing_in(kept)


async def test_a_query_that_is_wrong_is_named(http: httpx.AsyncClient) -> None:
    for query in ("limit=0", "limit=10001", "order=up", "colour=red", "limit=x"):
        answer = await http.get(f"/v1/files?{query}")
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == query.split("=")[0]


async def test_without_a_place_there_are_no_files(mesh: FakeMesh) -> None:
    async with mesh.router() as router, httpx.AsyncClient(timeout=60) as http:
        for path in ("files", "batches"):
            url = f"http://127.0.0.1:{router.http_port}/v1/{path}"
            answers = [await http.get(url), await http.post(url, json={})]
            assert [answer.status_code for answer in answers] == [404, 404]
            assert "SHUNT_ROUTER_FILES" in json.loads(answers[0].content)["error"]["message"]
