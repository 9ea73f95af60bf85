"""A recording's requests, played to models of the pipelines that served them, moves among it.

Where a pipeline's generations left it (it was lost, or drained), they leave its batch with what
they hold by then, and are at the pipeline that they were recorded at next once a request's own time
has passed, to be read again. So where they go is the recording's; when they are there, and what
they cost those they come to, is the model's.

A cycle takes as much longer as the recording has it at that time, and so much for each other
pipeline that has one meanwhile. So does what a request takes before it is at its pipeline, which is
messages from one process to the next, each of which waits for a core where others compute.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from itertools import count

from services.placement.estimate.engine import EngineProfile
from simulator.fleet.batch import Batch, Generation
from simulator.fleet.measured import MeasuredTimes
from simulator.fleet.recording import ENDS, Recording, RequestRow
from simulator.fleet.stretch import Stretch


def play(recording: Recording, profile: EngineProfile) -> dict[int, Generation]:
    """Those that finished, by number. Raises FailedPrecondition where the profile lacks one of the
    stages."""
    return _Played(recording, profile).run()


@dataclass(slots=True, eq=False)
class _Pipeline:
    name: str
    times: MeasuredTimes
    batch: Batch
    ends_s: float | None = None
    """When the cycle that is under way does, with the others that are at work now."""


@dataclass(slots=True)
class _Played:
    recording: Recording
    profile: EngineProfile
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _order: count[int] = field(default_factory=count)
    _pipelines: dict[str, _Pipeline] = field(default_factory=dict)
    _ways: dict[int, deque[str]] = field(default_factory=dict)
    """By request, the pipelines that it is still to come to."""
    _now_s: float = 0.0
    _stretch: Stretch = field(init=False)

    def __post_init__(self) -> None:
        self._stretch = Stretch(self.recording, self.profile)

    def run(self) -> dict[int, Generation]:
        reading = _reading(self.profile)
        for name, stages in self.recording.header.pipelines.items():
            times = MeasuredTimes(reading, [stage.kind for stage in stages])
            self._pipelines[name] = _Pipeline(name, times, Batch(times))
        played = {}
        for first, row in _placed(self.recording):
            played[row.number] = one = Generation(row.number, row.arrival_s, row.prompt, row.output)
            self._ways[row.number] = deque(row.then)
            self._at(row.arrival_s, partial(self._arrives, first, one))
        for event in self.recording.events:
            if event.event in ENDS and event.pipeline in self._pipelines:
                self._at(event.at_s, partial(self._ends, self._pipelines[event.pipeline]))
        while (cycle := self._next_cycle()) is not None or self._events:
            if cycle is not None and (not self._events or cycle[0] < self._events[0][0]):
                self._now_s, pipeline = cycle
                self._cycle_ends(pipeline)
            else:
                self._now_s, _, happens = heappop(self._events)
                happens()
        return {n: one for n, one in played.items() if one.held >= one.output}

    def _at(self, at_s: float, happens: Callable[[], None]) -> None:
        heappush(self._events, (at_s, next(self._order), happens))

    def _arrives(self, name: str, one: Generation) -> None:
        """At the door: it is at its pipeline a request's own time later."""
        took_s = self.profile.first_s + self.profile.first_beside_s * len(self._working())
        comes_s = self._now_s + took_s * self._stretch.at(name, self._now_s)
        self._at(comes_s, partial(self._comes, name, one))

    def _comes(self, name: str, one: Generation) -> None:
        pipeline = self._pipelines[name]
        pipeline.batch.add(one)
        if pipeline.ends_s is None:
            self._begins(pipeline)

    def _cycle_ends(self, pipeline: _Pipeline) -> None:
        pipeline.batch.end(self._now_s)
        self._rests(pipeline)
        self._begins(pipeline)

    # Cycles take longer while others are under way

    def _next_cycle(self) -> tuple[float, _Pipeline] | None:
        """The cycle that ends next."""
        ends = [(one.ends_s, one) for one in self._pipelines.values() if one.ends_s is not None]
        return min(ends, key=lambda end: end[0], default=None)

    def _working(self) -> list[_Pipeline]:
        return [one for one in self._pipelines.values() if one.ends_s is not None]

    def _slower(self, working: int) -> float:
        """Than of a pipeline that is alone, where so many work."""
        others = max(0, working - 1)
        return (1 + self.profile.shared * others) * (1 + self._stretch.shared * others)

    def _begins(self, pipeline: _Pipeline) -> None:
        took_s = pipeline.batch.begin()
        if took_s is None:
            return
        working = self._working()
        self._change(working, len(working), len(working) + 1)
        took_s *= self._stretch.at(pipeline.name, self._now_s) * self._slower(len(working) + 1)
        pipeline.ends_s = self._now_s + took_s

    def _rests(self, pipeline: _Pipeline) -> None:
        if pipeline.ends_s is not None:
            pipeline.ends_s = None
            working = self._working()
            self._change(working, len(working) + 1, len(working))

    def _change(self, working: list[_Pipeline], before: int, now: int) -> None:
        """What is left of their cycles goes on as fast as it does among so many."""
        share = self._slower(now) / self._slower(before)
        for one in working:
            if one.ends_s is not None:
                one.ends_s = self._now_s + (one.ends_s - self._now_s) * share

    def _ends(self, pipeline: _Pipeline) -> None:
        left = pipeline.batch.leave()
        pipeline.batch = Batch(pipeline.times)
        self._rests(pipeline)
        for one in left:
            one.moves += 1
            if one.first_s is not None:
                one.left_s = self._now_s
            then = self._ways[one.number]
            self._arrives(then.popleft() if then else self._other(pipeline), one)

    def _other(self, pipeline: _Pipeline) -> str:
        """For one that had ended by then when it was recorded."""
        others = [one for one in self._pipelines.values() if one is not pipeline] or [pipeline]
        return min(others, key=lambda one: one.batch.running + one.batch.waiting).name


def _reading(profile: EngineProfile) -> EngineProfile:
    """Rows of prompts take as much longer as they wait."""
    stages = {
        kind: costs.model_copy(update={"prompt_row_s": costs.prompt_row_s * profile.reading})
        for kind, costs in profile.stages.items()
    }
    return profile.model_copy(update={"stages": stages})


def _placed(recording: Recording) -> list[tuple[str, RequestRow]]:
    """Requests that finished, each with its first pipeline. Whoever was not seen anywhere counts
    for the one with the fewest requests so far: a load that is left out would make the others
    fast."""
    shares: defaultdict[str, int] = defaultdict(int)
    names, placed = list(recording.header.pipelines), []
    for request in recording.requests:
        if request.outcome == "finished" and request.output > 0 and names:
            known = request.pipeline in recording.header.pipelines
            name = request.pipeline if known else min(names, key=lambda one: shares[one])
            shares[name] += 1
            placed.append((name, request))
    return placed
