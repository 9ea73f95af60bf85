"""The calls by which blocks move: of a head to the stages of its formation, and between stages."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence

import grpc
from shuntserve.engine.v1 import engine_pb2, engine_pb2_grpc

from services.common import wire as common_wire
from services.common.errors import ShuntError
from services.common.exchange import KvMember, KvSource, PrefixHolder
from services.common.nodes import Member
from services.common.statuses import from_rpc_error
from services.engine.core.copying import Heir
from services.engine.core.incoming import KvFetch, NamedBlock
from services.engine.core.kv_layout import KvPiece
from services.engine.formation import FormationPart
from services.engine.kv_exchange import KvExchange
from services.engine.kv_gatherer import Wanted
from services.engine.kv_moves import Brought, Stored
from services.engine.kv_wire import blocks_to, layers_to, layout_to, piece_from, read_to
from services.engine.peers import Peers

_log = logging.getLogger(__name__)

ANSWER_S = 5.0
"""A stage that is told until when to fill blocks answers no later than this behind that."""


class KvCalls:
    """Implements KvMoves: what a head asks of all stages of its formation, its own included."""

    def __init__(self, exchange: KvExchange, peers: Peers, fetch_s: float) -> None:
        """`fetch_s` is how long blocks are worth waiting for before they are computed, where
        nobody says that they are for longer."""
        self._exchange, self._peers = exchange, peers
        self._fetch_s = fetch_s

    async def keep(
        self,
        formation: FormationPart,
        number: int,
        blocks: Sequence[NamedBlock],
        *,
        last: bool = False,
        keep_s: float = 0.0,
        offered: bool = False,
    ) -> int | None:
        # Stages have as long for it as whoever fetches the blocks waits for them.
        limit_s = max(self._fetch_s, keep_s)

        async def here() -> int:
            async with asyncio.timeout(limit_s):
                return await self._exchange.keep(
                    formation, number, blocks, last=last, keep_s=keep_s, offered=offered
                )

        async def there(member: Member) -> int:
            async with self._peers.to(member.address) as channel:
                request = engine_pb2.KeepKvRequest(
                    formation_id=formation.id,
                    blocks=blocks_to(blocks),
                    last=last,
                    number=number,
                    keep_s=keep_s,
                    offered=offered,
                )
                stub = engine_pb2_grpc.EngineServiceStub(channel)
                said = await stub.KeepKv(request, timeout=limit_s)
                return said.kept

        return _least(await self._of_all(formation, here, there))

    async def store(
        self,
        formation: FormationPart,
        source: KvSource,
        heir: Sequence[KvMember],
        names: Sequence[bytes],
        limit_s: float,
        places: Mapping[bytes, int],
    ) -> Stored:
        layout = formation.kv_layout

        async def stored(member: KvMember) -> Stored:
            layers = range(member.layers.start, member.layers.end)
            if member.incarnation == self._exchange.incarnation:
                own = await self._exchange.store(source, layout, layers, names, limit_s)
                return Stored(own.fetched_bytes, own.blocks == len(names), own.full)
            request = engine_pb2.StoreKvRequest(
                source=common_wire.kv_source_to(source),
                layout=layout_to(layout),
                layers=layers_to(layers),
                names=names,
                limit_s=limit_s,
                blocks=[places[name] for name in names] if places else (),
                kv_blocks=formation.membership.kv_blocks if places else 0,
            )
            try:
                async with self._peers.to(member.address) as channel:
                    stub = engine_pb2_grpc.EngineServiceStub(channel)
                    said = await stub.StoreKv(request, timeout=limit_s + ANSWER_S)
            except grpc.aio.AioRpcError as error:
                told = {"address": member.address, "why": from_rpc_error(error).message}
                _log.warning("blocks do not go ahead", extra=told)
                return Stored(0, whole=False, full=False)
            return Stored(said.fetched_bytes, said.stored == len(names), said.full)

        each = await asyncio.gather(*map(stored, heir))
        return Stored(
            sum(one.size_bytes for one in each),
            all(one.whole for one in each),
            any(one.full for one in each),
        )

    async def cache(
        self, heir: Heir, source: KvSource, chains: Sequence[Sequence[bytes]], limit_s: float
    ) -> Sequence[int]:
        request = engine_pb2.CacheKvRequest(
            formation_id=heir.formation_id,
            source=common_wire.kv_source_to(source),
            chains=[engine_pb2.KvChain(names=names) for names in chains],
            limit_s=limit_s,
        )
        address = heir.members[0].address
        try:
            async with self._peers.to(address) as channel:
                stub = engine_pb2_grpc.EngineServiceStub(channel)
                said = await stub.CacheKv(request, timeout=limit_s + ANSWER_S)
        except grpc.aio.AioRpcError as error:
            told = {"address": address, "why": from_rpc_error(error).message}
            _log.warning("blocks do not go into caches ahead", extra=told)
            return ()
        return said.cached

    async def offer(
        self,
        formation: FormationPart,
        holder: PrefixHolder,
        names: Sequence[bytes],
        limit_s: float,
    ) -> tuple[int, KvSource]:
        """The holder's stages keep what they have of these for the formation: so many, from the
        first on, and who keeps them. None, where it does not say so in time."""
        request = engine_pb2.OfferKvRequest(
            formation_id=holder.formation_id,
            layout=formation.kv_layout.name,
            names=names,
            limit_s=limit_s,
        )
        why = ""
        try:
            async with self._peers.to(holder.address) as channel:
                stub = engine_pb2_grpc.EngineServiceStub(channel)
                said = await stub.OfferKv(request, timeout=limit_s)
            return said.offered, common_wire.kv_source_from(said.source)
        except grpc.aio.AioRpcError as error:
            why = from_rpc_error(error).message
        except ShuntError as error:  # it says nothing of use
            why = error.message
        _log.warning("a prefix is not had", extra={"address": holder.address, "why": why})
        return 0, KvSource(holder.formation_id, ())

    async def fetch(self, formation: FormationPart, fetch: KvFetch) -> Brought:
        limit_s = fetch.source.fetch_s or self._fetch_s
        kept, fetched_bytes, rounded = fetch.holder is not None, 0, False

        async def here() -> int:
            nonlocal fetched_bytes, rounded
            filled = await self._exchange.fetch(
                formation, fetch.number, fetch.source, fetch.blocks, limit_s, waits=not kept
            )
            fetched_bytes += filled.fetched_bytes
            rounded = rounded or filled.rounded
            return filled.blocks

        async def there(member: Member) -> int:
            nonlocal fetched_bytes, rounded
            async with self._peers.to(member.address) as channel:
                request = engine_pb2.FetchKvRequest(
                    formation_id=formation.id,
                    source=common_wire.kv_source_to(fetch.source),
                    blocks=blocks_to(fetch.blocks),
                    limit_s=limit_s,
                    number=fetch.number,
                    kept=kept,
                )
                stub = engine_pb2_grpc.EngineServiceStub(channel)
                said = await stub.FetchKv(request, timeout=limit_s + ANSWER_S)
                fetched_bytes += said.fetched_bytes
                rounded = rounded or said.rounded
                return said.filled

        count = _least(await self._of_all(formation, here, there))
        return Brought(count, fetched_bytes, rounded)

    async def end(self, formation: FormationPart, number: int) -> bool:

        async def here() -> int:
            await formation.give_up(number)
            return number

        async def there(member: Member) -> int:
            async with self._peers.to(member.address) as channel:
                request = engine_pb2.EndKvRequest(formation_id=formation.id, number=number)
                await engine_pb2_grpc.EngineServiceStub(channel).EndKv(request, timeout=ANSWER_S)
                return number

        return None not in await self._of_all(formation, here, there)

    @staticmethod
    async def _of_all(
        formation: FormationPart,
        here: Callable[[], Awaitable[int]],
        there: Callable[[Member], Awaitable[int]],
    ) -> list[int | None]:
        """What each stage says; None: nothing."""

        async def asked(index: int, member: Member) -> int | None:
            try:
                own = index == formation.membership.stage_index
                return await (here() if own else there(member))
            except TimeoutError:
                why = "it takes too long"
            except ShuntError as error:
                why = error.message
            except grpc.aio.AioRpcError as error:
                why = from_rpc_error(error).message
            except Exception:  # of the own stage: another's comes as a status
                _log.exception("a stage fails at blocks", extra={"node_id": member.node_id})
                return None
            _log.warning("a stage does not answer", extra={"node_id": member.node_id, "why": why})
            return None

        members = formation.membership.members
        return await asyncio.gather(*(asked(i, member) for i, member in enumerate(members)))


def _least(counts: Sequence[int | None]) -> int | None:
    """Of what all stages have said; None where one said nothing."""
    said = [count for count in counts if count is not None]
    return min(said) if len(said) == len(counts) else None


class KvReader:
    """Reads blocks of other processes, each flow over a connection of its own."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    async def read(
        self, member: KvMember, wanted: Wanted, limit_s: float
    ) -> AsyncGenerator[KvPiece | None, None]:
        """Pieces as they come; None: there are none yet. Raises what the other says, and what comes
        of its silence."""
        async with self._peers.to(member.address) as channel:
            call = engine_pb2_grpc.EngineServiceStub(channel).ReadKv(
                read_to(wanted), timeout=limit_s
            )
            try:
                async for message in call:
                    yield piece_from(message)
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from error
            finally:
                call.cancel()
