"""The official client, unmodified, against a router."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from services.router.__main__ import RunningDoors
from tests.fake_mesh import REPLY, FakeMesh


@pytest.fixture
async def client(router: RunningDoors) -> AsyncIterator[openai.AsyncOpenAI]:
    url = f"http://127.0.0.1:{router.http_port}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


ASKED = [{"role": "user", "content": "What is the capital of France?"}]


async def test_a_streamed_chat_is_whole(client: openai.AsyncOpenAI) -> None:
    text, finishes, roles, usages, ids = "", [], [], [], set()
    stream = await client.chat.completions.create(
        model="tiny",
        messages=ASKED,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    async for chunk in stream:
        ids.add(chunk.id)
        usages += [chunk.usage] if chunk.usage else []
        for choice in chunk.choices:
            text += choice.delta.content or ""
            roles += [choice.delta.role] if choice.delta.role else []
            finishes += [choice.finish_reason] if choice.finish_reason else []
    assert text == REPLY
    assert (roles, finishes, len(ids)) == (["assistant"], ["stop"], 1)
    assert len(usages) == 1
    assert usages[0].total_tokens == usages[0].prompt_tokens + usages[0].completion_tokens


async def test_a_whole_chat_equals_the_streamed_one(
    client: openai.AsyncOpenAI, mesh: FakeMesh
) -> None:
    answer = await client.chat.completions.create(model="tiny", messages=ASKED, temperature=0)
    assert answer.choices[0].message.content == REPLY
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(mesh.ids_of(REPLY)) + 1


async def test_n_choices_come_a_chunk_each_and_with_their_own_ends(
    client: openai.AsyncOpenAI, mesh: FakeMesh
) -> None:
    mesh.replies = [REPLY, "short", "another one"]
    stream = await client.chat.completions.create(
        model="tiny",
        messages=ASKED,
        temperature=0,
        n=3,
        stream=True,
        stream_options={"include_usage": True},
    )
    texts, finishes, roles, sizes = ["", "", ""], [0, 0, 0], [0, 0, 0], []
    async for chunk in stream:
        sizes.append(len(chunk.choices))
        if chunk.choices:
            choice = chunk.choices[0]
            texts[choice.index] += choice.delta.content or ""
            roles[choice.index] += choice.delta.role is not None
            finishes[choice.index] += choice.finish_reason is not None
    assert texts == mesh.replies
    assert finishes == roles == [1, 1, 1]
    assert (set(sizes[:-1]), sizes[-1]) == ({1}, 0)  # the last one has usage


async def test_n_completions_come_a_chunk_each(client: openai.AsyncOpenAI, mesh: FakeMesh) -> None:
    mesh.replies = ["one", "short", "another one"]
    texts = ["", "", ""]
    async for chunk in await client.completions.create(
        model="tiny", prompt="Once", temperature=0, n=3, stream=True
    ):
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
    assert texts == mesh.replies


async def test_logprobs_come_one_a_token_with_the_alternatives(
    client: openai.AsyncOpenAI,
) -> None:
    answer = await client.chat.completions.create(
        model="tiny", messages=ASKED, temperature=0, logprobs=True, top_logprobs=3, max_tokens=12
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 12
    assert all(len(entry.top_logprobs) == 3 for entry in logprobs.content)
    joined = b"".join(bytes(entry.bytes or ()) for entry in logprobs.content)
    assert joined.decode("utf-8", "replace") == answer.choices[0].message.content


async def test_streamed_logprobs_are_those_of_the_whole_answer(client: openai.AsyncOpenAI) -> None:
    options = {"model": "tiny", "messages": ASKED, "temperature": 0, "logprobs": True}
    whole = await client.chat.completions.create(**options)
    entries = []
    async for chunk in await client.chat.completions.create(**options, stream=True):
        for choice in chunk.choices:
            if choice.logprobs is not None and choice.logprobs.content is not None:
                entries += choice.logprobs.content
    expected = whole.choices[0].logprobs
    assert expected is not None
    assert entries == expected.content


async def test_a_completion_has_its_own_shapes(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(
        model="tiny", prompt="Once", temperature=0, logprobs=2, max_tokens=6
    )
    choice = answer.choices[0]
    assert REPLY.startswith(choice.text)
    assert choice.finish_reason == "length"
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert choice.logprobs.text_offset is not None
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.text_offset[0] == 0
    text = ""
    async for chunk in await client.completions.create(
        model="tiny", prompt="Once", temperature=0, max_tokens=6, stream=True
    ):
        text += chunk.choices[0].text
    assert text == choice.text


async def test_the_token_that_came_is_among_the_likeliest_of_a_completion(
    client: openai.AsyncOpenAI, mesh: FakeMesh
) -> None:
    mesh.unlikely = True
    for wanted in (0, 2):
        answer = await client.completions.create(
            model="tiny", prompt="Once", temperature=0, logprobs=wanted, max_tokens=6
        )
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.tokens
        assert logprobs.top_logprobs
        assert logprobs.token_logprobs
        for token, logprob, top in zip(
            logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True
        ):
            assert top[token] == logprob
            assert len(top) == wanted + 1


async def test_parts_of_a_character_are_told_apart_among_the_likeliest(
    client: openai.AsyncOpenAI, mesh: FakeMesh
) -> None:
    mesh.replies = ["東京"]
    answer = await client.completions.create(
        model="tiny", prompt="Once", temperature=0, logprobs=5, max_tokens=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == [r"bytes:\xe6", r"bytes:\x9d", r"bytes:\xb1"]
    assert [len(top) for top in logprobs.top_logprobs or ()] == [5, 5, 5]


async def test_answers_have_the_types_of_the_official_client(
    router: RunningDoors, mesh: FakeMesh
) -> None:
    mesh.replies = ["Über 東京", "two"]
    url = f"http://127.0.0.1:{router.http_port}/v1"
    chat = {"model": "tiny", "messages": ASKED, "n": 2, "logprobs": True, "top_logprobs": 2}
    text = {"model": "tiny", "prompt": "Once", "n": 2, "logprobs": 2}
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        whole = await http.post("/chat/completions", json=chat)
        ChatCompletion.model_validate(whole.json(), strict=True)
        for wanted in (chat, {**chat, "stream_options": {"include_usage": True}}):
            told = await http.post("/chat/completions", json={**wanted, "stream": True})
            for data in _data(told.text):
                ChatCompletionChunk.model_validate(data, strict=True)
        whole = await http.post("/completions", json=text)
        Completion.model_validate(whole.json(), strict=True)
        Model.model_validate((await http.get("/models/tiny")).json(), strict=True)


def _data(text: str) -> list[Any]:
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


async def test_stop_and_max_tokens_end_a_text(client: openai.AsyncOpenAI) -> None:
    stopped = await client.chat.completions.create(
        model="tiny", messages=ASKED, temperature=0, stop=["Paris", "nowhere"]
    )
    assert stopped.choices[0].message.content == "The capital of France is "
    assert stopped.choices[0].finish_reason == "stop"
    short = await client.chat.completions.create(
        model="tiny", messages=ASKED, temperature=0, max_completion_tokens=3
    )
    assert short.choices[0].finish_reason == "length"
    assert short.usage is not None
    assert short.usage.completion_tokens == 3


async def test_the_same_seed_gives_the_same_text(client: openai.AsyncOpenAI) -> None:
    texts = [
        (
            await client.chat.completions.create(
                model="tiny", messages=ASKED, temperature=0.8, seed=seed
            )
        )
        .choices[0]
        .message.content
        for seed in (3, 3, 4)
    ]
    assert texts[0] == texts[1] != texts[2]


async def test_sampling_values_reach_the_head(client: openai.AsyncOpenAI, mesh: FakeMesh) -> None:
    await client.chat.completions.create(
        model="tiny",
        messages=ASKED,
        temperature=0.5,
        top_p=0.25,
        presence_penalty=1.5,
        frequency_penalty=-0.5,
        logit_bias={"7": 5, "9": -100},
        max_tokens=4,
        seed=11,
        extra_body={
            "top_k": 40,
            "min_p": 0.125,
            "repetition_penalty": 1.25,
            "min_tokens": 2,
            "ignore_eos": True,
            "stop_token_ids": [1, 2],
        },
    )
    sampling = mesh.calls[0][1].request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.25, 40)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.125, 1.25)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1.5, -0.5)
    assert dict(sampling.logit_bias) == {7: 5.0, 9: -100.0}
    assert (sampling.max_tokens, sampling.min_tokens, sampling.seed) == (4, 2, 11)
    assert (sampling.ignore_eos, list(sampling.stop_token_ids)) == (True, [1, 2])
    assert list(sampling.eos_token_ids) == [mesh.eos]


@pytest.mark.group(17)
async def test_the_smallest_nucleus_is_the_likeliest_token(
    client: openai.AsyncOpenAI, mesh: FakeMesh
) -> None:
    await client.chat.completions.create(model="tiny", messages=ASKED, top_p=0, max_tokens=1)
    sampling = mesh.calls[0][1].request.sampling
    assert (sampling.top_k, sampling.top_p) == (1, 1.0)


async def test_models_are_listed_and_found(client: openai.AsyncOpenAI) -> None:
    models = [model.id async for model in client.models.list()]
    assert models == ["tiny"]
    assert (await client.models.retrieve("tiny")).id == "tiny"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("../../etc/passwd")


async def test_errors_are_the_clients_own(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(model="tiny", messages=ASKED, temperature=3)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.chat.completions.create(model="huge", messages=ASKED)
    assert unknown.value.code == "model_not_found"
