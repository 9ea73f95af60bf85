"""The Responses API by the official client, unmodified, against a router."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import ResponseItemList
from pydantic import BaseModel

from services.router.__main__ import RunningDoors
from tests.fake_mesh import REPLY, FakeMesh
from tests.log_lines import log_lines
from tests.waiting import until


@pytest.fixture
async def client(router: RunningDoors) -> AsyncIterator[openai.AsyncOpenAI]:
    url = f"http://127.0.0.1:{router.http_port}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


ASKED: dict[str, Any] = {"model": "tiny", "input": "What is it?", "temperature": 0}


async def _events(stream: Any) -> list[dict[str, Any]]:
    return [event.to_dict() async for event in stream]


async def test_a_response_is_told_whole_and_as_events(client: openai.AsyncOpenAI) -> None:
    whole = await client.responses.create(**ASKED, metadata={"a": "b"})
    assert (whole.output_text, whole.status, whole.metadata) == (REPLY, "completed", {"a": "b"})
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
    events = await _events(await client.responses.create(**ASKED, stream=True))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    texts = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
    assert "".join(texts) == REPLY
    assert events[-1]["type"] == "response.completed"


async def test_a_stream_is_picked_up_behind_any_event_at_another_router(
    client: openai.AsyncOpenAI, mesh: FakeMesh
) -> None:
    events = await _events(await client.responses.create(**ASKED, stream=True))
    response_id = events[0]["response"]["id"]
    async with mesh.router() as other:
        url = f"http://127.0.0.1:{other.http_port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as elsewhere:
            half = len(events) // 2
            again = await elsewhere.responses.retrieve(
                response_id, stream=True, starting_after=half
            )
            assert await _events(again) == events[half + 1 :]
            with pytest.raises(openai.ConflictError) as behind:
                await elsewhere.responses.retrieve(
                    response_id, stream=True, starting_after=len(events)
                )
            assert behind.value.param == "starting_after"
            whole = await elsewhere.responses.retrieve(response_id)
            assert whole.to_dict() == events[-1]["response"]


async def test_an_end_that_was_told_can_be_found_and_not_be_cancelled(
    client: openai.AsyncOpenAI, mesh: FakeMesh
) -> None:
    for streamed in (True, False):
        mesh.journal_lag, before = 1, set(mesh.journal)
        asking = asyncio.create_task(_answered(client, streamed=streamed))
        await until(lambda before=before: bool(mesh.journal.keys() - before))
        (name,) = mesh.journal.keys() - before
        await until(lambda name=name: mesh.looked[name] >= 2)
        assert not asking.done()
        mesh.journal_lag = 0
        response_id = await asking
        assert response_id == f"resp_{name}"
        assert (await client.responses.cancel(response_id)).status == "completed"
        assert (await client.responses.retrieve(response_id)).status == "completed"


@pytest.mark.parametrize("streamed", [True, False])
async def test_an_end_that_waits_for_the_journal_does_not_wait_for_a_client_that_left(
    mesh: FakeMesh, streamed: bool
) -> None:
    mesh.journal_lag = 1
    async with mesh.router(resume_timeout_s=600.0) as router:
        await until(lambda: router.router.ready)
        url = f"http://127.0.0.1:{router.http_port}/v1/responses"
        async with httpx.AsyncClient(timeout=60) as http:
            asking = asyncio.create_task(http.post(url, json=ASKED | {"stream": streamed}))
            await until(lambda: bool(mesh.journal))
            (name,) = mesh.journal
            await until(lambda: mesh.looked[name] >= 2)
            asking.cancel()
            await until(lambda: router.router.streams == 0)


async def test_a_stream_whose_end_waits_for_the_journal_is_not_silent(mesh: FakeMesh) -> None:
    mesh.journal_lag = 1
    async with (
        mesh.router(resume_timeout_s=600.0, comment_s=0.05) as router,
        httpx.AsyncClient(timeout=60) as http,
    ):
        await until(lambda: router.router.ready)
        url = f"http://127.0.0.1:{router.http_port}/v1/responses"
        async with http.stream("POST", url, json=ASKED | {"stream": True}) as answer:
            lines = answer.aiter_lines()
            async for line in lines:
                if line == ": waiting" and sum(mesh.looked.values()) >= 2:
                    break
            mesh.journal_lag = 0
            rest = [line async for line in lines]
    assert "event: response.completed" in rest


@pytest.mark.parametrize("streamed", [True, False])
async def test_an_end_that_a_head_took_with_it_is_kept_by_its_reader(
    mesh: FakeMesh, streamed: bool
) -> None:
    mesh.journal_lag = 1
    async with (
        mesh.router(resume_timeout_s=600.0) as router,
        httpx.AsyncClient(timeout=60, base_url=f"http://127.0.0.1:{router.http_port}") as http,
    ):
        await until(lambda: router.router.ready)
        asked = {**ASKED, "stream": streamed}
        asking = asyncio.create_task(http.post("/v1/responses", json=asked))
        await until(lambda: sum(mesh.looked.values()) >= 2)
        ((name, entry),) = mesh.journal.items()
        entry.ids[0].pop()
        mesh.journal_lag = 0
        await mesh.kill(entry.head)
        assert '"completed"' in (await asking).text
        kept = await http.get(f"/v1/responses/resp_{name}")
    assert kept.json()["status"] == "completed"


@pytest.mark.parametrize("stuck_at", [None, 5])
@pytest.mark.parametrize("streamed", [True, False])
async def test_what_is_cancelled_before_its_end_is_kept_is_not_told_as_ended(
    mesh: FakeMesh, http: httpx.AsyncClient, streamed: bool, stuck_at: int | None
) -> None:
    mesh.journal_lag, mesh.stuck_at = 1, stuck_at
    asking = asyncio.create_task(http.post("/v1/responses", json={**ASKED, "stream": streamed}))
    await until(lambda: sum(mesh.looked.values()) >= 2)
    (name,) = mesh.journal
    answer = await http.post(f"/v1/responses/resp_{name}/cancel")
    assert answer.json()["status"] == "cancelled"
    told = await asking
    assert "completed" not in told.text
    assert "response.failed" not in told.text
    assert '"failed"' not in told.text
    assert "cancelled" in told.text


async def _answered(client: openai.AsyncOpenAI, *, streamed: bool) -> str:
    if not streamed:
        return (await client.responses.create(**ASKED)).id
    events = await _events(await client.responses.create(**ASKED, stream=True))
    assert events[-1]["type"] == "response.completed"
    response_id: str = events[-1]["response"]["id"]
    return response_id


async def test_an_events_id_is_taken_back_and_names_the_ids(
    http: httpx.AsyncClient, mesh: FakeMesh
) -> None:
    whole = await http.post("/v1/responses", json={**ASKED, "stream": True})
    events = [f"{event}\n\n" for event in whole.text.split("\n\n")[:-1]]
    places = [re.findall(r"^id: (.*)$", event, re.MULTILINE)[0] for event in events]
    url = f"/v1/responses/resp_{whole.headers['x-generation-id']}?stream=true"
    for number in (0, 1, 5, len(events) // 2, len(events) - 2, len(events) - 1):
        rest = await http.get(f"{url}&starting_after=0", headers={"last-event-id": places[number]})
        assert rest.text == "".join(events[number + 1 :]), "it is newer than what the path says"
    answers = {
        "7": 200,
        "x": 400,
        "7:x": 400,
        f"7:{'1,' * 40}": 400,
        f"7:{places[-1].split(':')[1][:-1]}{'01'[places[-1].endswith('0')]}": 409,
        "7:999-00000000": 409,
    }
    for event, status in answers.items():
        answer = await http.get(url, headers={"last-event-id": event})
        assert answer.status_code == status, event
        if status != 200:
            assert answer.json()["error"]["param"] == "last_event_id"


async def test_who_has_all_ids_of_a_stuck_response_is_told_its_end(
    http: httpx.AsyncClient, mesh: FakeMesh
) -> None:
    mesh.stuck_at = 5
    whole = await http.post("/v1/responses", json={**ASKED, "stream": True})
    events = [f"{event}\n\n" for event in whole.text.split("\n\n")[:-1]]
    assert "event: response.failed\n" in events[-1]
    places = [re.findall(r"^id: (.*)$", event, re.MULTILINE)[0] for event in events]
    url = f"/v1/responses/resp_{whole.headers['x-generation-id']}?stream=true"
    for number, place in enumerate(places):
        rest = await http.get(url, headers={"last-event-id": place})
        assert (rest.status_code, rest.text) == (200, "".join(events[number + 1 :]))


TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
CALLED = (
    "I look.\n"
    '<tool_call>{"name": "weather", "arguments": {"city": "Zürich 🚀"}}</tool_call>\n'
    '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
)


@pytest.mark.parametrize("more", [{}, {"tools": [TOOL]}], ids=["text", "calls"])
async def test_a_stream_is_picked_up_behind_every_event_byte_by_byte(
    http: httpx.AsyncClient, mesh: FakeMesh, more: dict[str, Any]
) -> None:
    mesh.replies = [CALLED if more else REPLY]
    whole = await http.post("/v1/responses", json={**ASKED, **more, "stream": True})
    events = re.findall(r"event: .*?\n\n", whole.text, re.DOTALL)
    assert "".join(events) == whole.text
    kinds = Counter(event.splitlines()[0] for event in events)
    assert kinds["event: response.function_call_arguments.done"] == (2 if more else 0)
    url = f"/v1/responses/resp_{whole.headers['x-generation-id']}?stream=true"
    for after in range(len(events)):
        rest = await http.get(f"{url}&starting_after={after}")
        assert rest.text == "".join(events[after + 1 :])


async def test_a_reader_that_left_goes_on_where_a_killed_head_stopped(
    client: openai.AsyncOpenAI, mesh: FakeMesh
) -> None:
    undisturbed = await _events(await client.responses.create(**ASKED, stream=True))
    mesh.burst, mesh.limit = 3, 30
    stream = await client.responses.create(**ASKED, stream=True)
    told = []
    async for event in stream:
        told.append(event.to_dict())
        if len(told) == 20:
            break
    await stream.close()
    response_id = told[0]["response"]["id"]
    running = await client.responses.retrieve(response_id)
    assert running.status == "in_progress"
    assert REPLY.startswith(running.output_text)
    await mesh.kill(mesh.journal[response_id.removeprefix("resp_")].head)
    mesh.limit, mesh.burst = 1 << 30, 1
    again = await client.responses.retrieve(
        response_id, stream=True, starting_after=told[-1]["sequence_number"]
    )
    told += await _events(again)
    named = json.dumps(undisturbed).replace(undisturbed[0]["response"]["id"][5:], response_id[5:])
    for event, expected in zip(told, json.loads(named), strict=True):
        for of_the_clock in (event, expected):
            of_the_clock.get("response", {}).pop("created_at", None)
        assert event == expected


async def test_a_response_goes_on_from_an_earlier_one(
    client: openai.AsyncOpenAI, mesh: FakeMesh
) -> None:
    first = await client.responses.create(**ASKED, instructions="Be brief.")
    second = await client.responses.create(
        model="tiny", input="And then?", previous_response_id=first.id
    )
    spelt = [
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": REPLY},
        {"role": "user", "content": "And then?"},
    ]
    third = await client.responses.create(model="tiny", input=spelt)
    prompts = {name: entry.request.prompt_ids for name, entry in mesh.journal.items()}
    assert prompts[second.id[5:]] == prompts[third.id[5:]]  # without the instructions
    assert second.previous_response_id == first.id
    items = await client.responses.input_items.list(second.id, order="asc", limit=2)
    texts = [item.content[0].text async for item in items]  # type: ignore[union-attr]
    assert texts == ["What is it?", REPLY, "And then?"]
    assert items.data[1].id == first.output[0].id


async def test_input_items_have_the_official_type(
    client: openai.AsyncOpenAI, router: RunningDoors
) -> None:
    said = [{"role": "user", "content": str(n)} for n in range(3)]
    response = await client.responses.create(model="tiny", input=said)
    url = f"http://127.0.0.1:{router.http_port}/v1/responses/{response.id}/input_items"
    async with httpx.AsyncClient(timeout=60) as http:
        page = (await http.get(url, params={"limit": 2})).json()
        ResponseItemList.model_validate(page, strict=True)
        assert [item["content"][0]["text"] for item in page["data"]] == ["2", "1"]
        assert page["has_more"]
        rest = (await http.get(url, params={"limit": 2, "after": page["last_id"]})).json()
        assert ([item["content"][0]["text"] for item in rest["data"]], rest["has_more"]) == (
            ["0"],
            False,
        )
        for query in ("limit=0", "limit=x", "order=up", "after=nobody"):
            refused = await http.get(f"{url}?{query}")
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == query.partition("=")[0]


async def test_a_schema_is_followed_and_parsed(client: openai.AsyncOpenAI, mesh: FakeMesh) -> None:
    class Place(BaseModel):
        name: str

    mesh.replies = ['{"name":"Paris"}']
    parsed = await client.responses.parse(**ASKED, text_format=Place)
    assert parsed.output_parsed == Place(name="Paris")
    (entry,) = mesh.journal.values()
    assert entry.request.sampling.grammar is not None
    assert '"name"' in entry.request.sampling.grammar.text


async def test_a_function_is_called_and_its_answer_goes_on_from_the_call(
    client: openai.AsyncOpenAI, mesh: FakeMesh
) -> None:
    mesh.replies = ['<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>']
    stream = await client.responses.create(**ASKED, tools=[TOOL], stream=True)  # type: ignore[list-item]
    events = await _events(stream)
    called = await client.responses.retrieve(events[0]["response"]["id"])
    (call,) = called.output
    assert call.type == "function_call"
    assert json.loads(call.arguments) == {"city": "Paris"}
    assert events[-1]["response"] == called.to_dict()
    mesh.replies = [REPLY]
    answered = await client.responses.create(
        model="tiny",
        temperature=0,
        previous_response_id=called.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "rain"}],
    )
    assert answered.output_text == REPLY
    kinds = [item.type async for item in client.responses.input_items.list(answered.id)]
    assert kinds == ["function_call_output", "function_call", "message"]


async def test_logprobs_are_told_when_they_are_included(client: openai.AsyncOpenAI) -> None:
    asked = {**ASKED, "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    whole = await client.responses.create(**asked, max_output_tokens=5)
    part = whole.output[0].content[0]  # type: ignore[union-attr]
    assert whole.status == "incomplete"
    assert whole.incomplete_details is not None
    assert whole.incomplete_details.reason == "max_output_tokens"
    assert [len(entry.top_logprobs) for entry in part.logprobs] == [2] * 5  # type: ignore[union-attr, arg-type]


async def test_a_response_is_cancelled_once_and_what_has_ended_stays(
    client: openai.AsyncOpenAI, mesh: FakeMesh
) -> None:
    done = await client.responses.create(**ASKED)
    assert (await client.responses.cancel(done.id)).status == "completed"
    mesh.limit = 10
    stream = await client.responses.create(**ASKED, stream=True)
    first = await anext(aiter(stream))
    response_id = first.response.id
    for _ in range(2):
        cancelled = await client.responses.cancel(response_id)
        assert cancelled.status == "cancelled"
    rest = [event async for event in stream]
    assert rest[-1].type == "error"
    assert (await client.responses.retrieve(response_id)).status == "cancelled"


@pytest.mark.parametrize("response_id", ["resp_none", "chatcmpl-1", "resp_", "resp_%20"])
async def test_what_is_no_response_is_not_found(
    client: openai.AsyncOpenAI, response_id: str
) -> None:
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(response_id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.cancel(response_id)
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.responses.create(**ASKED, previous_response_id=response_id)
    assert unknown.value.param == "previous_response_id"


async def test_a_chat_is_no_response(client: openai.AsyncOpenAI) -> None:
    chat = await client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hi"}]
    )
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(chat.id.replace("chatcmpl-", "resp_"))


async def test_parameters_are_refused_by_the_names_they_have_here(
    client: openai.AsyncOpenAI,
) -> None:
    for more, param in (
        ({"input": []}, "input"),
        ({"max_output_tokens": 1 << 30}, "max_output_tokens"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"reasoning": {"effort": "utter"}}, "reasoning.effort"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.responses.create(**{**ASKED, **more})
        assert refused.value.param == param
        assert refused.value.message.count("max_tokens") == 0


async def test_a_retry_joins_the_response_that_the_first_ask_began(
    client: openai.AsyncOpenAI,
) -> None:
    key = {"Idempotency-Key": "one"}
    first = await client.responses.create(**ASKED, extra_headers=key)
    again = await client.responses.create(**ASKED, extra_headers=key)
    assert again.id == first.id
    with pytest.raises(openai.ConflictError):
        await client.responses.create(**{**ASKED, "input": "other"}, extra_headers=key)


async def _ended(client: openai.AsyncOpenAI, response_id: str) -> Any:
    """The response once it has ended, asked for again and again."""
    while True:
        response = await client.responses.retrieve(response_id)
        if response.status not in ("queued", "in_progress"):
            return response
        await asyncio.sleep(0.02)


async def test_a_background_response_runs_for_nobody_and_is_polled(
    client: openai.AsyncOpenAI, mesh: FakeMesh
) -> None:
    mesh.limit = 0
    response = await client.responses.create(**ASKED, background=True)
    assert (response.status, response.background) == ("queued", True)
    assert response.id[5:] in mesh.journal, "it is the controller's before it is answered"
    assert (await client.responses.retrieve(response.id)).status == "queued"
    mesh.limit = 1 << 30
    assert (await _ended(client, response.id)).output_text == REPLY
    events = await _events(await client.responses.retrieve(response.id, stream=True))
    kinds = [event["type"] for event in events]
    assert kinds[:3] == ["response.created", "response.queued", "response.in_progress"]


async def test_a_background_response_goes_on_when_its_client_leaves_its_stream(
    client: openai.AsyncOpenAI, mesh: FakeMesh
) -> None:
    mesh.limit = 10
    stream = await client.responses.create(**ASKED, background=True, stream=True)
    async for event in stream:
        if event.type == "response.output_text.delta":
            break
    await stream.close()
    mesh.limit = 1 << 30
    (name,) = mesh.journal
    assert (await _ended(client, f"resp_{name}")).output_text == REPLY
    assert not mesh.detaches


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_background_response_whose_client_left_untold_ends_and_a_retry_runs_once(
    client: openai.AsyncOpenAI, mesh: FakeMesh, router: RunningDoors, streamed: bool
) -> None:
    mesh.controller_away = True
    asked = ASKED | {"background": True, "stream": streamed}
    first = asyncio.create_task(client.responses.create(**asked))
    await until(lambda: router.router.streams == 1)
    first.cancel()
    await until(lambda: router.router.streams == 0)
    mesh.controller_away = False
    await until(lambda: any(where == "controller" for where, _ in mesh.cancels))
    retry = {"x-stainless-retry-count": "1"}
    response = await client.responses.create(**ASKED, background=True, extra_headers=retry)
    assert (await _ended(client, response.id)).output_text == REPLY
    # A question that was on its way may have been granted before the cancel came.
    assert [name for name, held in mesh.journal.items() if not held.cancelled] == [response.id[5:]]


async def test_a_background_response_under_a_key_runs_though_its_client_left_untold(
    client: openai.AsyncOpenAI, mesh: FakeMesh, router: RunningDoors
) -> None:
    heads, mesh.alive = mesh.alive, [False] * len(mesh.alive)  # nobody to grant it to
    asked = ASKED | {"background": True, "extra_headers": {"Idempotency-Key": "one"}}
    with log_lines() as lines:
        first = asyncio.create_task(client.responses.create(**asked))
        await until(lambda: router.router.streams == 1)
        first.cancel()
        await until(lambda: lines.named("request"))
    mesh.alive = heads
    again = await client.responses.create(**asked)
    assert (await _ended(client, again.id)).output_text == REPLY
    assert (list(mesh.journal), mesh.cancels) == ([again.id[5:]], [])


async def test_a_background_response_outlives_its_router_and_its_head(
    mesh: FakeMesh,
) -> None:
    mesh.limit = 10
    async with mesh.router() as first:
        url = f"http://127.0.0.1:{first.http_port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            response = await client.responses.create(**ASKED, background=True)
            await until(lambda: mesh.readers > 0)
    await until(lambda: mesh.readers == 0)
    async with mesh.router() as second:
        url = f"http://127.0.0.1:{second.http_port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            await until(lambda: mesh.readers > 0)  # nobody asked that router for it
            await mesh.kill(mesh.journal[response.id[5:]].head)
            mesh.limit = 1 << 30
            assert (await _ended(client, response.id)).output_text == REPLY


async def test_a_router_that_leaves_hands_on_what_it_reads_for_nobody(mesh: FakeMesh) -> None:
    mesh.limit = 10
    async with mesh.router(leave_pause_s=0.0) as first, mesh.router() as second:
        url = f"http://127.0.0.1:{first.http_port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            await client.responses.create(**ASKED, background=True)
        await until(lambda: (first.router.streams, mesh.readers) == (1, 1))
        await first.leave()
        await until(lambda: (first.router.streams, second.router.streams) == (0, 1))


async def test_a_background_response_is_cancelled(
    client: openai.AsyncOpenAI, mesh: FakeMesh, router: RunningDoors
) -> None:
    mesh.limit = 10
    response = await client.responses.create(**ASKED, background=True)
    assert (await client.responses.cancel(response.id)).status == "cancelled"
    assert (await client.responses.retrieve(response.id)).status == "cancelled"
    await until(lambda: router.router.streams == 0)


@pytest.mark.parametrize("background", [False, True])
async def test_a_deleted_response_is_gone_and_its_reader_ends(
    client: openai.AsyncOpenAI, mesh: FakeMesh, router: RunningDoors, background: bool
) -> None:
    mesh.limit = 10
    stream = await client.responses.create(**ASKED, background=background, stream=True)
    response_id = (await anext(aiter(stream))).response.id
    await client.responses.delete(response_id)
    assert [event async for event in stream][-1].type == "error"
    for gone in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError):
            await gone(response_id)
    assert not mesh.journal
    await until(lambda: router.router.streams == 0)
