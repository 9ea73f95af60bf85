"""A status that does not fit one message."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from shuntserve.controller.v1 import controller_pb2 as pb

World = Any
CALL_S = 60.0


async def test_pages_have_what_the_whole_has(world: World) -> None:
    await world.start()
    await world.routes(2)
    whole = await world.status()
    assert whole.next_page_token == ""
    put_together, token, pages = pb.GetStatusResponse(), "", 0
    while pages == 0 or token:
        request = pb.GetStatusRequest(page_size=1, page_token=token)
        one = await world.stub.GetStatus(request, timeout=CALL_S)
        assert len(one.nodes) + len(one.pipelines) == 1
        assert bool(one.HasField("plan")) is (not token), "only the first has the rest"
        token, pages = one.next_page_token, pages + 1
        one.ClearField("next_page_token")
        put_together.MergeFrom(one)
    assert pages == 6
    assert put_together.nodes == whole.nodes
    assert put_together.pipelines == whole.pipelines
    assert put_together.plan == whole.plan


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.GetStatusRequest(page_size=1001), "page_size"),
        (pb.GetStatusRequest(page_token="elsewhere/1"), "page_token"),
    ],
)
async def test_a_page_that_cannot_be_names_the_field(
    world: World, request_: pb.GetStatusRequest, field: str
) -> None:
    await world.start()
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await world.stub.GetStatus(request_, timeout=CALL_S)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field.encode() in dict(error.value.trailing_metadata())["grpc-status-details-bin"]
