"""Requests as a flow: amounts and rates, where `simulator.fleet.batch` has one generation each.

All requests are alike, of the workload's mean lengths. They wait in one queue, in their order, for
what all pipelines together take a second: the router is taken to spread them evenly. What a
pipeline has at a time, and how long its cycles are, is that of a steady rate. Of a pipeline that
ends the share of what it had goes back to the front of the queue, with the work that is left of it
and what has to be read, or sampled, again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from simulator.fleet.steady import Steady

NOTHING = 1e-9
"""Requests; fewer are rounding."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Requests a second from a time on."""

    at_s: float
    rps: float


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of every request."""

    input: int
    output: int


@dataclass(frozen=True, slots=True)
class Parcel:
    """Requests that came, or were moved, at about the same time."""

    arrival_s: float
    requests: float
    work: float = 1.0
    """Of each, as a share of a whole request's."""
    held: float = 0.0
    """Share of its answer that it goes on from."""
    shown: float = 0.0
    """Share that its reader has."""
    first_s: float | None = None
    left_s: float | None = None
    """When a pipeline of its ended, until there is a token that its reader had not."""


@dataclass(frozen=True, slots=True)
class Served:
    """A parcel in the batches of pipelines that are alike."""

    parcel: Parcel
    by: Steady
    read_s: float
    """When its prompts are read, and it goes on from what it held."""
    cycle_s: float
    ends_s: float

    def held(self, now_s: float, output: int) -> float:
        """Share of its answer that it has by then."""
        more = max(0.0, now_s - self.read_s) / (self.cycle_s * output)
        return min(1.0, self.parcel.held + more)

    def goes_on_s(self, output: int) -> float:
        """When its reader has a token that it had not."""
        again = max(0.0, self.parcel.shown - self.parcel.held)
        return min(self.ends_s, self.read_s + self.cycle_s * output * again)

    def first_s(self) -> float:
        """When its reader had the first token."""
        return self.read_s if self.parcel.first_s is None else self.parcel.first_s


@dataclass(frozen=True, slots=True)
class Done:
    """Requests that have ended together."""

    requests: float
    arrival_s: float
    first_s: float
    last_s: float


@dataclass(frozen=True, slots=True)
class Moved:
    """Requests that a pipeline's end moved, and that have gone on."""

    at_s: float
    requests: float
    gap_s: float


@dataclass(slots=True)
class Flow:
    """Time passes by `pass_to`, between which nothing changes but what is asked."""

    rates: Sequence[Rate]
    """In the order of their times."""
    lengths: Lengths
    migration: bool
    places: float
    """Requests that are followed at once; more are refused."""
    grain_s: float
    """Requests of so long a time are taken together."""
    arrived: float = 0.0
    refused: float = 0.0
    moves: float = 0.0
    again: float = 0.0
    """Tokens that were computed a second time."""
    lost: float = 0.0
    """Tokens that were thrown away, to be sampled again."""
    done: list[Done] = field(default_factory=list)
    moved: list[Moved] = field(default_factory=list)
    _at_s: float = 0.0
    _times: list[float] = field(init=False)
    """Of the rates."""
    finished: float = 0.0
    waiting: float = 0.0
    """Requests without a place in a batch."""
    _capacity_rps: float = 0.0
    _alike: Counter[Steady] = field(default_factory=Counter)
    """How many pipelines there are of a kind."""
    _queue: deque[Parcel] = field(default_factory=deque)
    _served: list[Served] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._times = [one.at_s for one in self.rates]

    @property
    def running(self) -> float:
        """Requests in batches."""
        return sum(one.parcel.requests for one in self._served)

    def tokens(self) -> float:
        """That readers of what is under way have."""
        output = self.lengths.output
        served = sum(
            one.parcel.requests * max(one.parcel.shown, one.held(self._at_s, output))
            for one in self._served
        )
        return output * (served + sum(one.requests * one.shown for one in self._queue))

    # Pipelines

    def serve_by(self, pipelines: Iterable[Steady], now_s: float) -> None:
        """These take requests from now on; what others had goes on with them until they end."""
        self.pass_to(now_s)
        self._alike = Counter(pipelines)
        self._capacity_rps = sum(n * one.capacity_rps for one, n in self._alike.items())

    def ended(self, by: Steady, alike: int, now_s: float) -> None:
        """One of so many pipelines that are alike has ended, with its share of what they had."""
        self.pass_to(now_s)
        share, kept, moved = 1.0 / alike, list[Served](), list[Parcel]()
        for one in self._served:
            if one.by is not by:
                kept.append(one)
                continue
            leaves = one.parcel.requests * share
            moved.append(self._left(one, leaves, now_s))
            rest = one.parcel.requests - leaves
            if rest > NOTHING:
                kept.append(replace(one, parcel=replace(one.parcel, requests=rest)))
        self._served = kept
        for parcel in sorted(moved, key=lambda one: one.arrival_s, reverse=True):
            self._put_first(parcel)

    def _left(self, one: Served, requests: float, now_s: float) -> Parcel:
        """What leaves a pipeline, as it waits for the next one."""
        parcel, lengths = replace(one.parcel, requests=requests), self.lengths
        if now_s < one.read_s:
            return parcel
        self._went_on(one, requests, now_s)
        has = one.held(now_s, lengths.output)
        held = has if self.migration else 0.0
        rows = lengths.input + held * lengths.output
        self.moves += requests
        self.again += requests * (lengths.input + has * lengths.output)
        self.lost += requests * (has - held) * lengths.output
        return replace(
            parcel,
            work=one.by.reading * rows / lengths.input + (1.0 - one.by.reading) * (1.0 - held),
            held=held,
            shown=max(parcel.shown, has),
            first_s=one.first_s(),
            left_s=now_s if parcel.left_s is None or has > parcel.shown else parcel.left_s,
        )

    def _went_on(self, one: Served, requests: float, now_s: float) -> None:
        left_s, goes_on_s = one.parcel.left_s, one.goes_on_s(self.lengths.output)
        if left_s is not None and goes_on_s <= now_s:
            self.moved.append(Moved(left_s, requests, goes_on_s - left_s))

    # Time

    def pass_to(self, now_s: float) -> None:
        """Serves what came until then."""
        while now_s - self._at_s > NOTHING:
            until_s = min(now_s, self._at_s + self.grain_s)
            later = bisect_right(self._times, self._at_s + NOTHING)
            self._pass(min([until_s, *self._times[later : later + 1]]))

    def _pass(self, until_s: float) -> None:
        seconds = until_s - self._at_s
        self._arrive(seconds)
        if self._capacity_rps > 0:
            self._serve(seconds)
        self._at_s = until_s
        left = list[Served]()
        for one in self._served:
            if one.ends_s > until_s:
                left.append(one)
                continue
            parcel = one.parcel
            self._went_on(one, parcel.requests, until_s)
            self.done.append(Done(parcel.requests, parcel.arrival_s, one.first_s(), one.ends_s))
            self.finished += parcel.requests
        self._served = left

    def _arrive(self, seconds: float) -> None:
        begun = bisect_right(self._times, self._at_s + NOTHING)
        come = self.rates[begun - 1].rps * seconds if begun else 0.0
        taken = min(come, max(0.0, self.places - self.waiting - self.running))
        self.arrived += come
        self.refused += come - taken
        if taken > NOTHING:
            self._queue.append(Parcel(self._at_s + seconds / 2, taken))
            self.waiting += taken

    def _put_first(self, parcel: Parcel) -> None:
        self._queue.appendleft(parcel)
        self.waiting += parcel.requests

    def _serve(self, seconds: float) -> None:
        """As much of what waits as there is work done for."""
        taken, left = list[Parcel](), self._capacity_rps * seconds
        while self._queue and left > NOTHING:
            parcel = self._queue.popleft()
            self.waiting -= parcel.requests
            part = min(parcel.requests, left / parcel.work)
            if parcel.requests - part > NOTHING:
                self._put_first(replace(parcel, requests=parcel.requests - part))
                parcel = replace(parcel, requests=part)
            taken.append(parcel)
            left -= parcel.requests * parcel.work
        share = 1.0 - max(0.0, left) / (self._capacity_rps * seconds)
        for by, count in self._alike.items():
            part = count * by.capacity_rps / self._capacity_rps
            has = sum(one.parcel.requests for one in self._served if one.by is by)
            has += part * sum(one.requests for one in taken)
            load = min(share, by.load(has / count))
            at_s = self._at_s
            for parcel in taken:
                took_s = parcel.requests * parcel.work / self._capacity_rps
                begins_s = max(at_s + took_s / 2, parcel.arrival_s)
                at_s += took_s
                self._begin(replace(parcel, requests=parcel.requests * part), by, load, begins_s)

    def _begin(self, parcel: Parcel, by: Steady, load: float, now_s: float) -> None:
        """It has a place: it is read in the next cycle and has a token in each one behind that."""
        cycle_s, output = by.cycle_s(load), self.lengths.output
        waits = 0.5 * min(1.0, by.sequences(load))  # of a cycle that is under way as it comes
        read_s = now_s + cycle_s * (1.0 + waits)
        ends_s = read_s + cycle_s * max(0.0, (1.0 - parcel.held) * output - 1.0)
        self._served.append(Served(parcel, by, read_s, cycle_s, ends_s))
