"""Streams over kills, hand-overs, reconnections and other routers."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from services.common import errors
from services.router.__main__ import RunningDoors
from tests.fake_mesh import REPLY, FakeMesh
from tests.waiting import until


async def test_a_stream_outlives_the_head_that_began_it(
    mesh: FakeMesh, http: httpx.AsyncClient, ask: Any
) -> None:
    mesh.limit = 20
    told_at_kill = None

    async def kill() -> None:
        nonlocal told_at_kill
        await until(lambda: mesh.sampled >= 20)
        told_at_kill = mesh.calls[0][0]
        await mesh.kill(told_at_kill)
        mesh.limit = 1 << 30

    killer = asyncio.create_task(kill())
    told = await ask(http)
    await killer
    assert told.text() == REPLY
    assert (told.roles, told.finishes(), told.done, len(told.usages)) == (1, ["stop"], 1, 1)
    assert mesh.calls[-1][0] != told_at_kill
    assert mesh.calls[-1][1].epoch >= 2
    assert len(mesh.calls[-1][1].held[0].ids) == 20


async def test_a_silent_head_is_left_when_the_controller_finds_that_it_does_not_serve(
    mesh: FakeMesh, http: httpx.AsyncClient, ask: Any
) -> None:
    async def freeze() -> None:
        await until(lambda: mesh.sampled >= 10)
        frozen = mesh.calls[0][0]
        mesh.silent[frozen] = True
        mesh.stall(*(head == frozen for head in range(2)))

    mesh.token_s = 0.002
    freezer = asyncio.create_task(freeze())
    told = await ask(http)
    await freezer
    assert told.text() == REPLY
    first, then = (head for head, _ in mesh.calls)
    assert first != then


async def test_a_silent_head_that_serves_keeps_its_readers(
    mesh: FakeMesh, http: httpx.AsyncClient, ask: Any
) -> None:
    async def slow() -> None:
        await until(lambda: mesh.sampled >= 10)
        mesh.silent[:] = [True, True]
        await asyncio.sleep(3.0)  # far longer than a head that does not serve is given
        mesh.silent[:] = [False, False]

    mesh.token_s = 0.002
    task = asyncio.create_task(slow())
    told = await ask(http)
    await task
    assert told.text() == REPLY
    assert [call.epoch for _, call in mesh.calls] == [1]
    assert "controller" not in [who for who, _ in mesh.traceparents]


async def test_a_stream_waits_for_the_first_pipeline_to_return(
    mesh: FakeMesh, http: httpx.AsyncClient, ask: Any
) -> None:
    mesh.limit = 10

    async def away() -> None:
        await until(lambda: mesh.sampled >= 10)
        mesh.controller_away = True
        await mesh.kill(mesh.calls[0][0])
        asked = len(mesh.traceparents)
        await until(lambda: len(mesh.traceparents) >= asked + 2)
        mesh.controller_away, mesh.limit = False, 1 << 30

    task = asyncio.create_task(away())
    told = await ask(http)
    await task
    assert told.text() == REPLY
    assert not told.errors


async def test_a_stream_that_nobody_takes_ends_in_an_error_and_can_be_resumed(
    mesh: FakeMesh, ask: Any, resume: Any
) -> None:
    mesh.limit = 10
    async with mesh.router(recover_s=0.6) as router:
        url = f"http://127.0.0.1:{router.http_port}"
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:

            async def away() -> None:
                await until(lambda: mesh.sampled >= 10)
                mesh.controller_away = True
                await mesh.kill(mesh.calls[0][0])

            task = asyncio.create_task(away())
            told = await ask(client)
            await task
            assert told.errors[0]["code"] == "unavailable"
            assert told.done == 0
            mesh.controller_away, mesh.limit = False, 1 << 30
            rest = await resume(client, told.generation_id, told.ids[-2])
    assert told.text() + rest.text() == REPLY
    assert (rest.roles, rest.finishes(), rest.done) == (0, ["stop"], 1)


async def test_a_reader_resumes_at_another_router_at_any_event(
    mesh: FakeMesh, http: httpx.AsyncClient, ask: Any, resume: Any
) -> None:
    whole = await ask(http, stop=["some more"])
    async with mesh.router() as other:
        url = f"http://127.0.0.1:{other.http_port}"
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            rests = [await resume(client, whole.generation_id, seen) for seen in whole.ids]
    for cut, rest in enumerate(rests):
        assert _text_up_to(whole, cut) + rest.text() == whole.text()
        told_end = any(c["finish_reason"] for c in whole.events[cut]["choices"])
        assert len(rest.finishes()) == (not told_end and cut < len(whole.ids) - 1)
        assert len(rest.usages) == (cut < len(whole.ids) - 1)
        assert rest.roles == 0
        assert rest.done == 1


def _text_up_to(told: Any, cut: int) -> str:
    return "".join(
        c["delta"].get("content") or "" for e in told.events[: cut + 1] for c in e["choices"]
    )


async def test_a_reader_that_lost_its_connection_resumes_in_mid_stream(
    mesh: FakeMesh, router: RunningDoors, http: httpx.AsyncClient, ask: Any, resume: Any
) -> None:
    mesh.limit = 30
    first = await ask(http, until=lambda told: len(told.text()) > 25)
    await until(lambda: mesh.readers == 0)
    mesh.limit = 1 << 30
    rest = await resume(http, first.generation_id, first.ids[-1])
    assert first.text() + rest.text() == REPLY
    assert len(rest.usages) == 1
    assert {message.epoch for _, message in mesh.calls} == {1}


async def test_everything_is_told_again_to_who_has_no_event(
    http: httpx.AsyncClient, ask: Any, resume: Any
) -> None:
    first = await ask(http)
    again = await resume(http, first.generation_id)
    assert (again.text(), again.roles, again.usages) == (first.text(), 1, first.usages)


async def test_who_had_usage_gets_only_the_end(
    http: httpx.AsyncClient, ask: Any, resume: Any
) -> None:
    first = await ask(http)
    assert first.ids[-1].endswith(".end")
    again = await resume(http, first.generation_id, first.ids[-1])
    assert (again.events, again.done) == ([], 1)
    before = await resume(http, first.generation_id, first.ids[-2])
    assert (before.text(), before.finishes(), len(before.usages)) == ("", [], 1)


@pytest.mark.group(27)
async def test_an_event_ahead_of_the_journal_is_waited_for(
    mesh: FakeMesh, http: httpx.AsyncClient, ask: Any, resume: Any
) -> None:
    mesh.limit, mesh.journal_lag = 30, 12
    first = await ask(http, until=lambda told: len(told.text()) > 25)
    await mesh.kill(mesh.calls[0][0])
    task = asyncio.create_task(resume(http, first.generation_id, first.ids[-1]))
    await until(lambda: len(mesh.calls) >= 2)
    mesh.limit = 1 << 30
    rest = await task
    assert first.text() + rest.text() == REPLY


async def test_a_second_reader_ends_the_first(
    mesh: FakeMesh, http: httpx.AsyncClient, ask: Any, resume: Any
) -> None:
    mesh.limit = 10
    told: Any = None

    def enough(so_far: Any) -> bool:
        nonlocal told
        told = so_far
        return False

    task = asyncio.create_task(ask(http, until=enough))
    await until(lambda: told is not None and len(told.text()) > 10)
    second = asyncio.create_task(resume(http, told.generation_id))
    first = await task
    assert first.errors[0]["code"] == "superseded"
    mesh.limit = 1 << 30
    assert (await second).text() == REPLY


async def test_a_cancelled_generation_ends_everywhere(
    mesh: FakeMesh, http: httpx.AsyncClient, ask: Any, resume: Any
) -> None:
    mesh.limit = 10
    told: Any = None

    def enough(so_far: Any) -> bool:
        nonlocal told
        told = so_far
        return False

    task = asyncio.create_task(ask(http, until=enough))
    await until(lambda: told is not None and len(told.text()) > 10)
    answer = await http.delete(f"/v1/generations/{told.generation_id}")
    assert answer.status_code == 200
    assert answer.headers["x-generation-id"] == told.generation_id
    assert (await task).errors[0]["code"] == "cancelled"
    await until(lambda: {who for who, _ in mesh.cancels} == {"controller", "head"})
    again = await resume(http, told.generation_id)
    assert (again.status, again.body["error"]["code"]) == (409, "cancelled")


async def test_a_stop_string_ends_the_generation_at_its_head(
    mesh: FakeMesh, http: httpx.AsyncClient, ask: Any
) -> None:
    told = await ask(http, stop="Paris")
    assert told.text() == "The capital of France is "
    await until(lambda: len(mesh.cancels) >= 2)
    stop = next(message for who, message in mesh.cancels if who == "controller")
    assert stop.length == told.usages[0]["completion_tokens"]
    assert mesh.sampled <= stop.length + 10


async def test_generations_are_shared_out_in_proportion(
    mesh: FakeMesh, http: httpx.AsyncClient, ask: Any
) -> None:
    for _ in range(8):
        await ask(http, max_tokens=1)
    heads = [head for head, _ in mesh.calls]
    assert 3 <= heads.count(0) <= 5


async def test_a_request_waits_for_a_pipeline_and_then_gets_503(
    mesh: FakeMesh, http: httpx.AsyncClient, ask: Any
) -> None:
    await mesh.kill(0)
    await mesh.kill(1)
    ready = await http.get("/readyz")
    while ready.status_code == 200:
        ready = await http.get("/readyz")
    told = await ask(http)
    assert (told.status, told.body["error"]["code"]) == (503, "unavailable")
    assert ready.headers["retry-after"]


async def test_one_stream_too_many_is_429(mesh: FakeMesh, ask: Any) -> None:
    mesh.limit = 5
    async with mesh.router(max_streams=1) as router:
        url = f"http://127.0.0.1:{router.http_port}"
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            told: list[Any] = []
            first = asyncio.create_task(
                ask(client, until=lambda t: told.append(t) is None and bool(mesh.limit > 5))
            )
            await until(lambda: told)
            answer = await client.post(
                "/v1/chat/completions",
                json={"model": "tiny", "messages": [{"role": "user", "content": "hi"}]},
            )
            assert answer.status_code == 429
            assert answer.headers["retry-after"] == "1"
            assert answer.headers["retry-after-ms"] == "1000"
            assert answer.json()["error"]["code"] == "rate_limit_exceeded"
            mesh.limit = 1 << 30
            await first


async def test_a_heads_refusal_is_a_status_and_not_a_stream(
    mesh: FakeMesh, http: httpx.AsyncClient, ask: Any
) -> None:
    mesh.refusal = errors.InvalidArgument("no such sampling", field="top_k")
    told = await ask(http)
    assert (told.status, told.body["error"]["param"]) == (400, "top_k")
    mesh.refusal = errors.ResourceExhausted("the queue is full")
    told = await ask(http)
    assert told.status == 429


async def test_a_waiting_client_hears_comments(mesh: FakeMesh, ask: Any) -> None:
    mesh.limit = 0
    async with mesh.router(comment_s=0.1, first_event_s=0.1) as router:
        url = f"http://127.0.0.1:{router.http_port}"
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            told = await ask(client, until=lambda told: len(told.comments) >= 3)
    assert len(told.comments) >= 3
    assert told.roles == 1
    assert told.text() == ""


@pytest.mark.parametrize("fault", ["away", "damaged", "nested"])
async def test_a_model_that_cannot_be_read_is_503_until_it_can(
    mesh: FakeMesh, http: httpx.AsyncClient, ask: Any, fault: str
) -> None:
    mesh.store_fault = fault
    async with mesh.router() as router:
        url = f"http://127.0.0.1:{router.http_port}"
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            told = await ask(client)
            assert (told.status, told.body["error"]["code"]) == (503, "unavailable")
            assert not any(task.done() for task in router.work)
            mesh.store_fault = ""
            assert (await ask(client)).text() == REPLY


async def test_choices_are_resumed_at_any_chunk_each_once(
    mesh: FakeMesh, http: httpx.AsyncClient, ask: Any, resume: Any
) -> None:
    mesh.replies, mesh.burst = ["one 東", "two and more", "three"], 2
    whole = await ask(http, n=3)
    assert {len(event["choices"]) for event in whole.events} == {0, 1}
    for cut, event_id in enumerate(whole.ids):
        rest = await resume(http, whole.generation_id, event_id)
        kept = 0 if not event_id else cut + 1  # without an id all is told again
        for index, reply in enumerate(mesh.replies):
            told = [c for e in whole.events[:kept] for c in e["choices"] if c["index"] == index]
            told += rest.choices(index)
            assert "".join(c["delta"].get("content", "") for c in told) == reply
            assert sum("role" in c["delta"] for c in told) == 1
            assert sum(c["finish_reason"] is not None for c in told) == 1
