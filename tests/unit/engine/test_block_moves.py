"""Blocks go ahead in rounds, and are nobody else's while some stage may be at them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from services.common.exchange import GenerateCall, KvMember, KvSource
from services.common.generation import (
    CancelReason,
    GenerationRequest,
    LayerRange,
    ModelRef,
    Sampling,
)
from services.common.prefix import next_hash
from services.engine import block_moves
from services.engine.backend import Sampled
from services.engine.block_moves import (
    AHEAD_BYTES,
    COPYING_AGAIN_S,
    REST_S,
    BlockMoves,
    Copied,
)
from services.engine.core import incoming
from services.engine.core.actions import SequenceKey
from services.engine.core.batching import Batching
from services.engine.core.copying import LAST_BLOCKS, Heir
from services.engine.core.generations import Generations
from services.engine.core.head_settings import HeadSettings
from services.engine.core.lead import Lead
from services.engine.core.pace import Pace
from services.engine.core.resting import AheadSettings, Resting
from services.engine.core.scheduler import Scheduler, SchedulerSettings
from services.engine.core.validation import Bounds
from services.engine.kv_moves import Brought, Stored

MODEL = ModelRef("m", "d")
LAYERS = LayerRange(0, 1)
SOURCE = KvSource("f", (KvMember("old:1", "o", LAYERS),))
HEIRS = (Heir((KvMember("new:1", "n", LAYERS),), frozenset("g"), "f2"),)
FORMATION: Any = SimpleNamespace(
    id="f",
    membership=SimpleNamespace(members=[SimpleNamespace(layers=LAYERS)]),
    kv_layout=SimpleNamespace(layer_bytes=AHEAD_BYTES // 2),
)
"""Two blocks go in a round."""


@dataclass
class Rig:
    """One generation of 70 ids, 4 full blocks, that decodes; stages and heirs take what they are
    told to. Implements KvMoves."""

    places: int = 64
    blocks: int = 64
    now_s: float = 0.0
    call_s: float = 0.0
    """What a call takes."""
    limits_s: list[float] = field(default_factory=list)
    """Of the calls to heirs, in turn."""
    laid: list[list[int | None]] = field(default_factory=list)
    """Where these are to lay what they keep."""
    answers: bool = True
    """Stages do."""
    room: int = 64
    """Blocks that a stage keeps of those it is told to."""
    full: bool = False
    """Heirs have no room."""
    kept: list[int] = field(default_factory=list)
    """How many blocks stages were asked to keep, in turn."""
    chains: list[list[bytes]] = field(default_factory=list)
    """That were to lie in caches."""
    meanwhile: Callable[[], object] = lambda: None
    """What happens while stages keep blocks."""
    says_so: asyncio.Event = field(default_factory=asyncio.Event)
    """A stage that did not answer leaves blocks alone."""
    steps: int = 0
    headed: Any = field(default_factory=lambda: FORMATION)
    ahead: AheadSettings = field(default_factory=lambda: AheadSettings(share=1.0, slows=1.0))

    def __post_init__(self) -> None:
        settings = SchedulerSettings(max_sequences=self.places, max_drafts=0)
        self.scheduler = Scheduler(settings, self.blocks, 2)
        self.batching = Batching(Generations("i", HeadSettings()))
        lead = Lead("f", self.scheduler, Bounds(MODEL, 1000, 512), Pace(1.0, 0.0))
        self.batching.form(lead, "exact", 0.0)
        self.generate(1, "g")
        self.changed = asyncio.Event()
        self.moves = BlockMoves(
            self.batching,
            self,
            self.ahead,
            formation=lambda: self.headed,
            do=lambda _: None,
            changed=self.changed,
            clock=lambda: self.now_s,
        )

    def generate(self, reader_id: int, name: str, first: int = 0) -> None:
        """Its ids rise from the first one on."""
        request = GenerationRequest(name, MODEL, tuple(range(first, first + 70)), Sampling(40))
        self.batching.generate(reader_id, GenerateCall(request, 1, "f"), 0.0)

    def back(self) -> None:
        """The step in flight is."""
        self.steps += 1
        self.batching.came_back(self.steps, [Sampled(0, self.steps - 1, 7)], 0.1)
        self.changed.set()

    async def copied(self, calls: int = 1) -> list[Copied]:
        """What so many calls at once come to, in a round each."""
        asked = [
            asyncio.create_task(self.moves.copy("f", HEIRS, SOURCE, 10.0, max_rounds=1))
            for _ in range(calls)
        ]
        await asyncio.sleep(0)
        self.back()
        return await asyncio.wait_for(asyncio.gather(*asked), 60)

    async def copy(self, calls: int = 1) -> list[int]:
        """Blocks that these have had go ahead."""
        return [copied.blocks for copied in await self.copied(calls)]

    async def keep(
        self,
        formation: Any,
        number: int,
        blocks: Any,
        *,
        last: bool = False,
        keep_s: float = 0.0,
        offered: bool = False,
    ) -> int | None:
        self.kept.append(len(blocks))
        self.meanwhile()
        self.now_s += self.call_s
        return min(self.room, len(blocks)) if self.answers else None

    async def store(
        self,
        formation: Any,
        source: Any,
        heir: Any,
        names: Sequence[bytes],
        limit_s: float,
        places: Mapping[bytes, int],
    ) -> Stored:
        self.limits_s.append(limit_s)
        self.laid.append([places.get(name) for name in names])
        self.now_s += self.call_s
        whole = not self.full and self.room >= len(names)
        return Stored(len(names) if whole else 0, whole, self.full)

    async def cache(
        self, heir: Any, source: Any, chains: Sequence[Sequence[bytes]], limit_s: float
    ) -> list[int]:
        self.limits_s.append(limit_s)
        self.chains += map(list, chains)
        return [len(names) for names in chains]

    async def offer(
        self, formation: Any, holder: Any, names: Sequence[bytes], limit_s: float
    ) -> tuple[int, KvSource]:
        raise AssertionError("nobody was to be asked")

    async def fetch(self, formation: Any, fetch: Any) -> Brought:
        raise AssertionError("nothing was to be fetched")

    async def end(self, formation: Any, number: int) -> bool:
        await self.says_so.wait()
        return True


@pytest.fixture
def rig() -> Rig:
    return Rig()


async def test_who_asks_again_goes_on_where_it_was(rig: Rig) -> None:
    assert await rig.copy() == [2]
    assert await rig.copy() == [4]
    assert [len(chain) for chain in rig.chains] == [2, 4]


async def test_two_who_ask_at_once_do_not_count_the_same_blocks_twice(rig: Rig) -> None:
    """As two controllers may, one of which is gone: what was counted behind them would not go."""
    assert await rig.copy() == [2]
    assert await rig.copy(calls=2) == [4, 2]
    assert all(len(set(chain)) == len(chain) for chain in rig.chains)


async def test_a_call_that_is_cancelled_leaves_what_is_over_to_the_next_one(rig: Rig) -> None:
    assert await rig.copy() == [2]
    cut = asyncio.create_task(rig.moves.copy("f", HEIRS, SOURCE, 10.0))
    await asyncio.sleep(0)
    cut.cancel()
    await asyncio.gather(cut, return_exceptions=True)
    assert await rig.copy() == [4]


async def test_what_is_asked_of_heirs_has_the_time_that_is_left(rig: Rig) -> None:
    rig.call_s = 4.0
    assert await rig.copy() == [2]
    assert rig.limits_s == [6.0, 2.0]
    rig.call_s, rig.limits_s = 6.0, []
    assert await rig.copy() == [4]
    assert rig.limits_s == [4.0, 0.0]


async def test_a_round_and_the_steps_beside_it_say_how_long_it_rests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is followed is waited for, and who asks for so many rounds has a deadline: these rest by
    their share alone."""
    told, asked = list[tuple[float, int]](), list[float]()

    class Seen(Resting):
        def __init__(self, settings: AheadSettings) -> None:
            super().__init__(settings)
            asked.append(settings.slows)

        def went(self, took_s: float, steps: int) -> None:
            told.append((took_s, steps))

        def rest_s(self, took_s: float) -> float:
            assert told[-1][0] == took_s
            return 0.0

    monkeypatch.setattr(block_moves, "Resting", Seen)
    rig = Rig(call_s=0.5, ahead=AheadSettings(share=0.5, slows=0.2))
    rig.meanwhile = rig.back
    await rig.copied()
    assert told == [(1.0, 2)], "it was kept and sent while two steps departed"
    assert asked == [0.2, 1.0]
    await rig.moves.copy("f", HEIRS, SOURCE, 10.0, follows=True, max_rounds=1)
    assert asked == [0.2, 1.0, 1.0]
    rounds = len(told)
    rig.meanwhile = lambda: None
    await rig.moves.copy("f", HEIRS, SOURCE, 10.0)
    assert len(told) > rounds
    assert asked == [0.2, 1.0, 1.0], "all of these are seen as one"


async def test_a_formation_that_ends_during_a_round_is_rested_for_no_more() -> None:
    """Steps of what is headed since, or of nothing, are no fewer than there were."""
    rig = Rig(call_s=0.5, ahead=AheadSettings(share=0.5, slows=0.1))
    for _ in range(20):
        rig.back()
    rig.moves._resting.rested(1.0, 1)
    store = rig.store

    async def ends(*asked: Any) -> Stored:
        rig.batching.dissolve("f", 0.1)
        rig.headed = None
        return await store(*asked)

    rig.store = ends  # type: ignore[assignment, method-assign]
    copied = await asyncio.wait_for(rig.moves.copy("f", HEIRS, SOURCE, 600.0), 10)
    assert (copied.rounds, copied.blocks) == (1, 2)


async def test_blocks_that_a_stage_may_be_at_are_nobodys_until_it_says_otherwise(rig: Rig) -> None:
    rig.answers = False
    assert await rig.copy() == [0]
    cancel = rig.batching.generations.cancel("g", None, CancelReason.CLIENT, 0.2)
    rig.batching.act(cancel, 0.2)
    assert rig.scheduler.used_blocks == 2
    rig.says_so.set()
    await asyncio.wait_for(asyncio.gather(*rig.moves._moving), 60)
    assert rig.scheduler.used_blocks == 0


async def test_who_waits_for_blocks_that_are_lent_has_them_when_they_are_given_back() -> None:
    """Nothing else is on its way that would look for what may run."""
    rig = Rig(blocks=6)
    rig.generate(2, "waits", first=100)

    def end() -> None:
        cancel = rig.batching.generations.cancel("g", None, CancelReason.CLIENT, 0.2)
        rig.batching.act(cancel, 0.2)
        rig.back()
        assert (rig.scheduler.queued, rig.scheduler.in_flight) == (1, 0)

    rig.meanwhile = end
    assert await rig.copy() == [2]
    assert (rig.scheduler.queued, rig.scheduler.in_flight) == (0, 1)


async def test_what_is_computed_is_kept_whatever_is_on_its_way_since() -> None:
    rig = Rig(places=2)
    rig.generate(2, "leaves")  # all its blocks but the last are those of the first one
    rig.back()
    rig.batching.act(rig.batching.generations.drain("f", 0.1, {"g"}), 0.1)
    rig.back()
    assert not rig.batching.generations.sealing("f")
    assert rig.scheduler.in_flight
    await asyncio.wait_for(rig.moves.keep_sealed("f", (), last=False), 60)
    assert rig.kept == [4]


async def test_who_has_no_room_says_so(rig: Rig) -> None:
    """Whoever asked takes it for a link that is dead otherwise."""
    (came,) = await rig.copied()
    assert (came.blocks, came.blocks_of, came.full) == (2, {"g": 2}, False)
    rig.full = True
    (came,) = await rig.copied()
    assert (came.rounds, came.blocks, came.full) == (1, 2, True)
    rig.full, rig.room = False, 1
    (came,) = await rig.copied()
    assert (came.rounds, came.blocks, came.full) == (1, 2, True), "nor has the stage that has them"


async def test_one_that_waits_for_a_place_is_not_over() -> None:
    rig = Rig(places=1)
    rig.generate(2, "waits")
    heirs = (Heir(HEIRS[0].members, frozenset({"waits"}), "f2"),)
    came = await rig.moves.copy("f", heirs, SOURCE, 10.0)
    assert (came.rounds, came.blocks, came.over) == (0, 0, False)


async def test_what_follows_one_that_waits_for_a_place_goes_on_when_it_has_one() -> None:
    rig = Rig(places=1)
    rig.generate(2, "waits")
    heirs = (Heir(HEIRS[0].members, frozenset({"waits"}), "f2"),)
    following = asyncio.create_task(rig.moves.copy("f", heirs, SOURCE, 10.0, follows=True))
    await asyncio.sleep(0)
    assert not following.done()
    rig.batching.act(rig.batching.generations.cancel("g", None, CancelReason.CLIENT, 0.2), 0.2)
    rig.back()
    await asyncio.sleep(0)
    rig.back()
    for _ in range(10):
        await asyncio.sleep(0)
    assert rig.kept == [2]
    cancel = rig.batching.generations.cancel("waits", None, CancelReason.CLIENT, 0.3)
    rig.batching.act(cancel, 0.3)
    rig.changed.set()
    came = await asyncio.wait_for(following, 60)
    assert came.blocks_of == {"waits": 2}


async def test_what_follows_ends_where_a_stage_does_not_keep_its_blocks(rig: Rig) -> None:
    """It would ask for the same again and again, as fast as the stage fails."""
    rig.answers = False
    following = asyncio.create_task(rig.moves.copy("f", HEIRS, SOURCE, 10.0, follows=True))
    await asyncio.sleep(0)
    rig.back()
    came = await asyncio.wait_for(following, 60)
    assert (came.rounds, came.blocks, rig.kept) == (0, 0, [2])
    rig.says_so.set()
    await asyncio.wait_for(asyncio.gather(*rig.moves._moving), 60)


async def test_the_last_blocks_of_what_is_sealed_go_to_where_it_goes_on(rig: Rig) -> None:
    assert [await rig.copy() for _ in range(2)] == [[2], [4]]
    for _ in range(10):
        rig.back()
    rig.batching.act(rig.batching.generations.drain("f", 0.2), 0.2)
    rig.back()
    rig.limits_s, rig.chains = [], []
    for _ in range(2):
        await asyncio.wait_for(rig.moves.keep_sealed("f", (), last=True), 60)
        await asyncio.gather(*rig.moves._moving)
    assert [len(chain) for chain in rig.chains] == [5], "once, and whole"
    assert rig.limits_s == [REST_S, REST_S], "first to the shelf, and from there into the caches"


async def test_what_is_sealed_while_others_are_kept_is_sent_when_it_is_kept(rig: Rig) -> None:
    """Before, stages may lack its last blocks, and it would have been sent once in vain."""
    rig.generate(2, "h")
    rig.back()
    heirs = (Heir(HEIRS[0].members, frozenset({"g", "h"}), "f2"),)
    came = await rig.moves.copy("f", heirs, SOURCE, 10.0, max_rounds=1)
    assert came.blocks_of == {"g": 2, "h": 2}
    rig.back()
    rig.batching.act(rig.batching.generations.drain("f", 0.2, {"h"}), 0.2)
    rig.back()
    assert rig.batching.generations.sealed_count == 1

    def seal() -> None:
        rig.batching.act(rig.batching.generations.drain("f", 0.3), 0.3)

    rig.meanwhile, sent = seal, list[int]()
    for _ in range(3):
        rig.chains = []
        await asyncio.wait_for(rig.moves.keep_sealed("f", (), last=False), 60)
        await asyncio.gather(*rig.moves._moving)
        sent.append(len(rig.chains))
    assert rig.batching.generations.sealed_count == 2
    assert sent == [1, 1, 0]


async def test_what_was_asked_to_be_kept_is_asked_for_again_at_the_end_alone(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name is made once: those of a sequence that ran are known."""
    rig.generate(2, "h", first=100)
    rig.back()
    rig.batching.act(rig.batching.generations.drain("f", 0.2, {"h"}), 0.2)
    rig.back()
    made = list[object]()

    def counted(parent: bytes, ids: Sequence[int]) -> bytes:
        made.append(ids)
        return next_hash(parent, ids)

    monkeypatch.setattr(incoming, "next_hash", counted)
    for _ in range(2):
        await asyncio.wait_for(rig.moves.keep_sealed("f", (), last=False), 60)
    assert rig.kept == [4]
    rig.batching.act(rig.batching.generations.drain("f", 0.3), 0.3)
    for last in (False, True):
        await asyncio.wait_for(rig.moves.keep_sealed("f", (), last=last), 60)
    assert rig.kept == [4, 4, 8]
    assert made == []


async def test_chains_go_into_caches_as_many_at_a_time_as_a_call_may_name(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_moves, "MAX_NAMES", 3)
    assert [await rig.copy() for _ in range(2)] == [[2], [4]]
    assert [len(chain) for chain in rig.chains] == [2, 3], "of one that is longer its beginning"
    keys = [SequenceKey(str(number), 1, 0) for number in range(4)]
    chains = dict(zip(keys, (b"ab", b"c", b"d", b"efgh"), strict=True))
    named = {key: [bytes([one]) for one in names] for key, names in chains.items()}
    pages = [[b"".join(names) for names in page.values()] for page in block_moves._pages(named)]
    assert pages == [[b"ab", b"c"], [b"d"], [b"efg"]]


async def test_who_is_no_formation_yet_is_told_where_blocks_lie(rig: Rig) -> None:
    """It may have a cache of its own, and their generations will go on in the same seats."""
    assert await rig.copy() == [2]
    names = rig.scheduler.full_blocks(SequenceKey("g", 1, 0), 0)
    assert names is not None
    assert rig.laid == [[None, None]]
    heirs = (Heir(HEIRS[0].members, frozenset("g")),)
    rig.laid = []
    for _ in range(2):
        await rig.moves.copy("f", heirs, SOURCE, 10.0, max_rounds=1)
    assert rig.laid == [[block for _, block in names[:2]], [block for _, block in names[2:]]]
    for _ in range(10):
        rig.back()
    rig.batching.act(rig.batching.generations.drain("f", 0.2), 0.2)
    rig.back()
    rig.laid = []
    await asyncio.wait_for(rig.moves.keep_sealed("f", (), last=True), 60)
    await asyncio.gather(*rig.moves._moving)
    (last,) = rig.laid
    assert len(last) == LAST_BLOCKS
    assert None not in last


async def test_what_no_block_is_known_to_hold_is_not_sent(rig: Rig) -> None:
    """As where guesses of the step behind which it was sealed were right: their block is full, and
    has no name, so stages were not asked to keep it."""
    heirs = (Heir(HEIRS[0].members, frozenset("g")),)
    rig.back()
    for _ in range(2):
        await rig.moves.copy("f", heirs, SOURCE, 10.0, max_rounds=1)
    for _ in range(10):
        rig.back()
    named = rig.scheduler.full_blocks(SequenceKey("g", 1, 0), 0)
    assert named is not None
    rig.scheduler.blocks._most_shares = 0
    for _ in range(16):
        rig.back()
    rig.batching.act(rig.batching.generations.drain("f", 0.2), 0.2)
    rig.back()
    (sealed,) = rig.batching.sealed(())
    assert len(incoming.names_of(sealed)) == len(named) + 1
    rig.laid = []
    await asyncio.wait_for(rig.moves.keep_sealed("f", (), last=True), 60)
    await asyncio.gather(*rig.moves._moving)
    assert rig.laid == [[block for _, block in named[-LAST_BLOCKS:]]]


async def test_what_fails_on_its_way_is_told(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    async def fails() -> None:
        raise ValueError("no way")

    rig.moves.begin(fails())
    await asyncio.wait(rig.moves._moving)
    await asyncio.sleep(0)
    assert "no way" in caplog.text
    assert not rig.moves._moving


async def test_what_is_sealed_long_behind_what_went_ahead_is_fetched(rig: Rig) -> None:
    assert await rig.copy() == [2]
    rig.batching.act(rig.batching.generations.drain("f", 0.2), 0.2)
    rig.back()
    rig.now_s, rig.chains = rig.now_s + COPYING_AGAIN_S, []
    await asyncio.wait_for(rig.moves.keep_sealed("f", (), last=True), 60)
    assert not rig.moves._moving
    assert rig.chains == []


async def test_what_others_have_on_its_way_is_kept_when_it_is_computed() -> None:
    """One that waited for a place begins as another one does, whose prompt is being read."""
    rig = Rig(places=1)
    rig.generate(2, "waits")
    rig.batching.act(rig.batching.generations.drain("f", 0.1, {"g"}), 0.1)
    keeping = asyncio.create_task(rig.moves.keep_sealed("f", (), last=False))
    await asyncio.sleep(0)
    assert rig.kept == []
    rig.back()
    await asyncio.wait_for(keeping, 60)
    assert rig.kept == [4]
