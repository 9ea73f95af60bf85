"""How far one account of a load is from another: a replay from its recording, or two recordings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from services.common.errors import FailedPrecondition
from services.placement.estimate.engine import EngineProfile
from simulator.fleet import result
from simulator.fleet.fitting import computed_bias
from simulator.fleet.played import play
from simulator.fleet.recording import Recording

METRICS = ("ttft_s", "tpot_s", "e2e_s")
Times = Mapping[int, tuple[float, float, float]]
"""TTFT, TPOT and end to end by request, in seconds."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Of one metric; biases and errors are shares of the first account's."""

    p50: tuple[float, float]
    """Of the one and of the other account."""
    p90: tuple[float, float]
    p99: tuple[float, float]
    p50_bias: float
    p90_bias: float
    p99_bias: float
    error: float
    """Mean over the requests of the absolute difference, each as a share of its own."""


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Requests that both accounts have."""

    requests: int
    finished: tuple[int, int]
    """Of those that came in the second half, by the one and by the other account."""
    moved: tuple[int, int]
    """Of these, by the one and by the other account."""
    throughput_tokens_per_s: tuple[float, float]
    """From the first arrival to the last end."""
    throughput_bias: float
    computed_bias: float
    """Of the profile, in seconds on a core of the second half's steps; 0 between recordings."""
    metrics: dict[str, Difference]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def replayed(recording: Recording, profile: EngineProfile) -> Fidelity:
    """What came in the second half, recorded and played; the first half is played before it.
    Raises FailedPrecondition where nothing is to be compared."""
    half_s = recording.header.seconds / 2
    played = play(recording, profile)
    times = {
        number: (result.ttft_s(one), result.tpot_s(one), result.e2e_s(one))
        for number, one in played.items()
    }
    moved = {number for number, one in played.items() if one.moves}
    found = _compared(recording, half_s, (_times(recording), times), (_moved(recording), moved))
    return replace(found, computed_bias=computed_bias(recording, profile, half_s))


def repeated(recording: Recording, other: Recording) -> Fidelity:
    """The second halves of two recordings of one load. Raises FailedPrecondition where it is
    another load."""
    loads = [
        [(one.number, one.prompt) for one in sorted(r.requests, key=lambda o: o.number)]
        for r in (recording, other)
    ]
    if loads[0] != loads[1]:
        raise FailedPrecondition("the two recordings are of different loads", field="against")
    return _compared(
        recording,
        recording.header.seconds / 2,
        (_times(recording), _times(other)),
        (_moved(recording), _moved(other)),
    )


def _moved(recording: Recording) -> set[int]:
    return {one.number for one in recording.requests if one.moves}


def _times(recording: Recording) -> Times:
    return {
        one.number: (one.ttft_s, one.tpot_s, one.e2e_s)
        for one in recording.requests
        if one.is_whole
    }


def _compared(
    recording: Recording,
    from_s: float,
    times: tuple[Times, Times],
    moved: tuple[set[int], set[int]],
) -> Fidelity:
    ones, others = times
    rows = [
        one
        for one in recording.requests
        if one.arrival_s >= from_s and one.number in ones and one.number in others
    ]
    if not rows:
        raise FailedPrecondition("no request of the second half is in both", field="requests")
    numbers = [one.number for one in rows]
    tokens = sum(one.output for one in rows)
    rates = [
        tokens
        / max(1e-9, max(one.arrival_s + t[one.number][2] for one in rows) - rows[0].arrival_s)
        for t in (ones, others)
    ]
    metrics = {
        name: _difference([ones[n][i] for n in numbers], [others[n][i] for n in numbers])
        for i, name in enumerate(METRICS)
    }
    came = [one.number for one in recording.requests if one.arrival_s >= from_s]
    finished = sum(n in ones for n in came), sum(n in others for n in came)
    both = len(moved[0].intersection(numbers)), len(moved[1].intersection(numbers))
    bias = rates[1] / rates[0] - 1
    return Fidelity(len(rows), finished, both, (rates[0], rates[1]), bias, 0.0, metrics)


def _difference(ones: list[float], others: list[float]) -> Difference:
    one, other = result.percentiles(ones), result.percentiles(others)
    error = fmean(abs(_share(b - a, a)) for a, b in zip(ones, others, strict=True))
    return Difference(
        (one["p50"], other["p50"]),
        (one["p90"], other["p90"]),
        (one["p99"], other["p99"]),
        _share(other["p50"] - one["p50"], one["p50"]),
        _share(other["p90"] - one["p90"], one["p90"]),
        _share(other["p99"] - one["p99"], one["p99"]),
        error,
    )


def _share(off: float, of: float) -> float:
    return off / of if of > 0 else 0.0
