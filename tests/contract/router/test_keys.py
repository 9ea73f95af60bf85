"""Keys at both doors: every route and RPC, without one, with a wrong one, with another tenant's."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc
import httpx
import pytest
from shuntserve.router.v1 import router_pb2, router_pb2_grpc
from starlette.applications import Starlette
from starlette.routing import Route

from services.cli.key_files import revoke_key
from services.common import channels
from services.common.errors import AlreadyExists, InvalidArgument, NotFound, Unauthenticated
from services.common.roles import Role
from services.common.statuses import from_rpc_error
from services.router.__main__ import RunningDoors
from services.router.http.guard import OPEN_PATHS
from tests.fake_mesh import REPLY, FakeMesh
from tests.key_rings import KeyRing
from tests.log_lines import log_lines
from tests.waiting import until

COMPLETIONS = "/v1/completions"
ASKED = {"model": "tiny", "prompt": "hi", "temperature": 0, "max_tokens": 5}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
WRONG = "shunt-000000000000-" + "w" * 43
GARBLED = ("Bearer", "Bearer ' OR 1=1--", "Basic dTpw", f"Bearer {WRONG}", "Bearer \xff")


@asynccontextmanager
async def _asking(
    router: RunningDoors, headers: Mapping[str, str] | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    url = f"http://127.0.0.1:{router.http_port}"
    async with httpx.AsyncClient(base_url=url, timeout=60, headers=headers) as client:
        yield client


def _routes(router: RunningDoors) -> list[tuple[str, str]]:
    """Method and path of every route there is, so that none can be forgotten here."""
    app: Any = router.http.config.app
    while not isinstance(app, Starlette):
        app = app._app
    routes = [cast(Route, route) for route in app.routes]
    return sorted((method, route.path) for route in routes for method in route.methods or ())


OWNED: Mapping[str, str] = {
    "/v1/generations/": "generation",
    "/v1/models/": "model",
    "/v1/files/": "file",
    "/v1/batches/": "batch",
    "/v1/responses/": "response",
}
"""What of a tenant a path names that begins so."""


def _filled(path: str, names: Mapping[str, str]) -> str:
    """The path of a thing."""
    for begin, thing in OWNED.items():
        if path.startswith(begin):
            return re.sub(r"\{.*?\}", names[thing], path)
    assert "{" not in path, f"say in OWNED whose {path} is"
    return path


NOTHING: Mapping[str, str] = {
    "generation": "nothing",
    "model": "nothing",
    "file": "file-" + "0" * 32,
    "batch": "batch_" + "0" * 32,
    "response": "resp_nothing",
}


@pytest.mark.group(1, 2)
@pytest.mark.parametrize("shown", [None, *GARBLED])
async def test_no_route_but_health_is_open_to_who_has_no_key(
    keyed: RunningDoors, shown: str | None
) -> None:
    headers = {} if shown is None else {"authorization": shown.encode("latin-1")}
    routes = _routes(keyed)
    assert len(routes) > 10
    async with _asking(keyed) as client:
        for method, path in [*routes, ("GET", "/nowhere"), ("OPTIONS", COMPLETIONS)]:
            request = client.build_request(
                method, _filled(path, NOTHING), headers=cast(Any, headers)
            )
            answer = await client.send(request)
            if path in OPEN_PATHS:
                assert answer.status_code in (200, 503), path
                continue
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.headers["x-request-id"]
            if method != "HEAD":
                assert answer.json()["error"]["code"] == "invalid_api_key"
                assert "OR 1" not in answer.text


async def _generation(router: RunningDoors, ring: KeyRing, tenant: str) -> str:
    async with _asking(router, ring.shown(tenant)) as client:
        answer = await client.post(COMPLETIONS, json=ASKED)
        assert answer.status_code == 200, answer.text
        return str(answer.headers["x-generation-id"])


@pytest.mark.group(3)
async def test_every_route_to_another_tenants_thing_is_a_route_to_nothing(
    keyed: RunningDoors, ring: KeyRing
) -> None:
    mine = await _things(keyed, ring)
    async with _asking(keyed, ring.shown("elsewhere")) as client:
        for method, path in _routes(keyed):
            if "{" not in path:
                continue
            theirs = await client.request(method, _filled(path, mine))
            absent = await client.request(method, _filled(path, NOTHING))
            assert theirs.status_code == 404, (method, path)
            if "generations" not in path or method == "GET":  # what nobody knows is cancelled, too
                assert absent.status_code == 404, (method, path)
                shown = re.sub("|".join(mine.values()), "X", theirs.text)
                assert shown == re.sub("|".join(NOTHING.values()), "X", absent.text)
        for path in ("/v1/files", "/v1/batches"):
            assert (await client.get(path)).json()["data"] == []
    async with _asking(keyed, ring.shown("acme")) as client:
        for thing in _SINGULAR:
            state = await client.get(f"/v1/{thing}/{mine[_SINGULAR[thing]]}")
            assert state.status_code == 200, state.text
            assert state.json().get("state", "open") != "cancelled"


_SINGULAR = {
    "generations": "generation",
    "files": "file",
    "batches": "batch",
    "responses": "response",
}


async def _things(router: RunningDoors, ring: KeyRing) -> Mapping[str, str]:
    """One of each that acme has, by what it is."""
    generation = await _generation(router, ring, "acme")
    line = {"custom_id": "a", "method": "POST", "url": COMPLETIONS, "body": ASKED}
    async with _asking(router, ring.shown("acme")) as client:
        content = {"file": ("in.jsonl", json.dumps(line).encode())}
        file = await client.post("/v1/files", files=content, data={"purpose": "batch"})
        wish = {"endpoint": COMPLETIONS, "completion_window": "24h"}
        batch = await client.post("/v1/batches", json={**wish, "input_file_id": file.json()["id"]})
        asked = {"model": "tiny", "input": "hi", "max_output_tokens": 5}
        response = await client.post("/v1/responses", json=asked)
    return {
        "response": response.json()["id"],
        "generation": generation,
        "model": "tiny",
        "file": file.json()["id"],
        "batch": batch.json()["id"],
    }


async def test_the_owner_comes_back_by_any_of_its_keys(keyed: RunningDoors, ring: KeyRing) -> None:
    mine = await _generation(keyed, ring, "acme")
    ring.add("acme")
    async with _asking(keyed, ring.shown("acme")) as client:
        await _until_known(client)
        stream = await client.get(f"/v1/generations/{mine}/stream")
        assert (stream.status_code, stream.text.count("[DONE]")) == (200, 1)
        assert (await client.delete(f"/v1/generations/{mine}")).status_code == 200


async def _until_known(client: httpx.AsyncClient, status: int = 200) -> None:
    """The router has looked at its file again."""
    async with asyncio.timeout(60):
        while (await client.get("/v1/models")).status_code != status:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_revoked_key_opens_nothing_more(keyed: RunningDoors, ring: KeyRing) -> None:
    async with _asking(keyed, ring.shown("acme")) as client:
        assert (await client.get("/v1/models")).status_code == 200
        revoke_key(ring.path, ring.ids["acme"])
        await _until_known(client, 401)


async def test_a_model_that_is_not_for_a_tenant_is_not_there(
    keyed: RunningDoors, ring: KeyRing
) -> None:
    answers = []
    for model in ("tiny", "no-such-model"):
        async with _asking(keyed, ring.shown("elsewhere")) as client:
            answers.append(await client.post(COMPLETIONS, json={**ASKED, "model": model}))
            assert (await client.get("/v1/models")).json()["data"] == []
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].content == answers[1].content
    assert answers[0].json()["error"]["code"] == "model_not_found"


async def test_a_generation_carries_its_tenant_and_class_to_its_head(
    mesh: FakeMesh, keyed: RunningDoors, ring: KeyRing
) -> None:
    ring.add("batch", **{"class": "tolerant", "weight": 7})
    async with _asking(keyed, ring.shown("batch")) as client:
        await _until_known(client)
    name = await _generation(keyed, ring, "batch")
    request = mesh.journal[name].request
    assert (request.tenant, request.priority, request.tenant_weight) == ("batch", "tolerant", 7)


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        (COMPLETIONS, ASKED),
        ("/v1/chat/completions", CHAT),
        ("/v1/responses", {"model": "tiny", "input": "hi", "max_output_tokens": 5}),
    ],
)
async def test_blocks_in_int8_are_for_keys_of_class_tolerant(
    mesh: FakeMesh, keyed: RunningDoors, ring: KeyRing, path: str, asked: Mapping[str, Any]
) -> None:
    ring.add("batch", **{"class": "tolerant"})
    for tenant, status in (("acme", 400), ("batch", 200)):
        async with _asking(keyed, ring.shown(tenant)) as client:
            await _until_known(client)
            answer = await client.post(path, json={**asked, "kv_int8": True})
        assert answer.status_code == status, answer.text
        if status == 400:
            assert answer.json()["error"]["param"] == "kv_int8"
    (held,) = mesh.journal.values()
    assert held.request.sampling.kv_int8


async def test_they_are_so_over_grpc_too(
    mesh: FakeMesh, keyed: RunningDoors, ring: KeyRing
) -> None:
    ring.add("batch", **{"class": "tolerant"})
    request = router_pb2.GenerateRequest()
    request.CopyFrom(REQUESTS["Generate"])
    request.sampling.kv_int8 = True
    method = next(method for method in RPCS if method.name == "Generate")
    async with _asking(keyed, ring.shown("batch")) as client:
        await _until_known(client)
    async with _stub(keyed) as stub:
        with pytest.raises(InvalidArgument) as refused:
            await _called(stub, method, request, ring.shown("acme")["authorization"])
        assert refused.value.field == "kv_int8"
        await _called(stub, method, request, ring.shown("batch")["authorization"])
    (held,) = mesh.journal.values()
    assert held.request.sampling.kv_int8


async def test_an_idempotency_key_is_a_tenants_own_whichever_key_it_shows(
    mesh: FakeMesh, keyed: RunningDoors, ring: KeyRing
) -> None:
    first, named = ring.shown("acme"), {"idempotency-key": "order-1"}
    ring.add("acme")
    async with _asking(keyed, ring.shown("acme")) as client:
        await _until_known(client)
        made = [
            (await client.post(COMPLETIONS, json=ASKED, headers={**shown, **named})).headers
            for shown in (first, ring.shown("acme"), ring.shown("other"))
        ]
    ids = [headers["x-generation-id"] for headers in made]
    assert ids[0] == ids[1] != ids[2]
    assert len(mesh.journal) == 2


@asynccontextmanager
async def _stub(router: RunningDoors) -> AsyncIterator[Any]:
    async with channels.open_channel(f"127.0.0.1:{router.grpc_port}", Role.ROUTER) as channel:
        yield router_pb2_grpc.RouterServiceStub(channel)


async def _called(stub: Any, method: Any, request: Any, shown: str | None) -> None:
    """Raises the domain error of the call."""
    metadata = () if shown is None else (("authorization", shown),)
    call = getattr(stub, method.name)(request, timeout=60, metadata=metadata)
    try:
        if method.server_streaming:
            async for _ in call:
                pass
        else:
            await call
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None


RPCS = router_pb2.DESCRIPTOR.services_by_name["RouterService"].methods
REQUESTS: Mapping[str, Any] = {
    "Generate": router_pb2.GenerateRequest(
        model="tiny", text="hi", sampling=router_pb2.SamplingOptions(max_tokens=5)
    ),
    "Resume": router_pb2.ResumeRequest(),
    "Cancel": router_pb2.CancelRequest(),
    "ListModels": router_pb2.ListModelsRequest(),
}


async def test_no_rpc_is_open_to_who_has_no_key(keyed: RunningDoors, ring: KeyRing) -> None:
    async with _stub(keyed) as stub:
        for method in RPCS:
            for shown in (None, "Bearer", f"Bearer {WRONG}", "Bearer ' OR 1=1--"):
                with pytest.raises(Unauthenticated) as refused:
                    await _called(stub, method, REQUESTS[method.name], shown)
                assert "OR 1" not in refused.value.message


async def test_every_rpc_about_another_tenants_generation_finds_none(
    mesh: FakeMesh, keyed: RunningDoors, ring: KeyRing
) -> None:
    mine = await _generation(keyed, ring, "acme")
    about = [m for m in RPCS if "generation_id" in m.input_type.fields_by_name]
    assert len(about) >= 3
    shown = ring.shown("other")["authorization"]
    async with _stub(keyed) as stub:
        for method in about:
            request = type(REQUESTS[method.name])()
            request.CopyFrom(REQUESTS[method.name])
            request.generation_id = mine
            taken = AlreadyExists if method.name == "Generate" else NotFound
            with pytest.raises(taken):
                await _called(stub, method, request, shown)
    assert not mesh.journal[mine].cancelled


async def test_grpc_lists_a_tenants_models_alone(keyed: RunningDoors, ring: KeyRing) -> None:
    async with _stub(keyed) as stub:
        for tenant, models in (("acme", ["tiny"]), ("elsewhere", [])):
            metadata = tuple(ring.shown(tenant).items())
            listed = await stub.ListModels(router_pb2.ListModelsRequest(), metadata=metadata)
            assert [model.model_id for model in listed.models] == models


async def test_no_key_is_in_any_line_or_message(
    mesh: FakeMesh, keyed: RunningDoors, ring: KeyRing
) -> None:
    with log_lines() as lines:
        for tenant in ("acme", "elsewhere"):
            async with _asking(keyed, ring.shown(tenant)) as client:
                await client.post(COMPLETIONS, json=ASKED)
                await client.post(COMPLETIONS, json={**ASKED, "stream": True})
                await client.get("/v1/generations/none/stream")
                await client.get(f"/v1/nowhere?api_key={ring.keys[tenant]}")
            async with _stub(keyed) as stub:
                shown = ring.shown(tenant)["authorization"]
                with pytest.raises(NotFound):
                    await _called(stub, RPCS[1], router_pb2.ResumeRequest(generation_id="x"), shown)
        async with _asking(keyed, {"authorization": f"Bearer {WRONG}"}) as client:
            await client.post(COMPLETIONS, json=ASKED)
        ring.add("late")
        ring.path.write_text(ring.path.read_text()[:-30])
        async with _asking(keyed, ring.shown("acme")) as client:
            await until(lambda: lines.named("request"))
            async with asyncio.timeout(60):
                while not lines.named("keys stay as they were"):
                    await client.get("/v1/models")
                    await asyncio.sleep(0.05)
    secrets = [key[-43:] for key in (*ring.keys.values(), WRONG)]
    ours = [text for text in lines.texts if '"logger": "httpx"' not in text]  # that is the client
    told = "".join(ours) + "".join(str(message) for _, message in mesh.calls)
    assert not [secret for secret in secrets if secret in told]
    tenants = {line.get("tenant") for line in lines.named("request")}
    assert tenants == {"acme", "elsewhere", None}
    refused = [line for line in lines.named("request") if line.get("status") == 401]
    assert [line["error"] for line in refused] == ["invalid_api_key"]


async def test_without_keys_nobody_is_asked_for_one(router: RunningDoors) -> None:
    for shown in ({}, {"authorization": "Bearer anything"}):
        async with _asking(router, shown) as client:
            answer = await client.post(COMPLETIONS, json={**ASKED, "max_tokens": 300})
            assert answer.json()["choices"][0]["text"] == REPLY
            assert (await client.get("/metrics")).status_code == 200


async def test_a_browser_may_ask_beforehand_without_a_key(keyed: RunningDoors) -> None:
    headers = {"origin": "http://page", "access-control-request-method": "POST"}
    async with _asking(keyed, headers) as client:
        assert (await client.options(COMPLETIONS)).status_code == 204


async def test_operators_have_a_listener_of_their_own(mesh: FakeMesh, ring: KeyRing) -> None:
    async with mesh.router(admin_port=0, keys=ring.path) as router:
        url = f"http://127.0.0.1:{router.admin_port}"
        async with httpx.AsyncClient(base_url=url, timeout=60) as admin:
            assert "shunt_router_streams" in (await admin.get("/metrics")).text
            await until(lambda: router.router.ready)
            for path in ("/healthz", "/readyz"):
                assert (await admin.get(path)).status_code == 200
            assert (await admin.get("/v1/models", headers=ring.shown("acme"))).status_code == 404
        async with _asking(router, ring.shown("acme")) as client:
            assert (await client.get("/metrics")).status_code == 404
            assert (await client.get("/healthz")).status_code == 200
    async with mesh.router(admin_port=0) as router, _asking(router) as client:
        assert (await client.get("/metrics")).status_code == 404


async def test_the_document_says_where_a_key_is_asked_for(
    keyed: RunningDoors, ring: KeyRing
) -> None:
    async with _asking(keyed, ring.shown("acme")) as client:
        document = (await client.get("/openapi.json")).json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for path, methods in document["paths"].items():
        for operation in methods.values():
            asks = path not in OPEN_PATHS
            assert ("401" in operation["responses"], "security" in operation) == (asks, asks), path


async def test_a_model_that_is_not_for_a_tenant_has_no_tokens_either(
    keyed: RunningDoors, ring: KeyRing
) -> None:
    async with _asking(keyed, ring.shown("elsewhere")) as client:
        for path, body in (("/tokenize", {"prompt": "hi"}), ("/detokenize", {"tokens": [1]})):
            answers = [
                await client.post(path, json={**body, "model": model})
                for model in ("tiny", "no-such-model")
            ]
            assert [answer.status_code for answer in answers] == [404, 404], path
            assert answers[0].content == answers[1].content
