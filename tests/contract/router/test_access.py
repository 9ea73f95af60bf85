"""What every answer has: a request id, CORS headers, one line in the log; and the odd methods."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest
from shuntserve.router.v1 import router_pb2, router_pb2_grpc

from services.common import channels
from services.common.errors import Unavailable
from services.common.roles import Role
from services.common.statuses import from_rpc_error
from services.router.__main__ import RunningDoors
from tests.fake_mesh import REPLY, FakeMesh
from tests.log_lines import LogLines, log_lines
from tests.waiting import until

CHAT = "/v1/chat/completions"
SECRET = "a prompt that no log may hold"
ASKED = {
    "model": "tiny",
    "messages": [{"role": "user", "content": SECRET}],
    "temperature": 0,
    "max_tokens": 3,
}


@pytest.fixture
def logged() -> Iterator[LogLines]:
    """All lines of this process so far."""
    with log_lines() as lines:
        yield lines
    assert not any(SECRET in text or REPLY[:15] in text for text in lines.texts)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_is_one_line_that_names_all_its_ids(
    http: httpx.AsyncClient, logged: LogLines, stream: bool
) -> None:
    answer = await http.post(
        CHAT, json={**ASKED, "stream": stream}, headers={"x-request-id": "mine-1"}
    )
    assert answer.headers["x-request-id"] == "mine-1"
    await until(lambda: logged.named("request"))
    (line,) = logged.named("request")
    assert (line["method"], line["route"], line["status"]) == ("POST", CHAT, 200)
    assert line["request_id"] == "mine-1"
    assert line["generation_id"] == answer.headers["x-generation-id"]
    assert f'"id":"chatcmpl-{line["generation_id"]}"' in answer.text
    assert (line["model"], line["completion_tokens"]) == ("tiny", 3)
    assert line["prompt_tokens"] > 3
    assert line["sent_bytes"] == len(answer.content)
    assert 0 < line["duration_s"] < 60
    assert "error" not in line


ANSWERS: list[tuple[str, str, dict[str, Any], int]] = [
    ("GET", "/v1/models", {}, 200),
    ("GET", "/healthz", {}, 200),
    ("GET", "/readyz", {}, 200),
    ("GET", "/metrics", {}, 200),
    ("GET", "/nothing", {}, 404),
    ("GET", "/v1/models/none", {}, 404),
    ("PUT", CHAT, {}, 405),
    ("POST", CHAT, {"json": {"model": "tiny"}}, 400),
    ("POST", CHAT, {"content": b"x"}, 415),
    ("POST", CHAT, {"json": {**ASKED, "model": "none"}}, 404),
    ("GET", "/v1/generations/nobody/stream", {}, 404),
    ("DELETE", "/v1/generations/nobody", {}, 200),
]


@pytest.mark.parametrize(("method", "path", "more", "status"), ANSWERS)
async def test_every_answer_has_a_request_id_and_may_be_read_by_any_page(
    router: RunningDoors,
    http: httpx.AsyncClient,
    method: str,
    path: str,
    more: dict[str, Any],
    status: int,
) -> None:
    await until(lambda: router.router.ready)
    answer = await http.request(method, path, headers={"origin": "http://page.test"}, **more)
    assert answer.status_code == status
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in answer.headers
    exposed = answer.headers["access-control-expose-headers"]
    assert {"x-generation-id", "x-request-id", "retry-after"} <= set(exposed.split(", "))


async def test_a_request_that_is_refused_before_its_route_has_an_id_too(
    http: httpx.AsyncClient, logged: LogLines
) -> None:
    answer = await http.get("/healthz", headers={f"x-{i}": "y" for i in range(200)})
    assert answer.status_code == 431
    assert answer.headers["x-request-id"] in {line.get("request_id") for line in logged.all()}
    assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("sent", ["x" * 129, "a b", 'a"b', "<b>"])
async def test_an_id_that_may_not_be_echoed_is_replaced(http: httpx.AsyncClient, sent: str) -> None:
    answer = await http.get("/healthz", headers={"x-request-id": sent})
    assert answer.headers["x-request-id"].startswith("req_")


async def test_a_client_that_leaves_is_told_in_the_log(
    mesh: FakeMesh, http: httpx.AsyncClient, ask: Any, logged: LogLines
) -> None:
    mesh.limit = 5
    told = await ask(http, until=lambda told: len(told.text()) > 3)
    await until(lambda: logged.named("request"))
    (line,) = logged.named("request")
    assert (line["generation_id"], line["error"]) == (told.generation_id, "disconnected")


async def test_a_refusal_by_the_head_is_told_with_its_code(
    mesh: FakeMesh, http: httpx.AsyncClient, ask: Any, logged: LogLines
) -> None:
    mesh.refusal = Unavailable("away")
    async with mesh.router(recover_s=0.3) as router:
        url = f"http://127.0.0.1:{router.http_port}"
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            await ask(client)
    await until(lambda: logged.named("request"))
    assert logged.named("request")[0]["error"] == "unavailable"


async def test_every_line_about_a_generation_names_it(
    mesh: FakeMesh, http: httpx.AsyncClient, ask: Any, logged: LogLines
) -> None:
    mesh.limit = 10

    async def kill() -> None:
        await until(lambda: mesh.sampled >= 10)
        await mesh.kill(mesh.calls[0][0])
        mesh.limit = 1 << 30

    killer = asyncio.create_task(kill())
    told = await ask(http, headers={"x-request-id": "mine-3"})
    await killer
    await until(lambda: logged.named("request"))
    lines = [line for line in logged.all() if line.get("request_id") == "mine-3"]
    assert {"epoch granted", "request"} <= {line["message"] for line in lines}
    assert {line["generation_id"] for line in lines} == {told.generation_id}


async def test_a_requests_id_reaches_head_and_controller(
    mesh: FakeMesh, http: httpx.AsyncClient, ask: Any
) -> None:
    told = await ask(http, headers={"x-request-id": "mine-7"})
    await http.delete(f"/v1/generations/{told.generation_id}", headers={"x-request-id": "mine-8"})
    assert ("head", "mine-7") in mesh.request_ids
    assert ("controller", "mine-8") in mesh.request_ids


async def test_a_call_over_grpc_is_one_line_too(
    mesh: FakeMesh, router: RunningDoors, logged: LogLines
) -> None:
    async with channels.open_channel(f"127.0.0.1:{router.grpc_port}", Role.ROUTER) as channel:
        stub = router_pb2_grpc.RouterServiceStub(channel)
        request = router_pb2.GenerateRequest(model="tiny", text=SECRET)
        call = stub.Generate(request, timeout=60, metadata=(("x-request-id", "mine-2"),))
        events = [event async for event in call]
        with pytest.raises(grpc.aio.AioRpcError):
            async for _ in stub.Generate(router_pb2.GenerateRequest(model="none", text="x")):
                pass
    await until(lambda: len(logged.named("request")) == 2)
    served, refused = logged.named("request")
    assert (served["route"], served["status"]) == ("router/Generate", "ok")
    assert (served["request_id"], served["generation_id"]) == ("mine-2", events[0].generation_id)
    assert served["completion_tokens"] == events[-1].usage.completion_tokens
    assert (refused["status"], refused["request_id"][:4]) == ("model_not_found", "req_")


async def test_bodies_over_both_doors_share_one_limit(mesh: FakeMesh) -> None:
    request = router_pb2.GenerateRequest(model="tiny", text="x" * 3_000)
    async with (
        mesh.router(max_bodies_bytes=4_000) as router,
        channels.open_channel(f"127.0.0.1:{router.grpc_port}", Role.ROUTER) as channel,
    ):
        stub = router_pb2_grpc.RouterServiceStub(channel)
        too_much = router_pb2.GenerateRequest(model="tiny", text="x" * 5_000)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            async for _ in stub.Generate(too_much, timeout=60):
                pass
        assert isinstance(from_rpc_error(failed.value), Unavailable)
        for _ in range(3):  # what is answered or refused gives its share back
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                async for _ in stub.Generate(request, timeout=60):
                    pass
            assert not isinstance(from_rpc_error(failed.value), Unavailable)


PREFLIGHT = {
    "origin": "http://page.test",
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-os",
}


async def test_a_preflight_is_answered(http: httpx.AsyncClient) -> None:
    answer = await http.options(CHAT, headers=PREFLIGHT)
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "POST" in answer.headers["access-control-allow-methods"]
    allowed = answer.headers["access-control-allow-headers"]
    assert allowed == PREFLIGHT["access-control-request-headers"]


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [("http://page.test", True), ("http://other.test", False), ("http://page.test.evil", False)],
)
async def test_only_listed_origins_may_read(mesh: FakeMesh, origin: str, allowed: bool) -> None:
    async with mesh.router(cors_origins="http://page.test, https://b.test:8443") as router:
        url = f"http://127.0.0.1:{router.http_port}"
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            answers = [
                await client.options(CHAT, headers={**PREFLIGHT, "origin": origin}),
                await client.get("/v1/models", headers={"origin": origin}),
            ]
    for answer in answers:
        echoed = answer.headers.get("access-control-allow-origin")
        assert echoed == (origin if allowed else None)
        assert answer.headers["vary"] == "origin"
    assert ("access-control-allow-methods" in answers[0].headers) == allowed


async def test_no_origin_may_read_when_none_is_set(mesh: FakeMesh) -> None:
    async with mesh.router(cors_origins="") as router:
        url = f"http://127.0.0.1:{router.http_port}"
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            answer = await client.options(CHAT, headers=PREFLIGHT)
    assert not any(name.startswith("access-control") for name in answer.headers)


async def test_options_tell_what_a_route_takes(http: httpx.AsyncClient) -> None:
    answer = await http.options(CHAT)
    assert (answer.status_code, answer.headers["allow"]) == (204, "POST, OPTIONS")


async def test_head_is_get_without_a_body_and_reads_no_stream(
    mesh: FakeMesh, router: RunningDoors, http: httpx.AsyncClient, ask: Any
) -> None:
    await until(lambda: router.router.ready)
    for path in ("/v1/models", "/v1/models/tiny", "/healthz", "/readyz"):
        answer = await http.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
        assert int(answer.headers["content-length"]) > 0
    told = await ask(http)
    calls = len(mesh.calls)
    answer = await http.head(f"/v1/generations/{told.generation_id}/stream")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")
    assert len(mesh.calls) == calls


async def test_a_slash_behind_a_route_changes_nothing(http: httpx.AsyncClient) -> None:
    assert (await http.get("/v1/models/")).json()["object"] == "list"
    assert (await http.post(f"{CHAT}/", json=ASKED)).status_code == 200


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({}, "is missing"),
        ({"content-type": "application/x-www-form-urlencoded"}, "curl -d"),
        ({"content-type": "text/plain"}, "text/plain"),
    ],
)
async def test_another_content_type_is_told_what_to_send(
    http: httpx.AsyncClient, headers: dict[str, str], named: str
) -> None:
    answer = await http.post(CHAT, content=json.dumps(ASKED), headers=headers)
    message = answer.json()["error"]["message"]
    assert answer.status_code == 415
    assert named in message
    assert "content-type: application/json" in message


async def test_a_route_without_v1_is_told_where_the_routes_are(http: httpx.AsyncClient) -> None:
    answer = await http.post("/chat/completions", json=ASKED)
    assert answer.status_code == 404
    assert "/v1/" in answer.json()["error"]["message"]
