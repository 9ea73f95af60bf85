"""The stream to the next stage: batches down, sampled tokens back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import grpc
from shuntserve.engine.v1 import engine_pb2, engine_pb2_grpc

from services.common.errors import StaleEpoch, Unavailable
from services.common.statuses import from_rpc_error

_log = logging.getLogger(__name__)

RETRY_S = 0.05
FAREWELL_S = 1.0
_NOT_YET = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ABORTED,
)

Call = grpc.aio.StreamStreamCall[engine_pb2.ForwardRequest, engine_pb2.ForwardResponse]


class Downstream:
    """One Forward call for the life of a formation. It has no deadline: every step has one."""

    def __init__(
        self, address: str, formation_id: str, connect: Callable[[str], grpc.aio.Channel]
    ) -> None:
        self._address = address
        self._formation_id = formation_id
        self._connect = connect
        self._channel: grpc.aio.Channel | None = None
        self._call: Call | None = None

    async def stand(self) -> None:
        """Returns when all later stages stand; tries for ever, the caller limits the time."""
        self._channel = self._connect(self._address)
        stub = engine_pb2_grpc.EngineServiceStub(self._channel)
        while True:
            self._call = stub.Forward()
            try:
                await self._call.write(engine_pb2.ForwardRequest(formation_id=self._formation_id))
                answer = await self._call.read()
                if isinstance(answer, engine_pb2.ForwardResponse):
                    return
                raise Unavailable("the next stage ended the stream")
            except grpc.aio.AioRpcError as error:
                if error.code() not in _NOT_YET:
                    raise from_rpc_error(error) from error
            except asyncio.InvalidStateError:
                # The call ended before the message went out; the reason does not matter yet.
                self._call.cancel()
            await asyncio.sleep(RETRY_S)

    async def send(self, message: engine_pb2.ForwardRequest) -> None:
        """Waits for flow control; raises like `responses`."""
        assert self._call is not None
        try:
            # A cancelled write cancels the call: the next stage would take this one for dead.
            await asyncio.shield(self._call.write(message))
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        except asyncio.InvalidStateError:
            raise Unavailable("the stream to the next stage has ended") from None

    async def responses(self) -> AsyncIterator[engine_pb2.ForwardResponse]:
        """Answers of the later stages. Raises Unavailable when the next stage is lost, StaleEpoch
        when it left the formation; never just ends."""
        assert self._call is not None
        try:
            while isinstance(message := await self._call.read(), engine_pb2.ForwardResponse):
                yield message
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        raise StaleEpoch("the next stage ended the stream")

    async def farewell(self, reading: asyncio.Task[None] | None) -> None:
        """Ends the call so that the next stage does not take this one for lost; `reading` is the
        task that reads `responses`, which ends with them."""
        try:
            if self._call is not None and reading is not None:
                async with asyncio.timeout(FAREWELL_S):
                    await asyncio.shield(self._call.done_writing())
                    await asyncio.wait((reading,))
        except (TimeoutError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
            _log.debug("no farewell", extra={"address": self._address})
        finally:
            if self._call is not None:
                self._call.cancel()
            if reading is not None:
                reading.cancel()  # it may wait for somebody to take what it read
            if self._channel is not None:
                await self._channel.close()
