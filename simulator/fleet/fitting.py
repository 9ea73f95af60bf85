"""Fits step times to one half of a recording: least squares with no cost below zero.

Source: Lawson and Hanson, Solving Least Squares Problems, 1974, chapter 23.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from statistics import fmean, median

import numpy as np

from services.common.errors import FailedPrecondition
from services.placement.estimate.engine import BatchBounds, EngineProfile, StageCosts
from simulator.fleet.played import play
from simulator.fleet.recording import Recording
from simulator.fleet.result import tpot_s, ttft_s

LEAST_WINDOWS = 8
"""Of a kind of stage: two for each cost."""
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
    for kind, rows in sorted(_rows(recording, half_s).items()):
        if len(rows) < LEAST_WINDOWS:
            raise FailedPrecondition(
                f"{len(rows)} windows of {kind} have steps; {LEAST_WINDOWS} are needed",
                field="windows",
            )
        fitted[kind], residual = _stage(kind, np.array(rows))
        residuals.append(residual)
    if not fitted:
        raise FailedPrecondition("no stage made a step in the first half", field="windows")
    profile = EngineProfile(name=name, stages=fitted, **bounds.model_dump())
    early = tuple(one for one in recording.requests if one.is_whole and one.arrival_s < half_s)
    if not early:
        raise FailedPrecondition("no request of the first half finished", field="requests")
    first_half = replace(recording, requests=early)
    profile = _with_cycle(first_half, profile)
    played = play(first_half, profile)
    first_s = max(0.0, median(one.ttft_s - ttft_s(played[one.number]) for one in early))
    return profile.model_copy(update={"first_s": first_s}), residuals


def _rows(recording: Recording, until_s: float) -> dict[str, list[list[float]]]:
    """By kind of stage, for each window with steps: steps, decoded sequences, prompt rows,
    positions behind what was decoded, and seconds on a core, or all of them where nobody told."""
    reads = defaultdict(list)
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
        if window.end_s > until_s or not window.steps or window.stage >= len(stages):
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
            ]
        )
    return dict(rows)


def _stage(kind: str, rows: np.ndarray) -> tuple[StageCosts, Residual]:
    from scipy.optimize import nnls

    counts, seconds = rows[:, :4], rows[:, 4]
    scale = np.maximum(counts.max(axis=0), 1.0)
    costs = nnls(counts / scale, seconds)[0] / scale
    off = counts @ costs - seconds
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
