from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.generation import GenerationRequest, ModelRef, Sampling
from services.engine.backend import BLOCK_SIZE, Sampled, SequenceStep
from services.engine.core import blocks
from services.engine.core.actions import NewToken, SequenceKey
from services.engine.core.scheduler import Scheduler, SchedulerSettings, Step

MODEL = ModelRef("tiny", "d")
Cache = dict[tuple[int, int], int]
"""The ids whose keys and values a stage holds, by block and row."""


def token_after(tokens: list[int]) -> int:
    """By all that came before, and mostly by the last two: a text that repeats itself."""
    state = hash(tuple(tokens))
    return 1000 + (hash(tuple(tokens[-2:])) % 40 if state % 4 else state % 997)


def request(name: str, prompt: tuple[int, ...], salt: str = "") -> GenerationRequest:
    return GenerationRequest(name, MODEL, prompt, Sampling(1000), cache_salt=salt)


def key(name: str) -> SequenceKey:
    return SequenceKey(name, 1, 0)


@dataclass
class Stages:
    """Stages that work one step at a time, each in the order it gets them; ids stand for rows."""

    caches: list[Cache]
    queues: list[deque[Step]]
    slots: dict[int, tuple[list[int], int]] = field(default_factory=dict)
    """At the last stage: all ids, and how many of them are the prompt's."""

    def advance(self, index: int) -> tuple[Step, list[Sampled]] | None:
        """This stage works its oldest step; the last one says what came of it."""
        step, last = self.queues[index].popleft(), index + 1 == len(self.queues)
        if last:
            for slot in step.batch.closes:
                del self.slots[slot]
            for opened in step.batch.opens:
                ids = [*opened.prompt_ids, *opened.output_ids]
                self.slots[opened.slot] = ids, len(opened.prompt_ids)
        else:
            self.queues[index + 1].append(step)
        sampled, rows = [], iter(step.token_ids)
        for entry in step.batch.steps:
            end = entry.start + entry.count
            places = [(entry.block_table[p // BLOCK_SIZE], p % BLOCK_SIZE) for p in range(end)]
            for place in places[entry.start :]:
                self.caches[index][place] = next(rows)
            if last:
                sampled += self._sample(entry, [self.caches[index][place] for place in places])
        return (step, sampled) if last else None

    def _sample(self, entry: SequenceStep, read: list[int]) -> Iterator[Sampled]:
        """Tokens as long as they are what was guessed, by what is in the cache."""
        (ids, prompt), known = self.slots[entry.slot], len(read) - len(entry.drafts)
        assert read[:known] == ids[:known], "what is in its blocks is another text"
        for end, draft in enumerate((*entry.drafts, None), known) if entry.sample else ():
            ids.append(token_after(read[:end]))
            yield Sampled(entry.slot, end - prompt, ids[-1])
            if ids[-1] != draft:
                return


class Driver:
    """A scheduler over such stages; sequences end when they have as many ids as were wanted."""

    def __init__(self, blocks: int, stages: int = 1, **batches: int | bool) -> None:
        alone = SchedulerSettings(64, 8, 1, 1, max_drafts=0)
        chosen = replace(alone, **batches)  # type: ignore[arg-type]
        self.scheduler = Scheduler(chosen, blocks, stages)
        self.stages = Stages([{} for _ in range(stages)], [deque() for _ in range(stages)])
        self.outputs: dict[str, list[int]] = {}
        self.cached: dict[str, int] = {}
        self.wanted: dict[str, int] = {}
        self.ended: set[str] = set()
        self.steps: list[Step] = []

    def start(self, name: str, prompt: tuple[int, ...], wanted: int, salt: str = "") -> None:
        self.outputs[name], self.wanted[name] = [], wanted
        self.scheduler.start(key(name), request(name, prompt, salt), ())

    def depart(self) -> Step | None:
        step = self.scheduler.next_step()
        if step is not None:
            self.steps.append(step)
            self.stages.queues[0].append(step)
        return step

    def advance(self, index: int) -> None:
        came = self.stages.advance(index)
        for token in self.scheduler.complete(came[0].number, came[1]).tokens if came else ():
            self._take(token)

    def _take(self, token: NewToken) -> None:
        name = token.key.generation_id
        if name in self.ended:
            return  # right guesses behind the end
        assert token.position == len(self.outputs[name])
        if not token.position:
            self.cached[name] = token.cached_tokens
        self.outputs[name].append(token.token_id)
        if len(self.outputs[name]) == self.wanted[name]:
            self.scheduler.stop(token.key)
            self.ended.add(name)

    def finish(self) -> None:
        for _ in range(10_000):
            if self.depart() is not None:
                continue
            waiting = [index for index, queue in enumerate(self.stages.queues) if queue]
            if not waiting:
                return
            self.advance(waiting[-1])
        raise AssertionError("the scheduler never comes to rest")

    def answer(self, name: str, prompt: tuple[int, ...], wanted: int, salt: str = "") -> int:
        """Runs one to its end; the rows that were computed for it."""
        before = len(self.steps)
        self.start(name, prompt, wanted, salt)
        self.finish()
        assert self.outputs[name] == expected(prompt, wanted)
        return sum(len(step.token_ids) for step in self.steps[before:])


def expected(prompt: tuple[int, ...], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(token_after(tokens))
    return tokens[len(prompt) :]


@settings(max_examples=1000, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_is_shared_evicted_preempted_and_stopped_ids_are_as_alone(seed: int) -> None:
    chance = Random(seed)
    stages = chance.randint(1, 3)
    driver = Driver(
        chance.randint(8, 20),
        stages,
        token_budget=chance.randint(8, 40),
        max_sequences=chance.randint(1, 6),
        min_overlap_sequences=chance.randint(1, 3),
        min_overlap_rows=chance.randint(1, 30),
        max_drafts=chance.choice((0, 8)),
    )
    roots = [tuple(chance.randint(0, 2) for _ in range(64)) for _ in range(2)]
    shapes = {}
    for index in range(chance.randint(2, 10)):
        tail = tuple(chance.randint(0, 2) for _ in range(chance.randint(1, 20)))
        prompt = chance.choice(roots)[: chance.choice((0, 10, 16, 32, 48))] + tail
        shapes[str(index)] = prompt, chance.randint(1, 40), chance.choice(("", "", "s"))
    waiting, gone = deque(shapes), set[str]()
    for _ in range(100):
        event, name = chance.randint(0, 11), chance.choice(list(shapes))
        busy = [index for index, queue in enumerate(driver.stages.queues) if queue]
        if event < 2 and waiting:
            started = waiting.popleft()
            driver.start(started, *shapes[started])
        elif event == 2:
            driver.scheduler.set_unread(key(name), chance.random() < 0.6)
        elif event == 3 and chance.random() < 0.3 and name in driver.outputs:
            gone.add(name)
            (driver.scheduler.drop if chance.random() < 0.3 else driver.scheduler.stop)(key(name))
        elif event < 8 and busy:
            driver.advance(chance.choice(busy))
        else:
            driver.depart()
    for name in waiting:
        driver.start(name, *shapes[name])
    driver.finish()
    for name, (prompt, wanted, _) in shapes.items():
        output = driver.outputs[name]
        assert output == expected(prompt, wanted)[: len(output)]
        assert name in gone or len(output) == wanted
    scheduler = driver.scheduler
    assert scheduler.used_blocks == scheduler.running == scheduler.queued == 0
    assert scheduler.blocks.shares_left == blocks.MAX_SHARES


def test_the_second_turn_of_a_chat_computes_what_is_new_and_no_more_than_a_block_of_the_rest() -> (
    None
):
    driver = Driver(256)
    history = tuple(range(2000))
    assert driver.answer("first", history, 1) == 2000
    told = (*history, *driver.outputs["first"])
    assert driver.answer("second", (*told, *range(40)), 20) <= 41 + BLOCK_SIZE + 19
    assert driver.cached == {"first": 0, "second": 2000}
    third = (*told, *range(40), *driver.outputs["second"])
    assert driver.answer("third", third, 1) <= BLOCK_SIZE + 1
    assert driver.cached["third"] >= len(third) - BLOCK_SIZE - 1


def test_what_a_step_in_flight_computes_the_next_one_uses() -> None:
    driver = Driver(64, 2)
    prompt = tuple(range(48))
    driver.start("one", prompt, 2)
    driver.depart()
    driver.start("other", (*prompt, 7), 2)
    step = driver.depart()
    assert step is not None
    assert len(driver.stages.queues[0]) == 2, "neither has reached a stage yet"
    (entry,) = step.batch.steps
    assert (entry.start, entry.count) == (48, 1)
    assert list(entry.block_table[:3]) == list(driver.steps[0].batch.steps[0].block_table[:3])
    driver.finish()
    assert driver.outputs == {"one": expected(prompt, 2), "other": expected((*prompt, 7), 2)}


def test_the_choices_of_a_request_and_twins_that_come_together_read_their_prompt_once() -> None:
    driver = Driver(64, token_budget=64)
    prompt = tuple(range(100))
    for name in ("a", "b", "c", "d"):
        driver.start(name, prompt, 3)
    driver.finish()
    assert all(driver.outputs[name] == expected(prompt, 3) for name in "abcd")
    rows = sum(len(step.token_ids) for step in driver.steps)
    assert rows == 100 + 28 + 3 * 4 + 4 * 2, "the second began beside the end of the first"
    most = max(s.block_table[:6] for step in driver.steps for s in step.batch.steps if s.start > 99)
    assert all(s.block_table[:6] == most for s in driver.steps[-1].batch.steps)


def test_another_salt_finds_nothing() -> None:
    driver = Driver(64)
    prompt = tuple(range(64))
    rows = [driver.answer(f"{n}", prompt, 1, salt) for n, salt in enumerate(("", "a", "b", "a"))]
    assert rows == [64, 64, 64, BLOCK_SIZE]


def test_with_sharing_off_everything_is_computed() -> None:
    driver = Driver(64, share_prefixes=False)
    assert [driver.answer(name, tuple(range(64)), 1) for name in "ab"] == [64, 64]
    assert driver.scheduler.blocks.cached_count == 0
    assert driver.cached == {"a": 0, "b": 0}


def test_uses_of_the_cache_are_counted_step_by_step() -> None:
    driver = Driver(5)
    driver.answer("a", tuple(range(40)), 1)
    driver.answer("b", (*range(32), 7), 1)
    driver.answer("c", tuple(range(100, 170)), 1)
    used = [(s.cache.queried, s.cache.hits, s.cache.evicted) for s in driver.steps]
    assert used == [(40, 0, 0), (33, 32, 0), (70, 0, 2), (0, 0, 0)]


def test_who_is_preempted_finds_its_own_blocks_and_its_first_count_stays() -> None:
    driver = Driver(5, token_budget=64)
    driver.start("old", tuple(range(15)), 40)
    driver.start("young", tuple(range(100, 130)), 40)
    driver.finish()
    assert driver.scheduler.preemptions > 0
    assert driver.outputs["young"] == expected(tuple(range(100, 130)), 40)
    assert driver.cached == {"old": 0, "young": 0}
    back = [s.start for step in driver.steps for s in step.batch.steps if s.count > 1]
    assert any(start >= BLOCK_SIZE for start in back)


def test_tables_share_as_much_as_a_message_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "MAX_SHARES", 3)
    driver = Driver(64)
    prompt = tuple(range(64))
    driver.answer("a", prompt, 1)
    for name in "bcd":
        driver.start(name, prompt, 30)
    driver.finish()
    tables = [[s.block_table for s in step.batch.steps] for step in driver.steps]
    shared = [sum(map(len, step)) - len({b for table in step for b in table}) for step in tables]
    assert max(shared) == 3
    assert all(driver.outputs[name] == expected(prompt, 30) for name in "bcd")


def lru_hits(requests: list[list[int]], count: int) -> int:
    """Blocks found by a cache of so many blocks that knows nothing but when each was used last."""
    cache: OrderedDict[tuple[int, ...], None] = OrderedDict()
    hits = 0
    for ids in requests:
        chain = [tuple(ids[:end]) for end in range(1, len(ids) + 1)]
        found = next((n for n, name in enumerate(chain) if name not in cache), len(chain))
        hits += found
        for name in reversed(chain):
            cache[name] = None
            cache.move_to_end(name)
        while len(cache) > count:
            cache.popitem(last=False)
    return hits


@pytest.mark.parametrize("count", [60, 150, 400])
def test_one_after_another_finds_what_a_least_recently_used_cache_would(count: int) -> None:
    chance = Random(count)
    chats: list[list[int]] = [[n] for n in range(40)]
    requests = []
    for _ in range(400):
        chat = chats[min(int(chance.expovariate(0.1)), len(chats) - 1)]
        if len(chat) > 25:
            del chat[2:]
        chat += [chance.randrange(1 << 20) for _ in range(chance.randint(1, 4))]
        requests.append(list(chat))
    driver = Driver(count, token_budget=4096)
    found = 0
    for number, ids in enumerate(requests):
        prompt = tuple(i for each in ids for i in (each,) * BLOCK_SIZE)
        driver.answer(str(number), (*prompt, 1), 1)
        found += driver.cached[str(number)] // BLOCK_SIZE
    best = lru_hits(requests, count)
    assert best > 200
    assert abs(found - best) <= 0.02 * best
