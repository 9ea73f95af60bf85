"""What is told of models and their tokens, in the shapes that vLLM has."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from services.router.__main__ import RunningDoors
from services.router.openapi.document import release
from tests.fake_mesh import FakeMesh
from tests.tiny_model import MAX_POSITIONS
from tests.waiting import until

TEXT = "the capital of France, 東京 🚀"


@pytest.fixture
async def router(mesh: FakeMesh) -> AsyncIterator[RunningDoors]:
    async with mesh.router(recover_s=5.0) as router:
        await until(lambda: router.router.ready)
        yield router


async def test_a_text_is_its_ids_and_back(http: httpx.AsyncClient, mesh: FakeMesh) -> None:
    said = (await http.post("/tokenize", json={"model": "tiny", "prompt": TEXT})).json()
    assert said["tokens"] == mesh.ids_of(TEXT)
    assert (said["count"], said["max_model_len"]) == (len(said["tokens"]), MAX_POSITIONS)
    assert said["token_strs"] is None
    back = await http.post("/detokenize", json={"model": "tiny", "tokens": said["tokens"]})
    assert back.json() == {"prompt": TEXT}


async def test_a_conversation_is_what_its_template_makes_of_it(
    http: httpx.AsyncClient, mesh: FakeMesh
) -> None:
    messages = [{"role": "user", "content": "hi"}]
    body = {"messages": messages, "return_token_strs": True}
    said = (await http.post("/tokenize", json=body)).json()
    asked = {"model": "tiny", "messages": messages, "max_tokens": 1}
    await http.post("/v1/chat/completions", json=asked)
    assert said["tokens"] == list(mesh.calls[-1][1].request.prompt_ids)
    assert said["token_strs"][0] == "<|im_start|>"
    back = await http.post("/detokenize", json={"tokens": said["tokens"]})
    assert back.json()["prompt"].startswith("<|im_start|>")


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": []}, 400, "prompt"),
        ("/tokenize", {"messages": []}, 400, "messages"),
        ("/tokenize", {"messages": [{"role": "user", "content": "a"}] * 4097}, 400, "messages"),
        (
            "/tokenize",
            {"prompt": "a", "tools": [{"type": "function", "function": {"name": "f"}}]},
            400,
            "tools",
        ),
        ("/tokenize", {"prompt": 5}, 400, "prompt"),
        ("/tokenize", {"prompt": "x" * 1_000_000}, 400, "prompt"),
        ("/tokenize", {"model": "else", "prompt": "a"}, 404, "model"),
        ("/tokenize", {"prompt": "a", "chat_template": "x"}, 400, "chat_template"),
        ("/detokenize", {}, 400, "tokens"),
        ("/detokenize", {"tokens": [1.5]}, 400, "tokens"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens"),
        ("/detokenize", {"tokens": [10**9]}, 400, "tokens"),
        ("/detokenize", {"tokens": [1], "else": 1}, 400, "else"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], status: int, param: str
) -> None:
    answer = await http.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == param


async def test_a_model_says_what_it_holds_and_takes(http: httpx.AsyncClient) -> None:
    await http.post("/tokenize", json={"prompt": "a"})
    (listed,) = (await http.get("/v1/models")).json()["data"]
    assert listed == (await http.get("/v1/models/tiny")).json()
    assert (listed["max_model_len"], listed["root"]) == (MAX_POSITIONS, "tiny")
    assert listed["capabilities"]["chat_completions"] is True


async def test_version_and_health_have_the_names_that_others_have_for_them(
    http: httpx.AsyncClient,
) -> None:
    await http.post("/tokenize", json={"prompt": "a"})
    assert (await http.get("/version")).json() == {"version": release()}
    assert (await http.get("/health")).status_code == (await http.get("/readyz")).status_code
