"""A prompt's beginning that one pipeline has computed comes to another one that serves, over real
gRPC; whatever goes wrong with it is computed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import grpc
import pytest
from shuntserve.engine.v1 import engine_pb2

from services.common.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from services.common.exchange import KvSource
from services.common.generation import GenerationRequest
from services.common.prefix import chain_of
from services.common.statuses import from_rpc_error
from services.engine import kv_exchange
from services.engine.backend import BLOCK_SIZE
from services.engine.core import prefix_fetching
from services.engine.kv_exchange import MAX_NAMES
from services.engine.prefix_offers import PrefixOffers
from tests.contract.engine.rig import Rig, Stream, Worker, generate, request, until
from tests.contract.engine.tiny import LAYERS, expected_ids

PROMPT = [5 + 7 * i % 500 for i in range(400)]
FULL = len(PROMPT) // BLOCK_SIZE
FETCHED = (len(PROMPT) - 1) // BLOCK_SIZE
TOKENS = 6
BLOCK_BYTES = 64
"""Of a layer."""


async def serving(rig: Rig, cuts: Sequence[int], formation: str, **settings: Any) -> list[Worker]:
    """A pipeline whose steps take long enough for a fetch to be worth its while, and have shown
    it."""
    more = {"token_budget": 80, "kv_prefix_bytes_per_s": 1e9, "kv_prefix_fetch_s": 60.0} | settings
    workers = [await rig.worker(step_s=0.05, **more) for _ in range(len(cuts) + 1)]
    await rig.form(workers, cuts, formation)
    await generate(workers[0], request(f"first-{formation}", [1, 2, 3], 2), formation).end()
    return workers


def held_by(worker: Worker, formation: str, positions: int = len(PROMPT)) -> Any:
    """As a router names it."""
    return engine_pb2.PrefixHolder(
        address=worker.address, formation_id=formation, positions=positions
    )


async def stats(worker: Worker) -> engine_pb2.EngineStats:
    return (await worker.stub.Describe(engine_pb2.DescribeRequest(), timeout=60)).stats


async def asked_of(
    worker: Worker, formation: str, holder: Any, asked: GenerationRequest | None = None
) -> Stream:
    """To the end, and every choice says what it must."""
    asked = asked or request("g", PROMPT, TOKENS)
    stream = await generate(worker, asked, formation, prefix_holder=holder).end()
    assert stream.closed == engine_pb2.CLOSE_REASON_FINISHED
    for choice, ids in stream.ids.items():
        assert ids == expected_ids(asked.prompt_ids, TOKENS, choice=choice)
    return stream


def cached(stream: Stream) -> int:
    return max(run.cached_tokens for frame in stream.frames for run in frame.tokens.runs)


async def read_at(rig: Rig, cuts: Sequence[int], **settings: Any) -> list[Worker]:
    """A pipeline that has computed the prompt."""
    workers = await serving(rig, cuts, "a", **settings)
    await asked_of(workers[0], "a", None, request("before", PROMPT, TOKENS))
    return workers


@pytest.mark.parametrize(("there", "here"), [([], []), ([3], [2, 4]), ([2, 4], [])])
async def test_a_prompts_beginning_comes_from_who_has_read_it(
    rig: Rig, there: list[int], here: list[int]
) -> None:
    holders = await read_at(rig, there)
    workers = await serving(rig, here, "b")
    stream = await asked_of(workers[0], "b", held_by(holders[0], "a"))
    assert [(await stats(one)).filled_kv_blocks for one in workers] == [FETCHED] * len(workers)
    fetched = [one.engine.kv.fetched_bytes for one in workers if one.engine is not None]
    assert sum(fetched) == FETCHED * LAYERS * BLOCK_BYTES
    assert cached(stream) == FETCHED * BLOCK_SIZE, "nobody computed them for this prompt"
    for worker in (holders[0], workers[0]):
        assert (await stats(worker)).used_kv_blocks == 0
    again = await asked_of(workers[0], "b", None, request("h", PROMPT, TOKENS))
    assert cached(again) >= FETCHED * BLOCK_SIZE, "they are in the prefix cache"


async def test_choices_and_twins_wait_for_one_fetch(rig: Rig) -> None:
    holders = await read_at(rig, [])
    (worker,) = await serving(rig, [], "b")
    holder = held_by(holders[0], "a")
    three = request("g", PROMPT, TOKENS, choices=3)
    twin = request("twin", [*PROMPT[:-5], *range(20)], TOKENS)
    await asyncio.gather(asked_of(worker, "b", holder, three), asked_of(worker, "b", holder, twin))
    assert (await stats(worker)).filled_kv_blocks == FETCHED
    assert worker.engine is not None
    assert worker.engine.kv.fetched_bytes == FETCHED * LAYERS * BLOCK_BYTES


async def test_what_another_salt_has_is_not_had(rig: Rig) -> None:
    holders = await read_at(rig, [])
    (worker,) = await serving(rig, [], "b")
    salted = replace(request("g", PROMPT, TOKENS), cache_salt="mine")
    stream = await asked_of(worker, "b", held_by(holders[0], "a"), salted)
    assert (cached(stream), (await stats(worker)).filled_kv_blocks) == (0, 0)


async def test_what_is_computed_sooner_is_not_fetched(rig: Rig) -> None:
    holders = await read_at(rig, [])
    (worker,) = await serving(rig, [], "b", kv_prefix_bytes_per_s=1000.0)
    await asked_of(worker, "b", held_by(holders[0], "a"))
    (never,) = await serving(rig, [], "c", kv_prefix_fetch_s=0.0)
    await asked_of(never, "c", held_by(holders[0], "a"))
    assert [(await stats(one)).filled_kv_blocks for one in (worker, never)] == [0, 0]


@pytest.mark.parametrize("fault", ["dead", "another formation", "another's checksums", "members"])
async def test_a_peer_that_is_wrong_is_a_miss(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    holders = await read_at(rig, [3])
    (worker,) = await serving(rig, [], "b")
    holder = held_by(holders[0], "a")
    if fault == "dead":
        holder.address = "127.0.0.1:1"
    elif fault == "another formation":
        holder.formation_id = "c"
    elif fault == "another's checksums":
        monkeypatch.setattr(kv_exchange, "checksum_of", lambda *_: b"0" * 32)
    else:
        offer = PrefixOffers.offer

        async def too_much(offers: PrefixOffers, *asked: Any) -> tuple[int, KvSource]:
            kept, source = await offer(offers, *asked)
            return kept + 1000, KvSource(source.formation_id, source.members[:1])

        monkeypatch.setattr(PrefixOffers, "offer", too_much)
    stream = await asked_of(worker, "b", holder)
    assert (cached(stream), (await stats(worker)).filled_kv_blocks) == (0, 0)


async def test_what_has_not_come_in_its_time_is_computed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow link brings some; who brings nothing is not asked again for a while."""
    monkeypatch.setattr(prefix_fetching, "MISSED_S", 600.0)
    slow = await read_at(rig, [], kv_bytes_per_s=5_000.0)
    (worker,) = await serving(rig, [], "b", kv_prefix_fetch_s=0.5)
    stream = await asked_of(worker, "b", held_by(slow[0], "a"))
    assert cached(stream) < FETCHED * BLOCK_SIZE
    assert slow[0].loader is not None
    other = [3 + one for one in PROMPT]
    await asked_of(slow[0], "a", None, request("other", other, TOKENS))
    (stuck,) = slow[0].loader.backends
    generate(slow[0], request("stuck", [7] * 300, TOKENS), "a")
    stuck.stuck.set()
    waits, offer = list[str](), PrefixOffers.offer

    async def counted(offers: PrefixOffers, *told: Any) -> tuple[int, KvSource]:
        waits.append(told[0])
        return await offer(offers, *told)

    monkeypatch.setattr(PrefixOffers, "offer", counted)
    try:
        (another,) = await serving(rig, [], "c", kv_prefix_fetch_s=0.5)
        for name in ("g", "h"):
            prompt = [ord(name), *other[1:]] if name == "h" else other
            asked = request(name, prompt, TOKENS)
            await asked_of(another, "c", held_by(slow[0], "a"), asked)
        assert (await stats(another)).filled_kv_blocks == 0
        assert waits == ["a"]
    finally:
        stuck.stuck.clear()


async def test_an_offer_is_what_the_head_has_and_no_more(rig: Rig) -> None:
    holders = await read_at(rig, [3])
    names = list(chain_of(request("g", PROMPT, 1), BLOCK_SIZE))
    assert holders[0].engine is not None
    formation = holders[0].engine.formation
    assert formation is not None
    layout = formation.kv_layout.name

    async def offered(**more: Any) -> engine_pb2.OfferKvResponse:
        said = {"formation_id": "a", "layout": layout, "names": names, "limit_s": 0.5} | more
        return await holders[0].stub.OfferKv(engine_pb2.OfferKvRequest(**said), timeout=60)

    answer = await offered(names=[*names[:3], b"?" * 32, *names[4:]])
    assert answer.offered == 3
    answer = await offered()
    assert answer.offered == FULL == len(names)
    members = [(one.address, one.layers.start, one.layers.end) for one in answer.source.members]
    assert members == [(holders[0].address, 0, 3), (holders[1].address, 3, LAYERS)]
    assert answer.source.formation_id == "a"

    async def is_kept_no_more() -> bool:
        return not sum([(await stats(one)).kept_kv_bytes for one in holders])

    assert not await is_kept_no_more()
    await until(is_kept_no_more)  # in half a second, and not in the twenty of a hand-over
    assert (await offered(names=[])).offered == 0
    for more, kind, field in (
        ({"formation_id": "b"}, FailedPrecondition, "formation_id"),
        ({"layout": "kv1/other"}, FailedPrecondition, "layout"),
        ({"names": [b"%d" % i for i in range(MAX_NAMES + 1)]}, InvalidArgument, "names"),
        ({"names": names[:1] * 2}, InvalidArgument, "names"),
        ({"limit_s": -1.0}, InvalidArgument, "limit_s"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await offered(**more)
        error = from_rpc_error(refused.value)
        assert isinstance(error, kind)
        assert error.field == field


async def test_offers_are_bounded_and_leave_room_for_generations_that_move(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = 2 * FULL * LAYERS * BLOCK_BYTES // 4
    (holder,) = await read_at(rig, [], kv_prefix_at_once=1, kv_shelf_bytes=room)
    assert holder.engine is not None
    formation = holder.engine.formation
    assert formation is not None
    asked = engine_pb2.OfferKvRequest(
        formation_id="a",
        layout=formation.kv_layout.name,
        names=list(chain_of(request("g", PROMPT, 1), BLOCK_SIZE)),
        limit_s=60.0,
    )
    going, goes_on, keep = asyncio.Event(), asyncio.Event(), holder.engine.kv.keep

    async def slowly(*one: Any, **more: Any) -> int:
        going.set()
        await goes_on.wait()
        return await keep(*one, **more)

    monkeypatch.setattr(holder.engine.kv, "keep", slowly)
    first = asyncio.ensure_future(holder.stub.OfferKv(asked, timeout=60))
    await going.wait()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await holder.stub.OfferKv(asked, timeout=60)
    assert isinstance(from_rpc_error(refused.value), ResourceExhausted)
    goes_on.set()
    assert (await first).offered == FULL // 4, "half of what fits"
    assert (await stats(holder)).used_kv_blocks == 0


async def test_who_goes_on_is_told_of_no_prefix(rig: Rig) -> None:
    (worker,) = await serving(rig, [], "b")
    stream = generate(
        worker, request("g", PROMPT, 1), "b", epoch=2, prefix_holder=held_by(worker, "a")
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stream.end()
    error = from_rpc_error(refused.value)
    assert isinstance(error, InvalidArgument)
    assert error.field == "prefix_holder"
