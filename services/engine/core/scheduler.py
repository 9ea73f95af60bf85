"""Continuous batching with chunked prefill: which rows run in the next step.

Every step carries one row for each sequence that decodes and fills its token budget with prompt
rows: first those of streams that were moved here and wait in mid-answer, then first come first
served. What nobody reads comes last: it runs only while nothing that is read waits for its first
token, and gives up its place for it.

A sequence that decodes is in at most one step in flight; one whose prompt is in the making may be
in as many as there are stages, a piece each, for no piece but its last has to come back. Stages
work a step in the order they got it, so blocks and slots that are free here may be handed out again
at once. A preempted sequence is computed again from its ids; exactness makes that free of
consequence.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from services.common.exchange import Phase
from services.common.generation import GenerationRequest
from services.engine.backend import BLOCK_SIZE, Batch, Sampled, SequenceOpen, SequenceStep
from services.engine.core.actions import NewToken, SequenceKey
from services.engine.core.blocks import BlockAllocator, blocks_for

MAX_OPENED_IDS = 1 << 18
"""Ids of the sequences that enter in one step together, the last one apart."""


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """Limits of a batch."""

    token_budget: int = 256
    """Most rows of a step."""
    max_sequences: int = 64
    """Sequences that hold KV blocks; below the budget, so that prompts always advance."""
    min_overlap_sequences: int = 8
    """A further step starts while one is in flight only when this many sequences wait for it:
    splitting a small batch costs more than overlapping stages gains."""
    min_overlap_rows: int = 128
    """Or when this many prompt rows wait: they are bound by arithmetic, not by reading weights.
    What is left of a prompt that is being read never waits."""


@dataclass(slots=True, eq=False)
class _Sequence:
    key: SequenceKey
    request: GenerationRequest
    arrival: int
    tokens: list[int]
    """Prompt and output."""
    held: int
    """Output ids it came with."""
    phase: Phase = Phase.QUEUED
    slot: int = -1
    computed: int = 0
    """Positions in the KV cache, those of a step in flight included."""
    blocks: list[int] = field(default_factory=list)
    in_flight: int = 0
    """Steps that carry it and have not come back."""
    stopping: bool = False
    dropped: bool = False
    unread: bool = False
    last_step: int = 0

    @property
    def remaining(self) -> int:
        return len(self.tokens) - self.computed

    @property
    def turn(self) -> tuple[bool, bool, int]:
        """Its place among those that wait: what is read before what is not, then an answer that
        was begun before a new one."""
        return self.unread, len(self.tokens) == len(self.request.prompt_ids), self.arrival


@dataclass(frozen=True, slots=True)
class Step:
    """A batch to run; `token_ids` are the first stage's rows."""

    number: int
    batch: Batch
    token_ids: tuple[int, ...]
    keys: tuple[SequenceKey, ...]
    """The sequence of each of the batch's steps."""
    decodes: int
    """Sequences that decode."""
    replayed: int
    """Rows that are output ids read again from what a call held."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step that came back means."""

    tokens: tuple[NewToken, ...]
    stopped: tuple[SequenceKey, ...]
    """Sequences that were to stop and whose last step this was."""


class Scheduler:
    """The running batch of one formation."""

    def __init__(self, settings: SchedulerSettings, kv_blocks: int, max_in_flight: int) -> None:
        self._settings = settings
        self._blocks = BlockAllocator(kv_blocks)
        self._max_in_flight = max_in_flight
        self._slots = list(range(settings.max_sequences))
        self._by_key: dict[SequenceKey, _Sequence] = {}
        self._waiting: list[_Sequence] = []
        self._running: dict[int, _Sequence] = {}
        self._flights: dict[int, dict[int, _Sequence]] = {}
        self._opens: list[_Sequence] = []
        self._closes: list[int] = []
        self._phases: dict[SequenceKey, Phase] = {}
        self._arrivals = 0
        self._number = 0
        self.preemptions = 0

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def queued(self) -> int:
        return len(self._waiting)

    @property
    def used_blocks(self) -> int:
        return self._blocks.used_count

    @property
    def in_flight(self) -> int:
        return len(self._flights)

    @property
    def has_work(self) -> bool:
        """Some step is to be made, or to come back."""
        return bool(self._running or self._waiting or self._flights)

    def take_phases(self) -> dict[SequenceKey, Phase]:
        """Phases that changed since the last call."""
        phases, self._phases = self._phases, {}
        return phases

    def start(
        self, key: SequenceKey, request: GenerationRequest, output_ids: Sequence[int]
    ) -> None:
        """Queues a sequence; its prompt and max_tokens must fit into all blocks together."""
        self._arrivals += 1
        tokens = [*request.prompt_ids, *output_ids]
        sequence = _Sequence(key, request, self._arrivals, tokens, len(output_ids))
        self._by_key[key] = sequence
        insort(self._waiting, sequence, key=lambda s: s.turn)

    def stop(self, key: SequenceKey) -> bool:
        """Frees a sequence; True when no step in flight carries it. A token of one that does is
        still told, and then the key is in its result's `stopped`."""
        sequence = self._by_key.get(key)
        if sequence is None:
            return True
        self._leave(sequence)
        if not sequence.in_flight:
            del self._by_key[key]
            return True
        sequence.stopping = True
        return False

    def set_unread(self, key: SequenceKey, unread: bool) -> None:
        """Whether anybody reads the sequence; one that starts is read."""
        sequence = self._by_key.get(key)
        if sequence is None or sequence.unread is unread:
            return
        waits = sequence in self._waiting
        if waits:
            self._waiting.remove(sequence)
        sequence.unread = unread
        if waits:
            insort(self._waiting, sequence, key=lambda s: s.turn)

    def drop(self, key: SequenceKey) -> None:
        """Frees a sequence; what a step in flight brings for it counts for nothing."""
        sequence = self._by_key.pop(key, None)
        if sequence is not None:
            sequence.dropped = True
            self._leave(sequence)

    def next_step(self) -> Step | None:
        """The next batch, or None when nothing may run before a step comes back."""
        if len(self._flights) >= self._max_in_flight:
            return None
        self._admit()
        running = self._allowed()
        decoding = [s for s in running if s.phase is Phase.DECODE and not s.in_flight]
        prefilling = [s for s in running if s.phase is Phase.PREFILL and s.remaining]
        if self._flights and not self._worth_overlapping(decoding, prefilling):
            return None
        chosen = [(s, 1) for s in self._choose_decodes(decoding, running)]
        decodes = len(chosen)
        budget = self._settings.token_budget - decodes
        for sequence in sorted(prefilling, key=lambda s: s.turn):
            # A decode that found no block may have sent this one back to the queue.
            if budget > 0 and sequence.phase is Phase.PREFILL:
                count = min(budget, sequence.remaining)
                chosen.append((sequence, count))
                budget -= count
        return self._depart(chosen, decodes) if chosen else None

    def complete(self, number: int, sampled: Iterable[Sampled]) -> StepResult:
        """A step came back."""
        flight = self._flights.pop(number)
        for sequence in flight.values():
            sequence.in_flight -= 1
        tokens = []
        for token in sampled:
            sequence = flight[token.slot]
            if sequence.dropped:
                continue
            tokens.append(NewToken(sequence.key, token.position, token.token_id, token.logprob))
            if not sequence.stopping:
                sequence.tokens.append(token.token_id)
                self._set_phase(sequence, Phase.DECODE)
        stopped = tuple(
            s.key for s in flight.values() if s.stopping and not s.dropped and not s.in_flight
        )
        for key in stopped:
            del self._by_key[key]
        return StepResult(tuple(tokens), stopped)

    def _worth_overlapping(self, decoding: list[_Sequence], prefilling: list[_Sequence]) -> bool:
        rows = sum(s.remaining for s in prefilling)
        return (
            len(decoding) + len(prefilling) >= self._settings.min_overlap_sequences
            or rows >= self._settings.min_overlap_rows
            or any(s.in_flight for s in prefilling)
        )

    def _allowed(self) -> list[_Sequence]:
        """Those that may run: the unread ones only while no reader waits for a first token."""
        running = self._running.values()
        awaited = any(not s.unread and s.phase is Phase.PREFILL for s in running)
        if awaited or (self._waiting and not self._waiting[0].unread):
            return [s for s in running if not s.unread]
        return list(running)

    def _admit(self) -> None:
        while self._waiting and sum(len(s.tokens) for s in self._opens) < MAX_OPENED_IDS:
            sequence = self._waiting[0]
            needed = blocks_for(len(sequence.tokens) + 1)
            if not self._has_room(needed):
                if sequence.unread or not self._make_room():
                    return
                continue
            self._waiting.pop(0)
            sequence.blocks = self._blocks.allocate(needed)
            sequence.slot = heappop(self._slots)
            self._running[sequence.slot] = sequence
            self._opens.append(sequence)
            self._set_phase(sequence, Phase.PREFILL)

    def _has_room(self, blocks: int) -> bool:
        if not self._slots:
            return False
        # One spare block for each that runs: it will need one within sixteen steps.
        return blocks + len(self._running) <= self._blocks.free_count or (
            not self._running and blocks <= self._blocks.free_count
        )

    def _make_room(self) -> bool:
        """Takes its place from an unread sequence that no step carries; False: there is none."""
        idle = [s for s in self._running.values() if s.unread and not s.in_flight]
        if idle:
            self._preempt(max(idle, key=lambda s: s.arrival))
        return bool(idle)

    def _choose_decodes(
        self, decoding: list[_Sequence], running: list[_Sequence]
    ) -> list[_Sequence]:
        """Those whose turn it is, each with a block for its next position."""
        everyone = sum(s.phase is Phase.DECODE for s in running)
        wanted = everyone // max(1, self._settings.min_overlap_sequences)
        batches = max(1, min(self._max_in_flight, wanted))
        limit = min(-(-everyone // batches), self._settings.token_budget)
        turn = sorted(decoding, key=lambda s: s.last_step)[:limit]
        chosen: list[_Sequence] = []
        # What is read takes its blocks first: from what is chosen already nobody can.
        for sequence in sorted(turn, key=lambda s: (s.unread, s.arrival)):
            if sequence.phase is Phase.DECODE and self._cover(sequence, chosen):
                chosen.append(sequence)
        return chosen

    def _cover(self, sequence: _Sequence, chosen: list[_Sequence]) -> bool:
        """Gives the sequence blocks for all its tokens; preempts the youngest for them, unread
        ones first."""
        while len(sequence.blocks) * BLOCK_SIZE < len(sequence.tokens):
            if self._blocks.free_count:
                sequence.blocks += self._blocks.allocate(1)
                continue
            candidates = (s for s in self._running.values() if s not in chosen)
            youngest = max(candidates, key=lambda s: (s.unread, s.arrival))
            if youngest.in_flight:
                return False
            self._preempt(youngest)
            if youngest is sequence:
                return False
        return True

    def _preempt(self, sequence: _Sequence) -> None:
        self.preemptions += 1
        self._vacate(sequence)
        sequence.computed = 0
        self._set_phase(sequence, Phase.QUEUED)
        insort(self._waiting, sequence, key=lambda s: s.turn)

    def _leave(self, sequence: _Sequence) -> None:
        self._phases.pop(sequence.key, None)
        if sequence.slot >= 0:
            self._vacate(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def _vacate(self, sequence: _Sequence) -> None:
        self._blocks.release(sequence.blocks)
        if sequence in self._opens:
            self._opens.remove(sequence)
        else:
            self._closes.append(sequence.slot)
        del self._running[sequence.slot]
        heappush(self._slots, sequence.slot)
        sequence.slot = -1

    def _depart(self, chosen: list[tuple[_Sequence, int]], decodes: int) -> Step:
        self._number += 1
        steps, token_ids, replayed = [], [], 0
        for sequence, count in chosen:
            start, end = sequence.computed, sequence.computed + count
            table = tuple(sequence.blocks[: blocks_for(end)])
            sample = end == len(sequence.tokens)
            steps.append(SequenceStep(sequence.slot, start, count, table, sample))
            token_ids += sequence.tokens[start:end]
            prompt = len(sequence.request.prompt_ids)
            replayed += max(0, min(end, prompt + sequence.held) - max(start, prompt))
            sequence.computed = end
            sequence.in_flight += 1
            sequence.last_step = self._number
        opens = tuple(
            SequenceOpen(
                s.slot,
                s.request.sampling,
                s.key.choice,
                s.request.prompt_ids,
                tuple(s.tokens[len(s.request.prompt_ids) :]),
            )
            for s in self._opens
        )
        batch = Batch(tuple(steps), opens, tuple(self._closes))
        self._opens, self._closes = [], []
        self._flights[self._number] = {s.slot: s for s, _ in chosen}
        keys = tuple(s.key for s, _ in chosen)
        return Step(self._number, batch, tuple(token_ids), keys, decodes, replayed)

    def _set_phase(self, sequence: _Sequence, phase: Phase) -> None:
        if sequence.phase is not phase:
            sequence.phase = phase
            self._phases[sequence.key] = phase
