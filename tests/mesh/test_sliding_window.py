"""A model whose layers look back on less than its context: the context is its only limit."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import httpx
import pytest
import transformers

from bench import mesh as meshes
from tests.mesh import tiny_mesh
from tests.mesh.tiny_mesh import POSITIONS, WINDOW
from tests.tiny_model import tiny_tokenizer

PROMPT = [(37 * n * n + 11 * n) % 290 for n in range(3 * WINDOW)]


@pytest.fixture(scope="module")
def model() -> transformers.MistralForCausalLM:
    return tiny_mesh.reference()


@pytest.fixture(scope="module")
def tiny(
    tmp_path_factory: pytest.TempPathFactory, model: transformers.MistralForCausalLM
) -> Iterator[str]:
    """Where a mesh of two stages serves it."""
    data_dir = tmp_path_factory.mktemp("window")
    with asyncio.Runner() as runner:
        imported = tiny_mesh.import_model(model, data_dir / "source", data_dir / "mesh" / "store")
        runner.run(imported)
        context = meshes.running(
            data_dir / "mesh",
            env={**os.environ, "SHUNT_ENGINE_DTYPE": "fp32"},
            options=("--model", tiny_mesh.NAME, "--node-speeds", "1:1"),
            pipelines=1,
        )
        mesh = runner.run(context.__aenter__())
        try:
            yield mesh.url()
        finally:
            runner.run(context.__aexit__(None, None, None))


async def complete(
    client: httpx.AsyncClient, url: str, count: int, **more: object
) -> httpx.Response:
    """Asks for an answer to that many of the prompt's ids, again and again from the first."""
    ids = (PROMPT * (count // len(PROMPT) + 1))[:count]
    body = {"model": tiny_mesh.NAME, "prompt": ids, "temperature": 0, **more}
    return await client.post(f"{url}/v1/completions", json=body)


async def test_a_chat_without_max_tokens_is_answered(tiny: str, client: httpx.AsyncClient) -> None:
    words = "and more words " * 20
    body = {"model": tiny_mesh.NAME, "messages": [{"role": "user", "content": words}]}
    answer = await client.post(f"{tiny}/v1/chat/completions", json=body | {"temperature": 0})
    assert answer.status_code == 200, answer.text
    usage = answer.json()["usage"]
    assert usage["prompt_tokens"] > WINDOW
    ended = answer.json()["choices"][0]["finish_reason"]
    assert (ended == "length") == (usage["total_tokens"] == POSITIONS)


@pytest.mark.parametrize("given", [WINDOW - 3, len(PROMPT)])
async def test_an_answer_is_that_of_transformers(
    tiny: str, client: httpx.AsyncClient, model: transformers.MistralForCausalLM, given: int
) -> None:
    count = 2 * WINDOW
    answer = await complete(client, tiny, given, max_tokens=count, ignore_eos=True)
    assert answer.status_code == 200, answer.text
    ids = tiny_mesh.greedy(model, PROMPT[:given], count)
    assert len(set(ids)) > count // 4, "an answer that goes in circles shows nothing"
    expected = tiny_tokenizer().decode(ids)
    assert answer.json()["choices"][0]["text"] == expected


async def test_the_context_is_the_one_limit(tiny: str, client: httpx.AsyncClient) -> None:
    fits = await complete(client, tiny, POSITIONS - 1, ignore_eos=True)
    assert fits.status_code == 200, fits.text
    assert fits.json()["usage"]["total_tokens"] == POSITIONS
    assert fits.json()["choices"][0]["finish_reason"] == "length"
    for count, more in ((POSITIONS, {}), (POSITIONS - 4, {"max_tokens": 5})):
        beyond = await complete(client, tiny, count, **more)
        assert beyond.status_code == 400
        error = beyond.json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert f"maximum context length is {POSITIONS} tokens" in error["message"]
