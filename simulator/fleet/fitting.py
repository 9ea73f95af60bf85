"""Fits step times to one half of a recording: lines with no cost below zero, in which windows that
are far off weigh less. On a shared machine a few steps take many times what the others do: squared,
they alone would decide what a prompt costs.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from services.common.errors import FailedPrecondition
from services.placement.estimate.engine import BatchBounds, EngineProfile, StageCosts
from simulator.fleet.played import play
from simulator.fleet.recording import Recording
from simulator.fleet.result import tpot_s, ttft_s
from simulator.fleet.robust import MEDIAN, line
from simulator.fleet.stretch import Stretch
from simulator.fleet.work import Work

LEAST_WINDOWS = 8
"""Of a kind of stage: two for each cost."""
MOST_SHARED = 4.0
"""Of what another pipeline that is at work makes steps longer by."""
MOST_READING = 10.0
"""Times that prompts take longer than they are computed for."""
FIRST_ROUNDS = 3
"""What a cycle takes beside its steps and what a request does follow from each other."""
ROUNDS = 20
"""Halvings of what a cycle may take beside its stages' steps."""


@dataclass(frozen=True, slots=True)
class Residual:
    """How far one kind of stage is from its line, over the windows that were fitted."""

    kind: str
    windows: int
    error: float
    """Mean absolute difference, as a share of the mean measured time."""
    bias: float


def fit(
    recording: Recording, name: str, bounds: BatchBounds
) -> tuple[EngineProfile, list[Residual]]:
    """On what came in the first half. Raises FailedPrecondition
    where too little was recorded."""
    half_s = recording.header.seconds / 2
    fitted, residuals = {}, []
    rows_of = _rows(recording, 0.0, half_s)
    found = {kind: np.array(rows) for kind, rows in sorted(rows_of.items())}
    shared = _shared(list(found.values()))
    for kind, rows in found.items():
        if len(rows) < LEAST_WINDOWS:
            raise FailedPrecondition(
                f"{len(rows)} windows of {kind} have steps; {LEAST_WINDOWS} are needed",
                field="windows",
            )
        fitted[kind], residual = _stage(kind, rows, shared)
        residuals.append(residual)
    if not fitted:
        raise FailedPrecondition("no stage made a step in the first half", field="windows")
    profile = EngineProfile(name=name, stages=fitted, shared=shared, **bounds.model_dump())
    early = tuple(one for one in recording.requests if one.is_whole and one.arrival_s < half_s)
    if not early:
        raise FailedPrecondition("no request of the first half finished", field="requests")
    # Beside windows of which the requests are left out nobody would seem to be at work.
    windows = tuple(one for one in recording.windows if one.end_s <= half_s)
    first_half = replace(recording, requests=early, windows=windows)
    for _ in range(FIRST_ROUNDS):
        profile = _with_first(first_half, _with_cycle(first_half, profile))
    return profile, residuals


def computed_bias(recording: Recording, profile: EngineProfile, from_s: float) -> float:
    """By what share the profile's seconds on a core are off, of all steps that windows tell of from
    then on: how other the engines, or the machine, were. 0 where there are none."""
    told_s = measured_s = 0.0
    for kind, rows in _rows(recording, from_s, recording.header.seconds).items():
        costs, found = profile.stages[kind], np.array(rows)
        each = (costs.step_s, costs.row_s, costs.prompt_row_s, costs.context_s)
        told_s += float(((found[:, :4] @ each) * (1 + profile.shared * found[:, 5])).sum())
        measured_s += float(found[:, 4].sum())
    return told_s / measured_s - 1 if measured_s > 0 else 0.0


def _rows(recording: Recording, from_s: float, until_s: float) -> dict[str, list[list[float]]]:
    """By kind of stage, for each window with steps: steps, decoded sequences, prompt rows,
    positions behind what was decoded, seconds on a core, or all of them where nobody told, and how
    many other pipelines were at work."""
    work, reads = Work(recording), defaultdict(list)
    for request in recording.requests:
        before = 0
        for at_s, tokens in request.tokens:
            positions = (tokens - before) * (request.prompt + (before + tokens) / 2)
            if before:
                reads[request.pipeline].append((at_s, positions))
            before = tokens
    arrays = {name: np.array(sorted(found)) for name, found in reads.items()}
    rows: defaultdict[str, list[list[float]]] = defaultdict(list)
    for window in recording.windows:
        stages = recording.header.pipelines.get(window.pipeline, ())
        if window.begin_s < from_s or window.end_s > until_s:
            continue
        if not window.steps or window.stage >= len(stages):
            continue
        positions = 0.0
        if window.pipeline in arrays:
            found = arrays[window.pipeline]
            inside = (found[:, 0] > window.begin_s) & (found[:, 0] <= window.end_s)
            positions = float(found[inside, 1].sum())
        rows[stages[window.stage].kind].append(
            [
                window.steps,
                window.decoded,
                window.prompt_rows,
                positions,
                window.computed_s or window.stepped_s,
                work.beside(window.pipeline, window.begin_s, window.end_s),
            ]
        )
    return dict(rows)


def _shared(kinds: list[np.ndarray]) -> float:
    """The share that leaves the least of all stages' seconds unexplained; 0 where no two pipelines
    were at work at a time."""
    from scipy.optimize import minimize_scalar

    if not any(rows[:, 5].any() for rows in kinds):
        return 0.0

    def left(shared: float) -> float:
        return sum(_line(rows, shared)[1] for rows in kinds)

    found = float(minimize_scalar(left, bounds=(0.0, MOST_SHARED), method="bounded").x)
    return found if left(found) < left(0.0) else 0.0


def _line(rows: np.ndarray, shared: float) -> tuple[np.ndarray, float]:
    """Costs of a stage, and the sum of the losses of what they leave, in square seconds."""
    return line(rows[:, :4] * (1 + shared * rows[:, 5:]), rows[:, 4])


def _stage(kind: str, rows: np.ndarray, shared: float) -> tuple[StageCosts, Residual]:
    costs, _ = _line(rows, shared)
    seconds = rows[:, 4]
    off = (rows[:, :4] * (1 + shared * rows[:, 5:])) @ costs - seconds
    mean_s = max(float(seconds.mean()), 1e-12)
    step_s, row_s, prompt_row_s, context_s = (float(cost) for cost in costs)
    return (
        StageCosts(step_s=step_s, row_s=row_s, prompt_row_s=prompt_row_s, context_s=context_s),
        Residual(kind, len(rows), float(np.abs(off).mean()) / mean_s, float(off.mean()) / mean_s),
    )


def _with_cycle(recording: Recording, profile: EngineProfile) -> EngineProfile:
    """The mean time of a token is as it was recorded."""
    longer = [one for one in recording.requests if one.output > 1]
    if not longer:
        return profile
    recorded_s = fmean(one.tpot_s for one in longer)
    least_s, most_s = 0.0, recorded_s
    for _ in range(ROUNDS):
        cycle_s = (least_s + most_s) / 2
        played = play(recording, profile.model_copy(update={"cycle_s": cycle_s}))
        if fmean(tpot_s(played[one.number]) for one in longer) < recorded_s:
            least_s = cycle_s
        else:
            most_s = cycle_s
    return profile.model_copy(update={"cycle_s": least_s})


def _with_first(recording: Recording, profile: EngineProfile) -> EngineProfile:
    """What first tokens lack by a replay that has none of it a request takes beside steps, the more
    the more pipelines were at work when it came, and its prompt beside what stages compute of it:
    the medians are on a line, of times as the machine made them longer then."""
    work = Work(recording)
    without = profile.model_copy(update={"first_s": 0.0, "first_beside_s": 0.0, "reading": 1.0})
    played, stretch = play(recording, without), Stretch(recording, without)
    rows, lacks_s = [], []
    for one in recording.requests:
        stages = recording.header.pipelines.get(one.pipeline, ())
        row_s = sum(profile.stages[stage.kind].prompt_row_s for stage in stages)
        columns = np.array((1.0, work.count(one.arrival_s), row_s * one.prompt))
        rows.append(columns * stretch.at(one.pipeline, one.arrival_s))
        lacks_s.append(one.ttft_s - ttft_s(played[one.number]))
    first_s, beside_s, reading = map(float, line(np.array(rows), np.array(lacks_s), MEDIAN)[0])
    found = {
        "first_s": first_s,
        "first_beside_s": beside_s,
        "reading": min(MOST_READING, 1 + reading),
    }
    return profile.model_copy(update=found)
