"""A prompt that comes first in its answer, with how likely each of its tokens is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from shuntserve.router.v1 import router_pb2, router_pb2_grpc

from services.common import channels
from services.common.roles import Role
from services.router.__main__ import RunningDoors
from tests.contract.router.conftest import Told
from tests.fake_mesh import REPLY, FakeMesh
from tests.waiting import until

Reader = Callable[..., Awaitable[Told]]
PROMPT = "Über den Wolken, 東京"
COMPLETIONS = "/v1/completions"


@pytest.fixture
async def router(mesh: FakeMesh) -> AsyncIterator[RunningDoors]:
    async with mesh.router(recover_s=5.0) as router:
        await until(lambda: router.router.ready)
        yield router


async def _whole(http: httpx.AsyncClient, **more: Any) -> dict[str, Any]:
    body = {"model": "tiny", "prompt": PROMPT, "temperature": 0, "echo": True, **more}
    answer = await http.post(COMPLETIONS, json=body)
    assert answer.status_code == 200, answer.text
    whole: dict[str, Any] = answer.json()
    return whole


async def test_the_prompt_comes_first_and_counts_as_prompt(
    http: httpx.AsyncClient, mesh: FakeMesh
) -> None:
    whole = await _whole(http, max_tokens=4)
    choice = whole["choices"][0]
    assert choice["text"].startswith(PROMPT)
    assert REPLY.startswith(choice["text"].removeprefix(PROMPT))
    assert choice["finish_reason"] == "length"
    assert whole["usage"]["prompt_tokens"] == len(mesh.ids_of(PROMPT))
    assert whole["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize("max_tokens", [0, 1])
async def test_what_an_evaluation_asks_for_is_there(
    http: httpx.AsyncClient, mesh: FakeMesh, max_tokens: int
) -> None:
    """As lm-evaluation-harness asks for the likelihood of a text, by ids."""
    ids = mesh.ids_of(PROMPT)
    whole = await _whole(http, prompt=[ids], max_tokens=max_tokens, logprobs=1, seed=1234)
    logprobs, choice = whole["choices"][0]["logprobs"], whole["choices"][0]
    count = len(ids) + max_tokens
    assert {len(values) for values in logprobs.values()} == {count}
    assert (logprobs["token_logprobs"][0], logprobs["top_logprobs"][0]) == (None, None)
    assert all(isinstance(value, float) for value in logprobs["token_logprobs"][1:])
    assert all(len(top) >= 1 for top in logprobs["top_logprobs"][1:])
    for text, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        if not text.startswith("bytes:"):
            assert choice["text"][offset:].startswith(text)
    assert whole["usage"]["completion_tokens"] == max_tokens
    assert (choice["text"] == PROMPT) is (max_tokens == 0)


async def test_an_echoed_stream_is_the_same_behind_any_event(
    http: httpx.AsyncClient, ask: Reader, resume: Reader
) -> None:
    more = {"prompt": PROMPT, "echo": True, "logprobs": 2, "max_tokens": 9, "n": 2}
    told = await ask(http, path=COMPLETIONS, **more)
    assert all(told.text(index).startswith(PROMPT) for index in range(2))
    for cut, event_id in enumerate(told.ids[:-1]):
        rest = await resume(http, told.generation_id, event_id)
        before = Told(events=told.events[: cut + 1])
        for index in range(2):
            assert before.text(index) + rest.text(index) == told.text(index)
            assert [*_tokens(before, index), *_tokens(rest, index)] == _tokens(told, index)
        assert rest.usages == told.usages


async def test_a_prompt_survives_its_head(
    http: httpx.AsyncClient, mesh: FakeMesh, ask: Reader
) -> None:
    more = {"prompt": PROMPT, "echo": True, "logprobs": 1, "max_tokens": 5}
    undisturbed = await ask(http, path=COMPLETIONS, **more)
    mesh.token_s = 0.02
    killed = False

    def kill(told: Told) -> bool:
        nonlocal killed
        if not killed and len(told.text()) >= len(PROMPT) // 2:
            killed = True
            mesh.alive[mesh.calls[-1][0]] = False
            mesh.silent[mesh.calls[-1][0]] = True
            mesh.change_routes()
        return False

    told = await ask(http, path=COMPLETIONS, until=kill, **more)
    assert killed
    assert told.text() == undisturbed.text()
    assert _likelihoods(told) == _likelihoods(undisturbed)


def _tokens(told: Told, index: int) -> list[str]:
    return [token for c in told.choices(index) for token in c["logprobs"]["tokens"]]


def _likelihoods(told: Told) -> list[float | None]:
    return [each for c in told.choices() for each in c["logprobs"]["token_logprobs"]]


async def test_a_stop_string_in_the_prompt_stops_nothing(http: httpx.AsyncClient) -> None:
    whole = await _whole(http, stop=["Wolken"], max_tokens=60)
    choice = whole["choices"][0]
    assert choice["text"] == PROMPT + REPLY[: REPLY.index("Wolken")]
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"max_tokens": 0, "echo": False}, "max_tokens"),
        ({"max_tokens": 0, "prompt": [5]}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
    ],
)
async def test_an_answer_that_would_be_nothing_is_refused(
    http: httpx.AsyncClient, more: dict[str, Any], param: str
) -> None:
    body = {"model": "tiny", "prompt": PROMPT, "echo": True, **more}
    answer = await http.post(COMPLETIONS, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_a_prompt_of_one_token_is_shown(http: httpx.AsyncClient, mesh: FakeMesh) -> None:
    first = mesh.ids_of("capital")[:1]
    whole = await _whole(http, prompt=first, max_tokens=1, logprobs=0)
    assert whole["choices"][0]["logprobs"]["token_logprobs"][0] is None
    assert whole["choices"][0]["text"] == mesh.tokenizer.decode(first) + REPLY[0]


async def test_the_other_door_echoes_too(router: RunningDoors, mesh: FakeMesh) -> None:
    request = router_pb2.GenerateRequest(
        model="tiny",
        text=PROMPT,
        echo=True,
        sampling=router_pb2.SamplingOptions(temperature=0, max_tokens=3, top_logprobs=1),
    )
    async with channels.open_channel(f"127.0.0.1:{router.grpc_port}", Role.ROUTER) as channel:
        call = router_pb2_grpc.RouterServiceStub(channel).Generate(request, timeout=60)
        events = [event async for event in call]
    deltas = [delta for event in events for delta in event.deltas]
    assert "".join(delta.text for delta in deltas).startswith(PROMPT)
    ids = [token_id for delta in deltas for token_id in delta.token_ids]
    assert ids[:-3] == mesh.ids_of(PROMPT)[1:]
    assert sum(len(delta.logprobs) for delta in deltas) == len(ids)
    assert events[-1].usage.prompt_tokens == len(mesh.ids_of(PROMPT))
