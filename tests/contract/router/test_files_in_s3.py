"""S3 as the place where files are kept, against a real server."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import openai
import pytest

from services.common import s3_calls
from services.common.errors import InvalidArgument, NotFound
from services.router.files.s3 import PART_BYTES, S3Place
from tests.fake_mesh import FakeMesh


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_calls, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(s3_calls, "LONGEST_WAIT_S", 0.01)


@pytest.fixture
def place(s3_uri: str, s3_endpoint: str) -> S3Place:
    return S3Place(s3_uri, s3_endpoint)


def uploads(place: S3Place) -> list[Any]:
    bucket = place._place
    return list(bucket._uploads(bucket.key("")))


def test_small_and_large_files_are_there_whole_once_they_are_committed(place: S3Place) -> None:
    large = bytes(range(256)) * ((2 * PART_BYTES + 1000) // 256)
    for name, data in (("files/none", b""), ("files/small", b"abc"), ("files/large", large)):
        writer = place.writer(name)
        for start in range(0, len(data), 1 << 20):
            writer.write(data[start : start + (1 << 20)])
        assert place.size(name) is None
        writer.commit()
        assert place.size(name) == len(data)
        found = b""
        while part := place.read(name, len(found), len(found) + (3 << 20)):
            found += part
        assert found == data
    assert [name for name, _ in place.names("files")] == [
        "files/large",
        "files/none",
        "files/small",
    ]
    place.delete("files/large")
    place.delete("files/large")
    assert place.size("files/large") is None


def test_a_writer_holds_no_more_than_a_part(place: S3Place) -> None:
    writer = place.writer("files/a")
    for _ in range(20):
        writer.write(b"x" * (1 << 20))
        assert len(writer._waiting) < PART_BYTES
    writer.abort()


def test_what_was_begun_and_given_up_leaves_nothing(place: S3Place) -> None:
    given_up, left = place.writer("files/a"), place.writer("files/b")
    for writer in (given_up, left):
        writer.write(b"x" * PART_BYTES)
    assert len(uploads(place)) == 2
    given_up.abort()
    assert len(uploads(place)) == 1
    place.sweep(time.time() + 3600)
    assert uploads(place) == []
    assert place.size("files/a") is place.size("files/b") is None


def test_a_completion_whose_answer_was_lost_has_completed(
    place: S3Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = place.writer("files/a")
    writer.write(b"x" * (PART_BYTES + 5))
    client = place._place.client
    complete, asked = client.complete_multipart_upload, []

    def lost(**named: Any) -> Any:
        asked.append(named)
        answer = complete(**named)
        if len(asked) == 1:
            raise OSError("the connection broke")
        return answer

    monkeypatch.setattr(client, "complete_multipart_upload", lost)
    writer.commit()
    assert place.size("files/a") == PART_BYTES + 5


def test_what_is_not_there_is_not_found(place: S3Place) -> None:
    with pytest.raises(NotFound):
        place.read("files/none", 0, 10)
    with pytest.raises(InvalidArgument, match="s3://bucket/prefix"):
        S3Place("s3:///nothing")


async def test_a_batch_lives_in_s3(
    mesh: FakeMesh, s3_uri: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_endpoint)
    line = {"method": "POST", "url": "/v1/completions"}
    body = {"model": "tiny", "prompt": "hi", "max_tokens": 3}
    lines = [json.dumps({**line, "custom_id": f"q{n}", "body": body}) for n in range(5)]
    async with mesh.router(files=s3_uri, batch_poll_s=0.05) as router:
        url = f"http://127.0.0.1:{router.http_port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            file = await client.files.create(file="\n".join(lines).encode(), purpose="batch")
            batch = await client.batches.create(
                input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
            )
            async with asyncio.timeout(60):
                while batch.status != "completed":
                    await asyncio.sleep(0.05)
                    batch = await client.batches.retrieve(batch.id)
            answers = (await client.files.content(str(batch.output_file_id))).content
    found = sorted(json.loads(line)["custom_id"] for line in answers.splitlines())
    assert found == [f"q{n}" for n in range(5)]
    assert [name.split("/")[0] for name, _ in S3Place(s3_uri, s3_endpoint).names("pieces")] == []
