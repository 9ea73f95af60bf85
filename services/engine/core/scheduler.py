"""Continuous batching with chunked prefill: which rows run in the next step.

Every step carries one row for each sequence that decodes and fills its token budget with prompt
rows: first those of streams that were moved here and wait in mid-answer, then first come first
served. Between tenants and classes, and between what is read and what is not, `turns` decides.

A sequence that decodes is in at most one step in flight, with its last id and guesses of the next
ones where they are worth their rows (docs/adr/0037); one whose prompt is in the making may be
in as many as there are stages, a piece each, for no piece but its last has to come back. Stages
work a step in the order they got it, so blocks and slots that are free here may be handed out again
at once. A preempted sequence is computed again from its ids; exactness makes that free of
consequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from services.common.exchange import Phase
from services.common.generation import GenerationRequest
from services.engine.backend import BLOCK_SIZE, Batch, Sampled, SequenceStep
from services.engine.core.actions import NewToken, SequenceKey
from services.engine.core.blocks import BlockAllocator, CacheUse, blocks_for
from services.engine.core.lookup import Lookup
from services.engine.core.sequence import BatchedSequence
from services.engine.core.sharing import Sharing
from services.engine.core.speculation import Speculation
from services.engine.core.step_cost import StepCost
from services.engine.core.turns import Turns

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
    max_drafts: int = 8
    """Guesses of a sequence in a step, at most; 0 for stages that are not exact, whose ids would
    depend on them."""
    share_prefixes: bool = True
    """Blocks whose ids are equal from the first on are one, and outlive their sequences."""
    hurried_rows: int = 16
    """Most prompt rows of a step of tenants that would pause for another's next request, if it
    came: it waits for the steps in flight. Or as many as take no longer than a step without any."""

    @property
    def max_asked(self) -> int:
        """Rows of a step that yield tokens, at most: their logits are held at once."""
        return min(self.token_budget, max(self.max_sequences, 1 + self.max_drafts))


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
    drafted: int
    """Rows that are guesses."""
    cache: CacheUse
    """What became of the prefix cache since the step before."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step that came back means."""

    tokens: tuple[NewToken, ...]
    stopped: tuple[SequenceKey, ...]
    """Sequences that were to stop and whose last step this was."""
    accepted: int
    """Guesses that were right."""


_Piece = tuple[BatchedSequence, int, tuple[int, ...]]
"""What a step carries of a sequence: so many of its next rows, and drafts behind them."""


@dataclass(frozen=True, slots=True)
class _Flight:
    """A step that has not come back."""

    step: Step
    sequences: dict[int, BatchedSequence]
    """By slot."""


class Scheduler:
    """The running batch of one formation."""

    def __init__(
        self,
        settings: SchedulerSettings,
        kv_blocks: int,
        max_in_flight: int,
        places: Mapping[bytes, int] | None = None,
    ) -> None:
        """Blocks of some names may lie in their `places` already."""
        self._settings = settings
        self._blocks = BlockAllocator(kv_blocks, sharing=settings.share_prefixes, places=places)
        self._sharing = Sharing(self._blocks)
        self._max_in_flight = max_in_flight
        self._slots = list(range(settings.max_sequences))
        self._by_key: dict[SequenceKey, BatchedSequence] = {}
        self._turns = Turns()
        self._running: dict[int, BatchedSequence] = {}
        self._flights: dict[int, _Flight] = {}
        self._speculation = Speculation(settings.max_drafts, settings.max_asked)
        self.step_cost = StepCost()
        """Of all steps; guesses are weighed by what those cost that read no prompts."""
        self._opens: list[BatchedSequence] = []
        self._closes: list[int] = []
        self._phases: dict[SequenceKey, Phase] = {}
        self._arrivals = 0
        self._number = 0
        self.preemptions = 0

    @property
    def settings(self) -> SchedulerSettings:
        return self._settings

    @property
    def present(self) -> tuple[list[BatchedSequence], list[BatchedSequence]]:
        """To look at: those that have a place, and those that wait for one."""
        return list(self._running.values()), list(self._turns)

    def find(self, key: SequenceKey) -> BatchedSequence | None:
        """To look at; None for one that is not here."""
        return self._by_key.get(key)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def queued(self) -> int:
        return len(self._turns)

    @property
    def used_blocks(self) -> int:
        return self._blocks.used_count

    @property
    def blocks(self) -> BlockAllocator:
        """To look at: what is cached, and how that changes."""
        return self._blocks

    @property
    def last_step(self) -> int:
        """The number of the last step that departed."""
        return self._number

    def is_back(self, number: int) -> bool:
        """No step up to this one is in flight."""
        return all(flown > number for flown in self._flights)

    @property
    def in_flight(self) -> int:
        return len(self._flights)

    @property
    def has_work(self) -> bool:
        """Some step is to be made, or to come back."""
        return bool(self._running or self._turns or self._flights)

    def take_phases(self) -> dict[SequenceKey, Phase]:
        """Phases that changed since the last call."""
        phases, self._phases = self._phases, {}
        return phases

    def start(
        self,
        key: SequenceKey,
        request: GenerationRequest,
        output_ids: Sequence[int],
        names: Sequence[bytes] = (),
    ) -> None:
        """Queues a sequence; its prompt and max_tokens must fit into all blocks together. `names`
        are those of its first blocks that are known."""
        self._arrivals += 1
        tokens = [*request.prompt_ids, *output_ids]
        lookup = Lookup(request, tokens)
        sequence = BatchedSequence(key, request, self._arrivals, tokens, len(output_ids), lookup)
        sequence.charged, sequence.names = len(tokens) if output_ids else 0, list(names)
        self._by_key[key] = sequence
        self._turns.comes(sequence, self._number)

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

    def full_blocks(self, key: SequenceKey, start: int) -> list[tuple[bytes, int]] | None:
        """Names and blocks of what a sequence has handed to the stages, from one of its blocks on;
        they are computed once the last step that departed is back. None: it is in no batch."""
        sequence = self._by_key.get(key)
        if sequence is None or sequence.slot < 0:
            return None
        indices = range(start, sequence.named)
        return [(sequence.block_hash(i), sequence.blocks[i]) for i in indices]

    def set_unread(self, key: SequenceKey, unread: bool) -> None:
        """Whether anybody reads the sequence; one that starts is read."""
        sequence = self._by_key.get(key)
        if sequence is not None and sequence.unread is not unread:
            self._turns.set_unread(sequence, unread)

    def drop(self, key: SequenceKey) -> None:
        """Frees a sequence; what a step in flight brings for it counts for nothing."""
        sequence = self._by_key.pop(key, None)
        if sequence is not None:
            self._leave(sequence)
            sequence.dropped = True

    def take_found(self, names: Sequence[bytes]) -> list[int]:
        """Blocks that hold the first of a chain's names: they are taken."""
        found = self._blocks.find(names)
        self._blocks.share(found)
        return found

    def offerable(self, names: Sequence[bytes]) -> list[int]:
        """Those that may be taken to be copied for others: a block is left to each that runs."""
        offered, spare = list[int](), self._spare
        for block in self._blocks.find(names):
            spare -= self._blocks.idle_among((block,))
            if spare < 0:
                break
            offered.append(block)
        return offered

    def take_free(self, names: Sequence[bytes]) -> list[int]:
        """A block for each of these, or for as many as there are: one is left to each that runs."""
        return self._blocks.allocate(min(len(names), self._spare), names)

    @property
    def _spare(self) -> int:
        """Blocks that may be taken beside what runs, which has one left for each."""
        return max(0, self._blocks.free_count - len(self._running) - 1)

    def give_beginning(
        self, found: Sequence[int], fresh: Sequence[int], names: Sequence[bytes]
    ) -> None:
        """Gives them back. The first of those that were free hold what goes by these names."""
        named = [self._blocks.name(block, name) for block, name in zip(fresh, names, strict=False)]
        self._blocks.release([*found, *named, *fresh[len(named) :]])

    def next_step(self) -> Step | None:
        """The next batch, or None when nothing may run before a step comes back. One more than the
        stages can work on at once is on its way where somebody is awaited: its rows are there when
        the first stage is free."""
        if len(self._flights) > self._max_in_flight:
            return None
        preemptions = self.preemptions
        self._admit()
        running = self._turns.allowed(self._running.values())
        decoding = [s for s in running if s.phase is Phase.DECODE and not s.in_flight]
        prefilling = [s for s in running if s.phase is Phase.PREFILL and s.remaining]
        awaited = bool(prefilling) and len(running) < len(self._running)  # somebody pauses for it
        if self._flights and not (awaited or self._has_work_beside(decoding, prefilling)):
            return None
        decodes = self._choose_decodes(decoding, running)
        given = self._given(decodes)
        budget = self._settings.token_budget - len(decodes) - sum(map(len, given))
        prompts: list[_Piece] = []
        hurried, hurried_rows = self._turns.hurried(prefilling), self._hurried_rows
        for sequence in self._turns.reading_order(prefilling):
            room = min(budget, hurried_rows) if sequence in hurried else budget
            # A decode that found no block may have sent this one back to the queue.
            if room > 0 and sequence.phase is Phase.PREFILL:
                self._sharing.take_over(sequence)
                count = min(room, sequence.remaining)
                prompts.append((sequence, count, ()))
                budget -= count
                hurried_rows -= count if sequence in hurried else 0
        # Who waits for a first token does not wait for guesses, too.
        drafts = given if prompts else self._drafts(decodes, given)
        pieces = [*((s, 1, d) for s, d in zip(decodes, drafts, strict=True)), *prompts]
        if not pieces and self.preemptions > preemptions:
            return self.next_step()  # whose turn it was gave its place up: it is another's
        return self._depart(pieces, len(decodes)) if pieces else None

    def complete(self, number: int, sampled: Sequence[Sampled], took_s: float = 0.0) -> StepResult:
        """A step came back; `took_s` is what it kept the stages from the next one, 0: not known."""
        flight = self._flights.pop(number)
        for sequence in flight.sequences.values():
            sequence.in_flight -= 1
        self.step_cost.observe(flight.step.batch.rows, took_s)
        if flight.step.decodes == len(flight.step.keys):
            self._speculation.cost.observe(flight.step.batch.rows, took_s)
        tokens, accepted = [], 0
        slots: set[int] = set()
        for token in sampled:
            sequence = flight.sequences[token.slot]
            if sequence.dropped:
                continue
            found = 0 if token.position else sequence.cached
            tokens.append(
                NewToken(
                    sequence.key,
                    token.position,
                    token.token_id,
                    token.logprob,
                    found,
                    token.stuck,
                )
            )
            if not (sequence.stopping or token.stuck):
                sequence.tokens.append(token.token_id)
                sequence.computed += token.slot in slots
                self._set_phase(sequence, Phase.DECODE)
            given = len(sequence.request.sampling.given_ids)
            accepted += token.slot in slots and token.position > given
            slots.add(token.slot)
        stopped = tuple(
            s.key
            for s in flight.sequences.values()
            if s.stopping and not s.dropped and not s.in_flight
        )
        for key in stopped:
            del self._by_key[key]
        return StepResult(tuple(tokens), stopped, accepted)

    @property
    def _hurried_rows(self) -> int:
        return max(self._settings.hurried_rows, int(self.step_cost.of(0) / self.step_cost.row))

    def _has_work_beside(
        self, decoding: list[BatchedSequence], prefilling: list[BatchedSequence]
    ) -> bool:
        """Enough for a step beside those in flight."""
        if len(self._flights) >= self._max_in_flight:
            return False
        rows = sum(s.remaining for s in prefilling)
        return (
            len(decoding) + len(prefilling) >= self._settings.min_overlap_sequences
            or rows >= self._settings.min_overlap_rows
            or any(s.in_flight for s in prefilling)
        )

    def _admit(self) -> None:
        taker: BatchedSequence | None = None
        while (
            sum(s.opened_ids for s in self._opens) < MAX_OPENED_IDS
            and (sequence := self._turns.first()) is not None
        ):
            found = self._sharing.found(sequence) if self._slots else []
            # Who was given a place has it, whoever may come for the last one.
            last = len(self._slots) == 1 and sequence is not taker
            kept = last and self._turns.leaves_last_place(sequence, self._settings.max_sequences)
            if kept or not self._has_room(self._sharing.lacking(sequence, found)):
                gives = self._turns.gives_place(sequence, self._running.values())
                if gives is None:
                    return
                self._preempt(gives)
                taker = sequence
                continue
            self._turns.enters(sequence)
            self._sharing.enter(sequence, found)
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

    @property
    def round_steps(self) -> int:
        """Steps by which each that runs and decodes has one row more."""
        return self._steps_for(sum(s.phase is Phase.DECODE for s in self._running.values()))

    def _steps_for(self, decodes: int) -> int:
        wanted = decodes // max(1, self._settings.min_overlap_sequences)
        return max(1, min(self._max_in_flight, wanted))

    def _choose_decodes(
        self, decoding: list[BatchedSequence], running: list[BatchedSequence]
    ) -> list[BatchedSequence]:
        """Those whose turn it is, each with a block for its next position."""
        everyone = sum(s.phase is Phase.DECODE for s in running)
        limit = min(-(-everyone // self._steps_for(everyone)), self._settings.token_budget)
        turn = sorted(decoding, key=lambda s: s.last_step)[:limit]
        chosen: list[BatchedSequence] = []
        # What is read takes its blocks first: from what is chosen already nobody can.
        for sequence in sorted(turn, key=lambda s: (s.lane, s.arrival)):
            if sequence.phase is Phase.DECODE and self._cover(sequence, chosen):
                chosen.append(sequence)
        return chosen

    def _cover(self, sequence: BatchedSequence, chosen: list[BatchedSequence]) -> bool:
        """Gives the sequence blocks for all its tokens; preempts the youngest for them, those that
        yield first."""
        while len(sequence.blocks) * BLOCK_SIZE < len(sequence.tokens):
            if self._blocks.free_count:
                sequence.blocks += self._blocks.allocate(1)
                continue
            candidates = (s for s in self._running.values() if s not in chosen)
            youngest = self._turns.gives_blocks(candidates, self._running.values())
            if youngest.in_flight:
                return False
            self._preempt(youngest)
            if youngest is sequence:
                return False
        return True

    def _given(self, decodes: list[BatchedSequence]) -> list[tuple[int, ...]]:
        """The ids that come next whatever the stages say, as far as there is room: each brings a
        token, as a guess would that is always right."""
        room, given = self._settings.max_asked - len(decodes), []
        for sequence in decodes:
            drafts = sequence.given(max(0, room))
            drafts = drafts[: self._sharing.reach(sequence, len(drafts), len(self._running))]
            room -= len(drafts)
            given.append(drafts)
        return given

    def _drafts(
        self, decodes: list[BatchedSequence], given: list[tuple[int, ...]]
    ) -> list[tuple[int, ...]]:
        """Guesses where the next id is not known, beside what is."""
        free = [s for s, known in zip(decodes, given, strict=True) if not known]
        guesses = self._speculation.drafts([s.lookup for s in free], sum(map(len, given)))
        spared, reach = len(self._running), self._sharing.reach
        drafts = iter([d[: reach(s, len(d), spared)] for s, d in zip(free, guesses, strict=True)])
        return [known or next(drafts) for known in given]

    def _preempt(self, sequence: BatchedSequence) -> None:
        self.preemptions += 1
        self._vacate(sequence)
        self._set_phase(sequence, Phase.QUEUED)
        self._turns.waits(sequence)

    def _leave(self, sequence: BatchedSequence) -> None:
        self._phases.pop(sequence.key, None)
        if not sequence.stopping:
            self._turns.goes(sequence)
        if sequence.slot >= 0:
            self._vacate(sequence)

    def _vacate(self, sequence: BatchedSequence) -> None:
        self._blocks.release(sequence.blocks)
        if sequence in self._opens:
            self._opens.remove(sequence)
        else:
            self._closes.append(sequence.slot)
        del self._running[sequence.slot]
        heappush(self._slots, sequence.slot)
        sequence.slot = -1

    def _depart(self, pieces: list[_Piece], decodes: int) -> Step:
        self._number += 1
        self._turns.departed(self._number)
        steps: list[SequenceStep] = []
        token_ids: list[int] = []
        replayed = drafted = 0
        for sequence, count, drafts in pieces:
            start, end, rows = sequence.computed, sequence.computed + count, count + len(drafts)
            table = tuple(sequence.blocks[: blocks_for(start + rows)])
            sample = end == len(sequence.tokens)
            steps.append(SequenceStep(sequence.slot, start, rows, table, sample, drafts))
            token_ids += (*sequence.tokens[start:end], *drafts)
            drafted += len(drafts) if drafts != sequence.given(len(drafts)) else 0
            if self._settings.max_drafts:
                sequence.lookup.read(end)
            prompt = len(sequence.request.prompt_ids)
            replayed += max(0, min(end, prompt + sequence.held) - max(start, prompt))
            if not sequence.last_step:
                sequence.cached = min(start, prompt)
            sequence.computed = end
            self._turns.computed(sequence, start, end)
            self._sharing.name(sequence, self._number)
            sequence.in_flight += 1
            sequence.last_step = self._number
        opens = tuple(sequence.opening for sequence in self._opens)
        batch = Batch(tuple(steps), opens, tuple(self._closes))
        self._opens, self._closes = [], []
        keys = tuple(s.key for s, _, _ in pieces)
        ids, use = tuple(token_ids), self._blocks.take_use()
        step = Step(self._number, batch, ids, keys, decodes, replayed, drafted, use)
        self._flights[self._number] = _Flight(step, {s.slot: s for s, _, _ in pieces})
        return step

    def _set_phase(self, sequence: BatchedSequence, phase: Phase) -> None:
        if sequence.phase is not phase:
            sequence.phase = phase
            self._phases[sequence.key] = phase
