"""What the process keeps up with the controller: registration, heartbeats and checkpoints.

All of it survives the controller's absence: streams are opened again, checkpoints that were not
answered lie in the head's core and are sent again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from itertools import count

import grpc
from shuntserve.controller.v1 import controller_pb2, controller_pb2_grpc

from services.common.errors import Aborted
from services.common.nodes import ASKED_BEATS, NodeFacts
from services.common.statuses import from_rpc_error
from services.common.wire_machine import machine_to
from services.common.wire_notices import notice_to
from services.engine import wire
from services.engine.engine import Engine

_log = logging.getLogger(__name__)

FIRST_RETRY_S = 0.1
LAST_RETRY_S = 1.0


CheckpointCall = grpc.aio.StreamStreamCall[
    controller_pb2.StreamCheckpointsRequest, controller_pb2.StreamCheckpointsResponse
]


HeartbeatCall = grpc.aio.StreamStreamCall[
    controller_pb2.HeartbeatRequest, controller_pb2.HeartbeatResponse
]


class ControllerLink:
    """Runs until cancelled, or until the controller says that this process was replaced. Of several
    addresses the controller is at the first that takes the registration."""

    def __init__(
        self,
        stubs: Sequence[controller_pb2_grpc.ControllerServiceAsyncStub],
        engine: Engine,
        facts: NodeFacts,
        *,
        timeout_s: float,
        checkpoint_interval_s: float,
        clock: Callable[[], float],
        registered: Callable[[], None] = lambda: None,
    ) -> None:
        """`registered` is called whenever the controller has taken note of the process."""
        self._stubs = tuple(stubs)
        self._turn = 0
        """Which of them is the controller, as far as is known."""
        self._moved = asyncio.Event()
        """Another one is."""
        self._engine = engine
        self._facts = facts
        self._timeout_s = timeout_s
        self._checkpoint_interval_s = checkpoint_interval_s
        self._clock, self._registered = clock, registered
        self.last_heard_s = clock()
        self._interval_s = 0.0
        """Of beats, as they are wanted now; 0 without a stream of them."""
        self._answered = asyncio.Event()
        """The controller has, since the last beat was sent."""

    @property
    def silent_s(self) -> float:
        """For how long the controller is late with an answer; below 0 while none is due."""
        return self._clock() - self.last_heard_s - ASKED_BEATS * self._interval_s

    async def run(self) -> None:
        """Raises Aborted when the controller knows a newer process of this node."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._again(self._live_somewhere))
            group.create_task(self._again(self._journal))

    async def _again(self, attempt: Callable[[], Awaitable[None]]) -> None:
        failures = 0
        while True:
            began_s, why = self._clock(), "the controller ended the stream"
            try:
                await attempt()
            except grpc.aio.AioRpcError as error:
                known = from_rpc_error(error)
                if isinstance(known, Aborted):
                    raise known from error
                why = known.message
            except asyncio.InvalidStateError:
                why = "the stream had ended"
            except TimeoutError:
                why = "no answer"
            lived = self._clock() - began_s > self._timeout_s + LAST_RETRY_S
            failures = 1 if lived else failures + 1
            if failures == 1:
                _log.info("controller away", extra={"why": why})
            await asyncio.sleep(min(FIRST_RETRY_S * 2 ** min(failures - 1, 8), LAST_RETRY_S))

    @property
    def _stub(self) -> controller_pb2_grpc.ControllerServiceAsyncStub:
        return self._stubs[self._turn % len(self._stubs)]

    # Signs of life

    async def _live_somewhere(self) -> None:
        """At one of the addresses; one that fails leaves the next attempt to the next."""
        try:
            await self._live()
        except (grpc.aio.AioRpcError, TimeoutError):
            if len(self._stubs) > 1:
                self._turn += 1
                self._moved.set()
            raise

    async def _live(self) -> None:
        """Registers, then beats until the stream ends or the controller asks to register again."""
        mine = self._facts
        reply = await self._stub.Register(
            controller_pb2.RegisterRequest(
                node_id=mine.node_id,
                incarnation=mine.incarnation,
                address=mine.address,
                pid=mine.pid,
                memory_bytes=mine.shape.memory_bytes,
                relative_speed=mine.shape.relative_speed,
                device_type=mine.shape.device_type,
                device_count=mine.shape.device_count,
                machine=machine_to(mine.machine),
                backend=mine.shape.backend,
                metrics_port=mine.metrics_port,
            ),
            timeout=self._timeout_s,
        )
        self.last_heard_s = self._clock()
        self._registered()
        _log.info("registered with the controller")
        await self._beat(self._stub.Heartbeat(), reply.heartbeat_interval_s)

    async def _beat(self, call: HeartbeatCall, interval_s: float) -> None:
        """Until the stream ends, which is seen at once however seldom beats are, or until the
        controller asks to register again."""
        self._interval_s = interval_s
        try:
            await _first_of(self._send_beats(call), self._read_answers(call))
        finally:
            self._interval_s = 0.0
            call.cancel()

    async def _read_answers(self, call: HeartbeatCall) -> None:
        """All that come, whether or not they were asked for: a controller of an earlier version
        answers every beat."""
        while isinstance(answer := await call.read(), controller_pb2.HeartbeatResponse):
            self.last_heard_s = self._clock()
            if answer.register_again:
                return
            self._interval_s = answer.heartbeat_interval_s or self._interval_s
            self._answered.set()

    async def _send_beats(self, call: HeartbeatCall) -> None:
        for beat in count():
            self._engine.changed.clear()
            self._answered.clear()
            asks = not beat % ASKED_BEATS
            await call.write(self._heartbeat(asks))
            if asks:
                async with asyncio.timeout(self._timeout_s):
                    await self._answered.wait()
            await _wait(self._engine.changed, self._interval_s)

    def _heartbeat(self, asks: bool) -> controller_pb2.HeartbeatRequest:
        engine = self._engine
        departs_at_s = engine.departs_at_s
        left_s = None if departs_at_s is None else max(0.0, departs_at_s - self._clock())
        return controller_pb2.HeartbeatRequest(
            node_id=engine.node_id,
            incarnation=engine.incarnation,
            formation_id=engine.reported_formation_id,
            sampled_tokens=engine.counters.sampled_tokens,
            lost_node_ids=engine.lost_node_ids,
            steps=engine.counters.steps,
            has_work=engine.head.has_work,
            departs_in_s=left_s,
            notice=notice_to(engine.notice),
            no_answer=not asks,
        )

    # Checkpoints

    async def _journal(self) -> None:
        """Sends checkpoints as they fall due and hands the answers to the head."""
        self._moved.clear()
        call = self._stub.StreamCheckpoints()
        try:
            async with asyncio.timeout(self._timeout_s):
                # An empty message is answered at once: the stream stands.
                await call.write(controller_pb2.StreamCheckpointsRequest(sequence=0))
                answer = await call.read()
            if not isinstance(answer, controller_pb2.StreamCheckpointsResponse):
                return
            self._engine.head.checkpoint_stream_opened()
            await _first_of(
                self._read_results(call), self._send_checkpoints(call), self._moved.wait()
            )
        finally:
            call.cancel()

    async def _read_results(self, call: CheckpointCall) -> None:
        while isinstance(message := await call.read(), controller_pb2.StreamCheckpointsResponse):
            self.last_heard_s = self._clock()
            results = [wire.result_from(result) for result in message.results]
            self._engine.head.checkpoint_results(message.sequence, results)

    async def _send_checkpoints(self, call: CheckpointCall) -> None:
        head, sequence = self._engine.head, 0
        while True:
            await _wait(head.checkpoints_due, self._checkpoint_interval_s)
            head.checkpoints_due.clear()
            while checkpoints := head.take_checkpoints(sequence + 1):
                sequence += 1
                message = controller_pb2.StreamCheckpointsRequest(
                    sequence=sequence, checkpoints=[wire.checkpoint_to(c) for c in checkpoints]
                )
                await call.write(message)


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return


async def _first_of(*coroutines: Coroutine[object, object, object]) -> None:
    """Runs them beside each other until one ends, as that one ended."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
