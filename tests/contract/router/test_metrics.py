"""What a router counts, at both doors."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import httpx
import pytest
from prometheus_client import REGISTRY
from shuntserve.router.v1 import router_pb2, router_pb2_grpc

from services.common import channels
from services.common.errors import InvalidArgument
from services.common.roles import Role
from services.router.__main__ import RunningDoors
from tests.fake_mesh import FakeMesh
from tests.key_rings import KeyRing
from tests.waiting import until

LABELS = {"model": "tiny"}
REQUESTS = "shunt_router_tenant_requests_total"
TOKENS = "shunt_router_tenant_tokens_total"


def _first_tokens() -> float:
    return REGISTRY.get_sample_value("shunt_router_first_token_seconds_count", LABELS) or 0.0


def _failed(kind: str) -> float:
    return REGISTRY.get_sample_value("shunt_router_failed_total", {"kind": kind, **LABELS}) or 0.0


async def _events(router: RunningDoors, **more: Any) -> list[Any]:
    async with channels.open_channel(f"127.0.0.1:{router.grpc_port}", Role.ROUTER) as channel:
        stub = router_pb2_grpc.RouterServiceStub(channel)
        request = router_pb2.GenerateRequest(model="tiny", text="hi", **more)
        return [event async for event in stub.Generate(request, timeout=60)]


async def test_the_first_token_of_a_request_counts_once_and_that_of_a_resume_never(
    router: RunningDoors, http: httpx.AsyncClient, ask: Any, resume: Any
) -> None:
    before = _first_tokens()
    told = await ask(http)
    assert _first_tokens() == before + 1
    await resume(http, told.generation_id)
    assert _first_tokens() == before + 1
    await _events(router)
    assert _first_tokens() == before + 2


async def test_a_failure_counts_at_either_door(
    mesh: FakeMesh, router: RunningDoors, http: httpx.AsyncClient, ask: Any
) -> None:
    mesh.refusal, before = InvalidArgument("no"), _failed("InvalidArgument")
    await ask(http)
    assert _failed("InvalidArgument") == before + 1
    with pytest.raises(grpc.aio.AioRpcError):
        await _events(router)
    assert _failed("InvalidArgument") == before + 2


async def test_what_a_reader_asked_for_is_no_failure(
    mesh: FakeMesh, http: httpx.AsyncClient, ask: Any, resume: Any
) -> None:
    before = {kind: _failed(kind) for kind in ("Cancelled", "FailedPrecondition", "OutOfRange")}
    mesh.limit = 5
    told = await ask(http, until=lambda told: bool(told.text()))
    await http.delete(f"/v1/generations/{told.generation_id}")
    mesh.limit = 1 << 30
    whole = await ask(http)
    await resume(http, told.generation_id)
    await resume(http, whole.generation_id, "3-00000000")
    await resume(http, whole.generation_id, "5000-00000000")
    assert {kind: _failed(kind) for kind in before} == before


def _of_pipelines(name: str, **labels: str) -> float:
    """Of both heads' pipelines together."""
    told = (
        REGISTRY.get_sample_value(name, {"model_name": "tiny", "pipeline": p, **labels})
        for p in ("p0", "p1")
    )
    return sum(value or 0.0 for value in told)


def _move(part: str, cause: str) -> float:
    name = f"shunt_router_migration_{part}_seconds_count"
    return REGISTRY.get_sample_value(name, {"model": "tiny", "cause": cause}) or 0.0


VLLM = (
    "vllm:time_to_first_token_seconds_count",
    "vllm:e2e_request_latency_seconds_count",
    "vllm:request_time_per_output_token_seconds_count",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:inter_token_latency_seconds_count",
)


async def test_a_request_counts_under_vllms_names_at_the_pipeline_that_answers_it(
    http: httpx.AsyncClient, ask: Any, resume: Any
) -> None:
    before = [_of_pipelines(name) for name in VLLM]
    stopped = _of_pipelines("vllm:request_success_total", finished_reason="stop")
    told = await ask(http)
    await resume(http, told.generation_id)
    usage = told.usages[0]
    prompt, answer = usage["prompt_tokens"], usage["completion_tokens"]
    gained = [_of_pipelines(name) - b for name, b in zip(VLLM, before, strict=True)]
    assert gained == [1, 1, 1, prompt, answer, answer - 1]
    assert _of_pipelines("vllm:request_success_total", finished_reason="stop") == stopped + 1


PARTS = ("detection", "grant", "replay", "gap")


async def test_a_killed_head_is_a_move_of_one_cause_and_all_its_parts(
    mesh: FakeMesh, http: httpx.AsyncClient, ask: Any
) -> None:
    before = {part: _move(part, "unreachable") for part in PARTS}
    handed_over, tokens = _move("gap", "handed_over"), _of_pipelines("vllm:generation_tokens_total")
    mesh.limit = 5

    async def kill() -> None:
        await until(lambda: mesh.sampled >= 5)
        await mesh.kill(mesh.calls[0][0])
        mesh.limit = 1 << 30

    killer = asyncio.create_task(kill())
    told = await ask(http)
    await killer
    assert told.done == 1
    assert {part: _move(part, "unreachable") - before[part] for part in PARTS} == dict.fromkeys(
        PARTS, 1
    )
    assert _move("gap", "handed_over") == handed_over
    assert told.usages[0]["completion_tokens"] == (
        _of_pipelines("vllm:generation_tokens_total") - tokens
    )


async def test_no_label_is_of_a_request(http: httpx.AsyncClient, ask: Any) -> None:
    told = await ask(http, user="somebody")
    text = (await http.get("/metrics")).text
    assert "vllm:generation_tokens_total" in text
    assert told.generation_id not in text
    assert "somebody" not in text


async def test_a_tenant_counts_by_name_until_there_are_too_many(
    mesh: FakeMesh, ring: KeyRing, ask: Any
) -> None:
    def counted(tenant: str) -> dict[str, float]:
        labels = {"tenant": tenant}
        counts = {"requests": REGISTRY.get_sample_value(REQUESTS, labels)}
        for of in ("prompt", "answer"):
            counts[of] = REGISTRY.get_sample_value(TOKENS, {**labels, "of": of})
        return {of: count or 0.0 for of, count in counts.items()}

    before = {name: counted(name) for name in ("named", "other", "late")}
    ring.add("named")
    ring.add("late")
    async with mesh.router(keys=ring.path, metrics_tenants=1) as router:
        url = f"http://127.0.0.1:{router.http_port}"
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            told = [await ask(client, headers=ring.shown(name)) for name in ("named", "late")]
    usage = told[0].usages[0]
    one = {"requests": 1, "prompt": usage["prompt_tokens"], "answer": usage["completion_tokens"]}
    for name in ("named", "other"):
        assert {of: count - before[name][of] for of, count in counted(name).items()} == one
    assert counted("late") == before["late"]
