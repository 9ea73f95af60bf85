"""Many generations that are handed over at once by a plan's turn: what their readers wait for.

The next pipeline is ready and empty. Blocks go ahead over one link in rounds (`Copying`), while
their generations decode on and fill more; then all are sealed, and each goes on with its blocks or
by its ids, as the controller's core chooses. What is fetched behind the seal shares the link, up to
a limit; what does not come by then, and all that is read again, is computed there one after
another, the shortest first of those that wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random

from services.common.exchange import KvMember
from services.common.generation import LayerRange
from services.controller.core.departure.move import Choice, Move, Rates, Stream
from services.controller.core.departure.schedule import PUSH_S, at_once, cheapest
from services.engine.backend import BLOCK_SIZE
from services.engine.core.actions import SequenceKey
from services.engine.core.copying import Copying, Heir
from services.engine.core.incoming import NamedBlock


@dataclass(frozen=True, slots=True)
class Ground:
    """What a hand-over takes."""

    block_bytes: int
    """Of BLOCK_SIZE positions of all layers."""
    link_bytes_per_s: float
    step_s: float
    """Of decoding, through all stages."""
    prefill_positions_per_s: float
    call_s: float
    """Of a round, beside its bytes."""
    round_bytes: int
    ahead_share: float
    """Of the time in which blocks go ahead."""
    fetch_s: float
    """What does not come within this is computed."""


@dataclass(slots=True)
class Running:
    """A generation."""

    name: str
    prompt: int
    answer: int
    """Output tokens when it ends by itself."""
    tokens: float
    """Output so far."""
    _blocks: list[NamedBlock] = field(default_factory=list)

    @property
    def positions(self) -> int:
        return self.prompt + int(self.tokens)

    @property
    def left(self) -> float:
        return self.answer - self.tokens

    @property
    def key(self) -> SequenceKey:
        return SequenceKey(self.name, 1, 0)

    def full(self, start: int) -> list[NamedBlock]:
        """Its full blocks from one of them on."""
        for block in range(len(self._blocks), self.positions // BLOCK_SIZE):
            self._blocks.append((f"{self.name} {block}".encode(), block))
        return self._blocks[start:]


@dataclass(frozen=True, slots=True)
class HandedOver:
    """What it came to."""

    gaps_s: tuple[float, ...]
    """Of each generation that moved, ascending."""
    pushed: int
    replayed: int
    ended: int
    """Before the seal, by themselves."""
    ahead_bytes: int
    behind_bytes: float
    computed_positions: int
    """At the next pipeline, that the one before had."""


def drawn(
    random: Random, count: int, prompts: tuple[float, float], answers: tuple[float, float]
) -> list[Running]:
    """So many in the middle of their answers; means and coefficients of variation of lengths, which
    are gamma distributed. Longer answers are met more often."""
    running = []
    for number in range(count):
        prompt = max(1, round(_gamma(random, *prompts)))
        mean, variation = answers  # weighted by length a gamma distribution is one of a shape more
        shape = 1 / variation**2
        answer = max(2, round(random.gammavariate(shape + 1, mean / shape)))
        running.append(Running(f"g{number:04}", prompt, answer, answer * random.random()))
    return running


def _gamma(random: Random, mean: float, variation: float) -> float:
    shape = 1 / variation**2
    return random.gammavariate(shape, mean / shape)


def hand_over(
    running: Sequence[Running], over: Mapping[str, int], ground: Ground, way: str
) -> HandedOver:
    """All are sealed; `way` is `replay`, `kv` or `auto`, and so many blocks of each are `over`."""
    over = over if way != "replay" else {}
    moved = [one for one in running if one.left > 0]
    streams = [_seen(one, ground, over.get(one.name, 0)) for one in moved]
    moves = _chosen(streams, ground, way)
    lacking = {
        one.generation_id: one.bytes or 0
        for one in streams
        if moves[one.generation_id].choice is Choice.PUSH
    }
    came_s = _fetched(lacking, ground)
    waiting, behind_bytes, computed = list[tuple[float, int, str]](), 0.0, 0
    for one in moved:
        rest, ready_s = one.positions % BLOCK_SIZE + 1, 0.0
        if one.name not in lacking:
            rest = one.positions
        else:
            ready_s, bytes_there = came_s[one.name]
            behind_bytes += bytes_there
            blocks = round(lacking[one.name] / ground.block_bytes)
            rest += (blocks - int(bytes_there / ground.block_bytes)) * BLOCK_SIZE
            ready_s += PUSH_S
        computed += rest
        waiting.append((ready_s, rest, one.name))
    return HandedOver(
        tuple(sorted(_computed(waiting, ground))),
        len(lacking),
        len(moved) - len(lacking),
        len(running) - len(moved),
        sum(over.values()) * ground.block_bytes,
        behind_bytes,
        computed,
    )


def go_ahead(
    running: Sequence[Running], ground: Ground, limit_s: float
) -> tuple[float, Mapping[str, int]]:
    """Blocks go in rounds, for so long at most, while all decode on: the seconds that they took,
    and how many of each are over."""
    by_name, now_s = {one.name: one for one in running}, 0.0
    members = (KvMember("next", "next", LayerRange(0, 1)),)
    copying = Copying((Heir(members, frozenset(by_name), "next"),))

    def full(key: SequenceKey, start: int) -> list[NamedBlock]:
        return by_name[key.generation_id].full(start)

    at_most = max(1, ground.round_bytes // ground.block_bytes)
    while now_s < limit_s:
        living = sorted((one for one in running if one.left > 0), key=lambda one: one.left)
        ahead = copying.next([one.key for one in living], full, at_most)
        if ahead is None:
            break
        size_bytes = len(ahead.blocks) * ground.block_bytes
        took_s = (size_bytes / ground.link_bytes_per_s + ground.call_s) / ground.ahead_share
        copying.copied(ahead, {0})
        now_s += took_s
        for one in living:
            one.tokens = min(one.answer, one.tokens + took_s / ground.step_s)
    return now_s, copying.blocks_of


def _seen(one: Running, ground: Ground, over: int) -> Stream:
    stream = Stream(one.name, one.positions, (int(one.tokens),), one.answer, 1 / ground.step_s)
    return stream.with_blocks(ground.block_bytes, BLOCK_SIZE, over)


def _chosen(streams: Sequence[Stream], ground: Ground, way: str) -> Mapping[str, Move]:
    """As a drain has it, of all at once."""
    if way == "auto":
        rates = Rates(
            ground.step_s,
            ground.prefill_positions_per_s,
            ground.link_bytes_per_s,
            PUSH_S,
            fetch_s=ground.fetch_s,
        )
        moves = cheapest(streams, rates, 0.0)
    else:
        moves = at_once(streams, 0.0, travels=way == "kv")
    return {move.generation_id: move for move in moves}


def _fetched(lacking: Mapping[str, int], ground: Ground) -> dict[str, tuple[float, float]]:
    """When each has what it fetches, and how many bytes that is: all share the link evenly."""
    found, now_s, had = dict[str, tuple[float, float]](), 0.0, 0.0
    left = sorted(lacking, key=lambda name: (lacking[name], name))
    while left:
        share = ground.link_bytes_per_s / len(left)
        next_s = now_s + (lacking[left[0]] - had) / share
        if next_s > ground.fetch_s:
            had += (ground.fetch_s - now_s) * share
            return found | dict.fromkeys(left, (ground.fetch_s, had))
        now_s, had = next_s, float(lacking[left[0]])
        found[left.pop(0)] = now_s, had
    return found


def _computed(waiting: Iterable[tuple[float, int, str]], ground: Ground) -> list[float]:
    """When each has its first id: by when it may begin, and its positions."""
    coming, queue = sorted(waiting), list[tuple[int, str]]()
    coming.reverse()
    now_s, found = 0.0, list[float]()
    while coming or queue:
        if not queue:
            now_s = max(now_s, coming[-1][0])
        while coming and coming[-1][0] <= now_s:
            _, positions, name = coming.pop()
            heappush(queue, (positions, name))
        positions, _ = heappop(queue)
        now_s += positions / ground.prefill_positions_per_s
        found.append(now_s + ground.step_s)
    return found
