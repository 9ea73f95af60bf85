"""A completion of several prompts: a generation each, and one answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest

from services.router.__main__ import RunningDoors
from services.router.openai.requests import MAX_PROMPTS
from tests.contract.router.conftest import Told
from tests.fake_mesh import REPLY, FakeMesh
from tests.waiting import until

Reader = Callable[..., Awaitable[Told]]
COMPLETIONS = "/v1/completions"


@pytest.fixture
async def router(mesh: FakeMesh) -> AsyncIterator[RunningDoors]:
    async with mesh.router(recover_s=5.0) as router:
        await until(lambda: router.router.ready)
        yield router


async def _asked(http: httpx.AsyncClient, **more: Any) -> httpx.Response:
    body = {"model": "tiny", "temperature": 0, "max_tokens": 6, **more}
    return await http.post(COMPLETIONS, json=body)


async def test_choices_are_numbered_prompt_by_prompt(
    http: httpx.AsyncClient, mesh: FakeMesh
) -> None:
    prompts = ["the capital", "of France is", "Paris"]
    answer = await _asked(http, prompt=prompts, n=2, echo=True)
    whole = answer.json()
    assert [choice["index"] for choice in whole["choices"]] == list(range(6))
    for index, choice in enumerate(whole["choices"]):
        assert choice["text"].startswith(prompts[index // 2])
    ids = answer.headers["x-generation-id"].split(", ")
    assert len(set(ids)) == 3
    assert whole["id"] == f"cmpl-{ids[0]}"
    assert whole["usage"]["prompt_tokens"] == sum(len(mesh.ids_of(text)) for text in prompts)
    assert whole["usage"]["completion_tokens"] == 36


async def test_prompts_may_be_ids(http: httpx.AsyncClient, mesh: FakeMesh) -> None:
    texts = ["the capital", "Paris"]
    by_ids = await _asked(http, prompt=[mesh.ids_of(text) for text in texts], echo=True)
    by_text = await _asked(http, prompt=texts, echo=True)
    choices = [answer.json()["choices"] for answer in (by_ids, by_text)]
    assert choices[0] == choices[1]


async def test_a_stream_tells_of_all_and_each_can_be_resumed(
    http: httpx.AsyncClient, ask: Reader, resume: Reader
) -> None:
    told = await ask(http, path=COMPLETIONS, prompt=["a", "b"], n=2)
    assert [told.text(index) for index in range(4)] == [REPLY[: len(told.text(0))]] * 4
    assert (len(told.usages), told.done) == (1, 1)
    assert {event["id"] for event in told.events} == {f"cmpl-{told.generation_id.split(', ')[0]}"}
    for place, generation_id in enumerate(told.generation_id.split(", ")):
        own = [
            (event_id, event)
            for event_id, event in zip(told.ids, told.events, strict=True)
            if event_id.startswith(f"{generation_id}:")
        ]
        assert {c["index"] // 2 for _, event in own for c in event["choices"]} == {place}
        for cut in range(0, len(own), 3):
            rest = await resume(http, generation_id, own[cut][0])
            for choice in range(2):
                before = "".join(
                    c["text"]
                    for _, event in own[: cut + 1]
                    for c in event["choices"]
                    if c["index"] == 2 * place + choice
                )
                assert before + rest.text(choice) == told.text(2 * place + choice)


async def test_a_key_names_each_of_them(http: httpx.AsyncClient) -> None:
    body = {"model": "tiny", "prompt": ["a", "b"], "max_tokens": 3, "temperature": 0}
    answers = [
        await http.post(COMPLETIONS, json=body, headers={"idempotency-key": "k"}) for _ in range(2)
    ]
    assert answers[0].json() == answers[1].json()
    names = [answer.headers["x-generation-id"] for answer in answers]
    assert names[0] == names[1]
    assert len(set(names[0].split(", "))) == 2


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (["a"] * (MAX_PROMPTS + 1), f"at most {MAX_PROMPTS}"),
        (["a", 5], "prompt[1] must be a string"),
        ([1, [2]], "prompt[0] must be a string"),
        (["a", ""], "is empty"),
        ([[1], []], "is empty"),
        ([[1], [-1]], "no token"),
        (["a", None], "prompt[1]"),
    ],
)
async def test_a_prompt_among_others_that_is_none_is_400(
    http: httpx.AsyncClient, prompt: Any, said: str
) -> None:
    answer = await _asked(http, prompt=prompt)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "prompt")
    assert said in error["message"]


async def test_what_was_begun_for_a_request_that_is_refused_gives_its_place_up(
    http: httpx.AsyncClient, mesh: FakeMesh
) -> None:
    mesh.limit = 0
    answer = await _asked(http, prompt=["a", [-1]])
    assert answer.status_code == 400
    assert all(not entry.read for entry in mesh.journal.values())
