"""The official client, unmodified, against a real mesh."""

from __future__ import annotations

from collections.abc import AsyncIterator

import openai
import pytest

from bench import mesh as meshes

QUESTION = "What is the capital of France?"


@pytest.fixture
async def official(ready: meshes.Mesh) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{ready.url()}/v1", api_key="any") as client:
        yield client


async def test_a_streamed_chat_names_paris(official: openai.AsyncOpenAI) -> None:
    stream = await official.chat.completions.create(
        model=meshes.MODEL,
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, finish_reasons, usage = "", [], None
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish_reasons += [choice.finish_reason] if choice.finish_reason else []
    assert "Paris" in text
    assert finish_reasons == ["stop"]
    assert usage is not None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens < 20


async def test_max_tokens_ends_an_answer_by_length(official: openai.AsyncOpenAI) -> None:
    answer = await official.chat.completions.create(
        model=meshes.MODEL,
        messages=[{"role": "user", "content": "Count from one to one hundred."}],
        max_tokens=7,
        temperature=0,
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 7


async def test_a_stop_string_ends_an_answer_before_it(official: openai.AsyncOpenAI) -> None:
    answer = await official.chat.completions.create(
        model=meshes.MODEL,
        messages=[{"role": "user", "content": QUESTION}],
        stop=[" Par"],
        temperature=0,
    )
    assert answer.choices[0].message.content == "The capital of France is"
    assert answer.choices[0].finish_reason == "stop"


async def test_a_seed_decides_the_text(official: openai.AsyncOpenAI) -> None:
    async def ask(seed: int) -> str:
        answer = await official.chat.completions.create(
            model=meshes.MODEL,
            messages=[{"role": "user", "content": "Tell me a story."}],
            seed=seed,
            temperature=1.0,
            max_tokens=40,
        )
        return answer.choices[0].message.content or ""

    assert await ask(1) == await ask(1)
    assert await ask(1) != await ask(2)


async def test_choices_and_logprobs_are_as_many_as_asked_for(
    official: openai.AsyncOpenAI,
) -> None:
    answer = await official.chat.completions.create(
        model=meshes.MODEL,
        messages=[{"role": "user", "content": "Tell me a story."}],
        n=3,
        seed=5,
        temperature=1.0,
        max_tokens=12,
        logprobs=True,
        top_logprobs=2,
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 3
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        assert len(choice.logprobs.content) == 12
        assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)
        assert all(token.logprob <= 0 for token in choice.logprobs.content)


async def test_an_unknown_model_is_a_404(official: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        await official.chat.completions.create(
            model="no-such-model", messages=[{"role": "user", "content": QUESTION}]
        )


async def test_the_model_is_listed(official: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in official.models.list()] == [meshes.MODEL]
