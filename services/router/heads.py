"""Pipelines' heads as a router sees them: one channel an address, made anew when it broke."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message
from shuntserve.engine.v1 import engine_pb2, engine_pb2_grpc

from services.common import channels, telemetry, wire
from services.common.errors import Unavailable
from services.common.exchange import Frame, GenerateCall, PrefixNews, Route
from services.common.generation import CancelReason
from services.common.roles import Role
from services.common.settings import TlsSettings
from services.common.statuses import from_rpc_error
from services.router.core.actions import SendDetach
from services.router.slices import Slices
from services.router.wire import frame_from, generate_call_to, prefixes_from

MAX_CHANNELS = 256
OPENED_AT_ONCE = 4
"""Streams, of a crowd that comes, or that opens all of its streams again."""
FRAMES_AT_ONCE = 16
"""Of a step of many; who comes meanwhile, or is to be refused, waits for no more of them."""


@dataclass(slots=True)
class _Line:
    """A channel and the calls on it."""

    channel: grpc.aio.Channel
    stub: engine_pb2_grpc.EngineServiceAsyncStub
    """Made once: it makes a callable for each method."""
    users: int = 0
    forgotten: bool = False


class Heads:
    """Opens streams to heads; at most `MAX_CHANNELS` channels are kept, the last used first."""

    def __init__(self, stream_timeout_s: float, call_timeout_s: float, tls: TlsSettings) -> None:
        self._stream_timeout_s = stream_timeout_s
        self._call_timeout_s = call_timeout_s
        self._tls = tls
        self._lines: dict[str, _Line] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._openings = Slices(OPENED_AT_ONCE)
        self._frames = Slices(FRAMES_AT_ONCE)

    async def frames(self, route: Route, call: GenerateCall) -> AsyncGenerator[Frame]:
        """A stream's frames up to its end; raises what broke it. Closing detaches the reader."""
        await self._openings.turn()
        choices, line = call.request.choices, self._line(route.address)
        stream: Any = line.stub.Generate(
            generate_call_to(call),
            timeout=channels.timeout(self._stream_timeout_s),
            metadata=telemetry.metadata(),
        )
        line.users += 1
        try:
            while (message := await stream.read()) is not grpc.aio.EOF:
                await self._frames.turn()
                yield frame_from(message, choices)
        except grpc.RpcError as error:
            failure = from_rpc_error(error)
            if isinstance(failure, Unavailable):
                self._forget(route.address, line)
            raise failure from error
        finally:
            stream.cancel()
            self._release(line)

    async def prefixes(self, route: Route) -> AsyncGenerator[PrefixNews]:
        """What a head has computed, as it changes; raises what ended it."""
        line = self._line(route.address)
        request = engine_pb2.WatchPrefixesRequest(formation_id=route.formation_id)
        stream: Any = line.stub.WatchPrefixes(request, timeout=self._stream_timeout_s)
        line.users += 1
        try:
            while (message := await stream.read()) is not grpc.aio.EOF:
                yield prefixes_from(message)
        except grpc.RpcError as error:
            failure = from_rpc_error(error)
            if isinstance(failure, Unavailable):
                self._forget(route.address, line)
            raise failure from error
        finally:
            stream.cancel()
            self._release(line)

    async def cancel(
        self, route: Route, generation_id: str, choice: int | None, reason: CancelReason
    ) -> None:
        """Tells a head once; what it misses it learns from the controller."""
        request = engine_pb2.CancelRequest(
            generation_id=generation_id, choice=choice, reason=wire.cancel_reason_to(reason)
        )
        await self._tell(route.address, lambda stub: stub.Cancel, request)

    async def _tell(
        self,
        address: str,
        rpc: Callable[[engine_pb2_grpc.EngineServiceAsyncStub], Any],
        request: Message,
    ) -> None:
        line = self._line(address)
        line.users += 1
        call = rpc(line.stub)
        try:
            await call(request, timeout=self._call_timeout_s, metadata=telemetry.metadata())
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        finally:
            self._release(line)

    async def detach(self, address: str, left: Sequence[SendDetach]) -> None:
        """Tells a head once that the clients of these generations' readers are gone."""
        first, *others = left
        request = engine_pb2.DetachRequest(
            generation_id=first.generation_id,
            epoch=first.epoch,
            resumable=first.resumable,
            reader=first.reader,
            more=[
                engine_pb2.Detached(
                    generation_id=one.generation_id,
                    epoch=one.epoch,
                    resumable=one.resumable,
                    reader=one.reader,
                )
                for one in others
            ],
        )
        await self._tell(address, lambda stub: stub.Detach, request)

    def _line(self, address: str) -> _Line:
        line = self._lines.pop(address, None)
        if line is None:
            channel = channels.open_channel(address, Role.ENGINE, tls=self._tls)
            stub: Any = engine_pb2_grpc.EngineServiceStub(channel)
            line = _Line(channel, stub)
        self._lines[address] = line
        if len(self._lines) > MAX_CHANNELS:
            oldest = next(iter(self._lines))
            self._forget(oldest, self._lines[oldest])
        return line

    def _forget(self, address: str, line: _Line) -> None:
        """The next call makes a new channel; streams on the old one are left alone."""
        if self._lines.get(address) is line:
            del self._lines[address]
        line.forgotten = True
        self._close_unused(line)

    def _release(self, line: _Line) -> None:
        line.users -= 1
        self._close_unused(line)

    def _close_unused(self, line: _Line) -> None:
        if line.forgotten and line.users == 0:
            task = asyncio.get_running_loop().create_task(line.channel.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Closes every channel, and with it every stream."""
        for address, line in list(self._lines.items()):
            line.users = 0
            self._forget(address, line)
        await asyncio.gather(*self._closing)
