"""Two controllers as processes over one journal: who leads, who stands by, who comes next."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from shuntserve.common.v1 import common_pb2
from shuntserve.controller.v1 import controller_pb2 as pb
from shuntserve.controller.v1 import controller_pb2_grpc

from services.common import channels
from services.common.roles import Role
from services.controller.__main__ import SUPERSEDED
from tests.contract.controller.controller_process import (
    START_S,
    open_channel,
    running_process,
    until_ready,
)
from tests.postgres import Cluster

NO_ANSWER = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED}


def _address(environment: dict[str, str]) -> str:
    return f"127.0.0.1:{environment['SHUNT_CONTROLLER_GRPC_PORT']}"


@asynccontextmanager
async def _stub(environment: dict[str, str]) -> AsyncIterator[Any]:
    async with open_channel(environment) as channel:
        yield controller_pb2_grpc.ControllerServiceStub(channel)


async def _cancel(stub: Any, name: str) -> None:
    request = pb.CancelRequest(generation_id=name, reason=common_pb2.CANCEL_REASON_CLIENT)
    await stub.Cancel(request, timeout=START_S)


async def _resume(stub: Any, name: str) -> None:
    await stub.Resume(pb.ResumeRequest(generation_id=name), timeout=START_S)


async def _is_cancelled(stub: Any, name: str) -> bool:
    """Whether this controller's journal holds the end of a generation."""
    with pytest.raises(grpc.aio.AioRpcError) as told:
        await _resume(stub, name)
    assert told.value.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.NOT_FOUND)
    return told.value.code() is grpc.StatusCode.CANCELLED


async def _until_leading(environment: dict[str, str]) -> None:
    async with channels.open_channel(_address(environment), Role.CONTROLLER) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        async with asyncio.timeout(START_S):
            while True:
                try:
                    told = await stub.Check(health_pb2.HealthCheckRequest(), timeout=1)
                except grpc.aio.AioRpcError:
                    told = None
                if told is not None and told.status == health_pb2.HealthCheckResponse.SERVING:
                    return
                await asyncio.sleep(0.05)


async def _standing_by(environment: dict[str, str]) -> str:
    """What a standby says, once it has seen the leader."""
    async with _stub(environment) as stub, asyncio.timeout(START_S):
        while True:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.GetStatus(pb.GetStatusRequest(), timeout=START_S)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            details = str(refused.value.details())
            if "leader is at" in details:
                return details
            await asyncio.sleep(0.05)


async def test_a_standby_says_where_the_leader_is_and_is_not_ready(
    first: dict[str, str], second: dict[str, str]
) -> None:
    async with running_process(first):
        await _until_leading(first)
        async with running_process(second) as standby:
            assert _address(first) in await _standing_by(second)
            async with open_channel(second) as other:
                told = await health_pb2_grpc.HealthStub(other).Check(
                    health_pb2.HealthCheckRequest(), timeout=START_S
                )
                assert told.status == health_pb2.HealthCheckResponse.NOT_SERVING
                calls = controller_pb2_grpc.ControllerServiceStub(other)
                routes = calls.WatchRoutes(pb.WatchRoutesRequest(router_id="r"), timeout=START_S)
                with pytest.raises(grpc.aio.AioRpcError, match="is a standby"):
                    await routes.read()
            standby.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(standby.wait(), START_S) == 0


async def test_the_standby_of_a_killed_leader_knows_what_that_was_told(
    first: dict[str, str], second: dict[str, str]
) -> None:
    async with running_process(first) as leader:
        await _until_leading(first)
        async with running_process(second), _stub(first) as stub:
            await _standing_by(second)
            for number in range(20):
                await _cancel(stub, f"g{number}")
            leader.kill()
            await _until_leading(second)
            async with _stub(second) as now, running_process(first):
                assert all([await _is_cancelled(now, f"g{n}") for n in range(20)])
                assert _address(second) in await _standing_by(first)


async def test_a_leader_that_was_stopped_can_do_nothing_when_it_goes_on(
    first: dict[str, str], second: dict[str, str]
) -> None:
    async with running_process(first) as old, _stub(first) as stub:
        await _until_leading(first)
        await _cancel(stub, "before")
        async with running_process(second):
            await _standing_by(second)
            old.send_signal(signal.SIGSTOP)
            late = [asyncio.create_task(_cancel(stub, f"late{n}")) for n in range(5)]
            late.append(asyncio.create_task(_resume(stub, "before")))
            await _until_leading(second)
            async with _stub(second) as now:
                await _cancel(now, "after")
                old.send_signal(signal.SIGCONT)
                assert await asyncio.wait_for(old.wait(), START_S) == SUPERSEDED
                refused = await asyncio.gather(*late, return_exceptions=True)
                codes = {one.code() for one in refused if isinstance(one, grpc.aio.AioRpcError)}
                assert codes <= NO_ANSWER, refused
                assert None not in refused
                held = {n: await _is_cancelled(now, n) for n in ("before", "after", "late0")}
                assert held == {"before": True, "after": True, "late0": False}


async def test_a_database_that_goes_away_makes_the_leader_not_ready_and_loses_nothing(
    first: dict[str, str], own_cluster: Cluster
) -> None:
    async with running_process(first):
        await _until_leading(first)
        await _lose_the_database(first, own_cluster)


async def _lose_the_database(first: dict[str, str], own_cluster: Cluster) -> None:
    async with _stub(first) as stub, open_channel(first) as channel:
        await _cancel(stub, "before")
        health = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(), timeout=START_S
        )
        await asyncio.to_thread(own_cluster.kill)
        async for told in health:
            if told.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                break
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await _cancel(stub, "meanwhile")
        assert refused.value.code() in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        )
        await asyncio.to_thread(own_cluster.start)
        async for told in health:
            if told.status == health_pb2.HealthCheckResponse.SERVING:
                break
        health.cancel()
        assert await _is_cancelled(stub, "before")
        assert not await _is_cancelled(stub, "meanwhile")
        await _cancel(stub, "after")


@pytest.mark.parametrize(
    ("journal", "status", "told"),
    [
        ("mysql://me:secret@db/mesh", 2, "sqlite:PATH or postgresql://"),
        ("postgresql://me:secret@127.0.0.1:1/mesh", 1, "me@127.0.0.1:1/mesh did not answer"),
    ],
)
async def test_a_journal_that_cannot_be_had_is_named_and_no_password_is(
    environment: dict[str, str], journal: str, status: int, told: str
) -> None:
    async with running_process(environment | {"SHUNT_CONTROLLER_JOURNAL": journal}) as process:
        out, err = await asyncio.wait_for(process.communicate(), START_S)
    assert process.returncode == status
    assert "SHUNT_CONTROLLER_JOURNAL: " in err.decode()
    assert told in err.decode()
    assert b"secret" not in out + err


async def test_a_file_may_lie_elsewhere_and_is_nobody_elses(
    environment: dict[str, str], second: dict[str, str], tmp_path: Path
) -> None:
    shared = {"SHUNT_CONTROLLER_JOURNAL": f"sqlite:{tmp_path / 'elsewhere' / 'j.db'}"}
    async with running_process(environment | shared), open_channel(environment) as channel:
        await until_ready(channel)
        assert await asyncio.to_thread((tmp_path / "elsewhere" / "j.db").exists)
        async with running_process(second | shared) as other:
            _, told = await asyncio.wait_for(other.communicate(), START_S)
        assert other.returncode == 1
        assert b"another controller uses" in told
