"""Continuous batching of one pipeline, a cycle at a time: each generation of the batch has a step.

Prompts are read in chunks beside what decodes. Who has no room in the KV cache waits, in order;
when what decodes outgrows the cache, the youngest generation gives its room back and is computed
again. Ids are counted, not made. What happens to a generation in each cycle is never written down:
one that decodes has what it had when it began to, and one id for each cycle since.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class BatchLimits(Protocol):
    """Of a profile, what bounds a batch."""

    @property
    def token_budget(self) -> int: ...
    @property
    def max_sequences(self) -> int: ...


class CycleTimes(Protocol):
    """How long a pipeline's cycles take, and what it has room for."""

    @property
    def profile(self) -> BatchLimits: ...
    @property
    def stages(self) -> int: ...
    def room_positions(self) -> int: ...
    def cycle_s(self, decoding: int, context: float, prompt_rows: int, prompts: int) -> float: ...


@dataclass(slots=True, eq=False)
class Generation:
    """One request's generation, wherever it is."""

    number: int
    """Of its request."""
    arrival_s: float
    prompt: int
    output: int
    """Tokens that it comes to."""
    prefix: int = 0
    """Beginning of its prompt that all requests with one have in common."""
    held: int = 0
    """Tokens that it goes on from."""
    shown: int = 0
    """Tokens that its reader has."""
    read: int = 0
    """Rows that its pipeline has computed of prompt and `held`."""
    joined: int = -1
    """The cycle since which it decodes; -1: it is being read, or waits."""
    first_s: float | None = None
    last_s: float = 0.0
    """When the newest token came that its reader had not had."""
    moves: int = 0
    gap_s: float = 0.0
    """The longest time its reader waited for the next token because of a move."""
    again: int = 0
    """Rows that were computed again, and tokens sampled again, because it moved."""
    left_s: float | None = None
    """When its last pipeline broke off, until the next token."""
    hands_on: bool = False
    """It leaves its pipeline behind its first token."""
    began_at: str = ""
    """The pipeline that handed it on to the one that has it."""
    came: int = 0
    """Rows whose blocks come with it: they are not computed again."""
    sent_at: float = 0.0
    """Of these so many a second, at most, leave the pipeline that handed it on."""


@dataclass(frozen=True, slots=True)
class _Chunk:
    sequence: Generation
    rows: int


class Batch:
    """Of one pipeline. Times go by the caller's clock."""

    def __init__(self, times: CycleTimes) -> None:
        self._times = times
        self.room = times.room_positions()
        """Positions of the KV cache."""
        self._most = times.profile.max_sequences
        self.sampled = 0
        """Tokens."""
        self.preempted = 0
        """Times that a generation gave its room back."""
        self._cycle = 0
        self._waiting: deque[Generation] = deque()
        self._reading: list[Generation] = []
        self._decoding: dict[Generation, None] = {}
        """In the order in which they joined."""
        self._ending: defaultdict[int, list[Generation]] = defaultdict(list)
        """By the cycle with which they end; some have been preempted since."""
        self._catching: defaultdict[int, list[Generation]] = defaultdict(list)
        """By the cycle with which a reader that was moved gets a token that it had not."""
        self._used = 0
        """Positions that are taken, those of prompts that are still being read among them."""
        self._context = 0
        """Positions behind all that decode."""
        self._chunks: list[_Chunk] = []
        """Of the cycle under way."""
        self._handed_on: list[Generation] = []
        self._common = 0
        """Beginning of prompts that is in the cache."""

    @property
    def waiting(self) -> int:
        """Sequences that have no place in the batch."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._reading) + len(self._decoding)

    def fits(self, sequence: Generation) -> bool:
        """It alone could come to its end here."""
        return sequence.prompt + sequence.output <= self.room

    def has_place(self, sequence: Generation, coming: Sequence[Generation]) -> bool:
        """It would be admitted at once, those that are coming before it."""
        taken = self.running + len(coming)
        needs = sum(one.prompt + one.held + 1 for one in (*coming, sequence))
        free = self.room - self._used - len(self._decoding)
        return not self._waiting and taken < self._most and needs <= free

    def add(self, sequence: Generation) -> None:
        """It goes on from `held`. The caller has seen that it fits."""
        self._waiting.append(sequence)

    def settle(self) -> None:
        """Has every generation say what it holds by now."""
        for sequence in self._decoding:
            self._settle(sequence)

    def leave(self) -> list[Generation]:
        """All generations, each with what it holds: the pipeline has ended."""
        self.settle()
        left = [*self._decoding, *self._reading, *self._waiting]
        for sequence in left:
            sequence.joined, sequence.read = -1, 0
        self._waiting.clear()
        self._reading, self._decoding, self._chunks = [], {}, []
        self._used = self._context = 0
        return left

    def take_handed_on(self) -> list[Generation]:
        """Those that have left since the last time, each behind its first token."""
        handed_on, self._handed_on = self._handed_on, []
        return handed_on

    # Cycles

    def begin(self) -> float | None:
        """Makes up the next cycle and says how many seconds it takes; None: nothing is to be
        done."""
        self._make_room()
        self._admit()
        self._chunks = self._chunked()
        if not self._decoding and not self._chunks:
            return None
        decoding = len(self._decoding)
        return self._times.cycle_s(
            decoding,
            self._context / decoding if decoding else 0.0,
            sum(chunk.rows for chunk in self._chunks),
            len(self._chunks),
        )

    def end(self, now_s: float) -> list[Generation]:
        """The cycle has come to its end; those that ended with it."""
        self._cycle += 1
        decoding = len(self._decoding)
        self.sampled += decoding
        self._used += decoding
        self._context += decoding
        for sequence in self._catching.pop(self._cycle, ()):
            if sequence in self._decoding and self._held(sequence) == sequence.shown + 1:
                self._goes_on(sequence, now_s)
        ended = [s for s in self._ending.pop(self._cycle, ()) if s in self._decoding]
        ended = [s for s in ended if s.joined + s.output - s.held == self._cycle]
        for sequence in ended:
            del self._decoding[sequence]
            self._settle(sequence)
            self._context -= sequence.prompt + sequence.held
            self._used -= sequence.prompt + sequence.held
            sequence.joined, sequence.last_s = -1, now_s
        for chunk in self._chunks:
            sequence = chunk.sequence
            sequence.read += chunk.rows
            if sequence.read >= sequence.prompt + sequence.held:
                self._reading.remove(sequence)
                if self._first(sequence, now_s):
                    ended.append(sequence)
        self._chunks = []
        return ended

    def _first(self, sequence: Generation, now_s: float) -> bool:
        """All is read, and one token sampled behind it; True where that was the last."""
        self.sampled += 1
        self._used += 1
        sequence.held += 1
        self._common = max(self._common, sequence.prefix)
        if sequence.first_s is None:
            sequence.first_s = now_s
        if sequence.held > sequence.shown:
            self._goes_on(sequence, now_s)
        elif sequence.left_s is not None:
            self._catching[self._cycle + sequence.shown + 1 - sequence.held].append(sequence)
        sequence.last_s = now_s
        sequence.shown = max(sequence.shown, sequence.held)
        if sequence.held >= sequence.output:
            self._used -= sequence.prompt + sequence.held
            return True
        if sequence.hands_on:
            self._used -= sequence.prompt + sequence.held
            self._handed_on.append(sequence)
            return False
        sequence.joined = self._cycle
        self._decoding[sequence] = None
        self._context += sequence.prompt + sequence.held
        self._ending[self._cycle + sequence.output - sequence.held].append(sequence)
        return False

    def _goes_on(self, sequence: Generation, now_s: float) -> None:
        """Its reader gets a token that it had not had."""
        if sequence.left_s is not None:
            sequence.gap_s = max(sequence.gap_s, now_s - sequence.left_s)
            sequence.left_s = None

    def _held(self, sequence: Generation) -> int:
        """By one that decodes."""
        return sequence.held + self._cycle - sequence.joined

    def _settle(self, sequence: Generation) -> None:
        """Writes down what it has come to by now."""
        sequence.held = self._held(sequence)
        sequence.joined = self._cycle
        sequence.shown = max(sequence.shown, sequence.held)

    def _make_room(self) -> None:
        """Every one that decodes needs a position more."""
        while self._used + len(self._decoding) > self.room and self._decoding:
            sequence, _ = self._decoding.popitem()
            self._settle(sequence)
            self._context -= sequence.prompt + sequence.held
            self._used -= sequence.prompt + sequence.held
            sequence.joined = -1
            self.preempted += 1
            sequence.read = 0
            self._waiting.appendleft(sequence)

    def _admit(self) -> None:
        waiting = self._waiting
        while waiting and self.running < self._most:
            sequence = waiting[0]
            needs = sequence.prompt + sequence.held
            if self._used + needs + len(self._decoding) + 1 > self.room:
                return
            waiting.popleft()
            self._used += needs
            there = max(min(sequence.prefix, self._common), sequence.came)
            sequence.read, sequence.came = min(there, needs - 1), 0
            self._reading.append(sequence)

    def _chunked(self) -> list[_Chunk]:
        left = self._times.profile.token_budget * self._times.stages
        chunks = []
        for sequence in self._reading:
            rows = min(left, sequence.prompt + sequence.held - sequence.read)
            if rows <= 0:
                break
            chunks.append(_Chunk(sequence, rows))
            left -= rows
        return chunks
