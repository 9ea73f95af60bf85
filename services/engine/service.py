"""The gRPC edge of an engine: parse, ask the engine or its head, build the reply."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from itertools import pairwise
from typing import Any

import grpc
from shuntserve.engine.v1 import engine_pb2, engine_pb2_grpc

from services.common import logs
from services.common import wire as common_wire
from services.common.errors import InvalidArgument
from services.common.nodes import Member, StageSpec
from services.engine import kv_wire, wire
from services.engine.engine import Engine
from services.engine.formation import FormationPlace

MAX_STAGES = 256

Context = grpc.aio.ServicerContext[Any, Any]


class EngineService(engine_pb2_grpc.EngineServiceServicer):
    """EngineService."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def Generate(
        self, request: engine_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[engine_pb2.GenerateResponse]:
        call = wire.call_from(request)
        logs.about(generation_id=call.request.generation_id)
        async with aclosing(self._engine.head.read(call)) as frames:
            async for frame in frames:
                yield wire.frame_to(frame)

    async def Cancel(
        self, request: engine_pb2.CancelRequest, context: Context
    ) -> engine_pb2.CancelResponse:
        self._engine.head.cancel(
            common_wire.generation_id_from(request.generation_id),
            request.choice if request.HasField("choice") else None,
            common_wire.cancel_reason_from(request.reason),
        )
        return engine_pb2.CancelResponse()

    async def Detach(
        self, request: engine_pb2.DetachRequest, context: Context
    ) -> engine_pb2.DetachResponse:
        left: list[engine_pb2.DetachRequest | engine_pb2.Detached] = [request, *request.more]
        self._engine.head.clients_gone(map(wire.left_from, left))
        return engine_pb2.DetachResponse()

    async def Hold(
        self, request: engine_pb2.HoldRequest, context: Context
    ) -> AsyncIterator[engine_pb2.HoldResponse]:
        model = common_wire.model_from(request.model)
        stages = [
            StageSpec(common_wire.layers_from(stage.layers), stage.tp_degree)
            for stage in request.stages
        ]
        async with aclosing(self._engine.stages.hold(model, stages)) as reports:
            async for report in reports:
                yield engine_pb2.HoldResponse(
                    loaded_bytes=report.loaded_bytes,
                    total_bytes=report.total_bytes,
                    done=report.stages is not None,
                    stages=map(wire.holding_to, report.stages or ()),
                )

    async def Form(
        self, request: engine_pb2.FormRequest, context: Context
    ) -> engine_pb2.FormResponse:
        await self._engine.form(_membership_from(request))
        formation = self._engine.member_of(request.formation_id)
        return engine_pb2.FormResponse(kv_block_bytes=formation.kv_block_bytes)

    async def Dissolve(
        self, request: engine_pb2.DissolveRequest, context: Context
    ) -> engine_pb2.DissolveResponse:
        self._engine.dissolve(request.formation_id)
        return engine_pb2.DissolveResponse()

    async def Drain(
        self, request: engine_pb2.DrainRequest, context: Context
    ) -> engine_pb2.DrainResponse:
        self._engine.member_of(request.formation_id)
        sealed = await self._engine.head.drain(
            request.formation_id,
            keep_kv=request.keep_kv,
            keep_s=kv_wire.limit_from(request.kv_keep_s, "kv_keep_s"),
            replayed=frozenset(request.replayed_generation_ids),
            running=frozenset(request.running_generation_ids),
        )
        return engine_pb2.DrainResponse(sealed_generations=sealed)

    async def WatchPrefixes(
        self, request: engine_pb2.WatchPrefixesRequest, context: Context
    ) -> AsyncIterator[engine_pb2.WatchPrefixesResponse]:
        async with aclosing(self._engine.head.prefixes(request.formation_id)) as news:
            async for told in news:
                yield wire.prefixes_to(told)

    async def Describe(
        self, request: engine_pb2.DescribeRequest, context: Context
    ) -> engine_pb2.DescribeResponse:
        engine = self._engine
        reply = engine_pb2.DescribeResponse(
            node_id=engine.node_id,
            incarnation=engine.incarnation,
            stats=_stats_of(engine),
            core_share=engine.core_share,
        )
        if engine.formation is not None:
            reply.formation_id = engine.formation.id
            reply.stage_index = engine.formation.membership.stage_index
            reply.kv_block_bytes = engine.formation.kv_block_bytes
        layers = {
            (stage.model, stage.spec.tp_degree, number): layer
            for stage in engine.stages.held
            for number, layer in stage.backend.resident_layers().items()
        }
        reply.stages.extend(map(wire.holding_to, engine.stages.holdings))
        reply.packed_bytes = sum(layer.packed_bytes for layer in layers.values())
        tensors = {tensor: None for layer in layers.values() for tensor in layer.tensors}
        reply.tensors.extend(
            engine_pb2.ResidentTensor(name=tensor.name, size_bytes=tensor.size_bytes)
            for tensor in tensors
        )
        return reply

    async def KeepKv(
        self, request: engine_pb2.KeepKvRequest, context: Context
    ) -> engine_pb2.KeepKvResponse:
        formation = self._engine.member_of(request.formation_id)
        blocks = kv_wire.blocks_from(request.blocks)
        keep_s = kv_wire.limit_from(request.keep_s, "keep_s")
        kept = await self._engine.kv.keep(
            formation,
            request.number,
            blocks,
            last=request.last,
            keep_s=keep_s,
            offered=request.offered,
        )
        return engine_pb2.KeepKvResponse(kept=kept)

    async def FetchKv(
        self, request: engine_pb2.FetchKvRequest, context: Context
    ) -> engine_pb2.FetchKvResponse:
        formation = self._engine.member_of(request.formation_id)
        source = common_wire.kv_source_from(request.source)
        blocks = kv_wire.blocks_from(request.blocks)
        limit_s = kv_wire.limit_from(request.limit_s)
        filled = await self._engine.kv.fetch(
            formation, request.number, source, blocks, limit_s, waits=not request.kept
        )
        return engine_pb2.FetchKvResponse(
            filled=filled.blocks, fetched_bytes=filled.fetched_bytes, rounded=filled.rounded
        )

    async def EndKv(
        self, request: engine_pb2.EndKvRequest, context: Context
    ) -> engine_pb2.EndKvResponse:
        await self._engine.member_of(request.formation_id).give_up(request.number)
        return engine_pb2.EndKvResponse()

    async def CopyKv(
        self, request: engine_pb2.CopyKvRequest, context: Context
    ) -> engine_pb2.CopyKvResponse:
        self._engine.member_of(request.formation_id)
        source = common_wire.kv_source_from(request.source)
        heirs = kv_wire.heirs_from(request.heirs)
        copied = await self._engine.head.moves.copy(
            request.formation_id,
            heirs,
            source,
            kv_wire.limit_from(request.limit_s),
            follows=request.follows,
            max_rounds=request.max_rounds,
        )
        return engine_pb2.CopyKvResponse(
            rounds=copied.rounds,
            blocks=copied.blocks,
            copied_bytes=copied.size_bytes,
            copied_s=copied.took_s,
            over=copied.over,
            cached=copied.cached,
            full=copied.full,
            generation_blocks=copied.blocks_of,
        )

    async def StoreKv(
        self, request: engine_pb2.StoreKvRequest, context: Context
    ) -> engine_pb2.StoreKvResponse:
        layout, layers = kv_wire.layout_from(request.layout), kv_wire.layers_from(request.layers)
        laid = kv_wire.laid_from(request)
        stored = await self._engine.kv.store(
            common_wire.kv_source_from(request.source),
            layout,
            layers,
            tuple(request.names),
            kv_wire.limit_from(request.limit_s),
        )
        await self._engine.lay(layout, layers, request.kv_blocks, laid[: stored.blocks])
        return engine_pb2.StoreKvResponse(
            stored=stored.blocks, fetched_bytes=stored.fetched_bytes, full=stored.full
        )

    async def CacheKv(
        self, request: engine_pb2.CacheKvRequest, context: Context
    ) -> engine_pb2.CacheKvResponse:
        self._engine.member_of(request.formation_id)
        cached = await self._engine.head.moves.take_ahead(
            request.formation_id,
            common_wire.kv_source_from(request.source),
            kv_wire.chains_from(request.chains),
            kv_wire.limit_from(request.limit_s),
        )
        return engine_pb2.CacheKvResponse(cached=cached)

    async def OfferKv(
        self, request: engine_pb2.OfferKvRequest, context: Context
    ) -> engine_pb2.OfferKvResponse:
        offered, source = await self._engine.head.offers.offer(
            request.formation_id,
            request.layout,
            tuple(request.names),
            kv_wire.limit_from(request.limit_s),
        )
        return engine_pb2.OfferKvResponse(offered=offered, source=common_wire.kv_source_to(source))

    async def ReadKv(
        self, request: engine_pb2.ReadKvRequest, context: Context
    ) -> AsyncIterator[engine_pb2.ReadKvResponse]:
        wanted, kv = kv_wire.read_from(request), self._engine.kv
        async with aclosing(kv.offered(wanted, self._engine.living_layout)) as pieces:
            async for piece in pieces:
                yield kv_wire.piece_to(piece)

    async def Forward(
        self, request_iterator: AsyncIterator[engine_pb2.ForwardRequest], context: Context
    ) -> AsyncIterator[engine_pb2.ForwardResponse]:
        first = await anext(aiter(request_iterator), None)
        if first is None:
            raise InvalidArgument("the stream must begin with a message", field="formation_id")
        formation = self._engine.member_of(first.formation_id)
        if first.step or first.steps:
            raise InvalidArgument("the first message carries no step", field="step")
        async with aclosing(formation.serve(request_iterator)) as answers:
            async for answer in answers:
                yield answer


def _membership_from(request: engine_pb2.FormRequest) -> FormationPlace:
    """Raises InvalidArgument and names the field."""
    if not request.formation_id:
        raise InvalidArgument("the formation must be named", field="formation_id")
    if not 1 <= len(request.members) <= MAX_STAGES:
        raise InvalidArgument(f"a formation has 1 to {MAX_STAGES} members", field="members")
    if request.stage_index >= len(request.members):
        raise InvalidArgument("stage_index names no member", field="stage_index")
    members = tuple(
        Member(
            member.node_id,
            member.incarnation,
            member.address,
            common_wire.layers_from(member.layers),
            member.tp_degree or 1,
        )
        for member in request.members
    )
    for before, after in pairwise(members):
        if before.layers.end != after.layers.start:
            raise InvalidArgument("each stage begins where the last one ended", field="members")
    return FormationPlace(
        request.formation_id,
        request.pipeline_id,
        common_wire.model_from(request.model),
        members,
        request.stage_index,
        request.kv_blocks,
    )


def _stats_of(engine: Engine) -> engine_pb2.EngineStats:
    counters, scheduler = engine.counters, engine.head.scheduler
    return engine_pb2.EngineStats(
        steps=counters.steps,
        sampled_tokens=counters.sampled_tokens,
        decoded_sequences=counters.decoded_sequences,
        decode_steps=counters.decode_steps,
        replayed_tokens=counters.replayed_tokens,
        running=scheduler.running if scheduler else 0,
        queued=scheduler.queued if scheduler else 0,
        used_kv_blocks=scheduler.used_blocks if scheduler else 0,
        computed_s=counters.computed_s,
        stepped_s=counters.stepped_s,
        cached_kv_blocks=scheduler.blocks.cached_count if scheduler else 0,
        prefix_queries=counters.prefix.queried,
        prefix_hits=counters.prefix.hits,
        prefix_evictions=counters.prefix.evicted,
        filled_kv_blocks=engine.kv.filled_blocks,
        kept_kv_bytes=engine.kv.shelf.used_bytes,
    )
