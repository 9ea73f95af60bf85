"""When the pipelines of a recording were at work, and how many others were beside each.

Pipelines of one machine share its cores and caches: what one computes takes longer while another
computes, too.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator

from simulator.fleet.recording import ENDS, Recording, RequestRow

Span = tuple[float, float]
"""From when to when, in seconds."""


class Work:
    """A pipeline is at work while it has a request."""

    def __init__(self, recording: Recording) -> None:
        ends = defaultdict[str, list[float]](list)
        for event in recording.events:
            if event.event in ENDS:
                ends[event.pipeline].append(event.at_s)
        spans = defaultdict[str, list[Span]](list)
        for request in recording.requests:
            for pipeline, span in _stays(request, ends):
                spans[pipeline].append(span)
        self._spans = {name: _merged(found) for name, found in spans.items()}

    def count(self, at_s: float) -> int:
        """Pipelines that were at work then."""
        return sum(
            any(begin < at_s < end for begin, end in spans) for spans in self._spans.values()
        )

    def beside(self, pipeline: str, begin_s: float, end_s: float) -> float:
        """How many others were at work while this one was, on average; 0 where it was not."""
        own = _within(self._spans.get(pipeline, []), begin_s, end_s)
        worked_s = sum(end - begin for begin, end in own)
        if worked_s <= 0:
            return 0.0
        shared_s = sum(
            end - begin
            for name, spans in self._spans.items()
            if name != pipeline
            for part in own
            for begin, end in _within(spans, *part)
        )
        return shared_s / worked_s


def _stays(request: RequestRow, ends: dict[str, list[float]]) -> Iterator[tuple[str, Span]]:
    """Where it was, and when: it leaves a pipeline when that ends."""
    if not request.tokens:
        return
    since_s, until_s, way = (
        request.arrival_s,
        request.tokens[-1][0],
        (request.pipeline, *request.then),
    )
    for index, name in enumerate(way):
        left = [at_s for at_s in sorted(ends.get(name, ())) if since_s < at_s < until_s]
        left_s = left[0] if left and index + 1 < len(way) else until_s
        yield name, (since_s, left_s)
        since_s = left_s


def _merged(spans: list[Span]) -> list[Span]:
    merged: list[Span] = []
    for begin_s, end_s in sorted(spans):
        if merged and begin_s <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end_s, merged[-1][1])
        else:
            merged.append((begin_s, end_s))
    return merged


def _within(spans: list[Span], begin_s: float, end_s: float) -> list[Span]:
    """Those parts of them, which are in order and apart."""
    first = max(0, bisect_right(spans, (begin_s, float("inf"))) - 1)
    found = []
    for since_s, until_s in spans[first:]:
        if since_s >= end_s:
            break
        if until_s > begin_s:
            found.append((max(begin_s, since_s), min(end_s, until_s)))
    return found
