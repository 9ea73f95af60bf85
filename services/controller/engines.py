"""What the controller asks of engines, each call with its deadline."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
from shuntserve.engine.v1 import engine_pb2, engine_pb2_grpc

from services.common import channels, telemetry, wire
from services.common.errors import DeadlineExceeded, Unavailable
from services.common.exchange import KvMember, KvSource
from services.common.generation import CancelReason, ModelRef
from services.common.nodes import Member, StageHolding, StageSpec
from services.common.roles import Role
from services.common.settings import TlsSettings
from services.common.statuses import from_rpc_error
from services.controller.core.cluster.actions import FormPipeline


@dataclass(frozen=True, slots=True)
class EngineTimeouts:
    """Deadlines in seconds."""

    hold_s: float = 900.0
    hold_progress_s: float = 60.0
    """A hold that reports no progress for this long has failed."""
    form_s: float = 10.0
    describe_s: float = 1.0
    dissolve_s: float = 1.0
    drain_s: float = 10.0
    cancel_s: float = 2.0
    probe_s: float = 0.5


@dataclass(frozen=True, slots=True)
class Heir:
    """Processes that are to go on with generations, each with the layers it will have."""

    members: tuple[KvMember, ...]
    generation_ids: frozenset[str]
    formation_id: str = ""
    """What they are by now, head first; empty: nothing yet."""


@dataclass(frozen=True, slots=True)
class WentAhead:
    """What has gone ahead of a formation's generations."""

    rounds: int = 0
    blocks: int = 0
    cached: int = 0
    """Those of them that lie in the caches of a formation that serves."""
    size_bytes: int = 0
    """From process to process."""
    took_s: float = 0.0
    over: bool = False
    """Each of them has begun, and another round would bring as many as the last one."""
    full: bool = False
    """Where they are, or go on, there was no room for all of the last round."""
    blocks_of: Mapping[str, int] = field(default_factory=dict)
    """The blocks, by generation."""

    def tells_of_link(self, before: int = 0) -> bool:
        """Bytes went over it, or did not though they were to. Where all of it lies there already,
        or has no room there, nothing follows; so many blocks did `before`."""
        if self.size_bytes:
            return True
        return bool(self.rounds) and self.blocks == before and not self.over and not self.full

    @property
    def attributes(self) -> dict[str, str]:
        """For the event log."""
        return {
            "rounds": str(self.rounds),
            "blocks": str(self.blocks),
            "cached": str(self.cached),
            "bytes": str(self.size_bytes),
            "took_s": f"{self.took_s:.3f}",
        }


class Engines:
    """Calls to engine processes; a failed one raises a ShuntError."""

    def __init__(
        self, timeouts: EngineTimeouts, *, max_message_bytes: int, tls: TlsSettings | None = None
    ) -> None:
        self._timeouts = timeouts
        self._max_message_bytes = max_message_bytes
        self._tls = tls
        self._channels: dict[str, grpc.aio.Channel] = {}

    @property
    def addresses(self) -> set[str]:
        """Where connections lead."""
        return set(self._channels)

    async def hold(
        self,
        address: str,
        model: ModelRef,
        stages: Sequence[StageSpec],
        progress: Callable[[int, int], None],
    ) -> tuple[StageHolding, ...]:
        """Has a node hold these stages and no others, those that come first before those behind.

        `progress` is called with bytes so far and in all. Returns what is held of each.
        """
        request = engine_pb2.HoldRequest(
            model=wire.model_to(model),
            stages=[
                engine_pb2.StageSpec(layers=wire.layers_to(stage.layers), tp_degree=stage.tp_degree)
                for stage in stages
            ],
        )
        call = self._stub(address).Hold(request, timeout=self._timeouts.hold_s)
        try:
            with _domain_errors():
                async for message in _each_within(call, self._timeouts.hold_progress_s):
                    progress(message.loaded_bytes, message.total_bytes)
                    if message.done:
                        return _holdings(model, stages, message)
        finally:
            call.cancel()
        raise Unavailable("the hold ended before it was done")

    async def form(self, formation: FormPipeline) -> int:
        """Makes the members one pipeline; the head comes last, for it connects the others. Returns
        the bytes of a full KV block of all its layers, 0 where blocks go nowhere."""
        await asyncio.gather(
            *(self._form(formation, index) for index in range(1, len(formation.members)))
        )
        return await self._form(formation, 0)

    async def _form(self, formation: FormPipeline, stage_index: int) -> int:
        request = engine_pb2.FormRequest(
            formation_id=formation.formation_id,
            pipeline_id=formation.pipeline_id,
            model=wire.model_to(formation.model),
            members=[
                engine_pb2.Member(
                    node_id=member.node_id,
                    incarnation=member.incarnation,
                    address=member.address,
                    layers=wire.layers_to(member.layers),
                    tp_degree=member.tp_degree,
                )
                for member in formation.members
            ],
            stage_index=stage_index,
            kv_blocks=formation.kv_blocks,
        )
        with _domain_errors():
            stub = self._stub(formation.members[stage_index].address)
            reply = await stub.Form(request, timeout=self._timeouts.form_s)
        return reply.kv_block_bytes

    async def block_bytes(self, formation_id: str, head: Member) -> int:
        """Of a full block of all layers of a formation that stands, as `form` tells it. Raises
        Unavailable for one that the head is not in."""
        with _domain_errors():
            stub = self._stub(head.address)
            told = await stub.Describe(
                engine_pb2.DescribeRequest(), timeout=self._timeouts.describe_s
            )
        if told.formation_id != formation_id:
            raise Unavailable("the head is in another formation", field="formation_id")
        return told.kv_block_bytes

    async def dissolve(self, formation_id: str, member: Member) -> None:
        request = engine_pb2.DissolveRequest(formation_id=formation_id)
        with _domain_errors():
            stub = self._stub(member.address)
            await stub.Dissolve(request, timeout=self._timeouts.dissolve_s)

    async def drain(
        self,
        formation_id: str,
        head: Member,
        *,
        keep_kv: bool = False,
        keep_s: float = 0.0,
        replayed: Collection[str] = (),
        running: Collection[str] = (),
    ) -> int:
        """Seals the formation's generations but those `running`; returns how many. With `keep_kv`
        its stages keep what they hold of them, for `keep_s` at least, but of those that are
        `replayed`; they may take as long for it."""
        request = engine_pb2.DrainRequest(
            formation_id=formation_id,
            keep_kv=keep_kv,
            kv_keep_s=keep_s,
            replayed_generation_ids=sorted(replayed),
            running_generation_ids=sorted(running),
        )
        with _domain_errors():
            stub = self._stub(head.address)
            reply = await stub.Drain(request, timeout=keep_s + self._timeouts.drain_s)
        return reply.sealed_generations

    async def copy_ahead(
        self,
        source: KvSource,
        head: Member,
        heirs: Iterable[Heir],
        limit_s: float,
        *,
        follows: bool = False,
        max_rounds: int = 0,
    ) -> WentAhead:
        """Has blocks of what the source's formation runs go ahead to its heirs, in no more than so
        many rounds, if any number is said; with `follows` those, too, that fill while it does."""
        request = engine_pb2.CopyKvRequest(
            formation_id=source.formation_id,
            heirs=[
                engine_pb2.KvHeir(
                    members=map(wire.kv_member_to, heir.members),
                    generation_ids=sorted(heir.generation_ids),
                    formation_id=heir.formation_id,
                )
                for heir in heirs
            ],
            source=wire.kv_source_to(source),
            limit_s=limit_s,
            follows=follows,
            max_rounds=max_rounds,
        )
        with _domain_errors():
            stub = self._stub(head.address)
            said = await stub.CopyKv(request, timeout=limit_s + self._timeouts.drain_s)
        return WentAhead(
            said.rounds,
            said.blocks,
            said.cached,
            said.copied_bytes,
            said.copied_s,
            said.over,
            said.full,
            dict(said.generation_blocks),
        )

    async def cancel(
        self, address: str, generation_id: str, choice: int | None, reason: CancelReason
    ) -> None:
        request = engine_pb2.CancelRequest(
            generation_id=generation_id, choice=choice, reason=wire.cancel_reason_to(reason)
        )
        with _domain_errors():
            stub = self._stub(address)
            await stub.Cancel(
                request, timeout=self._timeouts.cancel_s, metadata=telemetry.metadata()
            )

    async def refuses(self, address: str) -> bool:
        """Nobody listens at the address: its process is dead. Silence is no proof of that."""
        host, _, port = address.rpartition(":")
        try:
            async with asyncio.timeout(self._timeouts.probe_s):
                _, writer = await asyncio.open_connection(host, int(port))
        except ConnectionRefusedError:
            return True
        except (OSError, ValueError):
            return False
        writer.close()
        return False

    async def forget(self, address: str) -> None:
        """Closes the connection to a node that is gone."""
        channel = self._channels.pop(address, None)
        if channel is not None:
            await channel.close()

    async def close(self) -> None:
        for address in list(self._channels):
            await self.forget(address)

    def _stub(self, address: str) -> engine_pb2_grpc.EngineServiceAsyncStub:
        channel = self._channels.get(address)
        if channel is None:
            channel = channels.open_channel(
                address, Role.ENGINE, max_message_bytes=self._max_message_bytes, tls=self._tls
            )
            self._channels[address] = channel
        return engine_pb2_grpc.EngineServiceStub(channel)


@contextmanager
def _domain_errors() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error


def _holdings(
    model: ModelRef, stages: Sequence[StageSpec], message: engine_pb2.HoldResponse
) -> tuple[StageHolding, ...]:
    answered = [
        (
            wire.model_from(holding.model),
            StageSpec(wire.layers_from(holding.stage.layers), holding.stage.tp_degree),
        )
        for holding in message.stages
    ]
    if answered != [(model, stage) for stage in stages]:
        raise Unavailable("the node answered for other stages than it was asked for")
    return tuple(
        StageHolding(
            model,
            stage,
            held=holding.held,
            cached=holding.cached,
            kv_blocks=holding.kv_blocks,
            numerics_class=holding.numerics_class,
        )
        for stage, holding in zip(stages, message.stages, strict=True)
    )


async def _each_within(
    call: AsyncIterable[engine_pb2.HoldResponse], limit_s: float
) -> AsyncIterator[engine_pb2.HoldResponse]:
    """Messages of a stream; raises DeadlineExceeded when one takes longer than the limit."""
    iterator = aiter(call)
    while True:
        try:
            async with asyncio.timeout(limit_s):
                message = await anext(iterator)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise DeadlineExceeded(f"no progress for {limit_s:g} s") from None
        yield message
