"""A scheduler that is driven as a head drives it, over stages that check what they are given."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from services.common.generation import GenerationRequest, ModelRef, PriorityClass, Sampling
from services.engine.backend import BLOCK_SIZE, Sampled
from services.engine.core.actions import NewToken, SequenceKey
from services.engine.core.scheduler import Scheduler, SchedulerSettings, Step

MODEL = ModelRef("tiny", "d")


def request(
    name: str,
    prompt: int,
    max_tokens: int,
    tenant: str = "",
    priority: PriorityClass = PriorityClass.STANDARD,
    weight: int = 1,
) -> GenerationRequest:
    return GenerationRequest(
        name,
        MODEL,
        tuple(range(prompt)),
        Sampling(max_tokens),
        tenant=tenant,
        priority=priority,
        tenant_weight=weight,
    )


def key(name: str) -> SequenceKey:
    return SequenceKey(name, 1, 0)


def token_after(tokens: list[int], repeats: bool = False) -> int:
    """By all that came before; a text that repeats itself mostly by the last two."""
    state = hash(tuple(tokens))
    return hash(tuple(tokens[-2:])) % 6 if repeats and state % 8 else state % 997


@dataclass
class Stages:
    """A model of what every stage holds: slots, and the ids whose KV each block has."""

    repeats: bool = False
    slots: dict[int, list[int]] = field(default_factory=dict)
    prompts: dict[int, int] = field(default_factory=dict)
    cache: dict[int, dict[int, int]] = field(default_factory=dict)

    def run(self, step: Step) -> list[Sampled]:
        batch, rows, sampled = step.batch, deque(step.token_ids), []
        for slot in batch.closes:
            del self.slots[slot]
        for opened in batch.opens:
            assert opened.slot not in self.slots
            self.slots[opened.slot] = [*opened.prompt_ids, *opened.output_ids]
            self.prompts[opened.slot] = len(opened.prompt_ids)
        assert len({s.slot for s in batch.steps}) == len(batch.steps)
        written: set[tuple[int, int]] = set()
        for s in batch.steps:
            tokens, known = self.slots[s.slot], s.start + s.count - len(s.drafts)
            assert not s.sample or known == len(tokens)
            assert len(set(s.block_table)) == len(s.block_table)
            assert len(s.block_table) * BLOCK_SIZE >= s.start + s.count
            for position in range(s.start, s.start + s.count):
                token = rows.popleft()
                assert token == (*tokens[:known], *s.drafts)[position]
                place = (s.block_table[position // BLOCK_SIZE], position % BLOCK_SIZE)
                assert place not in written
                written.add(place)
                self.cache.setdefault(place[0], {})[place[1]] = token
            for end, draft in enumerate((*s.drafts, None), known):
                context = [
                    self.cache[s.block_table[p // BLOCK_SIZE]][p % BLOCK_SIZE] for p in range(end)
                ]
                assert context == tokens[:end], "a block was overwritten by another"
                if s.sample:
                    position = len(tokens) - self.prompts[s.slot]
                    tokens.append(token_after(tokens, self.repeats))
                    sampled.append(Sampled(s.slot, position, tokens[-1]))
                    if tokens[-1] != draft:
                        break
        assert not rows
        return sampled


class Driver:
    """Runs a scheduler against model stages and ends sequences at max_tokens, as a head does."""

    def __init__(
        self, config: SchedulerSettings, blocks: int, max_in_flight: int, repeats: bool = False
    ) -> None:
        self.scheduler = Scheduler(config, blocks, max_in_flight)
        self.stages, self.flights = Stages(repeats), deque[tuple[Step, list[Sampled]]]()
        self.repeats, self.accepted = repeats, 0
        self.outputs: dict[str, list[int]] = {}
        self.wanted: dict[str, int] = {}
        self.stopped: set[str] = set()
        self.steps: list[Step] = []
        self.took_s: Callable[[int], float] = lambda rows: 0.01
        """What a step of so many rows keeps the stages from the next one."""

    def start(
        self,
        name: str,
        prompt: int,
        max_tokens: int,
        held: int = 0,
        tenant: str = "",
        priority: PriorityClass = PriorityClass.STANDARD,
        weight: int = 1,
    ) -> None:
        tokens = list(range(prompt))
        for _ in range(held):
            tokens.append(token_after(tokens, self.repeats))
        self.outputs[name], self.wanted[name] = tokens[prompt:], max_tokens
        asked = request(name, prompt, max_tokens, tenant, priority, weight)
        self.scheduler.start(key(name), asked, tokens[prompt:])

    def depart(self) -> Step | None:
        step = self.scheduler.next_step()
        if step is not None:
            self.steps.append(step)
            awaited = {
                k
                for flown, _ in self.flights
                for k, s in zip(flown.keys, flown.batch.steps, strict=True)
                if s.sample
            }
            assert awaited.isdisjoint(step.keys)
            self.flights.append((step, self.stages.run(step)))
        return step

    def arrive(self) -> None:
        step, sampled = self.flights.popleft()
        took_s = self.took_s(step.batch.rows)
        result = self.scheduler.complete(step.number, sampled, took_s)
        self.accepted += result.accepted
        for token in result.tokens:
            self.take(token)
        self.stopped |= {k.generation_id for k in result.stopped}

    def take(self, token: NewToken) -> None:
        name = token.key.generation_id
        output = self.outputs[name]
        assert token.position == len(output) < self.wanted[name]
        output.append(token.token_id)
        if len(output) == self.wanted[name] and self.scheduler.stop(token.key):
            self.stopped.add(name)

    def finish(self) -> None:
        for _ in range(10_000):
            while self.depart():
                pass
            if not self.flights:
                return
            self.arrive()
        raise AssertionError("the scheduler never comes to rest")


def expected(prompt: int, count: int, repeats: bool = False) -> list[int]:
    tokens = list(range(prompt))
    for _ in range(count):
        tokens.append(token_after(tokens, repeats))
    return tokens[prompt:]
