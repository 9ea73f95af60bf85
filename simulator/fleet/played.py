"""A recording's requests, played to models of the pipelines that served them."""

from __future__ import annotations

from collections import defaultdict

from services.placement.estimate.engine import EngineProfile
from simulator.fleet.batch import Batch, Generation
from simulator.fleet.measured import MeasuredTimes
from simulator.fleet.recording import Recording, RequestRow


def play(recording: Recording, profile: EngineProfile) -> dict[int, Generation]:
    """Those that finished, by number, each at the pipeline that it was first recorded at. Raises
    FailedPrecondition where the profile lacks one of its stages."""
    played = {}
    for pipeline, requests in _by_pipeline(recording).items():
        kinds = [stage.kind for stage in recording.header.pipelines[pipeline]]
        played.update(_played(requests, MeasuredTimes(profile, kinds), profile))
    return played


def _by_pipeline(recording: Recording) -> dict[str, list[RequestRow]]:
    """Whoever was not seen anywhere counts for the pipeline with the fewest requests so
    far: a load that is left out would make the others fast."""
    shares: defaultdict[str, list[RequestRow]] = defaultdict(list)
    names = list(recording.header.pipelines)
    for request in recording.requests:
        if request.outcome == "finished" and request.output > 0 and names:
            known = request.pipeline in recording.header.pipelines
            least = min(names, key=lambda name: len(shares[name]))
            shares[request.pipeline if known else least].append(request)
    return {name: requests for name, requests in shares.items() if requests}


def _played(
    requests: list[RequestRow], times: MeasuredTimes, profile: EngineProfile
) -> dict[int, Generation]:
    batch, played, now_s, coming = Batch(times), dict[int, Generation](), 0.0, 0
    while True:
        while coming < len(requests) and requests[coming].arrival_s + profile.first_s <= now_s:
            one = requests[coming]
            played[one.number] = Generation(one.number, one.arrival_s, one.prompt, one.output)
            batch.add(played[one.number])
            coming += 1
        took_s = batch.begin()
        if took_s is not None:
            now_s += took_s
            batch.end(now_s)
        elif coming < len(requests):
            now_s = max(now_s, requests[coming].arrival_s + profile.first_s)
        else:
            return {n: g for n, g in played.items() if g.held >= g.output}
