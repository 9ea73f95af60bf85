"""Answers that would outgrow a message."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.fake_mesh import FakeMesh

LIMIT_BYTES = 1 << 20


@pytest.fixture
async def http(mesh: FakeMesh) -> AsyncIterator[httpx.AsyncClient]:
    async with mesh.router(max_message_bytes=LIMIT_BYTES) as router:
        url = f"http://127.0.0.1:{router.http_port}"
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            yield client


def _body(**more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "hi"}]
    return {"model": "tiny", "messages": messages, "logprobs": True, "top_logprobs": 20, **more}


@pytest.mark.parametrize("choices", [2, 16])
async def test_more_than_a_message_holds_is_refused_by_field_with_what_may_come(
    http: httpx.AsyncClient, choices: int
) -> None:
    answer = await http.post("/v1/chat/completions", json=_body(n=choices, max_tokens=1800))
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "n")
    most = LIMIT_BYTES * 0.75 / choices / 274
    told = next(int(word) for word in error["message"].split() if word.isdigit() and word != "1800")
    assert 0.9 * most < told <= most


async def test_what_nobody_set_is_what_fits(mesh: FakeMesh, http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/chat/completions", json=_body(n=16))
    assert answer.status_code == 200
    (_, call) = mesh.calls[0]
    assert 0 < call.request.sampling.max_tokens * 16 * 274 <= LIMIT_BYTES * 0.75
